//! What is said where rules cannot be set, and what stays as it was.

use std::{fs, os::unix::fs::PermissionsExt as _};

use traffic_tests::{
    daemon::{Answer, Site},
    document::Traffic,
    load, need, wait,
};
use traffic_user::{accounting::subject::Subject, ledger::Reader};

use super::{DATAGRAM4, Lab, METERS, needs, port, run};

/// A folder of tools, each with what it does.
fn tools(site: &Site, scripts: &[(&str, String)]) -> String {
    let folder = site.state.join("tools");
    fs::create_dir_all(&folder).expect("make a folder");
    for (name, script) in scripts {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it run");
    }
    folder.to_str().expect("a path of ours is text").to_owned()
}

/// The system's iptables.
fn iptables() -> Vec<(String, String)> {
    let mut scripts = Vec::new();
    for family in ["iptables", "ip6tables"] {
        for end in ["save", "restore"] {
            let name = format!("{family}-nft-{end}");
            let tool = need::tool(&name).expect("a tool");
            let script = format!("exec {} \"$@\"", tool.display());
            scripts.push((name, script));
        }
    }
    scripts
}

fn once(site: &Site, lab: &Lab, tools: &str, args: &[&str]) -> Answer {
    let common = ["run", "--no-proxy", "--count", "1", "--output", "json", "--ports", "443"];
    let mut command = site.traffic(&lab.host, &[&common[..], args].concat());
    Answer::of(command.env("TRAFFIC_TOOLS", tools))
}

#[test]
fn without_a_match_that_is_needed_it_is_named_and_the_rules_stay() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    // It can list what is there.
    let mut scripts = iptables();
    for (name, script) in &mut scripts {
        if name.ends_with("restore") {
            *script = format!("XTABLES_LIBDIR=/nonexistent {script}");
        }
    }
    let scripts: Vec<_> = scripts.iter().map(|(name, text)| (&**name, text.clone())).collect();
    let tools = tools(&site, &scripts);
    let before = lab.rules();
    let answer = once(&site, &lab, &tools, &["--meter", "iptables"]);
    assert_eq!(answer.code, Some(2), "{}", answer.stderr);
    assert!(answer.stderr.contains("the meter iptables does not work here"), "{}", answer.stderr);
    assert!(answer.stderr.contains("load match"), "{}", answer.stderr);
    assert!(answer.stderr.contains("`traffic doctor`"), "{}", answer.stderr);
    assert_eq!(lab.rules(), before);
}

#[test]
fn where_the_kernel_takes_no_rules_of_nft_auto_goes_on_to_iptables() {
    needs!();
    need!(Tool("setpriv"));
    let (site, lab) = (Site::new(), Lab::new());
    let mut scripts = iptables();
    let refusal =
        "cat >/dev/null; echo 'Error: Could not process rule: Operation not supported' >&2; exit 1";
    scripts.push(("nft".to_owned(), refusal.to_owned()));
    let scripts: Vec<_> = scripts.iter().map(|(name, text)| (&**name, text.clone())).collect();
    let tools = tools(&site, &scripts);
    let asked = once(&site, &lab, &tools, &["--meter", "nft"]);
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
    assert!(asked.stderr.contains("cannot set the nft rules"), "{}", asked.stderr);
    assert!(asked.stderr.contains("Operation not supported"), "{}", asked.stderr);

    // Programs cannot be loaded either.
    let args = ["run", "--no-proxy", "--count", "1", "--output", "json", "--ports", "443"];
    let inner = site.traffic(&lab.host, &args);
    let mut outer = lab.host.command("setpriv");
    outer.args(["--bounding-set", "-all,+net_admin,+net_raw,+dac_override"]);
    outer.arg(inner.get_program()).args(inner.get_args()).env("TRAFFIC_TOOLS", &tools);
    let document = Answer::of(&mut outer).json();
    assert_eq!(document["meter"], "iptables", "{document}");
    let why = document["passed_over"]["nft"].as_str().expect("a reason");
    assert!(why.contains("Operation not supported"), "{why}");
}

