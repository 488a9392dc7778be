//! The fallback as a user meets it: `run`, `dump`, `clean` and `iptables` where rules count.

mod adopted;
mod bad;
mod changing;
mod cleaning;
mod former;
mod left;
mod relay;
mod reset;

use std::{
    fs,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_tests::{
    daemon::{Answer, Daemon, Site},
    device::{Device, connect, pair},
    document::Traffic,
    leaks, load, need,
    netns::NetNs,
};
use traffic_user::{
    accounting::{subject::Subject, usage::Span},
    ledger::Reader,
};

use crate::schema::keeps_to;

/// Layer-3 bytes of each datagram over IPv4 and over IPv6.
const DATAGRAM4: u64 = 20 + 8 + 100;
const DATAGRAM6: u64 = 40 + 8 + 100;
const METERS: [&str; 2] = ["nft", "iptables"];

struct Lab {
    host: NetNs,
    _other: NetNs,
    here: Device,
    there: Device,
}

impl Lab {
    fn new() -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        let lab = Self { host, _other: other, here, there };
        // An admin's rules, in front of which ours come and go.
        lab.sh(
            "for t in iptables-nft ip6tables-nft; do $t -A INPUT -p tcp --dport 22 -j ACCEPT; $t -A OUTPUT -p tcp --sport 22 -j ACCEPT; done",
        );
        lab
    }

    /// Sends datagrams to the host's port, all of which arrive.
    fn send(&self, ipv6: bool, port: u16, count: u64) {
        let server = load::udp(&self.here, ipv6, port);
        let client = load::udp(&self.there, ipv6, 40_000);
        for _ in 0..count {
            load::datagram(&client, &server, 100);
        }
    }

    /// All rules of the host, of all tools, with their counters.
    fn rules(&self) -> String {
        let list = |tool: &str, args: &[&str]| {
            let mut command = self.host.command(need::tool(tool).expect("it was asked for"));
            let output = command.args(args).output().expect("list rules");
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        [
            list("nft", &["list", "ruleset"]),
            list("iptables-legacy-save", &["-c"]),
            list("ip6tables-legacy-save", &["-c"]),
        ]
        .concat()
    }

    fn sh(&self, script: &str) {
        let mut command = self.host.command("sh");
        let output = command.args(["-c", script]).output().expect("start sh");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
    }
}

fn run(site: &Site, lab: &Lab, meter: &str, more: &[&str]) -> Daemon {
    let mut args = vec!["--no-proxy", "--meter", meter];
    args.extend(more);
    let mut daemon = site.start(&lab.host, &args);
    daemon.wait_for("its first document", |document| (document.0["meter"] == meter).then_some(()));
    daemon
}

fn port(document: &Value, port: &str) -> Traffic {
    let of = |name: &str| document["ports"][port][name].as_u64().expect("a number");
    Traffic {
        input_bytes: of("input_bytes"),
        input_packets: of("input_packets"),
        output_bytes: of("output_bytes"),
        output_packets: of("output_packets"),
    }
}

fn iptables(site: &Site, lab: &Lab, args: &[&str]) -> Answer {
    let mut all = vec!["iptables"];
    all.extend(args);
    site.run(&lab.host, &all)
}

macro_rules! needs {
    () => {
        need!(
            Root,
            Netns,
            Tool("ip"),
            Tool("nft"),
            Tool("iptables-legacy-save"),
            Tool("iptables-nft-save")
        )
    };
}
use needs;

#[test]
fn a_run_with_rules_counts_exactly_and_leaves_the_rules_as_they_were() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        lab.sh("nft add table inet others; nft add chain inet others c '{ type filter hook input priority 0; }'; nft add rule inet others c udp dport 1 counter accept");
        let before = lab.rules();
        let mut daemon = run(&site, &lab, meter, &["--ports", "5000/udp=a,6000-6005/udp,7000/udp"]);
        lab.send(false, 5000, 3);
        lab.send(true, 5000, 2);
        lab.send(false, 6004, 1);
        // 500 is in 5000 as text, and in no group.
        lab.send(false, 500, 1);
        let document = daemon.fresh().0;
        assert_eq!(document["layer"], "l3-skb", "{meter}");
        assert_eq!(document["skipped"], Value::Null, "{meter}");
        let wanted = Traffic::input(3 * DATAGRAM4 + 2 * DATAGRAM6, 5);
        assert_eq!(port(&document, "5000"), wanted, "{meter}");
        assert_eq!(port(&document, "6000-6005"), Traffic::input(DATAGRAM4, 1), "{meter}");
        assert_eq!(port(&document, "7000"), Traffic::default(), "{meter}");
        let lanes = &document["ports"]["5000"]["lanes"];
        assert_eq!(lanes["udp6"]["input_bytes"], 2 * DATAGRAM6, "{meter}");
        assert_eq!(lanes["tcp4"]["input_bytes"], 0, "{meter}");
        keeps_to("dump", &document);
        lab.send(false, 7000, 1);
        let last = daemon.stop().0;
        assert_eq!(port(&last, "7000"), Traffic::input(DATAGRAM4, 1), "{meter}");
        leaks::nothing(&lab.host, &site.pins);
        assert_eq!(lab.rules(), before, "{meter}");
    }
}

