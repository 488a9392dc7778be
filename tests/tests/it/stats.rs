//! Both meters merged: what `run`, `stats` and `reset` say with a real proxy, and with one that misbehaves.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use serde_json::{Value, json};
use traffic_tests::{
    daemon::{Answer, Daemon, Site},
    device::{Device, connect, pair},
    document::{Document, Traffic},
    load, need,
    netns::NetNs,
    proxy::{Kind, Program, Proxy, TAG},
    stats_server::{Behaviour, Kind as Fake, StatsServer},
};
use traffic_user::accounting::proxy::Payload;

use crate::schema::keeps_to;

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";
/// Where the API of a fake is, in a namespace of its own.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_085);

/// A proxy with two users, and a daemon that was given its config.
struct Merged {
    daemon: Daemon,
    site: Site,
    proxy: Proxy,
}

impl Merged {
    #[track_caller]
    fn start() -> Self {
        let proxy = Proxy::start(Program::V2ray, Kind::VmessTcp, false, &[ALICE, BOB]);
        let site = Site::new();
        let config = proxy.config();
        let config = config.to_str().expect("a path of ours is UTF-8");
        // Slow enough that socket buffers empty between two ticks.
        let args = ["--iface", "eth0", "--proxy-config", config, "--interval", "200ms"];
        let mut daemon = site.start(&proxy.road.server.ns, &args);
        daemon.counts_on(&["eth0"]);
        daemon.wait_for("an answer of the API", |document| {
            (document.0["stats"]["api"]["state"] == "ok").then_some(())
        });
        Self { daemon, site, proxy }
    }

    /// Waits until the report shows this payload of both users, and gives the document.
    #[track_caller]
    fn wait_for(&mut self, alice: Payload, bob: Payload) -> Document {
        let wanted = [(ALICE, alice), (BOB, bob)];
        self.daemon.wait_for("the payload of both users", |document| {
            let shown = |(user, payload): &(&str, Payload)| {
                let user = user_of(&document.0["stats"], user);
                user["uplink"].as_u64() == Some(payload.uplink)
                    && user["downlink"].as_u64() == Some(payload.downlink)
            };
            wanted.iter().all(shown).then(|| document.clone())
        })
    }

    #[track_caller]
    fn ask(&self, args: &[&str]) -> Answer {
        let answer = self.site.run(&self.proxy.road.server.ns, args);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        answer
    }
}

/// A user of the proxy's group.
fn user_of<'a>(stats: &'a Value, email: &str) -> &'a Value {
    let users = stats["groups"][0]["users"].as_array();
    users.and_then(|users| users.iter().find(|user| user["email"] == email)).unwrap_or(&Value::Null)
}

/// Asserts that the report's kernel bytes are these, and that they are shared out.
#[track_caller]
fn adds_up_to(document: &Document, wanted: Traffic) {
    let group = &document.0["stats"]["groups"][0];
    let kernel = &group["kernel"];
    let field = |name: &str| kernel[name].as_u64().unwrap_or_else(|| panic!("{name}: {group}"));
    let shown = Traffic::input(field("input_bytes"), field("input_packets"))
        + Traffic::output(field("output_bytes"), field("output_packets"));
    assert_eq!(shown, wanted, "{group}");
    let users = group["users"].as_array().expect("users");
    let shares: u64 = users.iter().filter_map(|user| user["wire_share"].as_u64()).sum();
    let unattributed = group["unattributed_bytes"].as_u64().expect("what nobody is charged");
    assert_eq!(shares + unattributed, shown.input_bytes + shown.output_bytes, "{group}");
}

/// Asserts the law of the shares, and that the report has the kernel's numbers of the same document.
#[track_caller]
fn adds_up(document: &Document, key: &str) {
    adds_up_to(document, document.group(key));
}

