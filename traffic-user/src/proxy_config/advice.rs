//! What a proxy's config lacks for its traffic to be known by user, as JSON to paste.

use serde_json::{Map, Value, json};

use super::{ProxyConfig, Taken};
use crate::accounting::proxy::Product;

/// The port that the products' own documents use for the API.
const USUAL_PORT: u16 = 10085;

/// What to add to a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// One sentence for each thing that is missing. Safe to print.
    pub sentences: Vec<String>,
    /// What to add, nothing else: objects into the objects of the same name, list entries into the
    /// lists of the same name, rules in front of the others. `None` when nothing can be pasted.
    pub json: Option<Value>,
}

/// What is missing. `None` when the proxy counts every user and can be asked.
///
/// Where the product is not known, the form that both understand is chosen.
pub fn advice(config: &ProxyConfig, product: Option<Product>) -> Option<Advice> {
    let mut add = Add { sentences: Vec::new(), json: Map::new() };
    if !config.stats {
        add.say("`stats` is missing: the proxy counts nothing without it");
        add.json.insert("stats".into(), json!({}));
    }
    policy(config, &mut add);
    api(config, product, &mut add);
    let users = config.inbounds.iter().map(|inbound| &inbound.users);
    let users = users.chain(config.local.iter().map(|inbound| &inbound.users));
    let nameless: usize = users.map(|users| users.nameless).sum();
    if nameless > 0 {
        add.say(format!(
            "users without an email, whom the proxy does not count: {nameless}; give each a name of \
             his own"
        ));
    }
    let json = (!add.json.is_empty()).then_some(Value::Object(add.json));
    (!add.sentences.is_empty()).then_some(Advice { sentences: add.sentences, json })
}

struct Add {
    sentences: Vec<String>,
    json: Map<String, Value>,
}

impl Add {
    fn say(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }
}

fn policy(config: &ProxyConfig, add: &mut Add) {
    let mut policy = Map::new();
    let mut levels = Map::new();
    // Users that somebody adds while the proxy runs are of level 0 unless they say otherwise.
    let used = if config.levels.is_empty() { [0].into() } else { config.levels.clone() };
    for level in used {
        let has = config.policy.level(level);
        let lacks =
            lacking(&[("statsUserUplink", has.uplink), ("statsUserDownlink", has.downlink)]);
        if !lacks.is_empty() {
            add.say(format!("users of level {level} are not counted in both directions"));
            levels.insert(level.to_string(), Value::Object(lacks));
        }
    }
    if !levels.is_empty() {
        policy.insert("levels".into(), Value::Object(levels));
    }
    let has = config.policy.system;
    let lacks = lacking(&[
        ("statsInboundUplink", has.inbound_uplink),
        ("statsInboundDownlink", has.inbound_downlink),
    ]);
    if !lacks.is_empty() {
        add.say("inbounds are not counted in both directions");
        policy.insert("system".into(), Value::Object(lacks));
    }
    if !policy.is_empty() {
        add.json.insert("policy".into(), Value::Object(policy));
    }
}

/// The switches that are off, as on.
fn lacking(switches: &[(&str, bool)]) -> Map<String, Value> {
    let off = switches.iter().filter(|(_, on)| !on);
    off.map(|(name, _)| ((*name).to_owned(), Value::Bool(true))).collect()
}

fn api(config: &ProxyConfig, product: Option<Product>, add: &mut Add) {
    let mut section = Map::new();
    let tag = match &config.api {
        Some(api) => {
            if !api.stats_service {
                add.say(
                    "the API does not serve the counters: `StatsService` is not among its services",
                );
                section.insert("services".into(), json!(["StatsService"]));
            }
            api.tag.to_string()
        }
        None => {
            let tag = free_tag("api", &config.taken);
            add.say("`api` is missing: nobody can ask the proxy for its counters");
            section.insert("tag".into(), json!(tag));
            section.insert("services".into(), json!(["StatsService"]));
            tag
        }
    };
    if config.api.as_ref().is_none_or(|api| api.address.is_none()) {
        let port = free_port(&config.taken);
        if product == Some(Product::Xray) {
            add.say("the API listens on no port: `listen` gives it one");
            section.insert("listen".into(), json!(format!("127.0.0.1:{port}")));
        } else {
            door(&tag, port, &config.taken, add);
        }
    }
    if !section.is_empty() {
        add.json.insert("api".into(), Value::Object(section));
    }
}

/// An inbound that leads to the API and the rule that makes it do so, or the one that is missing.
fn door(api: &str, port: u16, taken: &Taken, add: &mut Add) {
    let ruled = taken.api_rules.iter().find(|tag| !taken.inbounds.contains(*tag));
    let tag = match (ruled, &taken.door) {
        (Some(tag), _) | (None, Some(tag)) => tag.clone(),
        (None, None) => free_inbound_tag(api, taken),
    };
    if ruled.is_none() {
        add.say("no rule leads to the API: put one in front of the others");
        let rule = json!({"type": "field", "inboundTag": [&tag], "outboundTag": api});
        add.json.insert("routing".into(), json!({ "rules": [rule] }));
    }
    if ruled.is_some() || taken.door.is_none() {
        add.say("no inbound leads to the API: add one on the loopback address");
        let inbound = json!({
            "tag": tag,
            "listen": "127.0.0.1",
            "port": port,
            "protocol": "dokodemo-door",
            "settings": {"address": "127.0.0.1"},
        });
        add.json.insert("inbounds".into(), json!([inbound]));
    }
}

/// A tag for an inbound that none has.
fn free_inbound_tag(wish: &str, taken: &Taken) -> String {
    numbered(wish, |tag| taken.inbounds.contains(tag))
}

/// A tag that no outbound has, since the API takes an outbound's place.
fn free_tag(wish: &str, taken: &Taken) -> String {
    numbered(wish, |tag| taken.outbounds.contains(tag) || taken.inbounds.contains(tag))
}

fn numbered(wish: &str, taken: impl Fn(&str) -> bool) -> String {
    let names = std::iter::once(wish.to_owned());
    let mut names = names.chain((2..u32::MAX).map(|number| format!("{wish}-{number}")));
    names.find(|name| !taken(name)).unwrap_or_default()
}

/// A port that no inbound has: the usual one or the next above it.
fn free_port(taken: &Taken) -> u16 {
    let is_taken =
        |port: u16| taken.ports.iter().any(|range| range.first() <= port && port <= range.last());
    let mut ports = (USUAL_PORT..=u16::MAX).chain(1024..USUAL_PORT);
    ports.find(|port| !is_taken(*port)).unwrap_or(USUAL_PORT)
}

#[cfg(test)]
mod tests;