#[test]
fn a_kernel_that_takes_no_rules_for_one_version_of_ip_is_named_and_nothing_is_left() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let before = lab.rules();
    for (family, version) in [("ip", "IPv4"), ("ip6", "IPv6")] {
        // As a kernel without that family: a transaction happens as a whole or not at all.
        let nft = need::tool("nft").expect("a tool");
        let script = format!(
            "rules=$(cat)\ncase $rules in *'table {family} '*)\n\
             echo '/dev/stdin:3:7-9: Error: Could not process rule: Address family not supported' >&2\n\
             exit 1;;\nesac\nprintf '%s\\n' \"$rules\" | exec {} \"$@\"",
            nft.display()
        );
        let tools = tools(&site, &[("nft", script)]);
        let answer = once(&site, &lab, &tools, &["--meter", "nft"]);
        assert_eq!(answer.code, Some(2), "{}", answer.stderr);
        let said = format!("the kernel takes no rules of nftables for {version}: /dev/stdin");
        assert!(answer.stderr.contains(&said), "{}", answer.stderr);
        assert!(answer.stderr.contains("`traffic doctor`"), "{}", answer.stderr);
        assert_eq!(lab.rules(), before);
        let doctor = site.traffic(&lab.host, &["doctor"]).env("TRAFFIC_TOOLS", &tools).output();
        let doctor = String::from_utf8(doctor.expect("ask the doctor").stdout).expect("text");
        assert!(doctor.contains(&format!("no rules of nftables for {version}")), "{doctor}");
    }
}

#[test]
fn rules_that_no_tool_is_there_to_take_off_are_not_said_to_be_gone() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    run(&site, &lab, "nft", &["--ports", "5000/udp", "--persist"]).stop();
    let before = lab.rules();
    for args in [&["clean"][..], &["iptables", "clean", "--all"], &["iptables", "clean", "5000"]] {
        let mut command = site.traffic(&lab.host, args);
        let answer = Answer::of(command.env("TRAFFIC_TOOLS", "/nonexistent"));
        assert_eq!(answer.code, Some(2), "{args:?}: {}", answer.stdout);
        assert!(answer.stderr.contains("the meter nft needs nft"), "{args:?}: {}", answer.stderr);
        assert_eq!(lab.rules(), before, "{args:?}");
        // What would go is known without it.
        let would = Answer::of(
            site.traffic(&lab.host, &[args, &["--dry-run"]].concat())
                .env("TRAFFIC_TOOLS", "/nonexistent"),
        );
        assert!(would.stdout.contains("would remove"), "{args:?}: {}", would.stderr);
    }
    site.run(&lab.host, &["clean"]);
}

#[test]
fn rules_that_a_user_may_not_list_are_not_said_to_be_none() {
    needs!();
    need!(Tool("setpriv"));
    let (site, lab) = (Site::new(), Lab::new());
    for meter in METERS {
        run(&site, &lab, meter, &["--ports", "5000/udp", "--persist"]).stop();
        for args in [
            &["iptables"][..],
            &["iptables", "user", "--no-proxy"],
            &["iptables", "total", "--json"],
            &["--pins", "/nonexistent/pins", "dump"],
        ] {
            let program = site.traffic(&lab.host, &[]).get_program().to_owned();
            let mut command = lab.host.command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            let answer = Answer::of(command.arg(program).args(args));
            assert_eq!(answer.code, Some(2), "{args:?}: {}", answer.stdout);
            assert!(answer.stderr.contains("CAP_NET_ADMIN"), "{args:?}: {}", answer.stderr);
        }
        site.run(&lab.host, &["clean"]);
    }
}

#[test]
fn a_back_end_that_may_not_be_looked_into_gets_no_rules_in_the_other_beside_it() {
    needs!();
    need!(Tool("setpriv"), Tool("iptables-legacy"));
    let (site, lab) = (Site::new(), Lab::new());
    lab.sh("nft flush ruleset; iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT");
    let args = ["--ports", "5000/udp", "--persist"];
    run(&site, &lab, "iptables", &args).stop();
    let before = lab.rules();
    assert!(before.contains("-A TRAFFIC_IN"), "in the older back end: {before}");
    let verb = ["run", "--no-proxy", "--meter", "iptables", "--count", "1"];
    for verb in [&[&verb[..], &args].concat()[..], &["iptables"]] {
        let inner = site.traffic(&lab.host, verb);
        let mut outer = lab.host.command("setpriv");
        outer.args(["--bounding-set", "-all,+net_admin,+dac_override"]);
        let answer = Answer::of(outer.arg(inner.get_program()).args(inner.get_args()));
        assert_eq!(answer.code, Some(2), "{verb:?}: {}", answer.stdout);
        assert!(answer.stderr.contains("CAP_NET_RAW is missing"), "{verb:?}: {}", answer.stderr);
    }
    assert_eq!(lab.rules(), before);
    site.run(&lab.host, &["clean"]);
}