#[test]
fn rules_that_persist_are_read_without_a_daemon_and_adopted_by_the_next() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let args = ["--ports", "5000/udp", "--persist"];
        let daemon = run(&site, &lab, meter, &args);
        lab.send(false, 5000, 2);
        let first = daemon.stop().0;
        lab.send(false, 5000, 3);
        let dump = site.run(&lab.host, &["dump", "--json"]).json();
        assert_eq!(port(&dump, "5000"), Traffic::input(5 * DATAGRAM4, 5), "{meter}");
        assert_eq!(dump["epoch"], first["epoch"], "{meter}");
        let daemon = run(&site, &lab, meter, &args);
        daemon.kill();
        lab.send(true, 5000, 1);
        let mut daemon = run(&site, &lab, meter, &["--ports", "5000/udp,5001/udp", "--persist"]);
        lab.send(false, 5001, 1);
        let last = daemon.fresh().0;
        daemon.stop();
        let wanted = Traffic::input(5 * DATAGRAM4 + DATAGRAM6, 6);
        assert_eq!(port(&last, "5000"), wanted, "{meter}");
        assert_eq!(port(&last, "5001"), Traffic::input(DATAGRAM4, 1), "{meter}");
        assert_eq!(last["epoch"], first["epoch"], "{meter}");

        // Not without being asked to.
        let refused = site.run(&lab.host, &["run", "--no-proxy", "--meter", meter, "--count", "1"]);
        assert_eq!(refused.code, Some(2), "{meter}: {}", refused.stderr);
        assert!(refused.stderr.contains("--persist"), "{meter}: {}", refused.stderr);

        let would = site.run(&lab.host, &["clean", "--dry-run", "--json"]).json();
        assert_ne!(would["removed"], serde_json::json!([]), "{meter}");
        let said = site.run(&lab.host, &["clean", "--json"]).json();
        assert_eq!(said["removed"], would["removed"], "{meter}");
        assert_eq!(lab.rules(), before, "{meter}");
    }
}

#[test]
fn rules_that_vanish_are_a_new_epoch_and_are_put_back_and_it_is_said() {
    needs!();
    let flushes = [("nft", "nft flush ruleset"), ("iptables", "iptables-nft -F")];
    for (meter, flush) in flushes {
        let (site, lab) = (Site::new(), Lab::new());
        let mut daemon = run(&site, &lab, meter, &["--ports", "5000/udp"]);
        lab.send(false, 5000, 4);
        let before = daemon.fresh().0;
        assert_eq!(port(&before, "5000"), Traffic::input(4 * DATAGRAM4, 4), "{meter}");
        lab.sh(flush);
        let epoch = before["epoch"].clone();
        daemon.wait_for("a new epoch", |document| (document.0["epoch"] != epoch).then_some(()));
        lab.send(false, 5000, 1);
        let after = daemon.fresh().0;
        assert_eq!(port(&after, "5000"), Traffic::input(DATAGRAM4, 1), "{meter}");
        assert_eq!(after["coverage"], "gap", "{meter}");
        daemon.says("put back");
        daemon.stop();
        leaks::nothing(&lab.host, &site.pins);
    }
}

