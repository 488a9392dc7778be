//! Input that nobody meant: no panic, no secret in anything that can be shown.

use std::error::Error as _;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// A config whose every secret is a marker, with `port` as the port of the first inbound.
fn full_of_secrets(port: &str) -> String {
    format!(
        r#"{{"stats": {{}}, "api": {{"tag": "api"}}, "inbounds": [
        {{"tag": "a", "port": {port}, "protocol": "vmess", "settings": {{"clients": [
            {{"id": "MARKER1", "email": "a@x"}}, {{"id": "MARKER2"}}, "MARKER3"]}}}},
        {{"tag": "b", "port": 2, "protocol": "vless", "settings": {{"decryption": "MARKER4", "users": [
            {{"id": "MARKER5", "email": "b@x", "flow": "x"}}]}},
         "streamSettings": {{"security": "reality", "realitySettings": {{"privateKey": "MARKER6",
            "shortIds": ["MARKER7"], "mldsa65Seed": "MARKER8"}}}}}},
        {{"tag": "c", "port": 3, "protocol": "trojan", "settings": {{"clients": [
            {{"password": "MARKER9", "email": "c@x"}}]}},
         "streamSettings": {{"security": "tls", "tlsSettings": {{"certificates": [
            {{"key": ["MARKER10"], "keyFile": "MARKER11"}}]}}}}}},
        {{"tag": "d", "port": 4, "protocol": "shadowsocks", "settings": {{"method": "m",
            "password": "MARKER12"}}}},
        {{"tag": "e", "port": 5, "protocol": "socks", "settings": {{"auth": "password", "accounts": [
            {{"user": "sue", "pass": "MARKER13"}}]}}}},
        {{"tag": "f", "port": 6, "protocol": "wireguard", "settings": {{"secretKey": "MARKER14",
            "peers": [{{"publicKey": "k", "preSharedKey": "MARKER15"}}]}}}},
        {{"tag": "g", "port": 7, "protocol": "hysteria", "settings": {{"users": [
            {{"auth": "MARKER16", "email": "g@x"}}]}}}}],
        "outbounds": [{{"tag": "o", "protocol": "vless", "settings": {{"vnext": [
            {{"users": [{{"id": "MARKER17"}}]}}]}}}}]}}"#
    )
}

/// All that can be shown of a result, by whatever means.
fn shown(result: &Result<ProxyConfig, ProxyConfigError>) -> String {
    match result {
        Ok(config) => format!("{config:?} {:?} {:?}", advice(config, None), config.problems),
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            format!("{error} {error:?} {cause:?} {}", error.remedy())
        }
    }
}

#[track_caller]
fn keeps_secrets(text: &str) {
    let shown = shown(&read(text));
    assert!(!shown.contains("MARKER"), "{shown}");
}

#[test]
fn no_secret_is_kept() {
    let text = full_of_secrets("1");
    let config = good(&text);
    assert_eq!(config.inbounds.len(), 7);
    assert_eq!(emails(&config.inbounds[6].users), ["g@x"]);
    keeps_secrets(&text);
    keeps_secrets(XRAY);
}