#[test]
fn a_users_payload_and_share_of_the_wire_stand_beside_the_kernels_bytes() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let mut merged = Merged::start();
    let alice = merged.proxy.fetch(ALICE, 1000, 3_000_000);
    let bob = merged.proxy.fetch(BOB, 1000, 200_000);
    let document = merged.wait_for(alice, bob);
    let key = merged.proxy.port.to_string();
    adds_up(&document, &key);

    let stats = &document.0["stats"];
    keeps_to("stats", stats);
    keeps_to("dump", &document.0);
    let group = &stats["groups"][0];
    assert_eq!((&group["tag"], &group["protocol"]), (&json!(TAG), &json!("vmess")));
    assert_eq!(group["port"], merged.proxy.port);
    assert_eq!(stats["api"]["product"], "v2ray");
    let total = alice.plus(bob);
    assert_eq!(stats["system_total"]["total"], total.total());
    assert_eq!(stats["anomalies"], json!([]));
    // What is charged is what the payload allows. It may wait for bytes that the proxy has counted and
    // not yet sent; what waits too long is given up, a little at each tick.
    merged.daemon.wait_for("the shares of both users", |document| {
        let fits = |(email, payload): (&str, Payload)| {
            let share = user_of(&document.0["stats"], email)["wire_share"].as_u64();
            share.is_some_and(|share| (payload.downlink / 2..=4 * payload.total()).contains(&share))
        };
        [(ALICE, alice), (BOB, bob)].into_iter().all(fits).then_some(())
    });
    merged.daemon.wait_for("the stream of the inbound", |document| {
        let inbound = &document.0["stats"]["groups"][0]["group_total"]["downlink"];
        (inbound.as_u64()? >= total.downlink).then_some(())
    });
}

#[test]
fn the_verb_stats_asks_the_daemon_and_writes_four_forms() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let mut merged = Merged::start();
    let alice = merged.proxy.fetch(ALICE, 1000, 300_000);
    let bob = merged.proxy.fetch(BOB, 100, 2000);
    merged.wait_for(alice, bob);

    let stats = merged.ask(&["stats", "--json"]).json();
    keeps_to("stats", &stats);
    assert_eq!(user_of(&stats, ALICE)["total"], alice.total());
    assert_eq!(stats["coverage"], "complete");

    let csv = merged.ask(&["stats", "user", "--csv"]).stdout;
    let mut lines = csv.lines();
    assert_eq!(
        lines.next(),
        Some(
            "\"email\",\"tag\",\"ports\",\"uplink\",\"downlink\",\"total\",\"wire_share\",\"shared\""
        ),
        "{csv}"
    );
    let alice_line = lines.next().expect("a line of the first user");
    let port = merged.proxy.port;
    let (up, down, total) = (alice.uplink, alice.downlink, alice.total());
    let begin = format!("\"{ALICE}\",\"{TAG}\",\"{port}\",{up},{down},{total},");
    assert!(alice_line.starts_with(&begin), "{csv}");
    assert_eq!(csv.lines().count(), 3, "{csv}");

    let text = merged.ask(&["stats", "--txt"]).stdout;
    assert!(text.contains(&format!("user {BOB}\n")), "{text}");
    assert!(text.contains(&format!("  total: {} (", bob.total())), "{text}");
    let table = merged.ask(&["stats"]).stdout;
    for word in [ALICE, BOB, TAG, "UNATTRIBUTED", "API: v2ray ok"] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    let groups = merged.ask(&["stats", "group", "--csv"]).stdout;
    assert_eq!(groups.lines().count(), 2, "{groups}");
    let total = merged.ask(&["stats", "total", "--csv"]).stdout;
    let sum = alice.plus(bob);
    let wanted = format!("{},{},{},", sum.uplink, sum.downlink, sum.total());
    assert!(total.lines().nth(1).is_some_and(|line| line.starts_with(&wanted)), "{total}");

    let ports =
        merged.ask(&["ports", "--json", "--proxy-config", &config_of(&merged.proxy)]).json();
    keeps_to("ports", &ports);
    let own = ports["ports"].as_array().expect("ports").iter().find(|own| own["tag"] == TAG);
    let own = own.expect("the inbound");
    assert_eq!(own["users"], json!([ALICE, BOB]));
    // Nothing is pinned: the daemon says it.
    assert_eq!((&ports["meter"], &own["watched"]), (&json!("tcx"), &json!(true)));
    let counted = merged.daemon.fresh().group(&merged.proxy.port.to_string());
    assert_eq!(own["traffic"]["output_bytes"], counted.output_bytes);
}

fn config_of(proxy: &Proxy) -> String {
    proxy.config().display().to_string()
}

