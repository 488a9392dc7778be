//! Reports as JSON: a contract with scripts. `schema/*.json` describes every document.
//!
//! Bytes and packets are integers, times RFC 3339 in UTC; what is not known is `null`, never 0.

use std::io;

use jiff::Timestamp;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeStruct as _},
};

use super::stats;
use crate::accounting::{
    proxy::Inbound,
    reading::{Lanes, Skipped, Traffic},
    report::{DeviceReport, Dump, PortReport},
};

/// Changes only when a name or a meaning changes; keys may be added.
pub const JSON_VERSION: &str = "1";

/// A map in the order in which it was made.
pub(super) struct Ordered<K, V>(pub(super) Vec<(K, V)>);

impl<K: Serialize, V: Serialize> Serialize for Ordered<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// [`Traffic`] in the order of the contract.
#[derive(Serialize)]
pub(super) struct TrafficJson {
    input_bytes: u64,
    output_bytes: u64,
    input_packets: u64,
    output_packets: u64,
}

impl From<Traffic> for TrafficJson {
    fn from(traffic: Traffic) -> Self {
        let Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
        Self { input_bytes, output_bytes, input_packets, output_packets }
    }
}

#[derive(Serialize)]
struct GroupJson<'a> {
    #[serde(flatten)]
    traffic: TrafficJson,
    group: Option<&'a str>,
    transport: &'static str,
    watched: bool,
    lanes: LanesJson<'a>,
}

/// Made while it is written: there are thousands.
struct LanesJson<'a>(&'a Lanes);

impl Serialize for LanesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let lanes = self.0.each();
        serializer.collect_map(
            lanes.into_iter().map(|(name, traffic)| (name, TrafficJson::from(traffic))),
        )
    }
}

#[derive(Serialize)]
struct DeviceJson {
    link_header: u32,
    hook: &'static str,
}

#[derive(Serialize)]
struct DumpJson<'a> {
    jsonversion: &'static str,
    taken_at: String,
    host: &'a str,
    meter: &'static str,
    layer: &'static str,
    epoch: String,
    since: Option<String>,
    window_ns: i128,
    coverage: &'static str,
    ports: Ordered<String, GroupJson<'a>>,
    total: TrafficJson,
    devices: Ordered<&'a str, DeviceJson>,
    skipped: Option<Ordered<&'static str, TrafficJson>>,
    passed_over: Ordered<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<&'a stats::Document>,
}

/// `dump`, and each line of `run --output json`, with its line break. With a proxy, the merged report
/// stands beside the kernel's numbers.
///
/// # Errors
///
/// Those of the writer.
pub fn dump(
    mut writer: impl io::Write,
    report: &Dump,
    merged: Option<&stats::Document>,
) -> io::Result<()> {
    let snapshot = &report.snapshot;
    let ports = report
        .keys()
        .into_iter()
        .zip(snapshot.groups.iter())
        .map(|(key, reading)| {
            let group = GroupJson {
                traffic: reading.lanes.total().into(),
                group: reading.group.name(),
                transport: reading.group.transport().name(),
                watched: reading.watched,
                lanes: LanesJson(&reading.lanes),
            };
            (key, group)
        })
        .collect();
    let devices = report
        .devices
        .iter()
        .map(|DeviceReport { name, link_header, hook }| {
            (name.as_str(), DeviceJson { link_header: *link_header, hook })
        })
        .collect();
    let document = DumpJson {
        jsonversion: JSON_VERSION,
        taken_at: time(snapshot.window.end),
        host: &report.host,
        meter: snapshot.meter,
        layer: snapshot.layer.name(),
        epoch: format!("{:016x}", snapshot.epoch.0),
        since: snapshot.since.map(|since| time(i128::from(since) * 1_000_000_000)),
        window_ns: snapshot.window.end - snapshot.window.begin,
        coverage: snapshot.coverage.name(),
        ports: Ordered(ports),
        total: snapshot.total().into(),
        devices: Ordered(devices),
        skipped: snapshot.skipped.as_ref().map(skipped),
        passed_over: Ordered(
            report.passed_over.iter().map(|(hook, why)| (*hook, why.as_str())).collect(),
        ),
        stats: merged,
    };
    serde_json::to_writer(&mut writer, &document)?;
    writer.write_all(b"\n")
}

fn skipped(skipped: &Skipped) -> Ordered<&'static str, TrafficJson> {
    Ordered(skipped.each().into_iter().map(|(name, traffic)| (name, traffic.into())).collect())
}

/// Nanoseconds of Unix time as RFC 3339 in UTC, to the millisecond.
pub(crate) fn time(nanoseconds: i128) -> String {
    let time = Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

#[derive(Serialize)]
struct PortJson<'a> {
    ports: String,
    transport: &'static str,
    group: Option<&'a str>,
    tag: Option<&'a str>,
    protocol: Option<&'a str>,
    users: Option<Vec<&'a str>>,
    watched: bool,
    listening: Option<bool>,
    traffic: Option<TrafficJson>,
}

/// Emails of an inbound; `None` when its users are not known.
fn users(inbound: &Inbound) -> Option<Vec<&str>> {
    let users = &inbound.users;
    let known = !users.unknown || !users.emails.is_empty();
    known.then(|| users.emails.iter().map(|email| &**email).collect())
}

struct PortsJson<'a> {
    host: &'a str,
    taken_at: i128,
    meter: Option<&'a str>,
    ports: Vec<PortJson<'a>>,
}

impl Serialize for PortsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("ports", 5)?;
        document.serialize_field("jsonversion", JSON_VERSION)?;
        document.serialize_field("taken_at", &time(self.taken_at))?;
        document.serialize_field("host", self.host)?;
        document.serialize_field("meter", &self.meter)?;
        document.serialize_field("ports", &self.ports)?;
        document.end()
    }
}

/// `ports --json`. `meter` is `None` when nothing counts.
///
/// # Errors
///
/// None in practice.
pub fn ports(
    host: &str,
    taken_at: i128,
    meter: Option<&str>,
    ports: &[PortReport],
) -> serde_json::Result<String> {
    let ports = ports
        .iter()
        .map(|report| PortJson {
            ports: report.group.ports_text(),
            transport: report.group.transport().name(),
            group: report.group.name(),
            tag: report.inbound.as_ref().and_then(|inbound| inbound.tag.as_deref()),
            protocol: report.inbound.as_ref().map(|inbound| &*inbound.protocol),
            users: report.inbound.as_ref().and_then(users),
            watched: report.watched,
            listening: report.listening,
            traffic: report.traffic.map(TrafficJson::from),
        })
        .collect();
    serde_json::to_string(&PortsJson { host, taken_at, meter, ports })
}
