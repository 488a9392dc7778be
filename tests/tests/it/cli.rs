//! The command line as a user meets it: bad input is told clearly and leaves nothing attached, and
//! every JSON document keeps to its schema.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use aya::maps::Array;
use traffic_tests::{
    daemon::{Answer, Site},
    device::{connect, pair, veth},
    leaks, load, need,
    netns::NetNs,
    seccomp,
};

use crate::schema::keeps_to;

/// Asserts that `traffic` refuses, with every one of these pieces of text, and leaves nothing.
#[track_caller]
fn refused(site: &Site, ns: &NetNs, args: &[&str], pieces: &[&str]) {
    check_refusal(&site.run(ns, args), site, ns, &format!("{args:?}"), pieces);
}

#[track_caller]
fn check_refusal(answer: &Answer, site: &Site, ns: &NetNs, what: &str, pieces: &[&str]) {
    assert_eq!(answer.code, Some(2), "{what}: {}{}", answer.stdout, answer.stderr);
    for piece in pieces {
        assert!(answer.stderr.contains(piece), "{what}: no `{piece}` in: {}", answer.stderr);
    }
    assert!(!answer.stderr.contains("panicked"), "{what}: {}", answer.stderr);
    leaks::nothing(ns, &site.pins);
}

fn one_device() -> (NetNs, NetNs) {
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
    connect(&here, &there);
    (host, other)
}

/// `traffic` started by another program, such as one that takes rights away first.
fn through(site: &Site, ns: &NetNs, wrapper: &[&str], args: &[&str]) -> Command {
    let inner = site.traffic(ns, args);
    let mut outer = ns.command(wrapper[0]);
    outer.args(&wrapper[1..]).arg(inner.get_program()).args(inner.get_args());
    outer.stdin(std::process::Stdio::null());
    outer
}

#[test]
fn a_list_of_ports_that_cannot_be_counted_is_refused_with_its_reason() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    for (ports, piece) in [
        ("0", "`0` is not a port: ports are 1 to 65535"),
        ("70000", "`70000` is not a port"),
        ("-1", "unexpected argument"),
        ("80-", "`80-` is not whole"),
        ("+80", "`+80` is not whole"),
        ("9-3", "`9-3` is the wrong way round"),
        ("443,443", "`443` and `443` both count tcp port 443"),
        ("400-450/udp,443", "both count udp port 443"),
        ("443=a,444=a", "the name `a` is used twice"),
        ("", "an empty entry"),
        ("443,", "an empty entry"),
        ("443/sctp", "`sctp` is no transport"),
        ("443=", "is no name"),
        ("443=a\u{1b}[2J", "is no name"),
        ("x\u{1b}[2J", "is not a port"),
    ] {
        refused(&site, &host, &["run", "--iface", "eth0", "--ports", ports], &[piece]);
        let answer = site.run(&host, &["run", "--ports", ports]);
        assert!(!answer.stderr.contains("\u{1b}[2J"), "{ports:?} reached the terminal raw");
    }
}

#[test]
fn seventy_thousand_groups_are_refused_and_the_configuration_names_all_its_mistakes() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    let folder = std::env::temp_dir();
    let file = folder.join(format!("{}.toml", site.state.file_name().unwrap().to_string_lossy()));
    let path = file.display().to_string();
    let args = ["run", "--config", &path, "--iface", "eth0"];

    let groups: Vec<String> =
        (1..=35_000).flat_map(|port| [format!("{port}/tcp"), format!("{port}/udp")]).collect();
    fs::write(&file, format!("ports = '{}'\n", groups.join(","))).unwrap();
    refused(&site, &host, &args, &["70000 groups are too many", "line 1: ports"]);

    fs::write(&file, "port = '1'\n\ninterval = '0s'\nmeter = 'xdp'\n").unwrap();
    refused(&site, &host, &args, &["line 1: port:", "line 3: interval:", "line 4: meter:"]);

    fs::write(&file, "ports = '443'\ninterval = '50ms'\nmeter = 'tc'\n").unwrap();
    let answer = site.run(&host, &[&args[..], &["--json", "--count", "1"]].concat());
    let document = answer.json();
    assert_eq!(document["meter"], "tc");
    assert_eq!(document["ports"]["443"]["input_packets"], 0);
    fs::remove_file(&file).unwrap();
    refused(&site, &host, &args, &["cannot read the configuration", &path]);
}

