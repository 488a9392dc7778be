//! Does it work here? Found out by doing it, where nobody is counted.

use nix::sched::{CloneFlags, unshare};

use super::{
    DEADLINE, about::About, first_line, kernel::Kernel, parse::Family, ruleset, set, tool,
};
use crate::{accounting::ident::Groups, meter::error::MeterError, run};

/// Sets rules in a network namespace that exists only for this, and looks at them. Without the right
/// to make one, the kernel is asked whether it would take them.
///
/// # Errors
///
/// Why it does not work, for people.
pub fn try_here() -> Result<(), String> {
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let apart = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            attempt(apart).map_err(|error| error.to_string())
        });
        tried.join().unwrap_or_else(|_| Err("the trial panicked".to_owned()))
    })
}

fn attempt(apart: bool) -> Result<(), MeterError> {
    let tool = tool()?;
    let mut kernel = Kernel::open()?;
    kernel.generation()?;
    let groups = Groups::parse("443,20000-20009/udp", 2).unwrap_or_default();
    let about =
        About { epoch: 1, since: 0, boot: 0, persist: false, gap: false, entries: Vec::new() };
    let about = about.watching(&groups);
    let size = ruleset::size_for(&about);
    let script = ruleset::script(&about, size, &std::collections::HashMap::new());
    if !apart {
        let said = run::run(&tool, &["-c", "-f", "-"], &script, DEADLINE);
        return match said {
            Ok(said) if said.done() => Ok(()),
            Ok(said) => Err(refused(&first_line(&said.stderr))),
            Err(error) => Err(refused(&first_line(&error.to_string()))),
        };
    }
    set(&tool, "set nft rules", &script)?;
    let found = kernel.tables(&Family::OURS)?;
    let wanted = ruleset::wanted(&about, size);
    let (lost, _) = ruleset::compare(&wanted, about.epoch, &found.tables);
    if lost.is_empty() {
        Ok(())
    } else {
        Err(refused(&first_line(&format!("the kernel lacks {}", lost.join(", ")))))
    }
}

fn refused(reason: &str) -> MeterError {
    MeterError::Unsupported { feature: "counting with nftables", reason: reason.to_owned() }
}
