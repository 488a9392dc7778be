//! `cargo xtask build`: the release binary with the eBPF object inside.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use xshell::{Shell, cmd};

use crate::{
    place,
    toolchain::{self, Ebpf},
};

/// The release binary and the environment it was built with.
pub(crate) struct Built {
    /// `target/release/traffic`.
    pub(crate) binary: PathBuf,
    /// What a further build in the release profile must be told, or it would embed another object.
    pub(crate) ebpf: Ebpf,
}

/// Builds `traffic`, after making sure that eBPF can be compiled.
pub(crate) fn release(sh: &Shell, install: bool) -> Result<Built> {
    let ebpf = toolchain::ensure(sh, install)?;
    let _env = ebpf.enter(sh)?;
    // Naming the test package as well gives both the same features of shared dependencies, so that
    // `test` and `bench` do not compile them, and our library, a second time.
    cmd!(sh, "cargo build --release --package traffic-user --package traffic-tests --bin traffic")
        .run()
        .context("build traffic")?;
    let binary = place::target().join("release").join("traffic");
    ensure!(binary.is_file(), "cargo was content, but {} is not there", binary.display());
    Ok(Built { binary, ebpf })
}