#[test]
fn devices_cgroups_and_folders_that_are_not_there_are_named() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    for (args, pieces) in [
        (
            &["--iface", "eth7"][..],
            &["no device matches `eth7`", "there are: lo, eth0", "remedy:"][..],
        ),
        (&["--iface", "wg*"], &["no device matches `wg*`", "remedy:"]),
        (&["--iface", "eth0", "--iface", "a[b"], &["--iface", "a[b"]),
        (&["--meter", "cgroup", "--cgroup", "/nowhere"], &["no cgroup2 at /nowhere", "remedy:"]),
        (&["--meter", "tcx", "--cgroup", "/sys/fs/cgroup"], &["--cgroup goes with --meter cgroup"]),
        (&["--iface", "eth0", "--interval", "0s"], &["a tick takes 10ms to 24h"]),
        (&["--iface", "eth0", "--interval", "soon"], &["write a time such as"]),
        (&["--iface", "eth0", "--count", "0"], &["--count"]),
        (&["--meter", "xdp"], &["--meter"]),
    ] {
        refused(&site, &host, &[&["run", "--ports", "443"], args].concat(), pieces);
    }

    // A file where the state folder should be.
    let site = Site::new();
    fs::write(&site.state, "").unwrap();
    refused(&site, &host, &["run", "--iface", "eth0"], &["state folder", "--state", "--no-ledger"]);
    let without =
        ["run", "--iface", "eth0", "--no-ledger", "--ports", "1", "--json", "--count", "1"];
    assert_eq!(site.run(&host, &without).code, Some(0));
    fs::remove_file(&site.state).unwrap();
    // One that cannot be made.
    let answer = Answer::of(host.command(traffic_tests::daemon::binary()).args([
        "--state",
        "/proc/self/nowhere",
        "run",
        "--iface",
        "eth0",
    ]));
    check_refusal(&answer, &site, &host, "state in /proc", &["/proc/self/nowhere", "--no-ledger"]);
}

#[test]
fn a_cgroup_is_one_where_its_path_leads_and_devices_do_not_go_with_it() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    let root = need::cgroup2().expect("cgroup2");
    let outside = format!("{}/{}/tmp", root.display(), "../".repeat(8));
    let run = ["run", "--ports", "443", "--meter", "cgroup"];
    let args = [&run[..], &["--cgroup", &outside]].concat();
    refused(&site, &host, &args, &["no cgroup2 at", "remedy:"]);
    let args = [&run[..], &["--iface", "eth0"]].concat();
    refused(&site, &host, &args, &["--iface does not go with --meter cgroup"]);
}

#[test]
fn nothing_that_a_terminal_obeys_is_shown_raw() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let name = "e\u{1b}[2J";
    host.sh(&["ip", "link", "add", "plain", "type", "veth", "peer", "name", "there"]);
    host.sh(&["ip", "link", "set", "plain", "name", name]);
    host.sh(&["ip", "link", "set", name, "up"]);
    let site = Site::new();
    let run = ["run", "--meter", "tc", "--ports", "1", "--count", "1", "--no-ledger", "--iface"];
    let table = site.run(&host, &[&run[..], &["e*"]].concat());
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    let missing = site.run(&host, &[&run[..], &["eth7"]].concat());
    let mut daemon = site.start(&host, &["--meter", "tc", "--ports", "1", "--iface", "e*"]);
    daemon.wait_for("the first document", |_| Some(()));
    daemon.kill();
    let clean = site.run(&host, &["clean"]);
    assert!(clean.stdout.contains("clsact"), "{}", clean.stdout);
    host.sh(&["ip", "route", "add", "default", "dev", name]);
    let doctor = site.run(&host, &["doctor"]);
    for text in [table.stdout, missing.stderr, clean.stdout, doctor.stdout] {
        assert!(!text.contains(name) && text.contains("e\\u{1b}[2J"), "{text:?}");
    }
    // Nor in the name of a group: this turns the direction of writing.
    let group = site.run(&host, &["run", "--ports", "443=a\u{202e}b"]);
    assert_eq!(group.code, Some(2));
    assert!(group.stderr.contains("is no name"), "{}", group.stderr);
    drop(other);
}

