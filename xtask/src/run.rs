//! `cargo xtask run`: `traffic run` in the place of this process.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};
use xshell::Shell;

use crate::{build, root};

/// Returns only when `traffic` could not be started. Its process is ours, so that signals reach it
/// and its exit code is the command's.
pub(crate) fn run(sh: &Shell, install: bool, args: &[String]) -> Result<()> {
    let binary = build::release(sh, install)?.binary;
    let err = root::process(&binary)?.arg("run").args(args).exec();
    Err(err).with_context(|| format!("start {}", binary.display()))
}
