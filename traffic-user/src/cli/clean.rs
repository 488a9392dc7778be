//! `traffic clean`: take off all of ours and nothing else.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{
    Common, print,
    run::{ledger_options, lock},
};
use crate::{
    daemon::clean_alone,
    ledger::Reader,
    meter::{self, Lock, MeterError},
    view::json::JSON_VERSION,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    // Not under the feet of a daemon that counts.
    let _lock = if args.dry_run { None } else { Some(Lock::of_this_netns(None)?) };
    let clean = || meter::clean(&common.pins, args.dry_run);
    let said = if args.dry_run { clean()? } else { booked(common, clean)? };
    if common.json {
        let document = json!({
            "jsonversion": JSON_VERSION,
            "dry_run": args.dry_run,
            "removed": said,
        });
        print(&format!("{document}\n"))?;
    } else if said.is_empty() {
        print("nothing of ours is here\n")?;
    } else {
        let verb = if args.dry_run { "would remove" } else { "removed" };
        let lines: String = said.iter().map(|line| format!("{verb} {line}\n")).collect();
        print(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes off with `clean`. What that goes on counting without a daemon is booked first, where there is a
/// ledger, so that nothing of it is lost, and the next start misses nothing that went on purpose.
pub(super) fn booked(
    common: &Common,
    clean: impl FnOnce() -> Result<Vec<String>, MeterError>,
) -> Result<Vec<String>> {
    let there = common.config.ledger != Some(false)
        && Reader::open(&common.state).is_ok_and(|reader| reader.is_some());
    let installed = || match meter::installed(&common.pins) {
        Ok(installed) => installed.map(|(snapshot, _)| snapshot),
        Err(error) => {
            tracing::debug!(%error, "what counts cannot be read");
            None
        }
    };
    let kernel = if there { installed() } else { None };
    let Some(kernel) = kernel else { return Ok(clean()?) };
    let _lock = match lock(common) {
        Ok(lock) => lock,
        // A daemon in another network namespace, or a folder that may only be read.
        Err(error) => {
            tracing::warn!(%error, "what was counted since the last booking is not booked");
            return Ok(clean()?);
        }
    };
    let books = (common.state.as_path(), ledger_options(&common.config)?);
    clean_alone(books, kernel, || Ok(clean()?), installed)
}