#[test]
fn packets_are_logged_without_further_ado() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "eth0", "--ports", "5000", "--log-packets"]);
    daemon.counts_on(&["eth0"]);
    load::datagram(&load::udp(&there, false, 40_000), &load::udp(&here, false, 5000), 72);
    daemon.says("ports 40000 -> 5000: 100 bytes, 1 packets");
    assert!(!daemon.messages().contains("BPF Feature Detection"), "{}", daemon.messages());
    daemon.stop();
}

#[test]
fn pins_that_are_not_whole_are_left_as_they_are_and_clean_is_named() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let run = ["run", "--iface", "eth0", "--ports", "1", "--persist", "--json", "--count", "1"];
    for gone in ["META", "COUNTERS", "GROUPS"] {
        let site = Site::new();
        assert_eq!(site.run(&host, &run).code, Some(0));
        fs::remove_file(site.pins.join("maps").join(gone)).unwrap();
        let attached = leaks::attached(&host);
        let answer = site.run(&host, &run);
        assert_eq!(answer.code, Some(2), "{gone}: {}", answer.stdout);
        assert!(answer.stderr.contains(&format!("{gone} is missing")), "{}", answer.stderr);
        assert!(answer.stderr.contains("remedy: `traffic clean`"), "{}", answer.stderr);
        assert_eq!(leaks::attached(&host), attached, "{gone}: what still counted is gone");
        assert_eq!(site.run(&host, &["clean"]).code, Some(0), "{gone}");
        leaks::nothing(&host, &site.pins);
    }
}

#[test]
fn a_folder_that_was_there_keeps_its_mode_and_a_name_with_a_dot_is_refused() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    fs::create_dir(&site.pins).unwrap();
    fs::set_permissions(&site.pins, fs::Permissions::from_mode(0o755)).unwrap();
    let run = ["run", "--iface", "eth0", "--ports", "1", "--persist", "--json", "--count", "1"];
    assert_eq!(site.run(&host, &run).code, Some(0));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&site.pins), mode(&site.pins.join("maps"))), (0o755, 0o700));
    assert_eq!(site.run(&host, &["clean"]).code, Some(0));

    let dotted = format!("{}.b", site.pins.display());
    let mut command = host.command(traffic_tests::daemon::binary());
    command.args(run).args(["--no-ledger", "--pins", &dotted]);
    check_refusal(
        &Answer::of(&mut command),
        &site,
        &host,
        "dot",
        &["no name with a dot", "--pins"],
    );
}

#[test]
fn a_missing_capability_is_named() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"));
    let (host, _other) = one_device();
    let site = Site::new();
    // Without a meter being named, rules count where eBPF may not: see `fallback`.
    let args = ["run", "--iface", "eth0", "--ports", "443", "--json", "--count", "1"];
    let args = [&args[..], &["--meter", "tcx"]].concat();
    for (without, missing) in [
        ("-net_admin", "CAP_NET_ADMIN is missing"),
        ("-cap_39,-sys_admin", "CAP_BPF is missing"),
        ("-cap_38,-sys_admin", "CAP_PERFMON is missing"),
        ("-all", "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON is missing"),
    ] {
        let wrapper = ["setpriv", "--bounding-set", without];
        let answer = Answer::of(&mut through(&site, &host, &wrapper, &args));
        check_refusal(&answer, &site, &host, without, &[missing, "remedy:"]);
    }
    // What is left is enough: no CAP_SYS_ADMIN, and no right to raise the limit of locked memory.
    let wrapper = ["setpriv", "--bounding-set", "-all,+net_admin,+cap_38,+cap_39,+dac_override"];
    let wrapper = [&["prlimit", "--memlock=65536"], &wrapper[..]].concat();
    let answer = Answer::of(&mut through(&site, &host, &wrapper, &args));
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert_eq!(answer.json()["devices"]["eth0"]["link_header"], 14);
    leaks::nothing(&host, &site.pins);
}

