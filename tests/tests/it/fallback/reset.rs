//! `traffic reset` while no daemon runs and rules go on: all until then is booked, and then a period begins.

use std::{fs, net::SocketAddr, path::PathBuf};

use serde_json::json;
use traffic_tests::{
    daemon::{Answer, Site},
    document::Traffic,
    need,
    stats_server::{Behaviour, Kind, StatsServer},
};
use traffic_user::{
    accounting::{
        reading::Layer,
        subject::Subject,
        usage::{Event, Span},
    },
    ledger::Reader,
    meter::Lock,
};

use super::{DATAGRAM4, DATAGRAM6, Lab, METERS, iptables, needs, port, run};
use crate::schema::keeps_to;

const USER: &str = "a@example.com";
const API: &str = "127.0.0.1:10085";

fn reader(site: &Site) -> Reader {
    Reader::open(&site.state).expect("open the ledger").expect("a ledger")
}

/// What the ledger has of somebody in this layer, in and out.
fn booked(site: &Site, subject: &Subject, layer: Layer) -> (u64, u64) {
    let totals = reader(site).totals(subject).expect("ask the ledger");
    let usage = totals.iter().find(|usage| usage.layer == layer);
    usage.map_or((0, 0), |usage| (usage.traffic.input_bytes, usage.traffic.output_bytes))
}

fn group() -> Subject {
    Subject::group(&"5000/udp".parse().expect("a group"))
}

fn packets(site: &Site) -> u64 {
    booked(site, &group(), Layer::L3Skb).0 / DATAGRAM4
}

fn resets(site: &Site) -> Vec<Event> {
    let events = reader(site).events(Span::ALL, usize::MAX).expect("ask the ledger");
    events.into_iter().filter(|event| event.kind == "reset").collect()
}

#[test]
fn without_a_proxy_what_rules_counted_is_booked_and_a_period_begins() {
    needs!();
    let args = ["--ports", "5000/udp", "--persist"];
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let daemon = run(&site, &lab, meter, &args);
        lab.send(false, 5000, 3);
        let first = daemon.stop();
        lab.send(false, 5000, 4);
        let reset = |which: &[&str]| -> Answer {
            site.run(&lab.host, &[&["reset", "--yes", "--no-proxy"], which].concat())
        };
        for (which, said) in
            [(&["--port", "81"][..], "no group has port 81"), (&["--user", USER], "no user is")]
        {
            let refused = reset(which);
            assert_eq!(refused.code, Some(2), "{which:?}: {}", refused.stdout);
            assert!(refused.stderr.contains(said), "{which:?}: {}", refused.stderr);
        }
        assert_eq!((packets(&site), resets(&site).len()), (3, 0), "{meter}");

        let done = reset(&["--port", "5000"]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let said = "port 5000: a new period begins; what was counted before stays in the ledger";
        assert_eq!(done.stdout, format!("{said} (no daemon was asked)\n"), "{meter}");
        assert_eq!(packets(&site), 3 + 4, "{meter}");
        let [event] = &*resets(&site) else { panic!("one reset") };
        assert_eq!((&event.subject, event.what.as_str()), (&Some(group()), said), "{meter}");

        // The counters are not touched, and nobody books them twice.
        lab.send(false, 5000, 5);
        let mut daemon = run(&site, &lab, meter, &args);
        let document = daemon.fresh();
        assert_eq!(document.text("epoch"), first.text("epoch"), "{meter}");
        assert_eq!(document.group("5000"), Traffic::input(12 * DATAGRAM4, 12), "{meter}");
        daemon.stop();
        assert_eq!(packets(&site), 12, "{meter}");

        let all = reset(&["--all"]);
        assert!(all.stdout.starts_with("all groups: a new period begins"), "{}", all.stdout);
        assert_eq!((packets(&site), resets(&site).len()), (12, 2), "{meter}");
        site.run(&lab.host, &["clean"]);
        let nothing = reset(&["--all"]);
        assert_eq!(nothing.code, Some(2), "{}", nothing.stdout);
        assert!(nothing.stderr.contains("nothing counts now"), "{}", nothing.stderr);
    }
}

