//! One inbound: where it listens, over what, and for whom.

use std::{net::IpAddr, sync::Arc};

use super::{
    findings::Findings,
    json::{Kind, Node, Object},
    merge::Entry,
    ports::Env,
    shown,
};
use crate::accounting::{ident::Transport, proxy::Users};

/// Where an inbound listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// On an address that others reach.
    Open(Option<IpAddr>),
    /// On this host only.
    Loopback(String),
    /// On a Unix socket: no port.
    Socket,
}

/// Where it listens (Xray `infra/conf/xray.go`, `InboundDetourConfig.Build`).
pub(super) fn listen(entry: &Entry<'_>, env: &Env<'_>, findings: &mut Findings) -> Listen {
    let Some(node) = entry.listen else { return Listen::Open(None) };
    let Some(written) = findings.text(node) else { return Listen::Open(None) };
    let host = match written.strip_prefix("env:") {
        Some(name) => env(name).unwrap_or_default(),
        None => written,
    };
    if host.starts_with(['/', '@']) {
        return Listen::Socket;
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Listen::Loopback(host);
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) if address.to_canonical().is_loopback() => {
            Listen::Loopback(address.to_string())
        }
        Ok(address) => Listen::Open((!address.is_unspecified()).then_some(address)),
        Err(_) => {
            if !host.is_empty() {
                findings.problem(node, "this is no address, so it is taken for all addresses");
            }
            Listen::Open(None)
        }
    }
}

/// What carries the bytes of an inbound. `None` when no port does, which is then said.
///
/// The proxies open a stream listener (TCP, or the UDP of the stream settings) when the protocol has
/// TCP, and a UDP socket beside it when the protocol has UDP (Xray `app/proxyman/inbound/always.go`).
pub(super) fn transport(entry: &Entry<'_>, findings: &mut Findings) -> Option<Transport> {
    let setting = |key: &str| entry.settings.as_ref().and_then(|settings| settings.get(key));
    let (tcp, udp) = match entry.protocol.to_ascii_lowercase().as_str() {
        "shadowsocks" | "shadowsocks-2022" | "dokodemo-door" | "tunnel" => {
            let node =
                ["network", "allowedNetwork", "allowedNetworks"].into_iter().find_map(setting);
            let networks = findings.words(node);
            let has = |name: &str| networks.iter().any(|word| word.eq_ignore_ascii_case(name));
            // Without a list it is TCP alone.
            (networks.is_empty() || has("tcp"), has("udp"))
        }
        "socks" | "mixed" => (true, findings.flag(setting("udp"))),
        "wireguard" | "hysteria" | "hysteria2" | "tuic" => (false, true),
        "tun" => {
            findings.note(entry.node, "a tun device has no port: its traffic is in no group");
            return None;
        }
        _ => (true, false),
    };
    let carrier = if tcp { Some(carrier(entry, findings)?) } else { None };
    let has_tcp = carrier.is_some_and(Transport::tcp);
    match (has_tcp, udp || carrier.is_some_and(Transport::udp)) {
        (true, true) => Some(Transport::Both),
        (false, true) => Some(Transport::Udp),
        // A network that is neither: the proxy refuses it, or takes it for TCP.
        _ => Some(Transport::Tcp),
    }
}

/// What carries the streams (Xray and V2Ray `infra/conf/transport_internet.go`).
fn carrier(entry: &Entry<'_>, findings: &mut Findings) -> Option<Transport> {
    let Some(stream) = &entry.stream else { return Some(Transport::Tcp) };
    let named = ["network", "method", "transport"].into_iter().find_map(|key| stream.get(key));
    let Some(node) = named else { return Some(Transport::Tcp) };
    let network = findings.word(Some(node)).unwrap_or_default().to_ascii_lowercase();
    match network.as_str() {
        "" | "tcp" | "raw" | "ws" | "websocket" | "h2" | "http" | "grpc" | "gun"
        | "httpupgrade" => Some(Transport::Tcp),
        "xhttp" | "splithttp" if is_http3_alone(stream, findings) => Some(Transport::Udp),
        "xhttp" | "splithttp" => Some(Transport::Tcp),
        "kcp" | "mkcp" | "quic" | "h3" | "hysteria" | "hysteria2" | "dtls" => Some(Transport::Udp),
        "ds" | "domainsocket" => {
            findings.note(node, "a Unix socket has no port: its traffic is in no group");
            None
        }
        _ => {
            findings.note(node, "this network is not known here: both TCP and UDP are counted");
            Some(Transport::Both)
        }
    }
}

