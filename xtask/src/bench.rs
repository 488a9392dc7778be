//! `cargo xtask bench`: builds what is measured and starts the measuring program.
//!
//! The program itself is `traffic-bench` in the test package, whose fixtures it shares.

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{build, test, vnstat};

/// Builds the release binary, then runs `traffic-bench` with the environment of the tests.
pub(crate) fn bench(sh: &Shell, install: bool, args: &[String]) -> Result<()> {
    test::prepare(sh, install)?;
    let built = build::release(sh, install)?;
    let _env = built.ebpf.enter(sh)?;
    let _runner = test::as_root(sh)?;
    let _binary = sh.push_env(test::BINARY, &built.binary);
    let _vnstat = vnstat::find(sh, install).map(|folder| sh.push_env(vnstat::FOLDER, folder));
    cmd!(sh, "cargo run --release --package traffic-tests --bin traffic-bench -- {args...}")
        .run()
        .context("measure")
}