#[test]
fn what_is_shown_begins_at_zero_and_the_counters_go_on() {
    needs!();
    for meter in METERS {
        let (site, lab) = (Site::new(), Lab::new());
        let args = ["--ports", "5000/udp,6000/udp=web", "--persist", "--interval", "1h"];
        let daemon = run(&site, &lab, meter, &args);
        let shown = || iptables(&site, &lab, &["port", "--json"]).json();
        let reset = |which: &[&str]| {
            let answer = site.run(&lab.host, &[&["reset", "--yes", "--no-proxy"], which].concat());
            assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        };
        lab.send(false, 5000, 3);
        lab.send(true, 6000, 4);
        reset(&["--port", "5000"]);
        // At once, although the next tick is far away.
        lab.send(false, 5000, 2);
        let document = shown();
        keeps_to("iptables", &document);
        assert_eq!(port(&document, "5000"), Traffic::input(2 * DATAGRAM4, 2), "{meter}");
        assert_eq!(port(&document, "6000"), Traffic::input(4 * DATAGRAM6, 4), "{meter}");
        assert!(document["ports"]["5000"]["reset_at"].is_string(), "{document}");
        assert!(document["ports"]["6000"]["reset_at"].is_null(), "{document}");
        let total = 2 * DATAGRAM4 + 4 * DATAGRAM6;
        assert_eq!(document["total"]["input_bytes"], total, "{document}");
        let table = iptables(&site, &lab, &["port"]).stdout;
        assert!(table.contains("port 5000 was reset: since 20"), "{table}");
        assert!(!table.contains("port 6000 was reset"), "{table}");
        let six = iptables(&site, &lab, &["total", "--ipv6", "--json"]).json();
        assert_eq!(six["total"]["input_bytes"], 4 * DATAGRAM6, "{six}");
        daemon.stop();

        // Without a daemon as well, and then with the next.
        reset(&["--all"]);
        lab.send(false, 5000, 1);
        let document = shown();
        assert_eq!(port(&document, "5000"), Traffic::input(DATAGRAM4, 1), "{meter}");
        assert_eq!(port(&document, "6000"), Traffic::default(), "{meter}");
        let daemon = run(&site, &lab, meter, &args);
        assert_eq!(port(&shown(), "5000"), Traffic::input(DATAGRAM4, 1), "{meter}");
        let dump = site.run(&lab.host, &["dump", "--json"]).json();
        assert_eq!(port(&dump, "5000"), Traffic::input(6 * DATAGRAM4, 6), "{meter}");
        daemon.stop();
        assert_eq!(packets(&site), 6, "{meter}");

        // Other counters begin by themselves.
        site.run(&lab.host, &["clean"]);
        let daemon = run(&site, &lab, meter, &args);
        lab.send(false, 5000, 9);
        let document = shown();
        assert_eq!(port(&document, "5000"), Traffic::input(9 * DATAGRAM4, 9), "{meter}");
        assert!(document["ports"]["5000"]["reset_at"].is_null(), "{document}");
        daemon.stop();
        site.run(&lab.host, &["clean"]);
    }
}

