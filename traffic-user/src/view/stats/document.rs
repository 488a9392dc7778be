//! The JSON of `stats`. `schema/stats.schema.json` describes it.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::super::json::{JSON_VERSION, time};
use crate::accounting::{
    anomaly::{Anomaly, counter_text},
    payload::Gap,
    proxy::{Payload, Way},
    reading::{Layer, Traffic},
    relay::Relayed,
    stats::{GroupStats, StatsReport, UserStats},
};

/// `stats --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`JSON_VERSION`].
    pub jsonversion: String,
    /// RFC 3339 in UTC, like all times.
    pub taken_at: String,
    /// Name of the host.
    pub host: String,
    /// Another one after each reset of ours: numbers of two epochs are not to be subtracted.
    pub epoch: Option<String>,
    /// When these numbers began; `None` when that is not known.
    pub since: Option<String>,
    /// `complete`, `gap` or `estimated`.
    pub coverage: String,
    /// Who gave the kernel's bytes.
    pub meter: Option<String>,
    /// What they include.
    pub layer: Option<String>,
    /// The proxy's API.
    pub api: ApiDocument,
    /// In the order of the proxy's config.
    pub groups: Vec<GroupDocument>,
    /// Users whom the proxy counts and its config places nowhere.
    pub unplaced: Vec<UserDocument>,
    /// Each user and group once.
    pub system_total: SystemDocument,
    /// What was seen on no watched port.
    pub relay: Option<RelayDocument>,
    /// What is wrong, as long as it is.
    pub anomalies: Vec<AnomalyDocument>,
    /// What happened, oldest first.
    pub events: Vec<EventDocument>,
    /// Today, this billing month and since ever, as `traffic --json` has it; `None` without a ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<serde_json::Value>,
}

/// How it stands with the proxy's API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiDocument {
    /// `ok`, `down`, `slow`, `denied`, `garbage`, `disabled`; `None` before the first answer.
    pub state: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// Why it is not `ok`.
    pub reason: Option<String>,
    /// What helps.
    pub remedy: Option<String>,
    /// `v2ray` or `xray`.
    pub product: Option<String>,
    /// Since the proxy's start, as it says itself.
    pub uptime_seconds: Option<u32>,
}

/// Payload bytes; `None` is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadDocument {
    /// What users sent.
    pub uplink: Option<u64>,
    /// What they got.
    pub downlink: Option<u64>,
    /// Both added up.
    pub total: Option<u64>,
}

impl From<Option<Payload>> for PayloadDocument {
    fn from(payload: Option<Payload>) -> Self {
        Self {
            uplink: payload.map(|payload| payload.uplink),
            downlink: payload.map(|payload| payload.downlink),
            total: payload.map(Payload::total),
        }
    }
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDocument {
    /// Bytes that entered.
    pub input_bytes: u64,
    /// Bytes that left.
    pub output_bytes: u64,
    /// Packets that entered.
    pub input_packets: u64,
    /// Packets that left.
    pub output_packets: u64,
}

impl From<Traffic> for KernelDocument {
    fn from(traffic: Traffic) -> Self {
        let Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
        Self { input_bytes, output_bytes, input_packets, output_packets }
    }
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupDocument {
    /// Tag of the inbound.
    pub tag: Option<String>,
    /// The first of its ports.
    pub port: u16,
    /// All of them.
    pub ports: String,
    /// `tcp`, `udp` or `tcp+udp`.
    pub transport: String,
    /// As the proxy's config writes it.
    pub protocol: Option<String>,
    /// Whether the proxy's config has it now.
    pub configured: bool,
    /// Its users.
    pub users: Vec<UserDocument>,
    /// The inbound's own counter.
    pub group_total: Option<PayloadDocument>,
    /// What the kernel counted.
    pub kernel: Option<KernelDocument>,
    /// Kernel bytes over payload bytes.
    pub overhead_ratio: Option<f64>,
    /// Kernel bytes charged to nobody (yet).
    pub unattributed_bytes: Option<u64>,
}

/// One user in one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDocument {
    /// The name under which the proxy counts.
    pub email: String,
    /// Payload in all his groups.
    #[serde(flatten)]
    pub payload: PayloadDocument,
    /// Kernel bytes of this group charged to him.
    pub wire_share: Option<u64>,
    /// The part of it that entered.
    pub wire_input: Option<u64>,
    /// The part of it that left.
    pub wire_output: Option<u64>,
    /// From how many addresses he is connected, as the proxy tells; `None` where it does not,
    /// or has nothing to tell of him.
    pub online: Option<usize>,
    /// Whether he is in several groups.
    pub shared: bool,
    /// Whether the proxy's config names him here now.
    pub configured: bool,
}

/// All users and groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemDocument {
    /// Payload of all users, each once.
    #[serde(flatten)]
    pub payload: PayloadDocument,
    /// Users that moved payload in the last interval.
    pub active_users: usize,
    /// Groups that moved bytes in the last interval.
    pub active_groups: usize,
}

/// The other leg.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayDocument {
    /// Bytes that entered on no watched port.
    pub input_bytes: u64,
    /// Bytes that left from none.
    pub output_bytes: u64,
    /// `complete`, `gap`, or `estimated` where rules count: the devices' totals less the groups.
    pub coverage: String,
}

/// Something that an honest meter does not show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnomalyDocument {
    /// For scripts.
    pub kind: String,
    /// For people.
    pub what: String,
}