#[test]
fn a_proxy_that_is_killed_begins_anew_and_each_byte_is_charged_once() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let mut merged = Merged::start();
    let first = merged.proxy.fetch(ALICE, 1000, 300_000);
    let bob = merged.proxy.fetch(BOB, 100, 1000);
    merged.wait_for(first, bob);

    // In its first second a proxy's age does not tell it from another.
    merged.daemon.wait_for("the proxy to be two seconds old", |document| {
        (document.0["stats"]["api"]["uptime_seconds"].as_u64()? >= 2).then_some(())
    });
    merged.proxy.kill_server();
    merged.daemon.wait_for("the API to be down", |document| {
        (document.0["stats"]["api"]["state"] == "down").then_some(())
    });
    merged.proxy.start_server();
    // More than before: the value alone would not tell the restart.
    let second = merged.proxy.fetch(ALICE, 1000, 400_000);
    let document = merged.wait_for(first.plus(second), bob);
    adds_up(&document, &merged.proxy.port.to_string());
    let events = document.0["stats"]["events"].as_array().expect("events");
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("proxy-restarted"), of("gap"), of("counters-reset")), (1, 1, 0), "{events:?}");
    assert_eq!(document.0["stats"]["coverage"], "gap");
    // The kernel's own numbers have none.
    assert_eq!(document.0["coverage"], "complete");
}

#[test]
fn another_reader_that_resets_is_named_and_nothing_is_charged_twice() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let mut merged = Merged::start();
    let first = merged.proxy.fetch(ALICE, 1000, 300_000);
    let bob = merged.proxy.fetch(BOB, 100, 1000);
    merged.wait_for(first, bob);
    merged.proxy.reset_by_its_own_tool();
    merged.daemon.wait_for("the reset to be noticed", |document| {
        let events = document.0["stats"]["events"].as_array()?;
        events.iter().any(|event| event["kind"] == "counters-reset").then_some(())
    });
    let second = merged.proxy.fetch(ALICE, 50, 60);
    let document = merged.wait_for(first.plus(second), bob);
    adds_up(&document, &merged.proxy.port.to_string());
}

#[test]
fn a_reset_is_zero_at_the_proxy_and_in_the_report_and_nobody_elses() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let mut merged = Merged::start();
    let alice = merged.proxy.fetch(ALICE, 1000, 300_000);
    let bob = merged.proxy.fetch(BOB, 100, 1000);
    merged.wait_for(alice, bob);

    // Without a terminal it has to be told that it may.
    let refused = merged.site.run(&merged.proxy.road.server.ns, &["reset", "--user", ALICE]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--yes"), "{refused:?}");

    let said = merged.ask(&["reset", "--user", ALICE, "--yes"]).stdout;
    assert_eq!(said, format!("user {ALICE}: 2 counters of the proxy were set to zero\n"));
    let zero = Payload::default();
    let document = merged.wait_for(zero, bob);
    adds_up(&document, &merged.proxy.port.to_string());
    assert_eq!(user_of(&document.0["stats"], ALICE)["wire_share"], 0);
    let counters = merged.proxy.counters();
    assert_eq!(counters[&format!("user>>>{ALICE}>>>traffic>>>downlink")], 0);
    assert_eq!(
        counters[&format!("user>>>{BOB}>>>traffic>>>downlink")].cast_unsigned(),
        bob.downlink
    );

    let again = merged.proxy.fetch(ALICE, 70, 80);
    let document = merged.wait_for(again, bob);
    adds_up(&document, &merged.proxy.port.to_string());
    let events = document.0["stats"]["events"].as_array().expect("events");
    // Our own reset is no foreign one.
    assert!(!events.iter().any(|event| event["kind"] == "counters-reset"), "{events:?}");

    let epoch = |document: &Document| document.0["stats"]["epoch"].clone();
    let before = epoch(&document);
    let nobody = merged
        .site
        .run(&merged.proxy.road.server.ns, &["reset", "--user", "nobody@example.com", "--yes"]);
    assert_eq!(nobody.code, Some(2), "{nobody:?}");
    assert!(nobody.stderr.contains("no such counter"), "{nobody:?}");

    // The group and both of its users, while nothing of the kernel's is lost.
    let port = merged.proxy.port.to_string();
    let document = merged.ask(&["reset", "--port", &port, "--yes", "--json"]).json();
    keeps_to("reset", &document);
    assert_eq!((&document["reset"], &document["port"]), (&json!(true), &json!(merged.proxy.port)));
    let document = merged.wait_for(zero, zero);
    adds_up_to(&document, Traffic::default());
    assert_ne!(epoch(&document), before);

    merged.ask(&["reset", "--all", "--yes"]);
    let document = merged.daemon.wait_for("all to begin anew", |document| {
        let total = &document.0["stats"]["system_total"]["total"];
        (*total == json!(0)).then(|| document.clone())
    });
    let group = &document.0["stats"]["groups"][0];
    assert_eq!(group["kernel"]["output_bytes"], 0, "{group}");
    // The kernel's own totals are never set back.
    let kernel = document.group(&merged.proxy.port.to_string());
    assert!(kernel.output_bytes > alice.downlink + bob.downlink);
}

