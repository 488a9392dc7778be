//! What `clean` takes off and what it leaves, and what it never takes for nothing.

use traffic_tests::{daemon::Site, load, need, netns::NetNs, wait};
use traffic_user::{accounting::subject::Subject, ledger::Reader};

use super::{Lab, METERS, iptables, needs, run};
use crate::schema::keeps_to;

#[test]
fn the_rules_of_one_port_are_cleaned_and_no_others() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        run(&site, &lab, meter, &["--ports", "80,8080,443/udp", "--persist"]).stop();
        for (port, piece) in [("0", "0"), ("70000", "70000"), ("81", "80 8080 443")] {
            let refused = iptables(&site, &lab, &["clean", port]);
            assert_eq!(refused.code, Some(2), "{meter} {port}");
            assert!(refused.stderr.contains(piece), "{meter}: {}", refused.stderr);
        }
        let dry = iptables(&site, &lab, &["clean", "80", "--dry-run", "--json"]).json();
        keeps_to("clean", &dry);
        let said = iptables(&site, &lab, &["clean", "80", "--json"]).json();
        assert_eq!(said["removed"], dry["removed"], "{meter}");
        let left = iptables(&site, &lab, &["port", "--json"]).json();
        let watched: Vec<_> = left["ports"]
            .as_object()
            .expect("ports")
            .iter()
            .filter(|(_, port)| port["watched"] == true)
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(watched, ["443", "8080"], "{meter}");
        let all = iptables(&site, &lab, &["clean", "--all", "--json"]).json();
        assert_eq!(all["dry_run"], false);
        assert_eq!(lab.rules(), before, "{meter}");
    }
}

#[test]
fn a_group_of_several_ports_goes_on_without_the_one_that_is_cleaned() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let list = "80,5000+5002+20000-20100/udp=web";
        run(&site, &lab, meter, &["--ports", list, "--persist"]).stop();
        lab.send(false, 5002, 3);
        let dry = iptables(&site, &lab, &["clean", "20050", "--dry-run", "--json"]).json();
        for port in ["20050", "5000"] {
            let said = iptables(&site, &lab, &["clean", port, "--json"]).json();
            let lines = said["removed"].as_array().expect("a list");
            assert!(!lines.is_empty(), "{meter} {port}");
            for line in lines {
                assert!(line.to_string().contains(&format!("port {port} of ")), "{meter}: {line}");
            }
            if port == "20050" {
                assert_eq!(said["removed"], dry["removed"], "{meter}");
            }
        }
        lab.send(false, 5000, 1);
        lab.send(false, 20_050, 1);
        lab.send(false, 20_051, 1);
        lab.send(false, 5002, 1);
        let left = iptables(&site, &lab, &["port", "--json"]).json();
        let rest = &left["ports"]["5002,20000-20049,20051-20100"];
        assert_eq!(rest["group"], "web", "{meter}: {left}");
        // Other ports are another group, which begins at zero.
        assert_eq!(rest["input_packets"], 2, "{meter}: {left}");
        for port in ["5002", "20000"] {
            assert_eq!(iptables(&site, &lab, &["clean", port]).code, Some(0), "{meter}");
        }
        assert_eq!(iptables(&site, &lab, &["clean", "--all"]).code, Some(0));
        assert_eq!(lab.rules(), before, "{meter}");
    }
}

#[test]
fn what_a_port_had_is_booked_before_it_is_cleaned_and_it_begins_anew() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let args = ["--ports", "5000/udp,7000/udp", "--persist", "--iface", "eth0"];
        run(&site, &lab, meter, &args).stop();
        lab.send(false, 7000, 40);
        let reset = site.run(&lab.host, &["reset", "--port", "7000", "--yes", "--no-proxy"]);
        assert_eq!(reset.code, Some(0), "{meter}: {}", reset.stderr);
        lab.send(false, 5000, 5);
        lab.send(false, 7000, 6);
        assert_eq!(iptables(&site, &lab, &["clean", "7000"]).code, Some(0), "{meter}");
        let packets = |port: &str| {
            let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
            let group = Subject::group(&port.parse().expect("a group"));
            let totals = reader.totals(&group).expect("ask the ledger");
            totals.iter().map(|usage| usage.traffic.input_packets).sum::<u64>()
        };
        assert_eq!((packets("5000/udp"), packets("7000/udp")), (5, 46), "{meter}");

        let mut daemon = run(&site, &lab, meter, &args);
        lab.send(false, 5000, 2);
        lab.send(false, 7000, 3);
        daemon.fresh();
        let said = daemon.messages();
        assert!(!said.contains("fell") && !said.contains("gone"), "{meter}: {said}");
        daemon.stop();
        assert_eq!((packets("5000/udp"), packets("7000/udp")), (7, 49), "{meter}");
        // The former zero is of counters that are gone.
        let shown = iptables(&site, &lab, &["port", "--json"]).json();
        assert_eq!(shown["ports"]["7000"]["input_packets"], 3, "{meter}: {shown}");
        // What a group had that is watched no more can go by its port as well.
        run(&site, &lab, meter, &["--ports", "5000/udp", "--persist", "--iface", "eth0"]).stop();
        assert_eq!(iptables(&site, &lab, &["clean", "7000"]).code, Some(0), "{meter}");
        let left = iptables(&site, &lab, &["port", "--json"]).json();
        assert_eq!(left["ports"]["7000"], serde_json::Value::Null, "{meter}: {left}");
        site.run(&lab.host, &["clean"]);
    }
}

