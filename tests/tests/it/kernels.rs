//! The same binary on other kernels: which hook it chooses there, and that it counts exactly. What
//! is checked is in `src/bin/traffic-guest`.

use std::{env, path::Path, sync::OnceLock};

use traffic_tests::{
    daemon, need,
    vm::{Archive, Kernel},
};

/// Checks of any kernel.
const GENERAL: [&str; 5] = ["system", "doctor", "ingress", "vrf", "auto"];
/// Checks at a hook of a device.
const AT_A_DEVICE: [&str; 8] =
    ["udp", "udp segments", "tcp", "vlan", "tun", "stop", "kill", "persist"];
/// Checks at a cgroup.
const AT_A_CGROUP: [&str; 5] = ["udp", "tcp", "stop", "kill", "persist"];

/// Checks of rules.
const OF_RULES: [&str; 3] = ["rules", "rules that vanish", "rules that persist"];

/// Programs that the fixtures start, and those that set rules.
const TOOLS: [&str; 9] = [
    "ip",
    "tc",
    "nft",
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];
/// Where iptables has its matches.
const MATCHES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// All that is in every machine; the modules are the kernel's own.
fn files() -> &'static Archive {
    static FILES: OnceLock<Archive> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut files = Archive::new();
        files.program(Path::new(env!("CARGO_BIN_EXE_traffic-guest")), "/init");
        files.program(&daemon::binary(), "/bin/traffic");
        files.program(&env::current_exe().expect("this program"), "/bin/it");
        for name in TOOLS {
            let tool = need::tool(name).unwrap_or_else(|| panic!("no program {name}"));
            files.program(&tool, format!("/sbin/{name}"));
        }
        for name in ["standard", "comment", "multiport", "tcp", "udp"] {
            let file = Path::new(MATCHES).join(format!("libxt_{name}.so"));
            if file.exists() {
                files.program(&file, &file);
            }
        }
        // The corpus is read where the tests were built.
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let corpus = package.join("../traffic-ebpf/corpus");
        let corpus = corpus.canonicalize().expect("the corpus is there");
        files.folder(package);
        files.files(&corpus, &corpus);
        files
    })
}

/// Every check of that kernel, for the hook that `auto` must choose.
fn wanted(hook: &str, short: bool) -> Vec<String> {
    let mut wanted: Vec<_> = GENERAL.map(str::to_owned).into();
    let devices = if hook == "tcx" && !short { &["tcx", "tc"][..] } else { &[hook] };
    for device in devices {
        wanted.extend(AT_A_DEVICE.map(|name| format!("{device}: {name}")));
    }
    wanted.extend(AT_A_CGROUP.map(|name| format!("cgroup: {name}")));
    if !short {
        wanted.push("bytecode".to_owned());
        for meter in ["nft", "iptables"] {
            wanted.extend(OF_RULES.map(|name| format!("{meter}: {name}")));
        }
    }
    wanted.sort();
    wanted
}

/// Boots the kernel and looks at what the guest says. `unseen`: how many first segments of two IPv6
/// connections the kernel keeps from a cgroup. `atomic`: hooks whose adds are atomic. `short`: only what counts at the
/// hooks of this kernel.
#[track_caller]
fn check(kernel: &Kernel, hook: &str, unseen: &str, atomic: &[&str], short: bool) {
    let mut files = files().clone();
    files.files(&kernel.modules(), "/modules");
    let words = "TRAFFIC_BIN=/bin/traffic TRAFFIC_TEST_ALL=1 PATH=/sbin:/bin";
    let part = if short { "short" } else { "whole" };
    let console = kernel.boot(&files, &format!("{words} TRAFFIC_GUEST={part}"));
    // Shown when the test fails.
    println!("{console}");
    let lines = |begin: &str| -> Vec<&str> {
        console.lines().filter_map(|line| line.strip_prefix(begin)).collect()
    };
    let fine = |name: &&str| name.ends_with(" ok");
    let (passed, failed): (Vec<_>, Vec<_>) = lines("check: ").into_iter().partition(fine);
    let mut passed: Vec<_> =
        passed.iter().map(|line| line.trim_end_matches(" ok").to_owned()).collect();
    passed.sort();

    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(lines("guest: "), ["success"]);
    assert_eq!(lines("info: kernel="), [kernel.release()]);
    assert_eq!(lines("info: hook="), [hook]);
    assert_eq!(lines("info: beside="), [if hook == "tc" { "cgroup" } else { hook }]);
    assert_eq!(lines("info: unseen="), [unseen]);
    assert_eq!(lines("info: atomic="), atomic);
    assert_eq!(passed, wanted(hook, short));
}

macro_rules! on {
    ($label:literal, $hook:literal, $unseen:literal) => {
        on!($label, $hook, $unseen, ["hook cgroup"], false)
    };
    ($label:literal, $hook:literal, $unseen:literal, $atomic:expr, $short:literal) => {{
        need!(Object, Tool("ip"), Tool("tc"), Tool("qemu-system-x86_64"), Kernel($label));
        need!(Tool("nft"), Tool("iptables-legacy"));
        let kernel = Kernel::find($label).expect("it was asked for");
        check(&kernel, $hook, $unseen, &$atomic, $short);
    }};
}

#[test]
fn linux_5_10_counts_at_clsact() {
    on!("5.10", "tc", "2");
}

#[test]
fn linux_6_1_counts_at_clsact() {
    on!("6.1", "tc", "2");
}

#[test]
fn linux_6_12_counts_at_tcx() {
    on!("6.12", "tcx", "0");
}

#[test]
fn linux_6_12_where_all_can_be_preempted_adds_atomically() {
    on!("6.12-rt", "tcx", "0", ["hook tcx", "hook tc", "hook cgroup"], true);
}

#[test]
fn the_newest_linux_counts_at_tcx() {
    on!("newest", "tcx", "0");
}
