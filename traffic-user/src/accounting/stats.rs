//! The merged report: what kernel and proxy say of each group and user, side by side.
//!
//! Numbers of different layers stand beside one another and are never added: `kernel` and `wire` are
//! bytes on the wire (layer and meter are the kernel snapshot's), `payload` and `group_total` are what
//! the proxy counted.

use std::sync::Arc;

use super::{
    anomaly::Anomaly,
    ident::Group,
    payload::Gap,
    proxy::{Payload, Product, Way},
    reading::{Coverage, Traffic},
    relay::Relayed,
};

/// Kernel bytes in both directions, seen from the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wire {
    /// What entered: the way of the uplink.
    pub input: u64,
    /// What left: the way of the downlink.
    pub output: u64,
}

impl Wire {
    /// Those of a group's counters.
    pub const fn of(traffic: Traffic) -> Self {
        Self { input: traffic.input_bytes, output: traffic.output_bytes }
    }

    /// The direction in which payload of that way goes over the wire.
    pub const fn way(self, way: Way) -> u64 {
        match way {
            Way::Uplink => self.input,
            Way::Downlink => self.output,
        }
    }

    /// The same, to be changed.
    pub const fn way_mut(&mut self, way: Way) -> &mut u64 {
        match way {
            Way::Uplink => &mut self.input,
            Way::Downlink => &mut self.output,
        }
    }

    /// Both directions; stops at the largest number instead of beginning again.
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// The proxy's API, as plain values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiReport {
    /// `ok`, `down`, `slow`, `denied`, `garbage` or `disabled`.
    pub state: &'static str,
    /// Since when it is so, nanoseconds of Unix time.
    pub since: Option<i128>,
    /// Who answers.
    pub product: Option<Product>,
    /// Whole seconds since the proxy's start, as it says itself.
    pub uptime: Option<u32>,
}

/// One user in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserStats {
    /// The name under which the proxy counts. Foreign text: never print it raw to a terminal.
    pub email: Arc<str>,
    /// What the proxy counted for him, in all groups: it has one counter for a user.
    pub payload: Payload,
    /// Whether the proxy was seen to have a counter of him. It makes one with his first traffic, so
    /// `payload` of one who has none is not a measured 0.
    pub counted: bool,
    /// Kernel bytes of this group that are charged to him; `None` where no group is known.
    pub wire: Option<Wire>,
    /// Whether he is in several groups, each of which shows the same `payload`.
    pub shared: bool,
    /// Whether the config names him in this group now.
    pub configured: bool,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStats {
    /// Its ports and transport.
    pub group: Arc<Group>,
    /// Tag of its inbound, as the proxy writes it.
    pub tag: Option<Arc<str>>,
    /// Its protocol; `None` for ports that are no inbound.
    pub protocol: Option<Arc<str>>,
    /// Whether the config has it now.
    pub configured: bool,
    /// Its users in the order of the config, then those that the config does not name (any more), by
    /// name.
    pub users: Vec<UserStats>,
    /// Whether it has users that the config does not name, or none at all.
    pub users_unknown: bool,
    /// The proxy's counter of the inbound; `None` when there is none. With V2Ray these are encrypted
    /// bytes, with Xray the downlink may lack spliced bytes.
    pub group_total: Option<Payload>,
    /// What the kernel counted; `None` when it never did.
    pub kernel: Option<Traffic>,
    /// Kernel bytes and payload over one span of time, both directions; `None` where payload is 0 or
    /// not known.
    ///
    /// Payload is what the users moved here; the inbound's counter only where no user is counted,
    /// because it is the encrypted stream with V2Ray and may lack bytes with Xray. Of a user in several
    /// groups it is what is matched by wire bytes here.
    pub overhead: Option<(u64, u64)>,
    /// Kernel bytes that are charged to nobody (yet); `None` where `kernel` is.
    pub unattributed: Option<Wire>,
}

impl GroupStats {
    /// Its first port.
    pub fn port(&self) -> Option<u16> {
        self.group.ranges().first().map(|range| range.first())
    }

    /// Kernel bytes for each byte of payload, for people.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio for people; exact numbers stand beside it"
    )]
    pub fn overhead_ratio(&self) -> Option<f64> {
        self.overhead.map(|(wire, payload)| wire as f64 / payload as f64)
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemTotal {
    /// Payload of every user, once, and of the groups where no user is known.
    pub payload: Payload,
    /// Whether the proxy was ever polled: without it `payload` is not a measured 0.
    pub polled: bool,
    /// Users whose counters moved at the last tick with a poll.
    pub active_users: usize,
    /// Groups whose kernel counters moved at the last tick that had them; those of the proxy where
    /// the kernel counts none.
    pub active_groups: usize,
}

/// What is known after a tick, since the accounting began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsReport {
    /// Nanoseconds of Unix time.
    pub taken_at: i128,
    /// The proxy's side.
    pub api: ApiReport,
    /// Worst of all ticks; `Estimated` for totals whose epochs began at different times.
    pub coverage: Coverage,
    /// In the order of the config, then those it does not name (any more), as they came.
    pub groups: Vec<GroupStats>,
    /// Users whom the proxy counts and no group is known for, by name.
    pub unplaced: Vec<UserStats>,
    /// All of it.
    pub system_total: SystemTotal,
    /// What moved on no watched port, the other leg of what is proxied; `None` where that was not
    /// measured.
    pub relay: Option<Relayed>,
    /// What was not seen at this tick.
    pub gaps: Vec<Gap>,
    /// What happened at this tick, and what is wrong as long as it is.
    pub anomalies: Vec<Anomaly>,
}
