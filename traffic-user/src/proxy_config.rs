//! The proxy's own configuration: which ports it has, who may use them, and what it counts.
//!
//! JSON of V2Ray 4 and 5 and of Xray, in one file or several. [`parse`] is pure; [`load`] and
//! [`Watched`] read the files. Ids, passwords and keys are not read at all: no value here has a place
//! for them, and no message quotes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use crate::accounting::{
    ident::PortRange,
    proxy::{Inbound, Users},
};

mod advice;
mod error;
mod files;
mod findings;
mod inbound;
mod json;
mod merge;
mod ports;
mod read;
mod share;
mod text;

pub use advice::{Advice, advice};
pub use error::{Mistake, Place, ProxyConfigError};
pub use files::{SIZE_LIMIT, Stamp, Watched, find, find_all, load, usual_places};
pub use read::{Source, parse};

/// What a proxy's configuration says, as far as traffic is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Its inbounds with ports that the kernel can see. No port of a transport is in two of them, and
    /// no name is used twice, so their groups can be counted together.
    pub inbounds: Vec<Inbound>,
    /// Its inbounds that no device brings traffic: behind another inbound's fallback, or behind
    /// something else on this host. The kernel counts their traffic where it comes in.
    pub local: Vec<LocalInbound>,
    /// Where its counters can be read.
    pub api: Option<Api>,
    /// Whether it counts at all (`"stats": {}`).
    pub stats: bool,
    /// What it is told to count.
    pub policy: Policy,
    /// The policy levels of the users that have a name.
    pub levels: BTreeSet<u32>,
    /// Users whose level does not count both directions, each once: the proxy knows no traffic of
    /// theirs, or half of it.
    pub unreported: Vec<Arc<str>>,
    /// What makes the numbers wrong or incomplete.
    pub problems: Vec<Mistake>,
    /// What is as it should be, but not counted, or counted otherwise than one might think.
    pub notes: Vec<Mistake>,
    /// What is taken already, for [`advice`].
    taken: Taken,
}

/// An inbound without a port that the kernel can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalInbound {
    /// As in [`Inbound`].
    pub tag: Option<Arc<str>>,
    /// As in [`Inbound`].
    pub protocol: Arc<str>,
    /// As in [`Inbound`].
    pub users: Users,
}

/// Where the proxy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Its tag.
    pub tag: Arc<str>,
    /// Where to connect to. `None` when the config does not make it listen on a port.
    pub address: Option<ApiAddress>,
    /// Whether the counters are among its services.
    pub stats_service: bool,
    /// Whether users can be added and removed through it.
    pub handler_service: bool,
}

/// A host and a port to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAddress {
    /// A name or an address; never the unspecified one.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse() {
            Ok(IpAddr::V6(host)) => write!(f, "[{host}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What the proxy is told to count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// By level, as far as the config names them. A level that is missing counts nothing.
    pub levels: BTreeMap<u32, UserSwitches>,
    /// For inbounds and outbounds.
    pub system: SystemSwitches,
}

impl Policy {
    /// The switches of a level.
    pub fn level(&self, level: u32) -> UserSwitches {
        self.levels.get(&level).copied().unwrap_or_default()
    }
}

/// What is counted of the users of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserSwitches {
    /// `statsUserUplink`.
    pub uplink: bool,
    /// `statsUserDownlink`.
    pub downlink: bool,
    /// `statsUserOnline`; Xray only.
    pub online: bool,
}

impl UserSwitches {
    /// Whether both directions are counted.
    pub const fn counts(self) -> bool {
        self.uplink && self.downlink
    }
}

/// What is counted of inbounds and outbounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemSwitches {
    /// `statsInboundUplink`.
    pub inbound_uplink: bool,
    /// `statsInboundDownlink`.
    pub inbound_downlink: bool,
    /// `statsOutboundUplink`.
    pub outbound_uplink: bool,
    /// `statsOutboundDownlink`.
    pub outbound_downlink: bool,
}

/// Names and ports that something new may not use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Tags of inbounds.
    inbounds: BTreeSet<String>,
    /// Tags of outbounds.
    outbounds: BTreeSet<String>,
    /// Ports of all inbounds, on whatever address.
    ports: Vec<PortRange>,
    /// Tags of inbounds that a rule routes to the API.
    api_rules: Vec<String>,
    /// Tag of an inbound that would lead to the API if there were a rule.
    door: Option<String>,
}

/// A piece of foreign text, safe to print and short.
fn shown(text: &str) -> String {
    text.chars().take(60).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests;
