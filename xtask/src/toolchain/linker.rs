//! bpf-linker: finding one that runs and is of a known LLVM, or building it.
//!
//! It reads the bitcode that the compiler writes, so its LLVM must be the compiler's. Each is kept
//! in the cache under the number of its LLVM; it comes there by a rename when it is complete.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, ensure};
use xshell::{Shell, cmd};

use super::{cargo, llvm_folder};
use crate::place;

/// The release that fits aya; its features name these LLVMs.
pub(super) const VERSION: &str = "0.13";
/// The LLVMs it can be built with.
pub(super) const LLVMS: [u32; 3] = [21, 22, 23];

/// A linker that was seen to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linker {
    /// Where the program is.
    pub(super) folder: PathBuf,
    /// The LLVM inside.
    pub(super) llvm: u32,
}

/// Where the one of an LLVM is kept.
pub(super) fn folder(llvm: u32) -> Result<PathBuf> {
    Ok(place::cache()?.join(format!("bpf-linker-llvm{llvm}")))
}

/// Those of the cache, then one of `PATH` if it tells its LLVM.
pub(super) fn find(sh: &Shell) -> Result<Vec<Linker>> {
    let mut found = Vec::new();
    for llvm in LLVMS {
        let bin = folder(llvm)?.join("bin");
        if runs(sh, &bin.join("bpf-linker")) {
            found.push(Linker { folder: bin, llvm });
        }
    }
    if let Some(program) = place::on_path("bpf-linker")
        && runs(sh, &program)
        && let Some(llvm) = shared_llvm(sh, &program)
        && let Some(folder) = program.parent()
    {
        found.push(Linker { folder: folder.to_owned(), llvm });
    }
    Ok(found)
}

/// A program whose shared LLVM was removed is still a file, but does not run.
fn runs(sh: &Shell, program: &Path) -> bool {
    program.is_file()
        && cmd!(sh, "{program} --version")
            .quiet()
            .ignore_stderr()
            .read()
            .is_ok_and(|text| fits(&text))
}

fn fits(version: &str) -> bool {
    version
        .trim()
        .strip_prefix("bpf-linker ")
        .and_then(|number| number.strip_prefix(VERSION))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// The linker does not say its LLVM, but the shared library that it was linked against has it in its
/// name. One that holds LLVM inside stays unknown and is not used.
fn shared_llvm(sh: &Shell, program: &Path) -> Option<u32> {
    let libraries = cmd!(sh, "ldd {program}").quiet().ignore_stderr().read().ok()?;
    parse_shared_llvm(&libraries)
}

fn parse_shared_llvm(libraries: &str) -> Option<u32> {
    let (_, name) = libraries.split_once("libLLVM")?;
    let number = name.trim_start_matches(['.', '-', 's', 'o']);
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number.get(..end)?.parse().ok()
}

/// The command that builds it, as a user would type it.
pub(super) fn command(llvm: u32, root: &str) -> String {
    let prefix = llvm_folder(llvm);
    let prefix = prefix.display();
    format!(
        "LLVM_PREFIX={prefix} LLVM_SYS_{llvm}1_PREFIX={prefix} cargo install bpf-linker --version \
         ^{VERSION} --no-default-features --features llvm-{llvm} --root {root}"
    )
}

/// Builds the linker of an LLVM into the cache.
pub(super) fn build(sh: &Shell, llvm: u32) -> Result<()> {
    let home = folder(llvm)?;
    eprintln!(
        "building bpf-linker {VERSION} with LLVM {llvm} into {} (links the eBPF object; about a minute, once)",
        home.display()
    );
    let staging = place::cache()?.join(format!(".bpf-linker-llvm{llvm}.{}", process::id()));
    let built = build_into(sh, llvm, &staging, &home);
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| format!("remove {}", staging.display()))?;
    }
    built.with_context(|| format!("build bpf-linker with LLVM {llvm}"))
}

fn build_into(sh: &Shell, llvm: u32, staging: &Path, home: &Path) -> Result<()> {
    let prefix = llvm_folder(llvm);
    let cargo = cargo(sh);
    let (version, feature) = (format!("^{VERSION}"), format!("llvm-{llvm}"));
    // LLVM_PREFIX as well: without it the build takes the first LLVM it finds on the machine.
    cmd!(sh, "{cargo} install bpf-linker --version {version} --no-default-features --features {feature} --root {staging}")
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env_remove("CARGO_TARGET_DIR")
        .run()?;
    ensure!(runs(sh, &staging.join("bin/bpf-linker")), "what was built does not run");
    if home.exists() {
        if runs(sh, &home.join("bin/bpf-linker")) {
            return Ok(()); // Another build was faster.
        }
        fs::remove_dir_all(home)
            .with_context(|| format!("remove {}, which does not run", home.display()))?;
    }
    fs::rename(staging, home).with_context(|| format!("move it to {}", home.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_release_that_fits_aya_is_taken() {
        assert!(fits("bpf-linker 0.13.0\n"));
        assert!(!fits("bpf-linker 0.14.0"));
        assert!(!fits("bpf-linker 0.130.0"));
        assert!(!fits(""));
    }

    #[test]
    fn the_llvm_is_read_from_the_name_of_its_library() {
        let check = |libraries, want| assert_eq!(parse_shared_llvm(libraries), want, "{libraries}");
        check("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)", Some(22));
        check("\tlibLLVM-14.so.1 => /lib/x86_64-linux-gnu/libLLVM-14.so.1 (0x7f)", Some(14));
        check("\tlibLLVM.so.21.1-rust-1.95.0-stable => not found", Some(21));
        check("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)", None);
    }
}
