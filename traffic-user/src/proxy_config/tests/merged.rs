//! Several files, several inbounds on a port, and the way to the API.

use super::*;

fn both(first: &str, second: &str) -> ProxyConfig {
    let source =
        |path: &str, text: &str| Source { path: path.into(), bytes: text.as_bytes().to_vec() };
    parse(&[source("a.json", first), source("b.json", second)], &|_| None).unwrap()
}

fn address(config: &ProxyConfig) -> Option<String> {
    config.api.as_ref()?.address.as_ref().map(ToString::to_string)
}

#[test]
fn inbounds_of_several_files_stand_together_and_a_tag_replaces_its_elder() {
    let config = both(
        r#"{"stats": {}, "api": {"tag": "old"}, "inbounds": [
            {"tag": "a", "port": 1, "protocol": "vless"},
            {"tag": "b", "port": 2, "protocol": "vless"}, {"port": 3, "protocol": "vless"}]}"#,
        r#"{"api": {"tag": "new", "listen": "127.0.0.1:8080"}, "inbounds": [
            {"tag": "a", "port": 11, "protocol": "trojan"}, {"port": 4, "protocol": "vless"},
            {"tag": "c", "port": 5, "protocol": "vless"}]}"#,
    );
    assert_eq!(texts(&config), ["11/tcp=a", "2/tcp=b", "3/tcp", "4/tcp", "5/tcp=c"]);
    assert!(config.stats);
    assert_eq!(address(&config).as_deref(), Some("127.0.0.1:8080"));
    assert_eq!(config.problems, []);
}

#[test]
fn the_later_policy_and_routing_win() {
    let config = both(
        r#"{"api": {"tag": "api"}, "policy": {"levels": {"0": {"statsUserUplink": true}}},
            "routing": {"rules": [{"inboundTag": ["x"], "outboundTag": "api"}]},
            "inbounds": [{"tag": "x", "port": 7, "protocol": "tunnel"},
                         {"tag": "y", "port": 8, "protocol": "tunnel"}]}"#,
        r#"{"policy": {}, "routing": {"rules": [{"inboundTag": "y", "outboundTag": "api"}]}}"#,
    );
    assert!(!config.policy.level(0).uplink);
    assert_eq!(address(&config).as_deref(), Some("127.0.0.1:8"));
    assert_eq!(texts(&config), ["7/tcp=x"]);
}

#[test]
fn the_old_form_of_v2ray_is_understood() {
    let config = good(
        r#"{"port": 1080, "inbound": {"protocol": "socks"},
            "inboundDetour": [{"tag": "b", "port": "2-3", "protocol": "vmess"}],
            "api": {"tag": "api"},
            "routing": {"strategy": "rules", "settings": {"rules": [
                {"type": "field", "inboundTag": ["b"], "outboundTag": "direct"}]}}}"#,
    );
    assert_eq!(texts(&config), ["1080/tcp", "2-3/tcp=b"]);
}

