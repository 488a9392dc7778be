//! From the texts of the files to what they say.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Api, ApiAddress, LocalInbound, Policy, ProxyConfig, SystemSwitches, Taken, UserSwitches,
    error::ProxyConfigError,
    findings::Findings,
    inbound::{self, Listen, Named, why_not_counted},
    json::{Kind, Node},
    merge::{Entry, Merged},
    ports::{self, Env},
    share::Shared,
    text::Text,
};
use crate::accounting::ident::PortRange;

/// A config file's name and content.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// For messages.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Understands the files of a proxy, in the order in which the proxy reads them.
///
/// `env` gives the value of an environment variable: a port may be written as `env:NAME`.
///
/// ```
/// use traffic_user::proxy_config::{Source, parse};
///
/// let bytes = br#"{"inbounds": [{"tag": "in", "port": "443,8443", "protocol": "trojan", "settings":
///     {"clients": [{"password": "p", "email": "a@x"}]}}]} // comments are fine"#;
/// let config = parse(&[Source { path: "config.json".into(), bytes: bytes.to_vec() }], &|_| None)?;
/// assert_eq!(config.inbounds[0].group.to_string(), "443+8443/tcp=in");
/// assert_eq!(&*config.inbounds[0].users.emails[0], "a@x");
/// # Ok::<(), traffic_user::proxy_config::ProxyConfigError>(())
/// ```
///
/// # Errors
///
/// Everything that a proxy would not accept either, with its place; the first file that is no JSON.
pub fn parse(
    files: &[Source],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<ProxyConfig, ProxyConfigError> {
    let texts: Vec<Text> = files.iter().map(|file| Text::new(&file.path, &file.bytes)).collect();
    let mut findings = Findings::default();
    let mut merged = Merged::default();
    for text in &texts {
        merged.add(Node::root(text)?, &mut findings);
    }
    let mut config = understand(&merged, env, &mut findings);
    if let (true, Some(text)) = (config.inbounds.is_empty(), texts.first()) {
        findings.problem(Node::root(text)?, "no inbound has a port that can be counted");
    }
    (config.problems, config.notes) = findings.result()?;
    Ok(config)
}

fn understand(merged: &Merged<'_>, env: &Env<'_>, findings: &mut Findings) -> ProxyConfig {
    let mut config = ProxyConfig {
        stats: merged.stats.is_some(),
        policy: policy(merged.policy, findings),
        ..ProxyConfig::default()
    };
    config.taken.outbounds = merged.outbounds.iter().cloned().collect();
    let mut gate = Gate::new(merged, findings);
    let mut shared = Shared::new();
    let mut named: Vec<Named> = Vec::new();
    for entry in &merged.inbounds {
        let listen = inbound::listen(entry, env, findings);
        config.taken.inbounds.extend(entry.tag.iter().map(ToString::to_string));
        let ranges = match (&listen, entry.port) {
            (Listen::Socket, _) => None,
            (_, Some(node)) => ports::ranges(node, env, findings),
            (_, None) => {
                if !entry.protocol.eq_ignore_ascii_case("tun") {
                    findings.mistake(entry.node, "this inbound has no port");
                }
                None
            }
        };
        config.taken.ports.extend(ranges.iter().flatten());
        if gate.takes(entry, &listen, ranges.as_deref(), findings) {
            continue;
        }
        let (users, more) = inbound::users(entry, findings);
        named.extend(more);
        let transport = match why_not_counted(entry, &listen) {
            Some(why) => {
                findings.note(entry.node, why);
                None
            }
            None => inbound::transport(entry, findings),
        };
        match (transport, ranges) {
            (Some(transport), Some(ranges)) => {
                shared.add(entry, &ranges, transport, users, findings);
            }
            (Some(_), None) => {}
            (None, _) => config.local.push(LocalInbound {
                tag: entry.tag.clone(),
                protocol: Arc::clone(&entry.protocol),
                users,
            }),
        }
    }
    config.inbounds = shared.inbounds();
    config.levels = named.iter().map(|(_, level)| *level).collect();
    let mut seen = HashSet::new();
    config.unreported = named
        .into_iter()
        .filter(|(_, level)| !config.policy.level(*level).counts())
        .filter(|(email, _)| seen.insert(Arc::clone(email)))
        .map(|(email, _)| email)
        .collect();
    config.api = gate.finish(&mut config.taken, findings);
    config
}

/// The way to the API.
struct Gate<'a> {
    api: Option<Api>,
    node: Option<Node<'a>>,
    /// Whether it was said already why there is no address.
    said: bool,
    /// Tags of inbounds that a rule routes to the API.
    rules: Vec<String>,
    /// Tag of an inbound that would lead to the API if there were a rule.
    door: Option<String>,
}

