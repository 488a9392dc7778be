//! The configs that a proxy is started with, as V2Ray 4 and Xray both read them.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Protocol and transport of the inbound under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `vmess` straight over TCP.
    VmessTcp,
    /// `vmess` in a WebSocket.
    VmessWs,
    /// `vmess` over mKCP, which is UDP.
    VmessKcp,
    /// `vless` straight over TCP, without TLS.
    VlessTcp,
    /// `trojan` straight over TCP, without TLS.
    TrojanTcp,
    /// `shadowsocks`: TCP over TCP, and datagrams as datagrams. One user.
    Shadowsocks,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::VmessTcp,
        Self::VmessWs,
        Self::VmessKcp,
        Self::VlessTcp,
        Self::TrojanTcp,
        Self::Shadowsocks,
    ];

    const fn protocol(self) -> &'static str {
        match self {
            Self::VmessTcp | Self::VmessWs | Self::VmessKcp => "vmess",
            Self::VlessTcp => "vless",
            Self::TrojanTcp => "trojan",
            Self::Shadowsocks => "shadowsocks",
        }
    }

    const fn network(self) -> &'static str {
        match self {
            Self::VmessWs => "ws",
            Self::VmessKcp => "kcp",
            Self::VmessTcp | Self::VlessTcp | Self::TrojanTcp | Self::Shadowsocks => "tcp",
        }
    }

    /// Whether TCP comes to its port.
    pub const fn on_tcp(self) -> bool {
        !matches!(self, Self::VmessKcp)
    }

    /// Whether UDP comes to its port.
    pub const fn on_udp(self) -> bool {
        matches!(self, Self::VmessKcp | Self::Shadowsocks)
    }

    /// A port with its transport, as `--ports` takes it.
    pub fn group(self, port: u16) -> String {
        match (self.on_tcp(), self.on_udp()) {
            (true, false) => format!("{port}/tcp"),
            (false, true) => format!("{port}/udp"),
            _ => port.to_string(),
        }
    }

    fn stream(self) -> Value {
        match self {
            Self::VmessWs => json!({"network": "ws", "wsSettings": {"path": "/"}}),
            _ => json!({"network": self.network()}),
        }
    }
}

/// Tag of the inbound under test.
pub const TAG: &str = "under-test";

const CIPHER: &str = "aes-256-gcm";
/// Set by hand: `auto` chooses by the processor.
const SECURITY: &str = "aes-128-gcm";

/// The id of a user of vmess or vless.
pub(super) fn id(number: usize) -> String {
    format!("{number:08x}-1111-4111-8111-111111111111")
}

fn password(number: usize) -> String {
    format!("password of user {number}")
}

/// The server: the inbound under test on `port`, the API on `api` of the loopback, and everything goes
/// out directly. Users are numbered in the order of `emails`.
pub(super) fn server(kind: Kind, port: u16, api: u16, emails: &[&str]) -> Value {
    json!({
        "log": {"loglevel": "warning", "access": "none"},
        "stats": {},
        "api": {"tag": "api", "services": ["HandlerService", "StatsService"]},
        "policy": {
            "levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}},
            "system": {"statsInboundUplink": true, "statsInboundDownlink": true},
        },
        "inbounds": [
            {"tag": "api", "listen": "127.0.0.1", "port": api, "protocol": "dokodemo-door",
             "settings": {"address": "127.0.0.1"}},
            {"tag": TAG, "port": port, "protocol": kind.protocol(),
             "settings": users(kind, emails), "streamSettings": kind.stream()},
        ],
        "outbounds": [{"tag": "direct", "protocol": "freedom"}],
        "routing": {"rules": [
            {"type": "field", "inboundTag": ["api"], "outboundTag": "api"},
        ]},
    })
}

fn users(kind: Kind, emails: &[&str]) -> Value {
    let each = emails.iter().enumerate();
    match kind.protocol() {
        "shadowsocks" => {
            assert_eq!(emails.len(), 1, "an inbound of shadowsocks has one user");
            json!({"method": CIPHER, "password": password(0), "email": emails[0], "level": 0,
                   "network": "tcp,udp"})
        }
        "trojan" => json!({"clients": each.map(|(number, email)| {
            json!({"password": password(number), "email": email, "level": 0})
        }).collect::<Vec<_>>()}),
        "vless" => json!({"decryption": "none", "clients": each.map(|(number, email)| {
            json!({"id": id(number), "email": email, "level": 0})
        }).collect::<Vec<_>>()}),
        _ => json!({"clients": each.map(|(number, email)| {
            json!({"id": id(number), "alterId": 0, "email": email, "level": 0})
        }).collect::<Vec<_>>()}),
    }
}

/// The client: for each user one door on the loopback, TCP and UDP, through which everything goes to
/// `origin`, by way of the proxy at `server`, as that user.
pub(super) fn client(kind: Kind, server: SocketAddr, origin: SocketAddr, doors: &[u16]) -> Value {
    let inbounds = doors.iter().enumerate().map(|(number, door)| {
        json!({
            "tag": format!("door {number}"), "listen": "127.0.0.1", "port": door,
            "protocol": "dokodemo-door",
            "settings": {
                "address": origin.ip(), "port": origin.port(), "network": "tcp,udp",
            },
        })
    });
    let outbounds = (0..doors.len()).map(|number| {
        json!({
            "tag": format!("user {number}"), "protocol": kind.protocol(),
            "settings": access(kind, server, number), "streamSettings": kind.stream(),
        })
    });
    let rules = (0..doors.len()).map(|number| {
        json!({
            "type": "field", "inboundTag": [format!("door {number}")],
            "outboundTag": format!("user {number}"),
        })
    });
    json!({
        "log": {"loglevel": "warning", "access": "none"},
        "inbounds": inbounds.collect::<Vec<_>>(),
        "outbounds": outbounds.collect::<Vec<_>>(),
        "routing": {"rules": rules.collect::<Vec<_>>()},
    })
}

fn access(kind: Kind, server: SocketAddr, number: usize) -> Value {
    let (address, port) = (server.ip(), server.port());
    match kind.protocol() {
        "shadowsocks" => json!({"servers": [
            {"address": address, "port": port, "method": CIPHER, "password": password(number)},
        ]}),
        "trojan" => json!({"servers": [
            {"address": address, "port": port, "password": password(number)},
        ]}),
        "vless" => json!({"vnext": [
            {"address": address, "port": port, "users": [
                {"id": id(number), "encryption": "none"},
            ]},
        ]}),
        _ => json!({"vnext": [
            {"address": address, "port": port, "users": [
                {"id": id(number), "alterId": 0, "security": SECURITY},
            ]},
        ]}),
    }
}
