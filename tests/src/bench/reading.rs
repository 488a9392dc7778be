//! Part (c): what reading all counters takes, beside listing the rules of others.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use traffic_user::meter::{
    Before,
    ebpf::{EbpfMeter, Hook},
    iptables::IptablesMeter,
    nft::NftMeter,
};

use super::{
    Plan,
    chart::Chart,
    lab,
    report::{Section, Table, Target},
    rules,
    stats::{Rounds, number},
    ways,
};
use crate::netns::NetNs;

/// Counted groups of the meters that are read.
const GROUPS: [u16; 7] = [1, 16, 256, 1024, 4096, 16_384, 65_535];
/// Ports with rules that are listed. More of them take minutes to set.
const RULES: [u16; 4] = [1, 16, 256, 1024];
/// Groups that the target is about.
const PROMISED: u16 = 4096;
const MOST_MICROSECONDS: f64 = 50.0;

/// A way of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Sums over the mapped counters.
    Sums,
    /// A whole snapshot with the groups' names, as the outputs get it.
    Snapshot,
    /// No reading, but beside it: loading our programs and making their maps.
    Start,
    /// A whole snapshot of our nft meter.
    NftMeter,
    /// No reading, but beside it: setting the rules of our nft meter.
    NftStart,
    /// A whole snapshot of our iptables meter.
    IptablesMeter,
    /// No reading, but beside it: setting the rules of our iptables meter.
    IptablesStart,
    /// `nft -j list` of a set with counters.
    NftSet,
    /// `iptables-nft-save -c`.
    IptablesNft,
    /// `iptables-legacy-save -c`.
    IptablesLegacy,
}

impl Way {
    const ALL: [Self; 10] = [
        Self::Sums,
        Self::Snapshot,
        Self::Start,
        Self::NftMeter,
        Self::NftStart,
        Self::IptablesMeter,
        Self::IptablesStart,
        Self::NftSet,
        Self::IptablesNft,
        Self::IptablesLegacy,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Sums => "traffic, sums of all counters",
            Self::Snapshot => "traffic, a whole snapshot",
            Self::Start => "traffic, loading its programs and maps",
            Self::NftMeter => "traffic with nft, a whole snapshot",
            Self::NftStart => "traffic with nft, setting its rules",
            Self::IptablesMeter => "traffic with iptables, a whole snapshot",
            Self::IptablesStart => "traffic with iptables, setting its rules",
            Self::NftSet => "nft -j list set",
            Self::IptablesNft => "iptables-nft-save -c",
            Self::IptablesLegacy => "iptables-legacy-save -c",
        }
    }
}

type Cell = (Way, u16);

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let ns = NetNs::new();
    let mut rounds = Rounds::default();
    ns.run(|| ours(plan, &mut rounds)).context("read counters of ours")?;
    for ports in RULES {
        NetNs::new()
            .run(|| nft_meter(plan, ports, &mut rounds))
            .with_context(|| format!("count {ports} ports with nft"))?;
        NetNs::new()
            .run(|| iptables_meter(plan, ports, &mut rounds))
            .with_context(|| format!("count {ports} ports with iptables"))?;
        listed(plan, ports, &mut rounds).with_context(|| format!("list rules of {ports} ports"))?;
    }
    Ok(report(&rounds))
}

fn ports(count: u16) -> Vec<u16> {
    (1..=count).collect()
}

fn ours(plan: &Plan, rounds: &mut Rounds<Cell>) -> Result<()> {
    let options = ways::options(Hook::Tcx, Path::new("/"));
    let mut meters = Vec::new();
    for groups in GROUPS {
        let meter = EbpfMeter::start(&options, &ways::groups(&ports(groups))?)?;
        meters.push((groups, meter));
    }
    for round in 0..plan.listing_rounds {
        for count in RULES {
            let groups = ways::groups(&ports(count))?;
            let begin = Instant::now();
            let meter = EbpfMeter::start(&options, &groups)?;
            rounds.record((Way::Start, count), round, begin.elapsed().as_secs_f64() * 1e6);
            drop(meter);
        }
    }
    let mut words = Vec::new();
    for round in 0..plan.reading_rounds {
        for (groups, meter) in &mut meters {
            let sums = repeated(plan.reading_time, || Ok(meter.sum_into(&mut words)?))?;
            ensure!(
                words.len() == usize::from(*groups) * 16,
                "{groups} groups gave {} numbers",
                words.len()
            );
            rounds.record((Way::Sums, *groups), round, sums);
            let snapshot = repeated(plan.reading_time, || {
                let snapshot = meter.read()?;
                ensure!(snapshot.groups.len() == usize::from(*groups), "groups are missing");
                Ok(())
            })?;
            rounds.record((Way::Snapshot, *groups), round, snapshot);
        }
    }
    Ok(())
}

/// Microseconds of one reading, the mean over so much time.
fn repeated(time: Duration, mut read: impl FnMut() -> Result<()>) -> Result<f64> {
    read()?;
    let begin = Instant::now();
    let mut times = 0;
    while begin.elapsed() < time {
        read()?;
        times += 1;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(times.max(1)))
}

fn nft_meter(plan: &Plan, count: u16, rounds: &mut Rounds<Cell>) -> Result<()> {
    let groups = ways::groups(&ports(count))?;
    for round in 0..plan.listing_rounds {
        let begin = Instant::now();
        let mut meter = NftMeter::start(&groups, false, Before::default())?;
        rounds.record((Way::NftStart, count), round, begin.elapsed().as_secs_f64() * 1e6);
        let reading = repeated(plan.reading_time, || {
            let snapshot = meter.read()?;
            ensure!(snapshot.groups.len() == usize::from(count), "groups are missing");
            Ok(())
        })?;
        rounds.record((Way::NftMeter, count), round, reading);
    }
    Ok(())
}

