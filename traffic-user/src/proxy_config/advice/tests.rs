//! What is advised, and that a config which follows it lacks nothing.

use serde_json::{Value, json};

use super::*;
use crate::proxy_config::{Source, parse};

fn read(config: &Value) -> ProxyConfig {
    let source = Source { path: "config.json".into(), bytes: config.to_string().into_bytes() };
    parse(&[source], &|_| None).unwrap()
}

/// Adds as the advice says: objects into objects, list entries in front of the others.
fn paste(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                paste(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            into.splice(0..0, from.iter().cloned());
        }
        (into, from) => *into = from.clone(),
    }
}

/// The advice; a config that follows it needs none.
#[track_caller]
fn advised(config: &Value, product: Option<Product>) -> Value {
    let advised = advice(&read(config), product).unwrap().json.unwrap();
    let mut better = config.clone();
    paste(&mut better, &advised);
    let after = read(&better);
    assert_eq!(advice(&after, product), None, "{better:#}");
    assert_eq!(after.api.unwrap().address.unwrap().host, "127.0.0.1");
    assert_eq!(after.inbounds, read(config).inbounds);
    advised
}

fn complete() -> Value {
    serde_json::from_str(include_str!("../../../tests-data/v2ray-server.json")).unwrap()
}

/// The complete config without what stands at `pointer`.
fn without(pointer: &str) -> Value {
    let mut config = complete();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(object) => {
            object.remove(key).unwrap();
        }
        Value::Array(list) => {
            list.remove(key.parse().unwrap());
        }
        other => panic!("{other}"),
    }
    config
}

#[test]
fn a_complete_config_needs_nothing() {
    assert_eq!(advice(&read(&complete()), None), None);
}

#[test]
fn a_bare_config_of_v2ray_needs_all_of_it() {
    let bare = json!({"inbounds": [{"port": 443, "protocol": "vless"}]});
    let want = json!({
        "stats": {},
        "policy": {
            "levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}},
            "system": {"statsInboundUplink": true, "statsInboundDownlink": true},
        },
        "api": {"tag": "api", "services": ["StatsService"]},
        "inbounds": [{"tag": "api", "listen": "127.0.0.1", "port": 10085,
            "protocol": "dokodemo-door", "settings": {"address": "127.0.0.1"}}],
        "routing": {"rules": [
            {"type": "field", "inboundTag": ["api"], "outboundTag": "api"}]},
    });
    assert_eq!(advised(&bare, None), want);
    assert_eq!(advised(&bare, Some(Product::V2ray)), want);
    assert_eq!(advice(&read(&bare), None).unwrap().sentences.len(), 6);
}

#[test]
fn xray_listens_for_the_api_itself() {
    let bare = json!({"stats": {}, "inbounds": [{"port": "10000-20000", "protocol": "vless"}]});
    let advised = advised(&bare, Some(Product::Xray));
    assert_eq!(
        advised["api"],
        json!({"tag": "api", "listen": "127.0.0.1:20001", "services": ["StatsService"]})
    );
    assert_eq!((advised.get("inbounds"), advised.get("stats")), (None, None));
}

#[test]
fn only_what_is_missing_is_advised() {
    assert_eq!(advised(&without("/stats"), None), json!({"stats": {}}));
    assert_eq!(
        advised(&without("/policy/levels/0/statsUserDownlink"), None),
        json!({"policy": {"levels": {"0": {"statsUserDownlink": true}}}})
    );
    assert_eq!(
        advised(&without("/policy/system/statsInboundUplink"), None),
        json!({"policy": {"system": {"statsInboundUplink": true}}})
    );
    assert_eq!(
        advised(&without("/api/services/2"), None),
        json!({"api": {"services": ["StatsService"]}})
    );
    // The rule is there: only the inbound that it speaks of is missing.
    let advice = advised(&without("/inbounds/0"), None);
    assert_eq!(advice["inbounds"][0]["tag"], "api");
    assert_eq!(advice.get("routing"), None);
    // And the other way round.
    assert_eq!(
        advised(&without("/routing/rules/0"), None),
        json!({"routing": {"rules": [
            {"type": "field", "inboundTag": ["api"], "outboundTag": "api"}]}})
    );
}

#[test]
fn every_level_in_use_is_advised() {
    let mut config = complete();
    config["inbounds"][1]["settings"]["clients"][1]["level"] = json!(3);
    assert_eq!(
        advised(&config, None),
        json!({"policy": {"levels": {"3": {"statsUserUplink": true, "statsUserDownlink": true}}}})
    );
}

#[test]
fn names_and_ports_that_are_taken_are_left_alone() {
    let config = json!({
        "inbounds": [
            {"tag": "api", "port": "10000-10090", "protocol": "vless"},
            {"listen": "127.0.0.1", "port": 10091, "protocol": "socks"},
        ],
        "outbounds": [{"tag": "api-2", "protocol": "freedom"}],
    });
    let advised = advised(&config, None);
    assert_eq!(advised["api"]["tag"], "api-3");
    assert_eq!(advised["inbounds"][0]["port"], 10092);
}

#[test]
fn users_without_a_name_are_told_without_anything_to_paste() {
    let mut config = complete();
    config["inbounds"][1]["settings"]["clients"][0]["email"] = Value::Null;
    let advice = advice(&read(&config), None).unwrap();
    assert_eq!(advice.json, None);
    assert_eq!(advice.sentences.len(), 1);
    assert!(advice.sentences[0].contains(": 1;"), "{advice:?}");
}