#[test]
fn a_kernel_without_bpf_or_cgroup2_is_named_and_rules_count_there() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("nft"), Tool("unshare"));
    let (host, _other) = one_device();
    let site = Site::new();
    let run = ["run", "--ports", "443", "--json", "--count", "1", "--no-ledger"];
    let without_bpf = |more: &[&str]| {
        let mut command = site.traffic(&host, &[&run[..], more].concat());
        seccomp::without_bpf(&mut command);
        Answer::of(&mut command)
    };
    for meter in ["tcx", "tc", "cgroup"] {
        let pieces = ["counting with eBPF does not work here", "no bpf() system call", "remedy:"];
        check_refusal(&without_bpf(&["--meter", meter]), &site, &host, meter, &pieces);
    }
    let document = without_bpf(&[]).json();
    assert_eq!(document["meter"], "nft");
    let why = document["passed_over"]["tcx"].as_str().unwrap_or_default();
    assert!(why.contains("no bpf() system call"), "{document}");
    leaks::nothing(&host, &site.pins);

    // Such a kernel has no bpffs either.
    let no_bpffs = "umount --lazy /sys/fs/bpf && exec setpriv --bounding-set -sys_admin \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", no_bpffs, "sh"];
    let mut command = through(&site, &host, &wrapper, &[&run[..], &["--persist"]].concat());
    seccomp::without_bpf(&mut command);
    let answer = Answer::of(&mut command);
    assert_eq!(answer.json()["meter"], "nft", "{}", answer.stderr);
    let cleaned = site.run(&host, &["clean"]);
    assert_eq!(cleaned.code, Some(0), "{}", cleaned.stderr);
    leaks::nothing(&host, &site.pins);

    let unmounted = "umount --lazy --all-targets /sys/fs/cgroup && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", unmounted, "sh"];
    let args = [&run[..], &["--meter", "cgroup"]].concat();
    let answer = Answer::of(&mut through(&site, &host, &wrapper, &args));
    check_refusal(&answer, &site, &host, "no cgroup2", &["no cgroup2 at", "remedy: mount cgroup2"]);
}

#[test]
fn without_bpffs_persisting_is_refused_and_where_it_can_be_mounted_it_is() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"), Tool("unshare"));
    let (host, _other) = one_device();
    let site = Site::new();
    let args = ["run", "--iface", "eth0", "--ports", "443", "--json", "--count", "1", "--persist"];
    let unmounted = "umount --lazy /sys/fs/bpf && exec \"$@\"";
    let no_admin = "umount --lazy /sys/fs/bpf && exec setpriv --bounding-set -sys_admin \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", no_admin, "sh"];
    let answer = Answer::of(&mut through(&site, &host, &wrapper, &args));
    let pieces = ["not on a BPF file system", "mount -t bpf bpf /sys/fs/bpf", "--pins"];
    check_refusal(&answer, &site, &host, "no bpffs", &pieces);

    let wrapper = ["unshare", "--mount", "sh", "-c", unmounted, "sh"];
    let answer = Answer::of(&mut through(&site, &host, &wrapper, &args));
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    // The mount namespace ended, and the pins with their file system.
    leaks::nothing(&host, &site.pins);

    // A folder of pins that is no bpffs.
    let elsewhere = std::env::temp_dir().join(site.pins.file_name().unwrap()).join("pins");
    let args = [&args[..], &["--no-ledger"]].concat();
    let mut command = host.command(traffic_tests::daemon::binary());
    command.args(&args).arg("--pins").arg(&elsewhere);
    let answer = Answer::of(&mut command);
    check_refusal(&answer, &site, &host, "pins elsewhere", &["not on a BPF file system", "--pins"]);
    assert!(!elsewhere.exists());
}

