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
    folder::Folder,
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

/// How many groups, and whether they are booked.
type Way = (u16, bool);

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let binary = binary()?;
    let lab = Lab::new()?;
    lab.ns.ip(&format!("route add default via 10.9.0.2 dev {DEVICE}\n"));
    let mut rounds = Rounds::default();
    let mut memory = BTreeMap::new();
    let state = Folder::new("start")?;
    lab.ns.run(|| {
        for round in 0..plan.start_rounds {
            for groups in GROUPS {
                let time = first_count(&binary, groups)?;
                rounds.record(groups, round, time.as_secs_f64() * 1e3);
            }
        }
        for groups in GROUPS {
            let ports = ports(groups);
            let counting = ["--output", "json", "--ports", &ports, "--interval", "50ms"];
            for ledger in [&["--no-ledger"][..], &["--state", state.text()?]] {
                let mut running = Running::spawn(&binary, &[&counting, ledger].concat())?;
                for _ in 0..TICKS {
                    running.document()?;
                }
                memory.insert((groups, ledger.len() > 1), running.memory()?);
                running.stop()?;
            }
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

fn report(rounds: &Rounds<u16>, memory: &BTreeMap<Way, Memory>) -> Section {
    let start = |groups: u16| rounds.of(&groups);
    let rows = memory
        .iter()
        .map(|((groups, books), memory)| {
            vec![
                number((*groups).into()),
                if *books { "booked" } else { "not booked" }.to_owned(),
                start(*groups).filter(|_| !books).map(|time| time.text()).unwrap_or_default(),
                mib(memory.resident),
                mib(memory.most),
                mib(memory.map_total()),
            ]
        })
        .collect();
    let head =
        ["groups", "ledger", "start to first count, ms", "resident, MiB", "most, MiB", "maps, MiB"];
    let json = memory
        .iter()
        .map(|((groups, books), memory)| {
            json!({
                "groups": groups,
                "booked": books,
                "first_count_ms": start(*groups).filter(|_| !books).map(|time| time.json()),
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
    let mut targets = Vec::new();
    for (promise, booked) in [
        ("memory of the process, counting without a ledger: at most 20 MiB", false),
        ("the same with a ledger that was just begun", true),
    ] {
        let runs = memory.iter().filter(|((_, books), _)| *books == booked);
        let largest = runs.max_by_key(|(_, memory)| memory.most);
        targets.extend(largest.map(|((groups, _), memory)| Target {
            promise: promise.to_owned(),
            measured: format!("{} MiB ({} groups)", mib(memory.most), number((*groups).into())),
            kept: mib(memory.most).parse().is_ok_and(|most: f64| most <= MOST_MIB),
        }));
    }
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
                 Memory is looked at after three ticks, without a ledger (`--no-ledger`, which the time \
                 is of as well) and with one that was just begun; maps are what the kernel charges for them."
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