#[test]
fn a_reset_without_a_daemon_is_the_proxys_alone_and_the_socket_is_not_for_everybody() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let host = Host::new();
    let fake = StatsServer::inside(&host.ns, Fake::V2ray4, API);
    fake.user(ALICE, 10, 20);
    fake.user(BOB, 30, 40);
    let api = API.to_string();
    let said = host.site.run(&host.ns, &["reset", "--user", ALICE, "--yes", "--api", &api]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("2 counters of the proxy were set to zero"), "{said:?}");
    let value = |user: &str| fake.value(&format!("user>>>{user}>>>traffic>>>downlink"));
    assert_eq!((value(ALICE), value(BOB)), (Some(0), Some(40)));

    host.write(&config(443));
    let daemon = host.start();
    let socket = host.site.state.join("control.sock");
    let mode = fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.stop();
    assert!(!socket.exists());

    // Neither can stand for the other.
    let config = host.config.display().to_string();
    let args = ["run", "--no-ledger", "--ports", "443/tcp", "--proxy-config", &config];
    host.write(&config_of_both(443));
    let torn = host.site.run(&host.ns, &args);
    assert_eq!(torn.code, Some(2), "{torn:?}");
    assert!(torn.stderr.contains("names a part of the ports 443"), "{torn:?}");
}

/// A config with one inbound over TCP and UDP.
fn config_of_both(port: u16) -> String {
    json!({"inbounds": [{"tag": TAG, "port": port, "protocol": "shadowsocks",
        "settings": {"network": "tcp,udp", "method": "aes-128-gcm", "password": "x"}}]})
    .to_string()
}

#[test]
fn stats_without_a_daemon_says_what_the_proxy_says_and_what_is_not_known() {
    need!(Root, Netns, Tool("ip"), Tool("v2ray"));
    let proxy = Proxy::start(Program::V2ray, Kind::VmessTcp, false, &[ALICE, BOB]);
    let alice = proxy.fetch(ALICE, 1000, 300_000);
    let site = Site::new();
    let args = ["stats", "--json", "--proxy-config", &config_of(&proxy)];
    let stats = site.run(&proxy.road.server.ns, &args).json();
    keeps_to("stats", &stats);
    assert_eq!(user_of(&stats, ALICE)["total"], alice.total());
    // He has moved nothing, so the proxy has no counter of him: that is not a zero.
    assert_eq!(user_of(&stats, BOB)["total"], Value::Null);
    let group = &stats["groups"][0];
    assert_eq!((&group["kernel"], &group["unattributed_bytes"]), (&Value::Null, &Value::Null));
    assert_eq!(stats["meter"], Value::Null);
}

/// A host with a device, what is on its other side, and a config of a proxy that nobody runs.
struct Host {
    site: Site,
    config: PathBuf,
    ns: NetNs,
    here: Device,
    there: Device,
    _other: NetNs,
}