#[test]
fn a_clean_that_cannot_be_done_begins_nowhere_and_one_that_fails_half_way_says_what_is_gone() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let before = lab.rules();
    let args = ["--ports", "5000/udp", "--iface", "eth0", "--persist"];
    run(&site, &lab, "iptables", &args).stop();
    lab.send(false, 5000, 5);
    let counting = lab.rules();
    let clean = |refuses: &str| {
        let mut scripts = iptables();
        for (name, script) in &mut scripts {
            if name == "ip6tables-nft-restore" {
                *script = format!("{refuses} && {{ echo no >&2; exit 1; }}; {script}");
            }
        }
        let scripts: Vec<_> = scripts.iter().map(|(name, text)| (&**name, text.clone())).collect();
        let mut command = site.traffic(&lab.host, &["clean"]);
        Answer::of(command.env("TRAFFIC_TOOLS", tools(&site, &scripts)))
    };
    let answer = clean("true");
    assert_eq!(answer.code, Some(2), "{}", answer.stdout);
    assert_eq!(lab.rules(), counting, "it would not go in one family, and stays in both");
    let answer = clean("case \"$*\" in *--test*) false;; esac");
    assert_eq!(answer.code, Some(2), "{}", answer.stdout);
    let gone = answer.stderr.matches("this was: the udp rule of 5000/udp").count();
    assert_eq!(gone, 2, "{}", answer.stderr);
    assert!(!lab.rules().contains("table ip filter {\n\tchain TRAFFIC"), "IPv4 is gone");

    assert_eq!(site.run(&lab.host, &["clean"]).code, Some(0));
    assert_eq!(lab.rules(), before);
    let mut daemon = run(&site, &lab, "iptables", &args);
    daemon.fresh();
    assert!(!daemon.messages().contains("is gone"), "{}", daemon.messages());
    daemon.stop();
    let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    let group = Subject::group(&"5000/udp".parse().expect("a group"));
    let totals = reader.totals(&group).expect("ask the ledger");
    let packets: Vec<_> = totals.iter().map(|usage| usage.traffic.input_packets).collect();
    assert_eq!(packets, [5], "booked before anything went");
    site.run(&lab.host, &["clean"]);
}

#[test]
fn what_has_our_name_and_is_not_ours_is_named_and_left_alone() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    lab.sh("nft add table ip6 traffic; nft add chain ip6 traffic mine; iptables-nft -N TRAFFIC_OUT; iptables-nft -A TRAFFIC_OUT -j ACCEPT");
    let before = lab.rules();
    for (meter, what) in
        [("nft", "the nft table ip6 traffic"), ("iptables", "the chain TRAFFIC_OUT")]
    {
        for verb in [
            &["run", "--no-proxy", "--count", "1", "--ports", "443", "--meter", meter][..],
            &["clean"],
        ] {
            let answer = site.run(&lab.host, verb);
            assert_eq!(answer.code, Some(2), "{verb:?}: {}", answer.stdout);
            assert!(answer.stderr.contains("has our name and is not ours"), "{}", answer.stderr);
            assert!(answer.stderr.contains("by hand"), "{}", answer.stderr);
            assert!(verb == ["clean"] || answer.stderr.contains(what), "{}", answer.stderr);
        }
    }
    assert_eq!(lab.rules(), before);
}

#[test]
fn a_port_that_nobody_uses_is_counted_and_port_0_is_none() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        for ports in ["0", "0-9", "443,0", "65536"] {
            let args = ["run", "--no-proxy", "--meter", meter, "--count", "1", "--ports", ports];
            let answer = site.run(&lab.host, &args);
            assert_eq!(answer.code, Some(2), "{meter} {ports}: {}", answer.stdout);
            assert!(answer.stderr.contains("--ports"), "{meter} {ports}: {}", answer.stderr);
        }
        let mut daemon = run(&site, &lab, meter, &["--ports", "5000/udp"]);
        assert_eq!(port(&daemon.fresh().0, "5000"), Traffic::default(), "{meter}");
        // What arrives at a port on which nobody listens has arrived.
        let client = load::udp(&lab.there, false, 40_000);
        let to = (lab.here.v4, 5000);
        client.send_to(&[0; 100], to).expect("send");
        let counted = wait::until("the datagram", || {
            let now = port(&daemon.fresh().0, "5000");
            (now != Traffic::default()).then_some(now)
        });
        assert_eq!(counted, Traffic::input(DATAGRAM4, 1), "{meter}");
        lab.host.run(|| {
            let counted = traffic_user::calcul_iptables_traffic(0, false).expect("ask");
            assert_eq!(counted, None, "{meter}");
            let of_5000 = traffic_user::calcul_iptables_traffic(5000, false).expect("ask");
            assert_eq!(of_5000.expect("it counts").traffic.input_packets, 1, "{meter}");
            assert_eq!(traffic_user::clean_iptables(0).expect("clean"), Vec::<String>::new());
        });
        daemon.stop();
        let nothing = site.run(&lab.host, &["iptables", "--json"]);
        assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(2), ""), "{meter}");
    }
}