/// A configuration that names the config of a proxy, which has the port and the API.
fn configured(site: &Site) -> PathBuf {
    fs::create_dir_all(&site.state).expect("make the state folder");
    let api: SocketAddr = API.parse().expect("an address");
    let proxy = site.state.join("proxy.json");
    let text = json!({
        "stats": {},
        "api": {"tag": "api", "services": ["StatsService"]},
        "policy": {"levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}}},
        "inbounds": [
            {"tag": "in", "port": 5000, "protocol": "vmess",
             "streamSettings": {"network": "kcp"}, "settings": {"clients": [
                {"id": "9a2c5ad2-6b3c-4c39-9d1e-6a5c2c0f0001", "email": USER}]}},
            {"tag": "api", "listen": "127.0.0.1", "port": api.port(), "protocol": "dokodemo-door",
             "settings": {"address": "127.0.0.1"}}],
        "routing": {"rules": [{"type": "field", "inboundTag": ["api"], "outboundTag": "api"}]},
        "outbounds": [{"protocol": "freedom"}]
    });
    fs::write(&proxy, text.to_string()).expect("write a config");
    let file = site.state.join("traffic.toml");
    fs::write(&file, format!("proxy_config = [{:?}]\nmeter = \"nft\"\npersist = true\n", proxy))
        .expect("write a configuration");
    file
}

#[test]
fn what_the_proxy_moved_since_its_last_poll_is_booked_before_it_goes() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let fake = StatsServer::inside(&lab.host, Kind::V2ray4, API.parse().expect("an address"));
    fake.user(USER, 10, 20);
    let file = configured(&site);
    let config = ["--config", file.to_str().expect("a path of ours is text")];
    let start = || {
        let mut daemon = site.start(&lab.host, &config);
        daemon.wait_for("an answer of the API", |document| {
            (document.0["stats"]["api"]["state"] == "ok").then_some(())
        });
        daemon
    };
    let user = Subject::User(USER.into());
    let payload = || booked(&site, &user, Layer::Payload);
    start().stop();
    // What it had counted before anybody looked is nobody's.
    assert_eq!(payload(), (0, 0));
    fake.user(USER, 100, 200);
    lab.send(false, 5000, 2);
    let reset =
        |more: &[&str]| site.run(&lab.host, &[&config[..], &["reset", "--yes"], more].concat());

    // Nothing goes when it cannot be booked, or is not known.
    let value = || fake.value(&format!("user>>>{USER}>>>traffic>>>downlink"));
    let held = Lock::take(&site.state.join("lock")).expect("take the lock of the state folder");
    let refused = reset(&["--all"]);
    assert_eq!((refused.code, value()), (Some(2), Some(220)), "{}", refused.stdout);
    drop(held);
    fake.behave(Behaviour::Deny);
    let refused = reset(&["--all"]);
    assert_eq!((refused.code, payload()), (Some(2), (0, 0)), "{}", refused.stdout);
    assert!(refused.stderr.contains("nothing was reset"), "{}", refused.stderr);
    fake.behave(Behaviour::Answer);

    // A port that nobody has is nobody's to reset, with and without a daemon, a ledger or a config.
    let nobody = |answer: Answer| {
        assert_eq!((answer.code, value()), (Some(2), Some(220)), "{}", answer.stdout);
        assert!(answer.stderr.contains("no group has port 5"), "{}", answer.stderr);
    };
    nobody(reset(&["--port", "5"]));
    nobody(reset(&["--port", "5", "--api", API]));
    nobody(Site::new().run(&lab.host, &["reset", "--yes", "--port", "5", "--api", API]));
    let mut daemon = site.start(&lab.host, &config);
    daemon.fresh();
    nobody(reset(&["--port", "5"]));
    daemon.stop();

    let done = reset(&["--user", USER]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("2 counters of the proxy were set to zero"), "{}", done.stdout);
    assert_eq!((value(), payload(), packets(&site)), (Some(0), (100, 200), 2));
    let [event] = &*resets(&site) else { panic!("one reset") };
    assert_eq!(event.subject, Some(user.clone()));

    // From zero on, and our own reset is nobody else's.
    fake.user(USER, 5, 7);
    start().stop();
    assert_eq!(payload(), (105, 207));
    let events = reader(&site).events(Span::ALL, usize::MAX).expect("ask the ledger");
    let strange: Vec<_> =
        events.iter().filter(|event| event.kind.starts_with("counters")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    site.run(&lab.host, &["clean"]);
}