#[test]
fn what_the_program_does_not_understand_is_not_taken_for_nothing_of_ours() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let before = lab.rules();
    let mut daemon = run(&site, &lab, "iptables", &["--ports", "5000/udp"]);
    lab.send(false, 5000, 3);
    daemon.fresh();
    // Only nft can set it, and then iptables lists nothing of the table.
    lab.sh("nft add rule ip filter INPUT ct state vmap '{ established : accept }'");
    let during = || lab.rules().matches("jump TRAFFIC_IN").count();
    daemon.says("nothing was read at this tick");
    wait::until("another tick", || {
        (daemon.messages().matches("nothing was read at this tick").count() > 2).then_some(())
    });
    assert_eq!(during(), 2, "no second jump beside ours");
    lab.send(false, 5000, 2);
    // As the real one would say.
    let refused = site.run(&lab.host, &["clean", "--dry-run"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("runs already"), "{}", refused.stderr);
    let script = "nft delete rule ip filter INPUT handle $(nft -a list chain ip filter INPUT | sed -n 's/.*vmap.*handle //p')";
    lab.sh(script);
    assert_eq!(daemon.fresh().group("5000").input_packets, 5, "nothing was lost meanwhile");
    daemon.stop();
    assert_eq!(lab.rules(), before);

    lab.sh("nft add rule ip filter INPUT ct state vmap '{ established : accept }'");
    let before = lab.rules();
    let args = ["run", "--no-proxy", "--no-ledger", "--meter", "iptables", "--ports", "5000"];
    let refused = site.run(&lab.host, &args);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("does not understand"), "{}", refused.stderr);
    assert_eq!(lab.rules(), before);
}

#[test]
fn doctor_changes_nothing() {
    needs!();
    let (site, host) = (Site::new(), NetNs::new());
    let tables = || {
        let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names";
        host.sh(&["sh", "-c", &format!("nft list ruleset; {names}")])
    };
    let before = tables();
    let doctor = site.run(&host, &["doctor", "--no-proxy", "--json"]).json();
    let checks = doctor["checks"].as_array().expect("checks");
    let iptables = checks.iter().find(|check| check["name"] == "iptables").expect("iptables");
    assert_eq!(iptables["status"], "ok", "{doctor}");
    assert_eq!(tables(), before);
}

#[test]
fn what_others_have_in_a_table_that_cannot_be_listed_is_no_reason_to_do_nothing_elsewhere() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    lab.sh("nft add rule ip filter INPUT ct state vmap '{ established : accept }'");
    let before = lab.rules();
    let nothing = site.run(&lab.host, &["dump"]);
    assert!(nothing.stderr.contains("nothing is counted"), "{}", nothing.stderr);
    run(&site, &lab, "nft", &["--ports", "80,443", "--persist"]).stop();
    for args in [&["iptables", "clean", "80"][..], &["iptables", "port"], &["dump"], &["clean"]] {
        let answer = site.run(&lab.host, args);
        assert_eq!(answer.code, Some(0), "{args:?}: {}", answer.stderr);
    }
    assert_eq!(lab.rules(), before);
}

#[test]
fn a_port_that_stays_loses_nothing_while_another_is_cleaned() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let args = ["--ports", "5000/udp,7000/udp", "--persist", "--iface", "eth0"];
        run(&site, &lab, meter, &args).stop();
        let sender = load::Sender::start(&lab.there, &lab.here, 5000);
        assert_eq!(iptables(&site, &lab, &["clean", "7000"]).code, Some(0), "{meter}");
        let mut daemon = run(&site, &lab, meter, &args);
        daemon.fresh();
        let sent = sender.stop().len() as u64;
        daemon.stop();
        let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
        let group = Subject::group(&"5000/udp".parse().expect("a group"));
        let totals = reader.totals(&group).expect("ask the ledger");
        let booked: u64 = totals.iter().map(|usage| usage.traffic.input_packets).sum();
        assert_eq!(booked, sent, "{meter}");
        site.run(&lab.host, &["clean"]);
    }
}
