//! Root's rights for the few things that need them: by sudo when a user runs us.

use std::{env, ffi::OsStr, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::Result;
use xshell::{Cmd, Shell, cmd};

use crate::{missing::Missing, place};

/// Whether this process is root. `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

/// The words to put in front of a command that needs root: none, or `sudo`.
///
/// # Errors
///
/// [`Missing`] for a user on a machine without sudo.
pub(crate) fn prefix() -> Result<&'static [&'static str]> {
    if is_root() {
        return Ok(&[]);
    }
    if place::program("sudo").is_some() {
        return Ok(&["sudo"]);
    }
    let words: Vec<_> = env::args().skip(1).collect();
    Err(Missing {
        what: "root's rights, and sudo to get them".to_owned(),
        cure: format!("run `cargo xtask {}` as root", words.join(" ")),
    }
    .into())
}

/// A command of the shell with root's rights.
pub(crate) fn command<'a>(sh: &'a Shell, words: &[&str]) -> Result<Cmd<'a>> {
    let mut words = prefix()?.iter().chain(words);
    let program = words.next().unwrap_or(&"true");
    Ok(cmd!(sh, "{program} {words...}"))
}

/// The same as a plain process, to take the place of ours.
pub(crate) fn process(program: &Path) -> Result<Command> {
    Ok(match prefix()? {
        [] => Command::new(program),
        [wrapper, rest @ ..] => {
            let mut command = Command::new(wrapper);
            command.args(rest.iter().map(OsStr::new)).arg(program);
            command
        }
    })
}
