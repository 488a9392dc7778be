//! Part (d): from exec to the first count, and the memory of the process and of its maps.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Plan,
    lab::{DEVICE, Lab},
    report::{Section, Table, Target},
    running::{Memory, Running, binary, mib},
    stats::{Estimate, Rounds, number},
};

/// Watched groups.
const GROUPS: [u16; 2] = [1, 4096];
/// Ticks after which the memory is looked at.
const TICKS: usize = 3;

const MOST_MILLISECONDS: f64 = 300.0;
const MOST_MIB: f64 = 20.0;

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let binary = binary()?;
    let lab = Lab::new()?;
    lab.ns.ip(&format!("route add default via 10.9.0.2 dev {DEVICE}\n"));
    let mut rounds = Rounds::default();
    let mut memory = BTreeMap::new();
    lab.ns.run(|| {
        for round in 0..plan.start_rounds {
            for groups in GROUPS {
                let time = first_count(&binary, groups)?;
                rounds.record(groups, round, time.as_secs_f64() * 1e3);
            }
        }
        for groups in GROUPS {
            let ports = ports(groups);
            let arguments = ["--ports", &ports, "--interval", "50ms"];
            let mut running = Running::start(&binary, &arguments)?;
            for _ in 0..TICKS {
                running.document()?;
            }
            memory.insert(groups, running.memory()?);
        }
        anyhow::Ok(())
    })?;
    Ok(report(&rounds, &memory))
}

/// So many ports, as a list.
fn ports(groups: u16) -> String {
    (1..=groups).map(|port| port.to_string()).collect::<Vec<_>>().join(",")
}

/// From exec to its first document.
fn first_count(binary: &Path, groups: u16) -> Result<Duration> {
    let ports = ports(groups);
    let begin = Instant::now();
    let mut running = Running::start(binary, &["--ports", &ports, "--count", "1"])?;
    let document = running.document()?;
    let time = begin.elapsed();
    let devices = document["devices"].as_object().map_or(0, serde_json::Map::len);
    ensure!(devices == 1, "it counts on {devices} devices: {document}");
    Ok(time)
}

fn report(rounds: &Rounds<u16>, memory: &BTreeMap<u16, Memory>) -> Section {
    let start = |groups: u16| rounds.of(&groups);
    let rows = memory
        .iter()
        .map(|(groups, memory)| {
            vec![
                number((*groups).into()),
                start(*groups).map(|time| time.text()).unwrap_or_default(),
                mib(memory.resident),
                mib(memory.most),
                mib(memory.map_total()),
            ]
        })
        .collect();
    let head = ["groups", "start to first count, ms", "resident, MiB", "most, MiB", "maps, MiB"];
    let json = memory
        .iter()
        .map(|(groups, memory)| {
            json!({
                "groups": groups,
                "first_count_ms": start(*groups).map(|time| time.json()),
                "resident_kib": memory.resident,
                "most_kib": memory.most,
                "maps_kib": memory.maps,
            })
        })
        .collect();
    let slowest = GROUPS
        .into_iter()
        .filter_map(|groups| Some((groups, start(groups)?)))
        .max_by(|(_, a): &(u16, Estimate), (_, b)| a.median.total_cmp(&b.median));
    let largest = memory.iter().max_by_key(|(_, memory)| memory.most);
    let mut targets = Vec::new();
    targets.extend(largest.map(|(groups, memory)| Target {
        promise: "memory of the process: at most 20 MiB".to_owned(),
        measured: format!("{} MiB ({} groups)", mib(memory.most), number((*groups).into())),
        kept: mib(memory.most).parse().is_ok_and(|most: f64| most <= MOST_MIB),
    }));
    targets.extend(slowest.map(|(groups, time)| Target {
        promise: "start to first count: at most 300 ms after exec".to_owned(),
        measured: format!("{} ms ({} groups)", time.text(), number(groups.into())),
        kept: time.median <= MOST_MILLISECONDS,
    }));
    Section {
        name: "start",
        title: "Start and memory".to_owned(),
        method: "`traffic run --output json` is started in a network namespace with a default \
                 route; the time is from before the start of the process to its first document. \
                 Memory is looked at after three ticks; maps are what the kernel charges for them."
            .to_owned(),
        tables: vec![Table {
            title: "By watched groups of one port".to_owned(),
            head: head.map(str::to_owned).to_vec(),
            rows,
        }],
        charts: Vec::new(),
        json,
        targets,
    }
}