#[test]
fn the_api_is_found_where_it_listens() {
    for (listen, want) in [
        ("127.0.0.1:1", "127.0.0.1:1"),
        (":2", "127.0.0.1:2"),
        ("0.0.0.0:3", "127.0.0.1:3"),
        ("[::1]:4", "[::1]:4"),
        ("[::]:5", "[::1]:5"),
        ("localhost:6", "localhost:6"),
    ] {
        let config = good(&format!(r#"{{"api": {{"tag": "a", "listen": "{listen}"}}}}"#));
        assert_eq!(address(&config).as_deref(), Some(want));
    }
    let config = good(r#"{"api": {"tag": "a", "listen": "8080"}}"#);
    assert_eq!(address(&config), None);
    assert_eq!(config.problems[0].place.key, "api.listen");
}

#[test]
fn the_api_is_found_through_its_inbound() {
    let with = |inbound: &str| {
        good(&format!(
            r#"{{"api": {{"tag": "api", "services": ["statsservice"]}}, "inbounds": [{{{inbound}}}],
                "routing": {{"rules": [{{"inboundTag": ["door"], "outboundTag": "api"}}]}}}}"#
        ))
    };
    let config = with(r#""tag": "door", "port": 9, "protocol": "dokodemo-door""#);
    assert_eq!(address(&config).as_deref(), Some("127.0.0.1:9"));
    assert_eq!(texts(&config), [""; 0]);
    assert!(config.api.as_ref().is_some_and(|api| api.stats_service && !api.handler_service));
    let config = with(r#""tag": "door", "listen": "::", "port": "9", "protocol": "Tunnel""#);
    assert_eq!(address(&config).as_deref(), Some("127.0.0.1:9"));
    let config = with(r#""tag": "door", "listen": "192.0.2.1", "port": 9, "protocol": "tunnel""#);
    assert_eq!(address(&config).as_deref(), Some("192.0.2.1:9"));
    // An inbound for users is one, whatever rules say of it.
    let config = with(r#""tag": "door", "port": 9, "protocol": "vless""#);
    assert_eq!((address(&config), texts(&config)), (None, vec!["9/tcp=door".to_owned()]));
    assert!(config.problems[0].what.starts_with("no port leads to the API"));
    let config = with(r#""tag": "door", "listen": "/run/a", "protocol": "tunnel""#);
    assert_eq!((address(&config), config.problems.len()), (None, 2));
}

#[test]
fn of_inbounds_on_one_port_the_first_is_charged_and_has_the_users_of_both() {
    let config = good(
        r#"{"inbounds": [
            {"tag": "a", "listen": "192.0.2.1", "port": 443, "protocol": "vless",
             "settings": {"clients": [{"email": "x"}, {"email": "y"}]}},
            {"tag": "b", "listen": "192.0.2.2", "port": 443, "protocol": "trojan",
             "settings": {"clients": [{"email": "y"}, {"email": "z"}, {}]}}]}"#,
    );
    assert_eq!(texts(&config), ["443/tcp=a"]);
    assert_eq!(emails(&config.inbounds[0].users), ["x", "y", "z"]);
    assert_eq!(config.inbounds[0].users.nameless, 1);
    let shared = &config.problems[1];
    assert_eq!(shared.place.key, "inbounds[1]");
    assert!(shared.what.contains("`b` shares its ports with `a`"), "{shared}");
}

#[test]
fn inbounds_that_share_some_ports_keep_the_rest() {
    let inbounds = |list: &[&str]| {
        let list: Vec<_> = list.iter().map(|inbound| format!("{{{inbound}}}")).collect();
        good(&format!(r#"{{"inbounds": [{}]}}"#, list.join(",")))
    };
    let config = inbounds(&[
        r#""tag": "a", "port": "10-20", "protocol": "vless""#,
        r#""tag": "b", "port": "5-12,20,30", "protocol": "vless""#,
    ]);
    assert_eq!(texts(&config), ["10-20/tcp=a", "5-9+30/tcp=b"]);
    assert_eq!(config.problems.len(), 1);
    // TCP and UDP of one port are two things.
    let config = inbounds(&[
        r#""tag": "a", "port": 443, "protocol": "vless""#,
        r#""tag": "b", "port": 443, "protocol": "hysteria2""#,
    ]);
    assert_eq!(texts(&config), ["443/tcp=a", "443/udp=b"]);
    assert_eq!(config.problems, []);
    let config = inbounds(&[
        r#""tag": "a", "port": 443, "protocol": "vless""#,
        r#""tag": "b", "port": 443, "protocol": "shadowsocks", "settings":
           {"network": "tcp,udp", "email": "s"}"#,
    ]);
    assert_eq!(texts(&config), ["443/tcp=a", "443/udp=b"]);
    assert_eq!(config.problems.len(), 1);
}

#[test]
fn a_tag_that_is_used_twice_names_one_group_only() {
    let config = good(
        r#"{"inbounds": [{"tag": "a", "port": 1, "protocol": "vless"},
                         {"tag": "a", "port": 2, "protocol": "vless"}]}"#,
    );
    assert_eq!(texts(&config), ["1/tcp=a", "2/tcp"]);
    assert!(config.problems[0].what.contains("`a` is used twice"));
}