/// Xray serves HTTP/3, and nothing else, when TLS offers `h3` and nothing else
/// (`transport/internet/splithttp/hub.go`).
fn is_http3_alone(stream: &Object<'_>, findings: &mut Findings) -> bool {
    let alpn = stream.get("tlsSettings").and_then(Node::object).and_then(|tls| tls.get("alpn"));
    findings.words(alpn) == ["h3"]
}

/// A named user and his level.
pub(super) type Named = (Arc<str>, u32);

/// Who may use an inbound.
///
/// Names are kept as they are written: the proxies lower-case an email only to find a user by it, and
/// count under the email as configured (Xray `proxy/vless/validator.go` and
/// `app/dispatcher/default.go`, V2Ray `proxy/vmess/inbound/inbound.go`). Socks and http users are
/// counted under their user name.
pub(super) fn users(entry: &Entry<'_>, findings: &mut Findings) -> (Users, Vec<Named>) {
    let mut found = Found::default();
    let protocol = entry.protocol.to_ascii_lowercase();
    if let Some(settings) = &entry.settings {
        match protocol.as_str() {
            "socks" | "mixed" => {
                let auth = findings.word(settings.get("auth"));
                if auth.is_some_and(|auth| auth.eq_ignore_ascii_case("password")) {
                    found.accounts(settings, findings);
                }
            }
            "http" => found.accounts(settings, findings),
            "dokodemo-door" | "tunnel" | "wireguard" | "tun" => {}
            _ => {
                let list = settings.get("clients").or_else(|| settings.get("users"));
                let list = list.map(|list| findings.list(list)).unwrap_or_default();
                // A shadowsocks inbound with one user has him beside its password.
                if list.is_empty() && protocol.starts_with("shadowsocks") {
                    found.user(settings, findings);
                }
                for user in list {
                    found.entry(user, findings);
                }
            }
        }
    }
    if found.nameless > 0 {
        let (count, name) = (found.nameless, entry.name());
        let what = format!(
            "users of {name} without an email: {count}; the proxy does not count them, give each one"
        );
        findings.problem(entry.node, what);
    }
    let unknown = found.named.is_empty() && found.nameless == 0;
    let mut emails: Vec<Arc<str>> = Vec::with_capacity(found.named.len());
    let mut seen = std::collections::HashSet::with_capacity(found.named.len());
    for (email, _) in &found.named {
        if seen.insert(Arc::clone(email)) {
            emails.push(Arc::clone(email));
        }
    }
    (Users { emails, nameless: found.nameless, unknown }, found.named)
}

#[derive(Default)]
struct Found {
    named: Vec<Named>,
    nameless: usize,
}

impl Found {
    /// The users of a socks or http inbound; they share a level.
    fn accounts(&mut self, settings: &Object<'_>, findings: &mut Findings) {
        let level = findings.level(settings.get("userLevel"));
        let list = settings.get("accounts").or_else(|| settings.get("users"));
        for account in list.map(|list| findings.list(list)).unwrap_or_default() {
            let Some(account) = findings.object(account) else { continue };
            let name = account.get("user").or_else(|| account.get("username"));
            self.add(findings.word(name), level);
        }
    }

    /// An entry of a list of users.
    fn entry(&mut self, node: Node<'_>, findings: &mut Findings) {
        // V2Ray 5 also has bare ids here, which are not read.
        if node.kind() == Kind::Text {
            self.nameless += 1;
        } else if let Some(user) = findings.object(node) {
            self.user(&user, findings);
        }
    }

    fn user(&mut self, user: &Object<'_>, findings: &mut Findings) {
        let level = findings.level(user.get("level"));
        self.add(findings.word(user.get("email")), level);
    }

    fn add(&mut self, name: Option<String>, level: u32) {
        match name {
            Some(name) => self.named.push((name.into(), level)),
            None => self.nameless += 1,
        }
    }
}

/// What to say of an inbound that is in no group.
pub(super) fn why_not_counted(entry: &Entry<'_>, listen: &Listen) -> Option<String> {
    match listen {
        Listen::Open(_) => None,
        Listen::Loopback(host) => Some(format!(
            "{} listens on {} only: no device brings it traffic, so it is not counted",
            entry.name(),
            shown(host)
        )),
        Listen::Socket => Some(format!(
            "{} listens on a Unix socket: it has no port, so it is not counted",
            entry.name()
        )),
    }
}
