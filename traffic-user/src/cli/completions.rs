//! `traffic completions`: a completion script for a shell.

use std::{io, process::ExitCode};

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::{Cli, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    // Into memory first: the generator does not survive a closed pipe.
    let mut script = io::Cursor::new(Vec::new());
    generate(args.shell, &mut Cli::command(), "traffic", &mut script);
    print(&String::from_utf8_lossy(script.get_ref()))?;
    Ok(ExitCode::SUCCESS)
}
