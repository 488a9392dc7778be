//! The first program of a virtual machine with another kernel: makes a system of it, checks that
//! `traffic` counts there exactly, says how each check ended, and turns the machine off.
//!
//! ```text
//! info: hook=tcx
//! check: tcx: udp ok
//! check: tcx: tcp FAILED: ...
//! guest: failure
//! ```
//!
//! The other side is `tests/it/kernels.rs`, which knows which checks there must be.

mod counting;
mod lifecycle;
mod load;
mod pair;
mod rules;
mod system;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
    time::Instant,
};

use traffic_tests::daemon::{self, Site};

use pair::Pair;

/// A check with its name; it is given the meter to check.
type Check = (&'static str, fn(&str));

/// What is checked at each hook of a device.
const AT_A_DEVICE: [Check; 8] = [
    ("udp", counting::udp),
    ("udp segments", counting::udp_segments),
    ("tcp", counting::tcp),
    ("vlan", counting::vlan),
    ("tun", counting::tun),
    ("stop", lifecycle::stop),
    ("kill", lifecycle::kill),
    ("persist", lifecycle::persist),
];

/// What is checked at a cgroup.
const AT_A_CGROUP: [Check; 5] = [
    ("udp", counting::udp),
    ("tcp", counting::tcp_at_a_cgroup),
    ("stop", lifecycle::stop),
    ("kill", lifecycle::kill),
    ("persist", lifecycle::persist),
];

/// What is checked of rules.
const OF_RULES: [Check; 3] = [
    ("rules", rules::exact),
    ("rules that vanish", rules::vanish),
    ("rules that persist", rules::persist),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("traffic-guest is the first program of a virtual machine: see tests/src/vm.rs");
        return ExitCode::from(2);
    }
    // What another flavour of a kernel does not do otherwise is not looked at again.
    let short = std::env::var_os("TRAFFIC_GUEST").is_some_and(|part| part == "short");
    let mut report = Report::default();
    report.check("system", system::prepare);
    report.check("doctor", doctor);
    report.check("ingress", beside_an_ingress_qdisc);
    report.check("vrf", counting::vrf);
    let mut hook = None;
    report.check("auto", || hook = Some(auto()));
    if let Some(hook) = hook {
        println!("info: hook={hook}");
        let hooks = match hook.as_str() {
            _ if short => &[hook.as_str()][..],
            "tcx" => &["tcx", "tc"],
            _ => &["tc"],
        };
        for hook in hooks {
            for (name, body) in AT_A_DEVICE {
                report.check(&format!("{hook}: {name}"), || body(hook));
            }
        }
        for (name, body) in AT_A_CGROUP {
            report.check(&format!("cgroup: {name}"), || body("cgroup"));
        }
    }
    if !short {
        for meter in ["nft", "iptables"] {
            for (name, body) in OF_RULES {
                report.check(&format!("{meter}: {name}"), || body(meter));
            }
        }
        report.check("bytecode", || tests("bytecode"));
    }
    println!("guest: {}", if report.failed { "failure" } else { "success" });
    system::power_off()
}

#[derive(Default)]
struct Report {
    failed: bool,
}

impl Report {
    /// One line that says how it ended. What a panic says of itself is on the console before it.
    fn check(&mut self, name: &str, body: impl FnOnce()) {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(body));
        println!("info: {:.1} s for {name}", begin.elapsed().as_secs_f64());
        match outcome {
            Ok(()) => println!("check: {name} ok"),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref().copied())
                    .unwrap_or("it panicked");
                println!("check: {name} FAILED: {}", text.replace('\n', " | "));
                self.failed = true;
            }
        }
    }
}

/// The kernel takes all programs, and every hook but tcx must work on all of them.
fn doctor() {
    let pair = Pair::new();
    let answer =
        daemon::Answer::of(&mut Site::new().traffic(&pair.server.ns, &["doctor", "--json"]));
    println!("info: doctor exit code {:?}", answer.code);
    let document = answer.json();
    let checks = document["checks"].as_array().expect("a list of checks");
    for hook in ["hook tcx", "hook tc", "hook cgroup"] {
        let check = checks.iter().find(|check| check["name"] == hook);
        let check = check.unwrap_or_else(|| panic!("no check `{hook}` in {document}"));
        assert!(check["status"] == "ok" || hook == "hook tcx", "{check}");
        if check["found"].as_str().is_some_and(|found| found.ends_with("; adds are atomic")) {
            println!("info: atomic={hook}");
        }
    }
}

/// The hook that is used when nobody asks for one.
fn auto() -> String {
    let pair = Pair::new();
    let mut daemon = Site::new().start(&pair.server.ns, &["--ports", "5001", "--iface", "eth0"]);
    daemon.counts_on(&["eth0"]);
    let document = daemon.stop();
    for (hook, why) in document.0["passed_over"].as_object().into_iter().flatten() {
        println!("info: not {hook}: {}", why.as_str().unwrap_or_default());
    }
    document.text("meter").to_owned()
}

/// The hook that is used when the place of clsact is taken.
fn beside_an_ingress_qdisc() {
    let pair = Pair::new();
    pair.server.default_route(&pair.client);
    pair.server.ns.sh(&["tc", "qdisc", "add", "dev", "eth0", "ingress"]);
    let mut daemon = Site::new().start(&pair.server.ns, &["--ports", "5001"]);
    let hook = daemon.wait_for("a document", |document| Some(document.text("meter").to_owned()));
    println!("info: beside={hook}");
    daemon.stop();
}

/// Tests of the project that need no more than is here.
fn tests(filter: &str) {
    let output = Command::new("/bin/it").arg(filter).output().expect("start the tests");
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = text.lines().find(|line| line.starts_with("test result:")).unwrap_or_default();
    println!("info: {filter}: {ran}");
    if !output.status.success() || ran.contains(" 0 passed") {
        println!("{text}{}", String::from_utf8_lossy(&output.stderr));
        panic!("the tests `{filter}` ended with {}", output.status);
    }
}
