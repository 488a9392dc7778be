//! Who may use what: the direction of dependencies.

use super::{
    Finding, Source,
    paths::{Named, named},
};

const CORE: &str = "traffic-user/src";

/// The folders that these rules speak of. One that moved would take its rule with it in silence.
const LAYOUT: &[&str] = &[
    "traffic-ebpf/src",
    "traffic-user/src/accounting",
    "traffic-user/src/meter/ebpf",
    "traffic-user/src/meter/proxy",
    "traffic-user/src/ledger",
    "traffic-user/src/view",
    "traffic-user/src/daemon",
    "traffic-user/src/cli",
    "tests/src",
    "tests/tests/it",
    "xtask/src",
];

/// The modules of `traffic-user` and which others each may name: upper may use lower, never the
/// reverse, never sideways.
const MODULES: &[(&str, &[&str])] = &[
    ("accounting", &[]),
    ("run", &[]),
    ("state", &[]),
    ("fault", &[]),
    ("config", &["accounting"]),
    ("proxy_config", &["accounting"]),
    ("meter", &["accounting", "run", "fault"]),
    ("ledger", &["accounting", "fault"]),
    ("view", &["accounting"]),
    (
        "daemon",
        &[
            "accounting",
            "run",
            "state",
            "fault",
            "config",
            "proxy_config",
            "meter",
            "ledger",
            "view",
        ],
    ),
    (
        "cli",
        &[
            "accounting",
            "run",
            "state",
            "fault",
            "config",
            "proxy_config",
            "meter",
            "ledger",
            "view",
            "daemon",
        ],
    ),
    ("stats_factory", &["accounting", "state", "proxy_config", "meter", "view", "daemon"]),
    ("rule_traffic", &["accounting", "meter"]),
    ("main", &["cli", "ledger", "meter"]),
    (
        "lib",
        &[
            "accounting",
            "run",
            "state",
            "fault",
            "config",
            "proxy_config",
            "meter",
            "ledger",
            "view",
            "daemon",
            "cli",
            "stats_factory",
            "rule_traffic",
        ],
    ),
];

/// What the core may not name: it has no clock, file, socket, process, runtime or logging, and
/// serialization belongs to the edge.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "anyhow",
    "aya",
    "clap",
    "libc",
    "nix",
    "procfs",
    "rtnetlink",
    "postcard",
    "rusqlite",
    "serde",
    "serde_json",
    "prost",
    "tokio",
    "tonic",
    "tracing",
    "traffic_ebpf",
    "jiff::Zoned::now",
    "jiff::Timestamp::now",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "print",
    "println",
    "eprint",
    "eprintln",
];

/// A path that only some places of `traffic-user` may name.
struct Reserved {
    path: &'static str,
    places: &'static [&'static str],
}

