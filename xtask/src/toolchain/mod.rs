//! What compiling eBPF needs: a compiler whose own library source is at hand (`-Z build-std=core`)
//! and a bpf-linker of the same LLVM.
//!
//! Facts are gathered ([`facts`]), the next step follows from them ([`choice`], pure), the step is
//! announced and done, and the facts are gathered again, until all is there. No version is pinned:
//! Debian's security updates move its compiler, and with it LLVM, forward.

mod choice;
mod facts;
mod linker;

use std::{collections::BTreeSet, env, ffi::OsString, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use xshell::{PushEnv, Shell, cmd};

use crate::{apt, missing::Missing, place};
use choice::{Plan, Step};

/// Debian's compiler under this name among rustup's toolchains: aya-build calls `rustup run NAME`.
const LINK: &str = "traffic-ebpf";

/// What the build of the eBPF object is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ebpf {
    /// A name for `rustup run`; where there is no rustup, any text.
    toolchain: String,
    /// The compiler is not a nightly and must be told to accept `-Z`.
    bootstrap: bool,
    /// Folders for the front of `PATH`.
    path: Vec<PathBuf>,
}

impl Ebpf {
    /// Sets the environment of `traffic-user/build.rs` until the guards go out of scope.
    pub(crate) fn enter<'a>(&self, sh: &'a Shell) -> Result<Vec<PushEnv<'a>>> {
        let path = sh.var_os("PATH").unwrap_or_default();
        let path = env::join_paths(self.path.iter().cloned().chain(env::split_paths(&path)))
            .context("put bpf-linker in front of PATH")?;
        let mut guards =
            vec![sh.push_env("TRAFFIC_EBPF_TOOLCHAIN", &self.toolchain), sh.push_env("PATH", path)];
        if self.bootstrap {
            guards.push(sh.push_env("TRAFFIC_EBPF_BOOTSTRAP", "1"));
        }
        Ok(guards)
    }
}

/// Makes the eBPF build possible, or says what to do.
///
/// # Errors
///
/// [`Missing`] when something is needed that may not or cannot be installed; else what failed.
pub(crate) fn ensure(sh: &Shell, install: bool) -> Result<Ebpf> {
    let mut offers = None;
    let mut done: Vec<Step> = Vec::new();
    loop {
        let facts = facts::gather(sh, offers.take())?;
        let step = match choice::plan(&facts, &done) {
            Plan::Ready(ebpf) => return Ok(ebpf),
            Plan::Stuck(missing) => return Err(missing.into()),
            Plan::Do(step) => step,
        };
        if done.contains(&step) {
            bail!("{} went well and changed nothing; still missing: {}", step.cure(), step.what());
        }
        offers = facts.offers;
        match &step {
            // Only looks.
            Step::AskDebian => offers = Some(facts::offers(sh)),
            _ if !install => {
                return Err(Missing { what: step.what(), cure: step.cure() }.into());
            }
            Step::AddSource { toolchain } => add_source(sh, toolchain),
            Step::UpdateDebian { .. } => {
                apt::update(sh)?;
                offers = Some(facts::offers(sh));
            }
            Step::Install { packages, why } => {
                let packages: Vec<_> = packages.iter().map(String::as_str).collect();
                apt::install(sh, true, &packages, why)?;
            }
            Step::Link { prefix } => {
                eprintln!("linking the compiler in {} to rustup as {LINK}", prefix.display());
                cmd!(sh, "rustup toolchain link {LINK} {prefix}").quiet().run()?;
            }
            Step::BuildLinker { llvm } => linker::build(sh, *llvm)?,
        }
        done.push(step);
    }
}

/// May fail: not every rustup can reach a server, and another way follows.
fn add_source(sh: &Shell, toolchain: &str) {
    eprintln!("installing rustup component rust-src for {toolchain} (to compile eBPF)");
    let added = cmd!(sh, "rustup component add rust-src --toolchain {toolchain}").quiet().run();
    if let Err(err) = added {
        eprintln!("rustup cannot add rust-src ({err:#}); trying Debian's compiler");
    }
}

fn cargo(sh: &Shell) -> OsString {
    sh.var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn llvm_folder(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// The LLVMs whose headers and library are installed.
fn llvm_installed() -> BTreeSet<u32> {
    linker::LLVMS
        .into_iter()
        .filter(|llvm| {
            let folder = llvm_folder(*llvm);
            ["bin/llvm-config", "include/llvm-c/Core.h", "lib/libLLVM.so"]
                .into_iter()
                .all(|file| folder.join(file).exists())
        })
        .collect()
}

/// Whether rustup is where aya-build looks for it.
fn has_rustup() -> bool {
    place::on_path("rustup").is_some()
}
