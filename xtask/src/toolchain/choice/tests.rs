//! Machines, and the step that follows on each.

use std::collections::BTreeSet;

use super::super::{facts::Offers, linker::Linker};
use super::*;

const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

fn compiler(via: Via, minor: u32, llvm: u32) -> Compiler {
    Compiler { via, version: (1, minor), nightly: false, llvm, source: true, cargo: true }
}

fn rustup(name: &str) -> Via {
    Via::Rustup(name.to_owned())
}

fn system() -> Via {
    Via::System("/usr".into())
}

fn linkers(llvms: &[u32]) -> Vec<Linker> {
    llvms
        .iter()
        .map(|&llvm| Linker { folder: format!("/cache/llvm{llvm}/bin").into(), llvm })
        .collect()
}

fn offers(minor: u32, llvms: &[u32]) -> Option<Offers> {
    let llvm = llvms.iter().copied().collect();
    Some(Offers { compilers: vec![(DEBIAN, (1, minor))], llvm })
}

/// A Debian with rustup and nothing else for eBPF.
fn bare() -> Facts {
    Facts {
        rustup: true,
        active: Some("stable".to_owned()),
        compilers: vec![Compiler { source: false, ..compiler(rustup("stable"), 95, 22) }],
        debian: true,
        ..Facts::default()
    }
}

fn ready(toolchain: &str, bootstrap: bool, path: &[&str]) -> Plan {
    let path = path.iter().map(PathBuf::from).collect();
    Plan::Ready(Ebpf { toolchain: toolchain.to_owned(), bootstrap, path })
}

fn add_source(toolchain: &str) -> Step {
    Step::AddSource { toolchain: toolchain.to_owned() }
}

fn updated() -> Step {
    Step::UpdateDebian { wanted: String::new() }
}

#[track_caller]
fn installs(plan: Plan, want: &[&str]) {
    match plan {
        Plan::Do(Step::Install { packages, .. }) => assert_eq!(packages, want),
        other => panic!("wanted an installation of {want:?}, got {other:?}"),
    }
}

#[test]
fn a_complete_machine_needs_nothing() {
    let mut facts = Facts {
        compilers: vec![compiler(rustup("stable"), 95, 22)],
        linkers: linkers(&[22]),
        ..bare()
    };
    assert_eq!(plan(&facts, &[]), ready("stable", true, &["/cache/llvm22/bin"]));
    facts.compilers[0].nightly = true;
    assert_eq!(plan(&facts, &[]), ready("stable", false, &["/cache/llvm22/bin"]));
}

#[test]
fn rustup_is_asked_for_the_source_once_and_then_debian() {
    let mut facts = bare();
    assert_eq!(plan(&facts, &[]), Plan::Do(add_source("stable")));
    let mut done = vec![add_source("stable")];
    assert_eq!(plan(&facts, &done), Plan::Do(Step::AskDebian));
    facts.offers = offers(96, &[22]);
    installs(plan(&facts, &done), &DEBIAN);

    facts.compilers.push(compiler(system(), 96, 22));
    installs(plan(&facts, &done), &["llvm-22-dev"]);
    facts.llvm.insert(22);
    assert_eq!(plan(&facts, &done), Plan::Do(Step::BuildLinker { llvm: 22 }));
    facts.linkers = linkers(&[22]);
    assert_eq!(plan(&facts, &done), Plan::Do(Step::Link { prefix: "/usr".into() }));
    facts.compilers[1].via = rustup(LINK);
    done.push(Step::Link { prefix: "/usr".into() });
    assert_eq!(plan(&facts, &done), ready(LINK, true, &["/cache/llvm22/bin"]));
}

#[test]
fn the_active_toolchain_is_the_one_that_gets_the_source() {
    let mut facts = bare();
    facts.compilers.insert(0, Compiler { source: false, ..compiler(rustup("other"), 99, 22) });
    facts.compilers.push(Compiler { source: false, ..compiler(rustup("last"), 99, 22) });
    assert_eq!(plan(&facts, &[]), Plan::Do(add_source("stable")));
    // Its LLVM is one that no linker reads, so the source would not help.
    facts.compilers[1].llvm = 20;
    assert_ne!(plan(&facts, &[]), Plan::Do(add_source("stable")));
}