fn iptables_meter(plan: &Plan, count: u16, rounds: &mut Rounds<Cell>) -> Result<()> {
    let groups = ways::groups(&ports(count))?;
    for round in 0..plan.listing_rounds {
        let begin = Instant::now();
        let mut meter = IptablesMeter::start(&groups, false, Before::default())?;
        rounds.record((Way::IptablesStart, count), round, begin.elapsed().as_secs_f64() * 1e6);
        let reading = repeated(plan.reading_time, || {
            let snapshot = meter.read()?;
            ensure!(snapshot.groups.len() == usize::from(count), "groups are missing");
            Ok(())
        })?;
        rounds.record((Way::IptablesMeter, count), round, reading);
    }
    Ok(())
}

fn listed(plan: &Plan, count: u16, rounds: &mut Rounds<Cell>) -> Result<()> {
    let ports = ports(count);
    let (nft, iptables) = (rules::nft_set(&ports), rules::iptables(&ports));
    let set = ["nft", "-j", "list", "set", "inet", "bench", "input_ports"];
    let ways: [(Way, &[&str], &str, &[&str]); 3] = [
        (Way::NftSet, &["nft", "-f", "-"], &nft, &set),
        (Way::IptablesNft, &["iptables-nft-restore"], &iptables, &["iptables-nft-save", "-c"]),
        (
            Way::IptablesLegacy,
            &["iptables-legacy-restore"],
            &iptables,
            &["iptables-legacy-save", "-c"],
        ),
    ];
    for (way, set_up, rules, list) in ways {
        let ns = NetNs::new();
        ns.run(|| {
            lab::run(set_up, rules)?;
            for round in 0..plan.listing_rounds {
                let begin = Instant::now();
                let text = lab::run(list, "")?;
                let time = begin.elapsed();
                ensure!(text.contains(&count.to_string()), "a port is not listed");
                rounds.record((way, count), round, time.as_secs_f64() * 1e6);
            }
            Ok(())
        })
        .context(way.name())?;
    }
    Ok(())
}

fn report(rounds: &Rounds<Cell>) -> Section {
    let mut head = vec!["way of reading".to_owned()];
    head.extend(GROUPS.map(|groups| number(groups.into())));
    let rows = Way::ALL
        .iter()
        .map(|&way| {
            let mut row = vec![way.name().to_owned()];
            row.extend(GROUPS.map(|groups| {
                let estimate = rounds.of(&(way, groups));
                estimate.map(|estimate| estimate.text()).unwrap_or_default()
            }));
            row
        })
        .collect();
    let cells = || {
        Way::ALL
            .into_iter()
            .flat_map(|way| GROUPS.map(|groups| (way, groups)))
            .filter(|cell| rounds.has(cell))
    };
    let json = cells()
        .map(|(way, groups)| {
            json!({
                "way": way.name(),
                "groups": groups,
                "us": rounds.of(&(way, groups)).map(|estimate| estimate.json()),
            })
        })
        .collect();
    let shown = [1, 256, 1024, 4096, 65_535];
    let chart = Chart {
        file: "reading",
        title: "Reading all counters once".to_owned(),
        unit: "us",
        logarithmic: true,
        series: shown.map(|groups| format!("{} groups", number(groups.into()))).to_vec(),
        groups: Way::ALL
            .iter()
            .map(|&way| {
                let value = |groups| rounds.of(&(way, groups)).map(|estimate| estimate.median);
                (way.name().to_owned(), shown.map(value).to_vec())
            })
            .collect(),
    };
    let target = rounds.of(&(Way::Sums, PROMISED)).map(|estimate| Target {
        promise: "reading 4,096 groups: at most 50 us".to_owned(),
        measured: format!("{} us", estimate.text()),
        kept: estimate.median <= MOST_MICROSECONDS,
    });
    let fallback = [
        ("our nft rules: reading 1,024 groups takes at most 50 ms", Way::NftMeter, 50.0),
        ("our nft rules: setting 1,024 groups takes at most 300 ms", Way::NftStart, 300.0),
        ("our iptables rules: reading 1,024 groups takes at most 50 ms", Way::IptablesMeter, 50.0),
        ("our iptables rules: setting 1,024 groups takes at most 1 s", Way::IptablesStart, 1000.0),
    ];
    let fallback = fallback.into_iter().filter_map(|(promise, way, limit)| {
        let milliseconds = rounds.of(&(way, 1024))?.median / 1000.0;
        Some(Target {
            promise: promise.to_owned(),
            measured: format!("{milliseconds:.1} ms"),
            kept: milliseconds <= limit,
        })
    });
    Section {
        name: "reading",
        title: "Reading all counters".to_owned(),
        method: "Ours are added up over the processors from the mapped array, four lanes and four \
                 numbers a group. For the others the program that lists them is started, with two \
                 iptables rules a port and direction or a set for one direction; `iptables-save` \
                 leaves IPv6 out."
            .to_owned(),
        tables: vec![Table { title: "us, by watched groups of one port".to_owned(), head, rows }],
        charts: vec![chart],
        json,
        targets: target.into_iter().chain(fallback).collect(),
    }
}