impl From<&Anomaly> for AnomalyDocument {
    fn from(anomaly: &Anomaly) -> Self {
        Self { kind: anomaly.kind().to_owned(), what: anomaly.to_string() }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDocument {
    /// When it was noticed.
    pub at: String,
    /// For scripts.
    pub kind: String,
    /// For people.
    pub what: String,
}

impl EventDocument {
    /// `at` is nanoseconds of Unix time.
    pub fn of_anomaly(at: i128, anomaly: &Anomaly) -> Self {
        Self { at: time(at), kind: anomaly.kind().to_owned(), what: anomaly.to_string() }
    }

    /// Of gaps with one cause, of which there may be one for each counter. `at` is nanoseconds of Unix
    /// time.
    pub fn of_gaps(at: i128, gap: &Gap, count: usize) -> Self {
        let counter = match &gap.counter {
            None => "each counter".to_owned(),
            Some(name) if count > 1 => {
                format!("{count} counters, {} the first", counter_text(name))
            }
            Some(name) => counter_text(name),
        };
        let most = match gap.most {
            None => "an unknown number of bytes".to_owned(),
            Some(most) => format!(
                "at most {} bytes of uplink and {} of downlink",
                most.way(Way::Uplink),
                most.way(Way::Downlink)
            ),
        };
        let what = format!(
            "{counter}: what was moved between {} and {} is not known ({}): {most}",
            time(gap.from),
            time(gap.to),
            gap.cause.name()
        );
        Self { at: time(at), kind: "gap".to_owned(), what }
    }

    /// `at` is nanoseconds of Unix time.
    pub fn new(at: i128, kind: &str, what: impl Into<String>) -> Self {
        Self { at: time(at), kind: kind.to_owned(), what: what.into() }
    }
}

type Online<'a> = Option<&'a HashMap<Arc<str>, usize>>;

/// What a report does not say of itself.
#[derive(Clone, Debug, Default)]
pub struct Beside<'a> {
    /// Name of the host.
    pub host: &'a str,
    /// Which life of its numbers; none for a report that is made once.
    pub epoch: Option<u64>,
    /// When its numbers began, nanoseconds of Unix time.
    pub since: Option<i128>,
    /// The kernel's meter.
    pub meter: Option<(&'static str, Layer)>,
    /// From how many addresses each user is connected; `None` where the proxy does not tell.
    pub online: Option<HashMap<Arc<str>, usize>>,
    /// The proxy's API, where more is known than the report has.
    pub api: ApiDocument,
    /// What happened.
    pub events: Vec<EventDocument>,
}

impl Document {
    /// Of a report.
    pub fn new(report: &StatsReport, beside: Beside<'_>) -> Self {
        let total = &report.system_total;
        let online = beside.online.as_ref();
        Self {
            jsonversion: JSON_VERSION.to_owned(),
            taken_at: time(report.taken_at),
            host: beside.host.to_owned(),
            epoch: beside.epoch.map(|epoch| format!("{epoch:016x}")),
            since: beside.since.map(time),
            coverage: report.coverage.name().to_owned(),
            meter: beside.meter.map(|(meter, _)| meter.to_owned()),
            layer: beside.meter.map(|(_, layer)| layer.name().to_owned()),
            api: beside.api,
            groups: report.groups.iter().filter_map(|stats| group(stats, online)).collect(),
            unplaced: report.unplaced.iter().map(|stats| user(stats, online)).collect(),
            system_total: SystemDocument {
                payload: total.polled.then_some(total.payload).into(),
                active_users: total.active_users,
                active_groups: total.active_groups,
            },
            relay: report.relay.map(|Relayed { traffic, coverage }| RelayDocument {
                input_bytes: traffic.input_bytes,
                output_bytes: traffic.output_bytes,
                coverage: coverage.name().to_owned(),
            }),
            anomalies: report.anomalies.iter().map(Into::into).collect(),
            events: beside.events,
            ledger: None,
        }
    }

    /// On one line, without a line break at the end.
    ///
    /// # Errors
    ///
    /// None in practice: every value can be written.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

fn group(stats: &GroupStats, online: Online<'_>) -> Option<GroupDocument> {
    Some(GroupDocument {
        tag: stats.tag.as_deref().map(str::to_owned),
        port: stats.port()?,
        ports: stats.group.ports_text(),
        transport: stats.group.transport().name().to_owned(),
        protocol: stats.protocol.as_deref().map(str::to_owned),
        configured: stats.configured,
        users: stats.users.iter().map(|stats| user(stats, online)).collect(),
        group_total: stats.group_total.map(|payload| Some(payload).into()),
        kernel: stats.kernel.map(Into::into),
        overhead_ratio: stats.overhead_ratio(),
        unattributed_bytes: stats.unattributed.map(|wire| wire.total()),
    })
}

fn user(stats: &UserStats, online: Online<'_>) -> UserDocument {
    UserDocument {
        email: stats.email.to_string(),
        payload: stats.counted.then_some(stats.payload).into(),
        wire_share: stats.wire.map(|wire| wire.total()),
        wire_input: stats.wire.map(|wire| wire.input),
        wire_output: stats.wire.map(|wire| wire.output),
        online: online.and_then(|online| online.get(&stats.email).copied()),
        shared: stats.shared,
        configured: stats.configured,
    }
}