#[test]
fn without_rustup_the_plain_compiler_is_called() {
    let mut facts = Facts {
        rustup: false,
        active: None,
        compilers: vec![compiler(system(), 96, 22)],
        linkers: linkers(&[22]),
        ..bare()
    };
    assert_eq!(plan(&facts, &[]), ready("system", true, &["/cache/llvm22/bin", "/usr/bin"]));
    // rustup cannot help, so Debian is asked at once.
    facts.compilers[0].source = false;
    assert_eq!(plan(&facts, &[]), Plan::Do(Step::AskDebian));
}

#[test]
fn a_compiler_that_is_too_old_or_has_no_cargo_does_not_count() {
    let mut facts =
        Facts { compilers: vec![compiler(system(), 63, 22)], offers: offers(96, &[22]), ..bare() };
    installs(plan(&facts, &[]), &DEBIAN);
    facts.compilers = vec![Compiler { cargo: false, ..compiler(system(), 96, 22) }];
    installs(plan(&facts, &[]), &DEBIAN);
}

#[test]
fn a_linker_that_is_there_decides_between_compilers() {
    let mut facts = Facts {
        compilers: vec![
            Compiler { nightly: true, ..compiler(rustup("nightly"), 99, 23) },
            compiler(rustup("stable"), 95, 22),
        ],
        linkers: linkers(&[22]),
        llvm: BTreeSet::from([22, 23]),
        ..bare()
    };
    assert_eq!(plan(&facts, &[]), ready("stable", true, &["/cache/llvm22/bin"]));
    facts.linkers.clear();
    assert_eq!(plan(&facts, &[]), Plan::Do(Step::BuildLinker { llvm: 23 }));
    // Only one LLVM is installed, or can be: the compiler follows.
    facts.llvm = BTreeSet::from([22]);
    assert_eq!(plan(&facts, &[]), Plan::Do(Step::BuildLinker { llvm: 22 }));
    facts.llvm.clear();
    facts.offers = offers(96, &[22]);
    installs(plan(&facts, &[]), &["llvm-22-dev"]);
}

#[test]
fn lists_without_the_package_are_read_again_once() {
    let mut facts = Facts { offers: offers(85, &[]), ..bare() };
    let mut done = vec![add_source("stable"), Step::AskDebian];
    assert!(matches!(plan(&facts, &done), Plan::Do(Step::UpdateDebian { .. })));
    done.push(updated());
    facts.offers = offers(96, &[22]);
    installs(plan(&facts, &done), &DEBIAN);
}

#[test]
fn a_compiler_whose_linker_cannot_be_had_gives_way_to_debians() {
    let facts = Facts {
        compilers: vec![compiler(rustup("nightly"), 99, 23)],
        offers: offers(96, &[22]),
        ..bare()
    };
    installs(plan(&facts, &[updated()]), &DEBIAN);
}

#[test]
fn a_machine_that_offers_nothing_hears_what_would_help() {
    let stuck = |facts: &Facts, done: &[Step]| match plan(facts, done) {
        Plan::Stuck(missing) => missing.to_string(),
        other => panic!("wanted the end, got {other:?}"),
    };
    // Debian, but too old.
    let old = Facts { offers: offers(85, &[]), ..bare() };
    let text = stuck(&old, &[add_source("stable"), updated()]);
    assert!(text.contains("library source") && text.contains("rust-src"), "{text}");
    // Not Debian at all: nothing to read again.
    let other = Facts { debian: false, offers: Some(Offers::default()), ..bare() };
    stuck(&other, &[add_source("stable")]);
    // A compiler, but no LLVM for its linker.
    let llvm = Facts { compilers: vec![compiler(rustup("stable"), 95, 22)], ..other };
    let text = stuck(&llvm, &[]);
    assert!(text.contains("llvm-22-dev") && text.contains("bpf-linker"), "{text}");
}

#[test]
fn every_step_names_what_is_missing_and_its_cure() {
    let step = Step::BuildLinker { llvm: 22 };
    assert!(step.what().contains("LLVM 22"));
    let cure = linker::command(22, "/r");
    for part in ["LLVM_PREFIX=/usr/lib/llvm-22", "LLVM_SYS_221_PREFIX=", "--features llvm-22"] {
        assert!(cure.contains(part), "{part} in {cure}");
    }
    let step = Step::Install { packages: vec!["a".to_owned(), "b".to_owned()], why: "for x" };
    assert_eq!(step.what(), "a b (for x)");
    assert_eq!(step.cure(), "apt-get install --no-install-recommends a b");
}