#[test]
fn what_others_put_in_the_place_of_our_pins_is_left_alone() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    let maps = site.pins.join("maps");
    fs::create_dir_all(&maps).unwrap();
    let foreign = Array::<_, [u8; 80]>::create(1, 0).unwrap();
    foreign.pin(maps.join("META")).unwrap();
    let run = ["run", "--persist", "--iface", "eth0"];
    for verb in [&run[..], &["dump"], &["ports"], &["clean"], &["clean", "--dry-run"]] {
        let answer = site.run(&host, verb);
        assert_eq!(answer.code, Some(2), "{verb:?}: {}", answer.stdout);
        assert!(answer.stderr.contains("is not ours"), "{verb:?}: {}", answer.stderr);
        assert!(answer.stderr.contains("remedy: move it away"), "{verb:?}: {}", answer.stderr);
    }
    assert_eq!(leaks::attached(&host), Vec::<String>::new());
    assert!(maps.join("META").exists());

    // Beside a set of ours, too.
    fs::remove_file(maps.join("META")).unwrap();
    let mut daemon = site.start(&host, &["--persist", "--iface", "eth0", "--ports", "1"]);
    daemon.counts_on(&["eth0"]);
    daemon.stop();
    let links = site.pins.join("links");
    let foreign = Array::<_, [u8; 80]>::create(1, 0).unwrap();
    foreign.pin(links.join("tcx_70000_in")).unwrap();
    let said = site.run(&host, &["clean", "--json"]).json();
    assert!(said["removed"].as_array().is_some_and(|said| said.len() > 5), "{said}");
    assert_eq!(fs::read_dir(&links).unwrap().count(), 1);
    assert!(links.join("tcx_70000_in").exists() && !maps.exists());
    assert_eq!(leaks::attached(&host), Vec::<String>::new());
}

#[test]
fn nothing_to_dump_is_said_and_a_closed_pipe_is_no_error() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    refused(&site, &host, &["dump"], &["nothing is counted", "--persist"]);

    let mut command = site.traffic(&host, &["run", "--iface", "eth0", "--ports", "443"]);
    command.args(["--output", "json", "--interval", "20ms"]);
    let program = command.get_program().to_owned();
    let mut shell = host.command("sh");
    shell.args(["-c", "{ \"$@\"; echo \"exit $?\" >&2; } | head -n 1", "sh"]);
    shell.arg(program).args(command.get_args());
    let answer = Answer::of(&mut shell);
    assert_eq!((answer.stdout.lines().count(), answer.stderr.as_str()), (1, "exit 0\n"));
    leaks::nothing(&host, &site.pins);
}

#[test]
fn every_json_document_keeps_to_its_schema() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, _other) = one_device();
    let site = Site::new();
    let ports = "443/tcp=web,443/udp,20000-50000/udp=hop,80+8080";
    for meter in ["tcx", "tc"] {
        let args = [
            "run", "--iface", "eth0", "--ports", ports, "--meter", meter, "--json", "--count", "1",
        ];
        let document = site.run(&host, &args).json();
        keeps_to("dump", &document);
        let mut keys: Vec<&String> = document["ports"].as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["20000-50000", "443/tcp", "443/udp", "80,8080"]);
    }
    keeps_to("ports", &site.run(&host, &["ports", "--json", "--ports", "443"]).json());
    let persist =
        ["run", "--iface", "eth0", "--ports", ports, "--persist", "--json", "--count", "1"];
    keeps_to("dump", &site.run(&host, &persist).json());
    keeps_to("dump", &site.run(&host, &["dump", "--json"]).json());
    keeps_to("ports", &site.run(&host, &["ports", "--json"]).json());
    keeps_to("doctor", &site.run(&host, &["doctor", "--json"]).json());
    for clean in [&["clean", "--dry-run", "--json"][..], &["clean", "--json"], &["clean", "--json"]]
    {
        keeps_to("clean", &site.run(&host, clean).json());
    }
    // A schema that takes anything would be none.
    let wrong = serde_json::json!({"jsonversion": "1"});
    let caught = std::panic::catch_unwind(|| keeps_to("dump", &wrong));
    assert!(caught.is_err(), "the schema of a dump takes anything");
    leaks::nothing(&host, &site.pins);
}

#[test]
fn every_shell_gets_a_completion_and_help_names_every_verb() {
    need!(Netns);
    let (site, host) = (Site::new(), NetNs::new());
    for shell in ["bash", "zsh", "fish"] {
        let answer = site.run(&host, &["completions", shell]);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        assert!(answer.stdout.contains("persist"), "{shell}");
    }
    let help = site.run(&host, &["--help"]).stdout;
    for verb in ["run", "dump", "ports", "clean", "doctor", "completions"] {
        assert!(help.contains(verb), "{verb} is not in: {help}");
    }
    assert_eq!(site.run(&host, &["--version"]).code, Some(0));
    assert_eq!(site.run(&host, &["frobnicate"]).code, Some(2));
}
