//! `traffic clean`: take off all of ours and nothing else.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{
    Common, print,
    run::{ledger_options, lock},
};
use crate::{
    accounting::reading::Snapshot,
    daemon::{clean_alone, not_booked},
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
    // Not under the feet of a daemon that counts. A dry run promises no more than that.
    let _lock = Lock::of_this_netns(None)?;
    let clean = || meter::clean(&common.pins, args.dry_run);
    let read = || Ok(meter::installed(&common.pins)?.map(|(snapshot, _)| snapshot));
    let said = if args.dry_run { clean()? } else { booked(common, read, clean)? };
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

/// Takes off with `clean`. What goes on counting without a daemon, as `read` finds it, is booked first, where
/// there is a ledger, so that the next start misses nothing that went on purpose. Whatever is wrong with the
/// ledger is said, and keeps nothing from being taken off.
pub(super) fn booked(
    common: &Common,
    read: impl Fn() -> Result<Option<Snapshot>, MeterError>,
    clean: impl FnOnce() -> Result<Vec<String>, MeterError>,
) -> Result<Vec<String>> {
    let there = match Reader::open(&common.state) {
        Ok(reader) => reader.is_some(),
        Err(error) => {
            not_booked(&error.into());
            false
        }
    };
    if !there || common.config.ledger == Some(false) {
        return Ok(clean()?);
    }
    let ready = || Ok((lock(common)?, ledger_options(&common.config)?));
    match ready() {
        Ok((_lock, options)) => clean_alone((&common.state, options), read, || Ok(clean()?)),
        // A daemon in another network namespace, or a folder that may only be read.
        Err(error) => {
            not_booked(&error);
            Ok(clean()?)
        }
    }
}
