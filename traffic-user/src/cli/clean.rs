//! `traffic clean`: take off all of ours and nothing else.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Common, print};
use crate::{
    meter::{self, Lock},
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
    let said = meter::clean(&common.pins, args.dry_run)?;
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
