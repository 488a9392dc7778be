//! The next step towards a machine that can compile eBPF, from the facts alone.

use std::path::{Path, PathBuf};

use super::{
    Ebpf, LINK,
    facts::{Compiler, Facts, Via, parse_version},
    linker::{self, LLVMS},
    llvm_folder,
};
use crate::missing::Missing;

/// Something to do before the object can be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `rustup component add rust-src`.
    AddSource { toolchain: String },
    /// Look into apt's lists; changes nothing.
    AskDebian,
    /// Read the lists again, since `wanted` is not in them.
    UpdateDebian { wanted: String },
    /// Install Debian packages.
    Install { packages: Vec<String>, why: &'static str },
    /// Give a compiler outside rustup a name that `rustup run` knows.
    Link { prefix: PathBuf },
    /// Build bpf-linker with this LLVM.
    BuildLinker { llvm: u32 },
}

impl Step {
    /// What is missing before it.
    pub(super) fn what(&self) -> String {
        match self {
            Self::AddSource { .. } => {
                format!("{} and bpf-linker {} (compile eBPF)", source(), linker::VERSION)
            }
            Self::AskDebian => "Debian's list of packages".to_owned(),
            Self::UpdateDebian { wanted } => wanted.clone(),
            Self::Install { packages, why } => format!("{} ({why})", packages.join(" ")),
            Self::Link { prefix } => format!(
                "a name among rustup's toolchains for the compiler in {} (compile eBPF)",
                prefix.display()
            ),
            Self::BuildLinker { llvm } => {
                format!("bpf-linker {} with LLVM {llvm} (links the eBPF object)", linker::VERSION)
            }
        }
    }

    /// The command that does it.
    pub(super) fn cure(&self) -> String {
        match self {
            Self::AddSource { toolchain } => {
                format!("rustup component add rust-src --toolchain {toolchain}")
            }
            Self::AskDebian => "apt-cache policy".to_owned(),
            Self::UpdateDebian { .. } => "apt-get update".to_owned(),
            Self::Install { packages, .. } => {
                format!("apt-get install --no-install-recommends {}", packages.join(" "))
            }
            Self::Link { prefix } => format!("rustup toolchain link {LINK} {}", prefix.display()),
            Self::BuildLinker { llvm } => {
                let root = linker::folder(*llvm).map_or_else(
                    |_| "a folder of yours, its bin in PATH".to_owned(),
                    |folder| folder.display().to_string(),
                );
                linker::command(*llvm, &root)
            }
        }
    }
}

/// What follows from the facts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// All is there.
    Ready(Ebpf),
    /// This first, then look again.
    Do(Step),
    /// No step would help.
    Stuck(Missing),
}

/// The next step. `done` holds the steps that were tried: not all succeed.
pub(super) fn plan(facts: &Facts, done: &[Step]) -> Plan {
    match best(facts) {
        Some(compiler) => with_compiler(facts, done, compiler),
        None => without_compiler(facts, done),
    }
}