impl<'a> Gate<'a> {
    fn new(merged: &Merged<'a>, findings: &mut Findings) -> Self {
        let mut gate =
            Self { api: None, node: merged.api, said: false, rules: Vec::new(), door: None };
        let Some(node) = merged.api else { return gate };
        let Some(object) = findings.object(node) else { return gate };
        let Some(tag) = findings.word(object.get("tag")) else {
            findings.problem(node, "the API has no tag, so it is not served: give it one");
            return gate;
        };
        let services = findings.words(object.get("services"));
        let has = |name: &str| services.iter().any(|service| service.eq_ignore_ascii_case(name));
        let mut address = None;
        if let Some(node) = object.get("listen")
            && let Some(listen) = findings.word(Some(node))
        {
            address = host_and_port(&listen);
            if address.is_none() {
                gate.said = true;
                findings.problem(node, "this is no address with a port: write 127.0.0.1:10085");
            }
        }
        gate.rules = rules_to(&tag, merged.routing, findings);
        gate.api = Some(Api {
            tag: tag.into(),
            address,
            stats_service: has("StatsService"),
            handler_service: has("HandlerService"),
        });
        gate
    }

    /// Whether an inbound is the API's own. The first of them gives the address, unless the API
    /// listens itself.
    fn takes(
        &mut self,
        entry: &Entry<'_>,
        listen: &Listen,
        ranges: Option<&[PortRange]>,
        findings: &mut Findings,
    ) -> bool {
        let Some(api) = &mut self.api else { return false };
        let Some(tag) = &entry.tag else { return false };
        let routed = self.rules.iter().any(|rule| **rule == **tag);
        if !entry.is_tunnel() || !(routed || *tag == api.tag) {
            return false;
        }
        let host = match listen {
            Listen::Open(None) => "127.0.0.1".to_owned(),
            Listen::Open(Some(address)) => address.to_string(),
            Listen::Loopback(host) => host.clone(),
            Listen::Socket => {
                let what = "the API is on a Unix socket, which is not read: give it a port";
                findings.problem(entry.node, what);
                self.said = true;
                return true;
            }
        };
        // Without a rule, what comes in here goes out, and not to the API.
        match (routed, ranges) {
            (true, Some([first, ..])) => {
                let port = first.first();
                api.address.get_or_insert(ApiAddress { host, port });
            }
            (false, Some(_)) => self.door = Some(tag.to_string()),
            (_, _) => {}
        }
        true
    }

    fn finish(self, taken: &mut Taken, findings: &mut Findings) -> Option<Api> {
        if let (Some(Api { address: None, .. }), Some(node), false) =
            (&self.api, self.node, self.said)
        {
            findings.problem(
                node,
                "no port leads to the API, so nobody can ask for the counters: `traffic doctor` \
                 says what to add",
            );
        }
        (taken.api_rules, taken.door) = (self.rules, self.door);
        self.api
    }
}

/// `127.0.0.1:10085`, `[::1]:10085`, `:10085`. The unspecified address is reached on loopback.
fn host_and_port(listen: &str) -> Option<ApiAddress> {
    let (host, port) = listen.rsplit_once(':')?;
    let port = ports::range(port).ok().filter(|range| range.first() == range.last())?.first();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Err(_) if host.is_empty() => "127.0.0.1".to_owned(),
        _ => host.to_owned(),
    };
    Some(ApiAddress { host, port })
}

/// The inbounds that rules send to an outbound of this tag.
fn rules_to(tag: &str, routing: Option<Node<'_>>, findings: &mut Findings) -> Vec<String> {
    let Some(routing) = routing.and_then(|node| findings.object(node)) else { return Vec::new() };
    // V2Ray's old form has the rules one level below.
    let old = routing.get("settings").and_then(Node::object).and_then(|old| old.get("rules"));
    let Some(list) = routing.get("rules").or(old) else { return Vec::new() };
    let mut tags = Vec::new();
    for rule in findings.list(list) {
        let Some(rule) = findings.object(rule) else { continue };
        if rule.get("outboundTag").and_then(Node::text).is_some_and(|to| to == tag) {
            tags.extend(findings.words(rule.get("inboundTag")));
        }
    }
    tags
}

fn policy(node: Option<Node<'_>>, findings: &mut Findings) -> Policy {
    let Some(object) = node.and_then(|node| findings.object(node)) else {
        return Policy::default();
    };
    let mut levels = BTreeMap::new();
    if let Some(list) = object.get("levels").and_then(|node| findings.object(node)) {
        for (level, node) in list.members() {
            let Ok(level) = level.parse::<u32>() else {
                findings.mistake(node, "a level must be a number from 0, in quotes");
                continue;
            };
            if node.kind() == Kind::Null {
                continue;
            }
            let Some(switches) = findings.object(node) else { continue };
            let mut on = |key| findings.flag(switches.get(key));
            levels.insert(
                level,
                UserSwitches {
                    uplink: on("statsUserUplink"),
                    downlink: on("statsUserDownlink"),
                    online: on("statsUserOnline"),
                },
            );
        }
    }
    let mut system = SystemSwitches::default();
    if let Some(switches) = object.get("system").and_then(|node| findings.object(node)) {
        let mut on = |key| findings.flag(switches.get(key));
        system = SystemSwitches {
            inbound_uplink: on("statsInboundUplink"),
            inbound_downlink: on("statsInboundDownlink"),
            outbound_uplink: on("statsOutboundUplink"),
            outbound_downlink: on("statsOutboundDownlink"),
        };
    }
    Policy { levels, system }
}