#[test]
fn no_secret_is_quoted_in_a_mistake() {
    let text = full_of_secrets("1");
    // A secret in the place of a port, a list, an object, a flag, a level, an address.
    keeps_secrets(&full_of_secrets("\"MARKER\""));
    keeps_secrets(&full_of_secrets("{\"MARKER\": 1}"));
    for (what, with) in [
        (r#""settings": {"decryption""#, r#""settings": "MARKER", "x": {"decryption""#),
        (r#""clients": ["#, r#""clients": "MARKER", "x": ["#),
        (r#"{"id": "MARKER1""#, r#"{"level": "MARKER", "id": "MARKER1""#),
        (r#"{"id": "MARKER1""#, r#"["MARKER"], {"id": "MARKER1""#),
        (r#""auth": "password""#, r#""auth": "password", "udp": "MARKER""#),
        (r#""port": 3"#, r#""listen": "MARKER", "port": 3"#),
        (r#""port": 3"#, r#""listen": {"MARKER": "MARKER"}, "port": 3"#),
        (r#"{"tag": "api"}"#, r#"{"tag": "api", "listen": "MARKER:x"}"#),
        (r#"{"tag": "api"}"#, r#"{"tag": "api", "services": {"a": "MARKER"}}"#),
    ] {
        assert!(text.contains(what), "{what}");
        keeps_secrets(&text.replacen(what, with, 1));
    }
}

#[test]
fn no_secret_is_quoted_wherever_the_file_breaks() {
    let text = full_of_secrets("1");
    for (at, _) in text.char_indices() {
        keeps_secrets(&match at % 3 {
            0 => text[..at].to_owned(),
            // One character lost, one that does not belong.
            1 => format!("{}{}", &text[..at], &text[at + 1..]),
            _ => format!("{}]{}", &text[..at], &text[at..]),
        });
    }
}

#[test]
fn deep_nesting_ends_in_an_answer() {
    for open in ["[", "{\"a\":", "{\"inbounds\":["] {
        let text = open.repeat(200_000);
        assert!(matches!(read(&text), Err(ProxyConfigError::Truncated { .. })), "{open}");
    }
    let lists = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!(r#"{{"inbounds": [{{"port": {lists}, "protocol": {lists}}}]}}"#);
    assert!(matches!(read(&text), Err(ProxyConfigError::Wrong(_))));
}

/// Pieces from which configs are made.
const PIECES: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\ud800",
    "\n",
    "//",
    "/*",
    "*/",
    "#",
    "null",
    "true",
    "0",
    "-1",
    "443",
    "1e9",
    "\"inbounds\":",
    "\"inbound\":",
    "\"port\":",
    "\"protocol\":",
    "\"vless\"",
    "\"socks\"",
    "\"settings\":",
    "\"clients\":",
    "\"email\":",
    "\"tag\":",
    "\"listen\":",
    "\"api\":",
    "\"policy\":",
    "\"levels\":",
    "\"routing\":",
    "\"rules\":",
    "\"1-2\"",
    "\"env:PORT\"",
    "\u{fffd}",
    "{\"port\":1,\"protocol\":\"vless\"}",
];

fn every_law_holds(bytes: Vec<u8>) {
    let result = parse(&[Source { path: "c".into(), bytes }], &|name| Some(name.to_owned()));
    match &result {
        Ok(config) => {
            let groups = config.inbounds.iter().map(|inbound| inbound.group.clone()).collect();
            Groups::new(groups, usize::MAX).unwrap();
        }
        Err(error) => {
            assert!(error.to_string().len() < 20_000);
            assert!(!error.remedy().is_empty());
        }
    }
    assert!(!shown(&result).contains("MARKER"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_are_answered(bytes in vec(any::<u8>(), 0..400)) {
        every_law_holds(bytes);
    }

    #[test]
    fn random_pieces_are_answered(pieces in vec(select(&PIECES[..]), 0..60)) {
        every_law_holds(pieces.concat().into_bytes());
    }

    #[test]
    fn configs_with_wounds_are_answered(
        xray in any::<bool>(),
        wounds in vec((any::<prop::sample::Index>(), 0..3_u8, select(&PIECES[..])), 1..6),
    ) {
        let mut bytes = if xray { XRAY } else { V2RAY }.as_bytes().to_vec();
        for (place, kind, piece) in wounds {
            let at = place.index(bytes.len());
            match kind {
                0 => { bytes.remove(at); }
                1 => { bytes.splice(at..at, piece.bytes()); }
                _ => bytes[at] ^= 1 << (at % 8),
            }
        }
        // A wound may cut a marker in two, or make an email of it: then it is none any more.
        let marked = bytes.windows(8).filter(|part| part == b"\"MARKER-").count();
        prop_assume!(marked == if xray { 7 } else { 4 });
        every_law_holds(bytes);
    }

    #[test]
    fn every_port_is_in_one_group_of_its_transport(
        inbounds in vec((1..6_u16, 0..3_u8), 0..12),
    ) {
        let networks = ["tcp", "udp", "tcp,udp"];
        let list: Vec<String> = inbounds
            .iter()
            .enumerate()
            .map(|(number, (port, network))| {
                let network = networks[usize::from(*network)];
                format!(r#"{{"tag": "t{number}", "port": {port}, "protocol": "shadowsocks",
                    "settings": {{"network": "{network}", "email": "u{number}"}}}}"#)
            })
            .collect();
        let config = good(&format!(r#"{{"inbounds": [{}]}}"#, list.join(",")));
        let mut asked = BTreeSet::new();
        for (port, network) in &inbounds {
            if *network != 1 { asked.insert(("tcp", *port)); }
            if *network != 0 { asked.insert(("udp", *port)); }
        }
        let mut counted = Vec::new();
        for inbound in &config.inbounds {
            for port in inbound.group.ports() {
                if inbound.group.transport().tcp() { counted.push(("tcp", port)); }
                if inbound.group.transport().udp() { counted.push(("udp", port)); }
            }
        }
        counted.sort_unstable();
        prop_assert_eq!(counted, asked.into_iter().collect::<Vec<_>>());
        // Nobody is lost: every user is with one inbound.
        let mut users: Vec<&str> =
            config.inbounds.iter().flat_map(|inbound| emails(&inbound.users)).collect();
        users.sort_unstable();
        users.dedup();
        prop_assert_eq!(users.len(), inbounds.len());
    }
}