#[test]
fn without_the_right_to_load_programs_rules_count_and_doctor_says_why() {
    needs!();
    need!(Tool("setpriv"));
    let (site, lab) = (Site::new(), Lab::new());
    let through = |args: &[&str]| {
        let inner = site.traffic(&lab.host, args);
        let mut outer = lab.host.command("setpriv");
        outer
            .args(["--bounding-set", "-all,+net_admin,+net_raw,+dac_override"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .stdin(Stdio::null());
        outer
    };
    let args =
        ["run", "--output", "json", "--interval", "20ms", "--no-proxy", "--ports", "5000/udp"];
    let mut daemon = Daemon::spawn(through(&args));
    let document = daemon.wait_for("a document", |document| Some(document.clone())).0;
    assert_eq!(document["meter"], "nft", "{}", daemon.messages());
    for hook in ["tcx", "tc", "cgroup"] {
        let why = document["passed_over"][hook].as_str().expect("a reason");
        assert!(why.contains("CAP_BPF"), "{hook}: {why}");
    }
    daemon.says("eBPF cannot run here");
    daemon.says("l3-skb");
    lab.send(false, 5000, 2);
    assert_eq!(port(&daemon.fresh().0, "5000"), Traffic::input(2 * DATAGRAM4, 2));
    daemon.stop();

    let doctor = Answer::of(&mut through(&["doctor", "--no-proxy", "--json"]));
    let document: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    keeps_to("doctor", &document);
    assert_eq!(document["meter"], "nft");
    let found = |name: &str| {
        let checks = document["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == name).expect(name);
        format!("{} {}", check["status"], check["found"])
    };
    assert!(found("hook tcx").contains("CAP_BPF"), "{}", found("hook tcx"));
    assert!(found("nft").contains("chosen by auto"), "{}", found("nft"));
    assert!(found("iptables").contains("works"), "{}", found("iptables"));
}

#[test]
fn one_meter_takes_over_from_another_and_no_packet_is_in_both() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let args = ["--ports", "5000/udp", "--persist", "--iface", "eth0"];
        run(&site, &lab, meter, &args).stop();
        lab.send(false, 5000, 3);
        assert_eq!(
            port(&site.run(&lab.host, &["dump", "--json"]).json(), "5000"),
            Traffic::input(3 * DATAGRAM4, 3),
            "{meter}"
        );
        let mut daemon = run(&site, &lab, "tcx", &args);
        daemon.counts_on(&["eth0"]);
        daemon.says("another meter");
        assert_eq!(lab.rules(), before, "{meter}: its rules are still there");
        lab.send(false, 5000, 2);
        let document = daemon.fresh().0;
        assert_eq!(port(&document, "5000"), Traffic::input(2 * DATAGRAM4, 2), "{meter}");
        daemon.stop();

        // And back: the pins are taken off.
        let mut daemon = run(&site, &lab, meter, &args);
        assert!(!site.pins.exists(), "{meter}: pins stay");
        lab.send(false, 5000, 1);
        let document = daemon.fresh().0;
        assert_eq!(port(&document, "5000"), Traffic::input(DATAGRAM4, 1), "{meter}");
        daemon.stop();
        site.run(&lab.host, &["clean"]);
        leaks::nothing(&lab.host, &site.pins);
        assert_eq!(lab.rules(), before, "{meter}");

        // Each packet is booked once, in the layer of the meter that had it; the seams are events.
        let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
        let group = Subject::group(&"5000/udp".parse().expect("a group"));
        let mut booked: Vec<_> = reader
            .totals(&group)
            .expect("ask the ledger")
            .iter()
            .map(|usage| (usage.layer.name(), usage.traffic.input_packets))
            .collect();
        booked.sort_unstable();
        assert_eq!(booked, [("l3", 2), ("l3-skb", 3 + 1)], "{meter}");
        let seams: Vec<_> = reader
            .events(Span::ALL, usize::MAX)
            .expect("ask the ledger")
            .into_iter()
            .filter(|event| event.kind == "meter-changed")
            .collect();
        assert_eq!(seams.len(), 2, "{meter}: {seams:?}");
    }
}

#[test]
fn the_verb_shows_ports_users_and_totals_in_every_form() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let nothing = iptables(&site, &lab, &["port"]);
        assert_eq!(nothing.code, Some(2));
        assert!(nothing.stderr.contains("--meter nft"), "{}", nothing.stderr);

        let daemon = run(&site, &lab, meter, &["--ports", "5000/udp=web,80,8080"]);
        lab.send(false, 5000, 3);
        lab.send(true, 8080, 2);
        let both = iptables(&site, &lab, &["port", "--json"]).json();
        keeps_to("iptables", &both);
        assert_eq!(both["meter"], meter);
        assert_eq!(port(&both, "5000"), Traffic::input(3 * DATAGRAM4, 3), "{meter}");
        assert_eq!(port(&both, "8080"), Traffic::input(2 * DATAGRAM6, 2), "{meter}");
        assert_eq!(port(&both, "80"), Traffic::default(), "{meter}");
        let total = iptables(&site, &lab, &["total", "--json", "--ipv6"]).json();
        keeps_to("iptables", &total);
        assert_eq!(total["total"]["input_bytes"], 2 * DATAGRAM6, "{meter}");
        let four = iptables(&site, &lab, &["--ipv4", "--json"]).json();
        assert_eq!(port(&four, "8080"), Traffic::default(), "{meter}");
        let users = iptables(&site, &lab, &["user", "--json", "--no-proxy"]).json();
        keeps_to("iptables", &users);
        let web = &users["users"][0];
        assert_eq!((&web["group"], &web["split"]), (&"web".into(), &"together".into()), "{meter}");
        assert_eq!(web["input_bytes"], 3 * DATAGRAM4, "{meter}: {web}");
        assert_eq!(web["users"], serde_json::json!([]), "{meter}: without a proxy nobody is known");
        // The inbound is of TCP alone, and its port is counted with both.
        let config = site.state.join("proxy.json");
        let text = r#"{"inbounds": [{"port": 8080, "protocol": "vmess", "tag": "vm", "settings":
            {"clients": [{"id": "23ad6b10-8d1a-40f7-8ad0-e3e35cd38297", "email": "alice"}]}}]}"#;
        fs::write(&config, text).expect("write a config");
        let config = config.to_str().expect("a path of ours is text");
        let named = ["user", "--json", "--proxy-config", config];
        let users = iptables(&site, &lab, &named).json();
        let own =
            users["users"].as_array().expect("rows").iter().find(|row| row["ports"] == "8080");
        let own = own.unwrap_or_else(|| panic!("{meter}: {users}"));
        assert_eq!(own["users"], serde_json::json!(["alice"]), "{meter}: {own}");
        assert_eq!(own["input_bytes"], 2 * DATAGRAM6, "{meter}: {own}");
        let csv = iptables(&site, &lab, &["port", "--csv"]).stdout;
        let line = format!("\"5000\",\"udp\",\"web\",{},0,3,0", 3 * DATAGRAM4);
        assert_eq!(csv.lines().nth(1), Some(line.as_str()), "{meter}: {csv}");
        let txt = iptables(&site, &lab, &["total", "--txt"]).stdout;
        assert!(txt.starts_with("total input_bytes: "), "{meter}: {txt}");
        let table = iptables(&site, &lab, &["port"]).stdout;
        assert!(table.contains("l3-skb") && table.contains("web"), "{meter}: {table}");
        assert_eq!(iptables(&site, &lab, &["user", "--ipv4"]).code, Some(2), "{meter}");
        daemon.stop();
    }
}