/// The oldest compiler that accepts the project.
fn oldest() -> (u32, u32) {
    parse_version(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

fn source() -> String {
    let (major, minor) = oldest();
    format!("a Rust compiler of {major}.{minor} or later with its library source")
}

/// New enough, and of an LLVM that a linker can be had for.
fn fits(compiler: &Compiler) -> bool {
    compiler.version >= oldest() && LLVMS.contains(&compiler.llvm) && compiler.cargo
}

/// Of the compilers with their source the one that needs least: a linker that is there, then one
/// that can be built, then no link, then a nightly (which needs no bootstrap), then the newest.
fn best(facts: &Facts) -> Option<&Compiler> {
    facts.compilers.iter().filter(|compiler| compiler.source && fits(compiler)).max_by_key(
        |compiler| {
            (
                linked(facts, compiler.llvm).is_some(),
                facts.llvm.contains(&compiler.llvm),
                offered(facts, compiler.llvm),
                callable(facts, compiler).is_some(),
                compiler.nightly,
                compiler.version,
            )
        },
    )
}

fn linked(facts: &Facts, llvm: u32) -> Option<&Path> {
    facts.linkers.iter().find(|linker| linker.llvm == llvm).map(|linker| linker.folder.as_path())
}

fn offered(facts: &Facts, llvm: u32) -> bool {
    facts.offers.as_ref().is_some_and(|offers| offers.llvm.contains(&llvm))
}

/// The name that `rustup run` takes, or any text where there is no rustup.
fn callable(facts: &Facts, compiler: &Compiler) -> Option<String> {
    match &compiler.via {
        Via::Rustup(name) => Some(name.clone()),
        Via::System(_) => (!facts.rustup).then(|| "system".to_owned()),
    }
}

fn with_compiler(facts: &Facts, done: &[Step], compiler: &Compiler) -> Plan {
    let llvm = compiler.llvm;
    if let Some(folder) = linked(facts, llvm) {
        let Some(toolchain) = callable(facts, compiler) else {
            return match &compiler.via {
                Via::System(prefix) => Plan::Do(Step::Link { prefix: prefix.clone() }),
                Via::Rustup(name) => Plan::Do(Step::AddSource { toolchain: name.clone() }),
            };
        };
        let mut path = vec![folder.to_owned()];
        if let Via::System(prefix) = &compiler.via {
            path.push(prefix.join("bin"));
        }
        return Plan::Ready(Ebpf { toolchain, bootstrap: !compiler.nightly, path });
    }
    if facts.llvm.contains(&llvm) {
        return Plan::Do(Step::BuildLinker { llvm });
    }
    let package = format!("llvm-{llvm}-dev");
    if offered(facts, llvm) {
        return Plan::Do(Step::Install {
            packages: vec![package],
            why: "bpf-linker is built with it",
        });
    }
    let wanted = format!("{package}, or bpf-linker {} with LLVM {llvm} in PATH", linker::VERSION);
    let step = ask(facts, done, &wanted);
    // A compiler whose linker cannot be had is no better than none: Debian's has its LLVM beside it.
    step.map_or_else(|| debian(facts, done, wanted), Plan::Do)
}

fn without_compiler(facts: &Facts, done: &[Step]) -> Plan {
    let rustups = facts.compilers.iter().filter(|compiler| fits(compiler));
    let toolchain = rustups
        .filter_map(|compiler| match &compiler.via {
            Via::Rustup(name) => Some(name),
            Via::System(_) => None,
        })
        // The active one builds the rest, so it is known to work.
        .max_by_key(|name| facts.active.as_ref() == Some(*name));
    if let Some(toolchain) = toolchain {
        let step = Step::AddSource { toolchain: toolchain.clone() };
        if !done.contains(&step) {
            return Plan::Do(step);
        }
    }
    debian(facts, done, format!("{} (compile eBPF)", source()))
}

/// Debian's compiler, if it is new enough.
fn debian(facts: &Facts, done: &[Step], wanted: String) -> Plan {
    let offers = facts.offers.iter().flat_map(|offers| &offers.compilers);
    let usable = offers.clone().find(|(_, version)| *version >= oldest());
    if let Some((packages, _)) = usable {
        let packages = packages.iter().map(|&package| package.to_owned()).collect();
        let step = Step::Install { packages, why: "a compiler with its library source, for eBPF" };
        if !done.contains(&step) {
            return Plan::Do(step);
        }
    }
    if let Some(step) = ask(facts, done, &wanted) {
        return Plan::Do(step);
    }
    let folders: Vec<_> = LLVMS.map(|llvm| llvm_folder(llvm).display().to_string()).into();
    Plan::Stuck(Missing {
        what: wanted,
        cure: format!(
            "rustup with component rust-src, or Debian's rustc-web, cargo-web, rust-web-src from the \
             security archive; and LLVM with headers in one of {}",
            folders.join(", ")
        ),
    })
}

/// A better view of what Debian offers, if there can be one.
fn ask(facts: &Facts, done: &[Step], wanted: &str) -> Option<Step> {
    if facts.offers.is_none() {
        return Some(Step::AskDebian);
    }
    let updated = done.iter().any(|step| matches!(step, Step::UpdateDebian { .. }));
    (facts.debian && !updated).then(|| Step::UpdateDebian { wanted: wanted.to_owned() })
}

#[cfg(test)]
mod tests;