impl Host {
    fn new() -> Self {
        let (ns, other) = (NetNs::new(), NetNs::new());
        let (here, there) = pair((&ns, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        let site = Site::new();
        fs::create_dir_all(&site.state).expect("make the state folder");
        let config = site.state.join("proxy.json");
        Self { site, config, ns, here, there, _other: other }
    }

    /// So many datagrams to the port and back.
    fn exchange(&self, port: u16, count: u64) -> Traffic {
        let server = load::udp(&self.here, false, port);
        let client = load::udp(&self.there, false, 0);
        for _ in 0..count {
            load::datagram(&client, &server, 72);
            load::datagram(&server, &client, 72);
        }
        Traffic::input(100 * count, count) + Traffic::output(100 * count, count)
    }

    #[track_caller]
    fn start(&self) -> Daemon {
        let config = self.config.display().to_string();
        let args = ["--iface", "eth0", "--proxy-config", &config];
        let mut daemon = self.site.start(&self.ns, &args);
        daemon.counts_on(&["eth0"]);
        daemon
    }

    fn write(&self, config: &str) {
        fs::write(&self.config, config).expect("write a config");
    }
}

/// A config with one inbound over UDP, and an API at this address.
fn config(port: u16) -> String {
    json!({
        "stats": {},
        "api": {"tag": "api", "services": ["StatsService"]},
        "policy": {"levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}}},
        "inbounds": [
            {"tag": TAG, "port": port, "protocol": "vmess",
             "streamSettings": {"network": "kcp"}, "settings": {"clients": [
                {"id": "9a2c5ad2-6b3c-4c39-9d1e-6a5c2c0f0001", "email": ALICE},
                {"id": "9a2c5ad2-6b3c-4c39-9d1e-6a5c2c0f0002", "email": BOB}]}},
            {"tag": "api", "listen": "127.0.0.1", "port": API.port(), "protocol": "dokodemo-door",
             "settings": {"address": "127.0.0.1"}}],
        "routing": {"rules": [{"type": "field", "inboundTag": ["api"], "outboundTag": "api"}]},
        "outbounds": [{"protocol": "freedom"}]
    })
    .to_string()
}

#[test]
fn a_slow_or_broken_api_is_a_state_and_the_kernel_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    let host = Host::new();
    let fake = StatsServer::inside(&host.ns, Fake::V2ray4, API);
    fake.user(ALICE, 0, 0);
    host.write(&config(443));
    let mut daemon = host.start();
    let state = |daemon: &mut Daemon, wanted: &str| {
        daemon.wait_for(wanted, |document| {
            (document.0["stats"]["api"]["state"] == wanted).then(|| document.clone())
        })
    };
    state(&mut daemon, "ok");
    let mut sent = Traffic::default();
    for (behaviour, wanted) in [
        (Behaviour::Hang, "slow"),
        (Behaviour::Deny, "denied"),
        (Behaviour::Noise, "garbage"),
        (Behaviour::NoService, "disabled"),
        (Behaviour::Answer, "ok"),
    ] {
        fake.behave(behaviour);
        fake.cut();
        let before = daemon.fresh().group("443");
        sent += host.exchange(443, 3);
        // The kernel's tick does not wait for the API: what was sent is seen at once, whatever it does.
        let seen = daemon.fresh().group("443") - before;
        assert_eq!(seen.input_packets, 3, "{wanted}");
        let document = state(&mut daemon, wanted);
        keeps_to("stats", &document.0["stats"]);
        adds_up(&document, "443");
    }
    assert_eq!(daemon.stop().group("443"), sent);
    assert!(fake.questions().iter().all(|question| !question.reset));
}

#[test]
fn a_config_that_breaks_leaves_the_last_good_one_and_a_new_one_is_followed() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    let host = Host::new();
    host.write(&config(443));
    let mut daemon = host.start();
    let sent = host.exchange(443, 4);
    assert_eq!(daemon.fresh().group("443"), sent);

    let whole = config(443);
    host.write(&whole[..whole.len() / 2]);
    let document = event(&mut daemon, "config-broken");
    let events = document.0["stats"]["events"].as_array().expect("events");
    let said = events.iter().find(|event| event["kind"] == "config-broken").expect("an event");
    assert!(said["what"].as_str().is_some_and(|what| what.contains("line 1")), "{said}");
    let more = host.exchange(443, 4);
    assert_eq!(daemon.fresh().group("443"), sent + more);

    host.write(&config(8443));
    event(&mut daemon, "config-changed");
    let other_port = host.exchange(8443, 5);
    let document = daemon.stop();
    assert_eq!(document.group("8443"), other_port);
    // What the former port counted stays.
    assert_eq!(document.group("443"), sent + more);
}

#[track_caller]
fn event(daemon: &mut Daemon, kind: &str) -> Document {
    daemon.wait_for(kind, |document| {
        let events = document.0["stats"]["events"].as_array()?;
        events.iter().any(|event| event["kind"] == kind).then(|| document.clone())
    })
}

#[test]
fn a_config_that_cannot_be_used_is_said_with_its_place() {
    need!(Root, Netns, Tool("ip"));
    let host = Host::new();
    let path = host.config.display().to_string();
    let secret = "9a2c5ad2-6b3c-4c39-9d1e-6a5c2c0f0001";
    for (text, wanted) in [
        ("", "is empty"),
        ("{\"inbounds\": [", "cut off"),
        ("not json", "not JSON"),
        ("{\"inbounds\": [{\"port\": 0, \"protocol\": \"vmess\"}]}", "inbounds[0].port"),
        ("{\"inbounds\": [{\"port\": 70000, \"protocol\": \"vmess\"}]}", "70000"),
        ("{\"inbounds\": [\n{\"port\": \"abc\", \"protocol\": \"vmess\"}]}", "line 2"),
    ] {
        host.write(text);
        for verb in ["run", "ports", "stats"] {
            let answer = host.site.run(&host.ns, &[verb, "--proxy-config", &path]);
            assert_eq!(answer.code, Some(2), "{verb} {text}: {answer:?}");
            assert!(answer.stderr.contains(wanted), "{verb} {text}: {answer:?}");
            assert!(answer.stderr.contains("remedy: "), "{verb} {text}: {answer:?}");
        }
    }
    let clients = json!([{"id": secret, "email": ALICE}]);
    let broken = json!({"inbounds": [{"port": 0, "settings": {"clients": clients}}]}).to_string();
    host.write(&broken);
    let answer = host.site.run(&host.ns, &["ports", "--proxy-config", &path]);
    assert!(!answer.stderr.contains(secret), "{answer:?}");
    for (args, wanted) in [
        (&["run", "--proxy-config", "/nowhere"][..], "/nowhere"),
        (&["run", "--api", "127.0.0.1"], "port"),
        (&["run", "--api", "::1:80"], "brackets"),
    ] {
        let answer = host.site.run(&host.ns, args);
        assert_eq!(answer.code, Some(2), "{args:?}: {answer:?}");
        assert!(answer.stderr.contains(wanted), "{args:?}: {answer:?}");
    }
}

/// What a terminal would take for an order, a line's end, and the separator of the proxy's own names.
const NASTY: [&str; 4] = ["a>>>b@x", "two words", "red \u{1b}[31m\u{9b}2J", "=1+1\nnext"];

#[test]
fn names_from_the_proxy_are_never_printed_raw_and_strange_values_charge_nothing() {
    need!(Root, Netns, Tool("ip"));
    let host = Host::new();
    let fake = StatsServer::inside(&host.ns, Fake::NewXray, API);
    for user in NASTY {
        fake.user(user, 10, 20);
    }
    fake.set(b"user>>>\xff\xfe@x>>>traffic>>>uplink".to_vec(), 7);
    fake.set("user>>>negative@x>>>traffic>>>uplink", -5);
    fake.set("user>>>large@x>>>traffic>>>uplink", i64::MAX);
    fake.connect("two words", &[("192.0.2.1", 1_700_000_000), ("2001:db8::1", 1_700_000_000)]);
    let api = API.to_string();
    let run = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--api", &api]);
        let answer = host.site.run(&host.ns, &all);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        answer.stdout
    };
    for form in [&["stats"][..], &["stats", "--txt"], &["stats", "--csv"], &["stats", "user"]] {
        let text = run(form);
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(raw), "{form:?}: {text:?}");
        assert!(text.contains("two words"), "{form:?}: {text:?}");
        // Nobody's name begins a line of its own.
        assert!(!text.lines().any(|line| line.starts_with("next")), "{form:?}: {text:?}");
    }
    let stats: Value = serde_json::from_str(&run(&["stats", "--json"])).expect("JSON");
    keeps_to("stats", &stats);
    let user = |email: &str| {
        let users = stats["unplaced"].as_array().expect("users without a group");
        users.iter().find(|user| user["email"] == email).cloned().unwrap_or_default()
    };
    for email in NASTY {
        assert_eq!(user(email)["total"], 30, "{email:?}: {stats}");
    }
    assert_eq!(user("large@x")["uplink"], i64::MAX);
    assert_eq!(user("two words")["online"], 2);
    assert_eq!(user("a>>>b@x")["online"], Value::Null);
    let kinds = stats["anomalies"].as_array().expect("anomalies");
    assert!(kinds.iter().any(|anomaly| anomaly["kind"] == "negative"), "{kinds:?}");
    assert!(fake.questions().iter().all(|question| !question.reset));
}