#[test]
fn a_daemon_that_counts_is_not_cleaned_under_its_feet() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let daemon = run(&site, &lab, "nft", &["--ports", "80"]);
    for args in [&["clean", "80"][..], &["clean", "--all"]] {
        let refused = iptables(&site, &lab, args);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("runs already"), "{}", refused.stderr);
    }
    // What multi-v2ray left is no daemon's.
    lab.sh("iptables-nft -A OUTPUT -p tcp --sport 80");
    let done = iptables(&site, &lab, &["clean", "--foreign", "--yes", "--json"]).json();
    assert_eq!(done["removed"].as_array().map(Vec::len), Some(1), "{done}");
    daemon.stop_by(Signal::SIGINT);
}

#[test]
fn what_multi_v2ray_left_is_listed_and_goes_when_told() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    lab.sh("for p in tcp udp; do
        iptables-nft -A INPUT -p $p --dport 8080 -j ACCEPT
        iptables-nft -A OUTPUT -p $p --sport 8080
        done
        iptables-nft -A OUTPUT -p tcp --sport 80 -j ACCEPT
        iptables-nft -P INPUT DROP");
    let list = iptables(&site, &lab, &["clean", "--foreign", "--dry-run", "--json"]).json();
    keeps_to("clean", &list);
    let removed = list["removed"].as_array().expect("a list");
    assert_eq!(removed.len(), 4, "{list}");
    let attention = removed.iter().filter(|line| line.to_string().contains("ATTENTION")).count();
    assert_eq!(attention, 2, "the port is open only because of the two: {list}");
    // Nobody answers.
    let asked = iptables(&site, &lab, &["clean", "--foreign"]);
    assert_eq!(asked.code, Some(2));
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    let shown = asked.stderr.lines().filter(|line| line.starts_with("  -A")).count();
    assert_eq!(shown, 4, "whoever is to decide sees all of it: {}", asked.stderr);
    let done = iptables(&site, &lab, &["clean", "--foreign", "--yes", "--json"]);
    assert_eq!(done.stderr.matches("ATTENTION").count(), 2, "{}", done.stderr);
    assert_eq!(done.json()["removed"], list["removed"]);
    let mut save = lab.host.command(need::tool("iptables-nft-save").expect("asked for"));
    let left = save.output().expect("list rules").stdout;
    let left = String::from_utf8_lossy(&left);
    let rules: Vec<_> = left.lines().filter(|line| line.starts_with("-A")).collect();
    assert_eq!(
        rules,
        [
            "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
            "-A OUTPUT -p tcp -m tcp --sport 22 -j ACCEPT",
            "-A OUTPUT -p tcp -m tcp --sport 80 -j ACCEPT"
        ]
    );
}

