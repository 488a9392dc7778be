//! What a config says, and what is wrong with it.

use super::*;
use crate::accounting::{ident::Groups, proxy::Users};

mod hostile;
mod merged;
mod wrong;

const V2RAY: &str = include_str!("../../tests-data/v2ray-server.json");
const XRAY: &str = include_str!("../../tests-data/xray-server.json");

fn read(text: &str) -> Result<ProxyConfig, ProxyConfigError> {
    let source = Source { path: "config.json".into(), bytes: text.as_bytes().to_vec() };
    parse(&[source], &|name| (name == "PORT").then(|| "2000-2001".to_owned()))
}

#[track_caller]
fn good(text: &str) -> ProxyConfig {
    let config = read(text).unwrap();
    let groups = config.inbounds.iter().map(|inbound| inbound.group.clone()).collect();
    Groups::new(groups, 10_000).unwrap();
    config
}

/// A config with one inbound.
fn one(inbound: &str) -> String {
    format!(r#"{{"inbounds": [{{{inbound}}}]}}"#)
}

fn texts(config: &ProxyConfig) -> Vec<String> {
    config.inbounds.iter().map(|inbound| inbound.group.to_string()).collect()
}

fn emails(users: &Users) -> Vec<&str> {
    users.emails.iter().map(|email| &**email).collect()
}

#[track_caller]
fn port(port: &str, want: &str) {
    let text = one(&format!(r#""port": {port}, "protocol": "vless""#));
    assert_eq!(texts(&good(&text)), [want], "{port}");
}

#[track_caller]
fn carried(inbound: &str, want: &str) {
    let text = one(&format!(r#""port": 1, {inbound}"#));
    assert_eq!(texts(&good(&text)), [want], "{inbound}");
}

#[track_caller]
fn users(inbound: &str, want: &[&str], nameless: usize, unknown: bool) {
    let config = good(&one(&format!(r#""port": 1, {inbound}"#)));
    let users = &config.inbounds[0].users;
    assert_eq!(emails(users), want, "{inbound}");
    assert_eq!((users.nameless, users.unknown), (nameless, unknown), "{inbound}");
}

#[test]
fn a_config_of_v2ray_is_understood() {
    let config = good(V2RAY);
    assert_eq!(
        texts(&config),
        ["10001/tcp=vmess-in", "10002=ss-in", "10005=socks-in", "10006/tcp=http-in"]
    );
    assert_eq!(emails(&config.inbounds[0].users), ["alice@example.com", "bob@example.com"]);
    assert_eq!(emails(&config.inbounds[1].users), ["carol@example.com"]);
    assert_eq!(emails(&config.inbounds[2].users), ["sue"]);
    assert!(config.inbounds[3].users.unknown);
    assert_eq!(
        config.api,
        Some(Api {
            tag: "api".into(),
            address: Some(ApiAddress { host: "127.0.0.1".into(), port: 10085 }),
            stats_service: true,
            handler_service: true,
        })
    );
    assert!(config.stats);
    assert!(config.policy.level(0).counts());
    assert!(!config.policy.level(0).online);
    assert!(!config.policy.level(1).counts());
    assert!(config.policy.system.inbound_uplink && config.policy.system.outbound_downlink);
    assert_eq!(config.levels, [0].into());
    assert_eq!(config.unreported, []);
    assert_eq!((config.problems, config.notes), (vec![], vec![]));
}

#[test]
fn a_config_of_xray_is_understood() {
    let config = good(XRAY);
    assert_eq!(
        texts(&config),
        [
            "10001/tcp=vmess-in",
            "10002=ss-in",
            "10003/tcp=vless-in",
            "10004/tcp=trojan-in",
            "10005=socks-in",
            "10006/tcp=http-in"
        ]
    );
    assert_eq!(emails(&config.inbounds[1].users), ["carol@example.com", "gina@example.com"]);
    assert_eq!(emails(&config.inbounds[2].users), ["erin@example.com"]);
    assert_eq!(emails(&config.inbounds[3].users), ["frank@example.com"]);
    assert!(config.policy.level(0).online);
    assert_eq!((config.problems, config.notes), (vec![], vec![]));
}

#[test]
fn ports_are_read_in_every_form() {
    port("443", "443/tcp");
    port("\"443\"", "443/tcp");
    port("\"1000-2000\"", "1000-2000/tcp");
    port("\"443,8443\"", "443+8443/tcp");
    port("\" 443 , 1000 - 2000 ,\"", "443+1000-2000/tcp");
    port("[443, \"8443\", \"1000-1001,65535\"]", "443+1000-1001+8443+65535/tcp");
    port("\"env:PORT\"", "2000-2001/tcp");
    port("\"443,env:PORT\"", "443+2000-2001/tcp");
    port("\"1-65535\"", "1-65535/tcp");
    port("\"7,5-6,6-8\"", "5-8/tcp");
}

#[test]
fn a_port_in_a_variable_that_is_not_set_leaves_only_that_inbound_out() {
    let config = good(
        r#"{"inbounds": [{"tag": "a", "port": "env:NOPE", "protocol": "vless"},
                         {"tag": "b", "port": 443, "protocol": "vless"}]}"#,
    );
    assert_eq!(texts(&config), ["443/tcp=b"]);
    assert_eq!(config.problems[0].place.key, "inbounds[0].port");
    assert!(config.problems[0].what.contains("variable NOPE"), "{:?}", config.problems);
}

#[test]
fn what_is_in_a_variable_is_never_shown() {
    let source = Source {
        path: "c".into(),
        bytes: one(r#""port": "env:A", "protocol": "vless""#).into_bytes(),
    };
    let config = parse(&[source], &|_| Some("MARKER".into())).unwrap();
    assert!(config.problems[0].what.contains("variable A holds no port"));
    assert!(!format!("{config:?}").contains("MARKER"));
}

#[test]
fn each_network_is_carried_by_tcp_or_udp() {
    for network in ["tcp", "raw", "ws", "WebSocket", "h2", "http", "grpc", "httpupgrade", "xhttp"] {
        let stream =
            format!(r#""protocol": "vless", "streamSettings": {{"network": "{network}"}}"#);
        carried(&stream, "1/tcp");
    }
    for network in ["kcp", "mKCP", "quic", "hysteria"] {
        let stream =
            format!(r#""protocol": "vmess", "streamSettings": {{"network": "{network}"}}"#);
        carried(&stream, "1/udp");
    }
    carried(r#""protocol": "vmess""#, "1/tcp");
    carried(r#""protocol": "vmess", "streamSettings": {"network": "new"}"#, "1");
}

#[test]
fn xhttp_is_udp_only_with_http3_alone() {
    let with = |alpn: &str| {
        format!(
            r#""protocol": "vless", "streamSettings": {{"network": "xhttp", "security": "tls",
               "tlsSettings": {{"alpn": {alpn}}}}}"#
        )
    };
    carried(&with(r#"["h3"]"#), "1/udp");
    carried(&with(r#""h3""#), "1/udp");
    carried(&with(r#"["h3", "h2"]"#), "1/tcp");
}

#[test]
fn protocols_with_udp_of_their_own_count_it() {
    carried(r#""protocol": "shadowsocks""#, "1/tcp");
    carried(r#""protocol": "shadowsocks", "settings": {"network": "udp"}"#, "1/udp");
    carried(r#""protocol": "shadowsocks", "settings": {"network": "tcp,udp"}"#, "1");
    carried(r#""protocol": "shadowsocks", "settings": {"network": ["TCP", "UDP"]}"#, "1");
    carried(
        r#""protocol": "shadowsocks", "settings": {"network": "tcp"},
           "streamSettings": {"network": "kcp"}"#,
        "1/udp",
    );
    carried(r#""protocol": "socks", "settings": {"udp": true}"#, "1");
    carried(r#""protocol": "mixed", "settings": {"udp": false}"#, "1/tcp");
    carried(r#""protocol": "dokodemo-door", "settings": {"network": "udp"}"#, "1/udp");
    carried(r#""protocol": "tunnel", "settings": {"allowedNetwork": "tcp,udp"}"#, "1");
    carried(r#""protocol": "wireguard""#, "1/udp");
    carried(r#""protocol": "hysteria2""#, "1/udp");
}

#[test]
fn users_of_every_protocol_are_found() {
    for protocol in ["vmess", "vless", "trojan", "shadowsocks", "hysteria", "VMess"] {
        for list in ["clients", "users"] {
            let inbound = format!(
                r#""protocol": "{protocol}", "settings": {{"{list}": [{{"id": "x", "email": "a@x"}},
                   {{"id": "y"}}, {{"email": "", "level": 1}}, {{"email": "a@x"}}, null]}}"#
            );
            users(&inbound, &["a@x"], 2, false);
        }
    }
    users(r#""protocol": "shadowsocks", "settings": {"password": "p"}"#, &[], 1, false);
    let single = r#""protocol": "shadowsocks", "settings": {"password": "p", "email": "s@x"}"#;
    users(single, &["s@x"], 0, false);
    let accounts = r#""accounts": [{"user": "sue", "pass": "p"}, {"pass": "p"}]"#;
    let password =
        format!(r#""protocol": "socks", "settings": {{"auth": "password", {accounts}}}"#);
    users(&password, &["sue"], 1, false);
    // Without `"auth": "password"` the accounts are not asked for.
    users(&format!(r#""protocol": "socks", "settings": {{{accounts}}}"#), &[], 0, true);
    users(&format!(r#""protocol": "http", "settings": {{{accounts}}}"#), &["sue"], 1, false);
    users(r#""protocol": "http""#, &[], 0, true);
    users(r#""protocol": "dokodemo-door", "settings": {"clients": [{}]}"#, &[], 0, true);
    users(r#""protocol": "hysteria2""#, &[], 0, true);
    users(r#""protocol": "vless", "settings": {"clients": []}"#, &[], 0, true);
    // V2Ray 5 has bare ids.
    users(r#""protocol": "vmess", "settings": {"users": ["id-1", "id-2"]}"#, &[], 2, false);
}

#[test]
fn emails_stay_as_they_are_written() {
    let inbound = r#""protocol": "trojan", "settings": {"clients": [{"email": "A@X"},
        {"email": "a@x"}, {"email": "a>>>b \u001b[31m\n"}]}"#;
    users(inbound, &["A@X", "a@x", "a>>>b \u{1b}[31m\n"], 0, false);
}

#[test]
fn bytes_that_are_no_utf8_become_what_the_api_says() {
    let mut bytes =
        one(r#""port": 1, "protocol": "vless", "settings": {"clients": [{"email": "@@"}]}"#)
            .into_bytes();
    let at = bytes.windows(2).position(|pair| pair == b"@@").unwrap();
    bytes[at] = 0xff;
    bytes[at + 1] = 0xfe;
    let config = parse(&[Source { path: "c".into(), bytes }], &|_| None).unwrap();
    assert_eq!(emails(&config.inbounds[0].users), ["\u{fffd}\u{fffd}"]);
}

#[test]
fn users_whose_level_does_not_count_are_named() {
    let config = good(
        r#"{"policy": {"levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true},
                                  "1": {"statsUserUplink": true}, "2": null}},
            "inbounds": [{"port": 1, "protocol": "vless", "settings": {"clients": [
                {"email": "a"}, {"email": "b", "level": 1}, {"email": "c", "level": 2}]}},
              {"port": 2, "protocol": "trojan", "settings": {"clients": [
                {"email": "b", "level": 1}, {"level": 7}]}}]}"#,
    );
    let unreported: Vec<&str> = config.unreported.iter().map(|email| &**email).collect();
    assert_eq!(unreported, ["b", "c"]);
    assert_eq!(config.levels, [0, 1, 2].into());
    assert!(config.policy.level(1).uplink && !config.policy.level(1).downlink);
}

#[test]
fn what_no_device_carries_is_left_out_and_told() {
    let config = good(
        r#"{"inbounds": [
            {"tag": "a", "listen": "127.0.0.1", "port": 1, "protocol": "vless", "settings":
                {"clients": [{"email": "behind"}]}},
            {"tag": "b", "listen": "::1", "port": 2, "protocol": "vless"},
            {"tag": "c", "listen": "localhost", "port": 3, "protocol": "vless"},
            {"tag": "d", "listen": "/run/x.sock", "protocol": "vless"},
            {"tag": "e", "listen": "@abstract", "port": 4, "protocol": "vless"},
            {"tag": "f", "port": 5, "protocol": "vless", "streamSettings": {"network": "ds"}},
            {"tag": "g", "protocol": "tun"},
            {"tag": "h", "listen": "0.0.0.0", "port": 6, "protocol": "vless"},
            {"tag": "i", "listen": "[::]", "port": 7, "protocol": "vless"},
            {"tag": "j", "listen": "192.0.2.1", "port": 8, "protocol": "vless"},
            {"tag": "k", "listen": "::ffff:127.0.0.1", "port": 9, "protocol": "vless"}]}"#,
    );
    assert_eq!(texts(&config), ["6/tcp=h", "7/tcp=i", "8/tcp=j"]);
    assert_eq!(config.problems, []);
    let local: Vec<_> = config.local.iter().filter_map(|inbound| inbound.tag.as_deref()).collect();
    assert_eq!(local, ["a", "b", "c", "d", "e", "f", "g", "k"]);
    assert_eq!(emails(&config.local[0].users), ["behind"]);
    let told: Vec<&str> = config.notes.iter().map(|note| &*note.place.key).collect();
    assert_eq!(
        told,
        [
            "inbounds[0]",
            "inbounds[1]",
            "inbounds[2]",
            "inbounds[3]",
            "inbounds[4]",
            "inbounds[5].streamSettings.network",
            "inbounds[6]",
            "inbounds[10]"
        ]
    );
    assert!(config.notes[0].what.starts_with("`a` listens on 127.0.0.1 only"));
    assert!(config.notes[3].what.starts_with("`d` listens on a Unix socket"));
}

#[test]
fn a_tag_that_is_no_name_still_has_its_ports() {
    let config = good(&one(r#""tag": "a,b", "port": 1, "protocol": "vless""#));
    assert_eq!(texts(&config), ["1/tcp"]);
    assert_eq!(config.inbounds[0].tag.as_deref(), Some("a,b"));
    let long = "x".repeat(300);
    let config = good(&one(&format!(r#""tag": "{long}", "port": 1, "protocol": "vless""#)));
    assert_eq!(texts(&config), ["1/tcp"]);
}