const fn reserved(path: &'static str, places: &'static [&'static str]) -> Reserved {
    Reserved { path, places }
}

const METER: &[&str] = &["traffic-user/src/meter"];
const EBPF: &[&str] = &["traffic-user/src/meter/ebpf"];
const PROXY: &[&str] = &["traffic-user/src/meter/proxy"];
const LEDGER: &[&str] = &["traffic-user/src/ledger"];
const CLI: &[&str] = &["traffic-user/src/cli"];
const VIEW: &[&str] = &["traffic-user/src/view"];
const RUN: &[&str] = &["traffic-user/src/run.rs"];
const EXIT: &[&str] = &["traffic-user/src/main.rs", "traffic-user/src/cli"];

const RESERVED: &[Reserved] = &[
    reserved("aya", EBPF),
    reserved("aya_log", EBPF),
    reserved("aya_obj", EBPF),
    reserved("rtnetlink", METER),
    reserved("netlink_packet_core", METER),
    reserved("netlink_packet_route", METER),
    reserved("tonic", PROXY),
    reserved("tonic_prost", PROXY),
    reserved("prost", PROXY),
    reserved("tower", PROXY),
    reserved("hyper_util", PROXY),
    reserved("rusqlite", LEDGER),
    reserved("postcard", LEDGER),
    reserved("clap", CLI),
    reserved("clap_complete", CLI),
    reserved("indicatif", CLI),
    // In the books of the daemon a test alone.
    reserved("tempfile", &["traffic-user/src/cli", "traffic-user/src/daemon/books.rs"]),
    reserved("comfy_table", VIEW),
    reserved("plotters", VIEW),
    reserved("std::process::Command", RUN),
    reserved("std::process::Stdio", RUN),
    reserved("std::process::Child", RUN),
    reserved("std::process::exit", RUN),
    reserved("process::Command", RUN),
    reserved("process::exit", RUN),
    reserved("tokio::process", RUN),
    reserved("std::process::ExitCode", EXIT),
    reserved("unsafe", EBPF),
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for place in LAYOUT {
        if !sources.iter().any(|source| source.is_rust() && source.is_in(place)) {
            findings.push(Finding::absent(
                place,
                "is gone, and a rule speaks of it: move the rule with the folder",
            ));
        }
    }
    for source in sources.iter().filter(|source| source.is_rust() && source.is_in(CORE)) {
        let names = named(&source.text);
        let pure = source.is_in("traffic-user/src/accounting");
        for name in &names {
            findings
                .extend(module_of(source, name).map(|what| Finding::at(source, name.line, what)));
            if let Some(word) = IMPURE.iter().find(|word| pure && name.is_under(word)) {
                let what = format!("the core is pure and may not name `{word}`");
                findings.push(Finding::at(source, name.line, what));
            }
            for rule in RESERVED.iter().filter(|rule| name.is_under(rule.path)) {
                if !rule.places.iter().any(|place| source.is_in(place)) {
                    let what =
                        format!("`{}` belongs to {} alone", rule.path, rule.places.join(", "));
                    findings.push(Finding::at(source, name.line, what));
                }
            }
        }
    }
    for source in sources.iter().filter(|source| source.is_rust() && source.is_in("xtask/src")) {
        for name in named(&source.text) {
            if name.parts[0] == "unsafe" {
                findings.push(Finding::at(source, name.line, "no `unsafe` is needed here"));
            }
        }
    }
    findings
}

/// What is wrong with naming another module of `traffic-user`, if this does.
fn module_of(source: &Source, name: &Named) -> Option<String> {
    let own: Vec<&str> = source.path.strip_prefix(CORE)?.trim_matches('/').split('/').collect();
    let from = own.first()?.trim_end_matches(".rs");
    let to = match name.parts.first()?.as_str() {
        "crate" | "traffic_user" => name.parts.get(1)?,
        "super" => {
            let up = name.parts.iter().take_while(|part| *part == "super").count();
            // `a/mod.rs` is module `a`, `a/b.rs` is `a::b`. An inner `mod tests` lies deeper.
            let depth = own.len() - usize::from(own.last() == Some(&"mod.rs"));
            let target = name.parts.get(up)?;
            if up < depth || !MODULES.iter().any(|(module, _)| module == target) {
                return None;
            }
            target
        }
        _ => return None,
    };
    // Not a module but an item of the crate's root.
    if to.starts_with(char::is_uppercase) || to == from || to == "self" {
        return None;
    }
    let unknown = |module: &str| {
        Some(format!("module `{module}` has no place in the layers: give it one in {}", file!()))
    };
    let Some((_, may)) = MODULES.iter().find(|(module, _)| *module == from) else {
        return unknown(from);
    };
    if !MODULES.iter().any(|(module, _)| module == to) {
        return unknown(to);
    }
    (!may.contains(&to.as_str())).then(|| format!("module `{from}` may not name `{to}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// What is found in one file, beside the folders that are not there.
    fn found(path: &str, text: &str) -> Vec<String> {
        check(&[source(path, text)])
            .into_iter()
            .filter(|finding| finding.line > 0)
            .map(|finding| finding.what)
            .collect()
    }

    #[track_caller]
    fn bites(path: &str, text: &str, want: &str) {
        let found = found(path, text);
        assert!(found.len() == 1 && found[0].contains(want), "{path}: {text}: {found:?}");
    }

    #[track_caller]
    fn passes(path: &str, text: &str) {
        assert_eq!(found(path, text), Vec::<String>::new(), "{path}: {text}");
    }

    #[test]
    fn the_core_reaches_nothing_outside() {
        let core = "traffic-user/src/accounting/delta.rs";
        bites(core, "use std::{collections::BTreeMap, fs};", "std::fs");
        bites(core, "let now = std::time::Instant::now();", "std::time::Instant");
        bites(core, "let now = SystemTime::now();", "SystemTime::now");
        bites(core, "#[derive(serde::Serialize)] struct A;", "serde");
        bites(core, "println!(\"x\");", "println");
        bites(core, "use crate::meter::Meter;", "may not name `meter`");
        bites(core, "use super::super::view;", "may not name `view`");
        passes(
            core,
            "use std::{fmt, time::Duration}; use super::frame::Frame; use crate::accounting;",
        );
        passes(core, "//! No std::fs here.\nconst A: &str = \"tokio::\";");
    }

    #[test]
    fn modules_use_only_what_is_below() {
        bites("traffic-user/src/view/json.rs", "use crate::{accounting::A, meter::B};", "`meter`");
        bites("traffic-user/src/meter/mod.rs", "crate::daemon::run();", "`daemon`");
        bites("traffic-user/src/ledger/mod.rs", "use crate::meter;", "`meter`");
        bites("traffic-user/src/helpers.rs", "use crate::meter;", "no place in the layers");
        bites("traffic-user/src/cli/run.rs", "use crate::helpers;", "no place in the layers");
        passes(
            "traffic-user/src/cli/run.rs",
            "use crate::{daemon, meter::Meter, view}; use super::Args;",
        );
        passes(
            "traffic-user/src/meter/ebpf/maps.rs",
            "use super::super::host; use crate::meter::Meter;",
        );
        passes("traffic-user/src/main.rs", "use traffic_user::{cli, meter::MeterError};");
    }

    #[test]
    fn libraries_stay_in_their_folder() {
        bites("traffic-user/src/daemon/mod.rs", "use aya::Ebpf;", "meter/ebpf");
        bites("traffic-user/src/daemon/mod.rs", "use tonic::Status;", "meter/proxy");
        bites("traffic-user/src/view/json.rs", "use prost::Message as _;", "meter/proxy");
        bites("traffic-user/src/meter/mod.rs", "use clap::Parser;", "cli");
        bites("traffic-user/src/view/table.rs", "unsafe { f() }", "`unsafe`");
        bites("traffic-user/src/meter/nft.rs", "use std::process::{Command};", "run.rs");
        bites("traffic-user/src/daemon/mod.rs", "use std::{fs, process::ExitCode};", "ExitCode");
        passes("traffic-user/src/meter/ebpf/load.rs", "use aya::Ebpf; unsafe { f() }");
        passes("traffic-user/src/meter/proxy/dial.rs", "use tonic::transport::Channel;");
        passes("traffic-user/src/cli/mod.rs", "use clap::Parser; use std::process::ExitCode;");
        passes("traffic-user/src/meter/lock.rs", "let id = std::process::id();");
    }

    #[test]
    fn a_folder_that_moved_is_named() {
        let absent: Vec<_> = check(&[]).into_iter().map(|finding| finding.path).collect();
        assert_eq!(absent, LAYOUT);
    }
}