/// Types into a program on a terminal of its own, and gives what it showed.
fn typed(mut command: Command, input: &str) -> String {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("plain words")))
        .collect::<Vec<_>>()
        .join(" ");
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(Into::into))).collect();
    let file = std::env::temp_dir().join(format!("tt-typed-{}", std::process::id()));
    fs::write(&file, input).expect("write what is typed");
    command = Command::new("sh");
    command.args(["-c", &format!("script -qec \"{line}\" /dev/null < {}", file.display())]);
    for (name, value) in environment {
        let value: Option<std::ffi::OsString> = value;
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().expect("start script");
    let _ = fs::remove_file(&file);
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

#[test]
fn a_terminal_gets_the_menu_and_a_question_is_answered_there() {
    needs!();
    need!(Tool("script"), Tool("nsenter"));
    let (site, lab) = (Site::new(), Lab::new());
    run(&site, &lab, "nft", &["--ports", "8080,80", "--persist"]).stop();
    lab.send(false, 8080, 2);
    // `script` starts a shell of its own: it is in the namespace by `nsenter`.
    let inside = |args: &[&str]| {
        let inner = site.traffic(&lab.host, args);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", lab.host.path())).arg(inner.get_program());
        command.args(inner.get_args()).env("NO_COLOR", "1");
        command
    };
    let shown = typed(inside(&["iptables"]), "1\n4\n80\n4\n81\n9\n0\n");
    assert!(shown.contains("see statistics"), "{shown}");
    assert!(shown.contains("256.0 B") || shown.contains("256 B"), "{shown}");
    assert!(shown.contains("removed"), "{shown}");
    assert!(shown.contains("no rule of ours counts port 81"), "{shown}");
    assert!(shown.contains("choose 0 to 4"), "{shown}");
    let left = iptables(&site, &lab, &["port", "--json"]).json();
    assert_eq!(left["ports"]["8080"]["watched"], true);
    assert_ne!(left["ports"]["80"]["watched"], true);
    site.run(&lab.host, &["clean"]);

    lab.sh(
        "iptables-nft -A INPUT -p tcp --dport 9 -j ACCEPT; iptables-nft -A OUTPUT -p tcp --sport 9",
    );
    let refused = typed(inside(&["iptables", "clean", "--foreign"]), "n\nn\n");
    assert!(refused.contains("kept"), "{refused}");
    let agreed = typed(inside(&["iptables", "clean", "--foreign"]), "y\ny\n");
    assert!(agreed.contains("removed") && !agreed.contains("kept"), "{agreed}");
}
