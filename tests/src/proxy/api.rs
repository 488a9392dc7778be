//! What the tests ask the server's API.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::runtime::Builder;
use traffic_user::{
    accounting::proxy::{ProxySnapshot, Subject},
    meter::proxy::{Address, ProxyMeter},
};

use crate::netns::NetNs;

/// Tag of the API's own inbound.
pub(super) const TAG: &str = "api";

/// All that the StatsService says, by our own client.
#[track_caller]
pub(super) fn snapshot(ns: &NetNs, api: SocketAddr) -> ProxySnapshot {
    let address: Address = api.to_string().parse().expect("an address");
    let answer = ns.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(ProxyMeter::new(address).poll())
    });
    answer.unwrap_or_else(|err| panic!("ask {api}: {err}"))
}

/// The counters by their names, without those of the API's own inbound, which counts each question.
pub(super) fn counters(snapshot: &ProxySnapshot) -> BTreeMap<String, i64> {
    let of_the_api = Subject::Inbound(TAG.into());
    snapshot
        .counters
        .iter()
        .filter(|(name, _)| name.subject != of_the_api)
        .map(|(name, value)| (name.to_string(), *value))
        .collect()
}
