//! Part (a): what each program adds to an empty one of the same type, in `BPF_PROG_TEST_RUN`.
//!
//! The programs are loaded anew in each round, so that the places where the kernel puts code and maps
//! differ and no lucky one decides.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use traffic_ebpf::abi::programs;

use super::{
    Plan,
    chart::Chart,
    clock,
    kernel::{Kind, Program},
    lab::{Lab, Processors},
    packets::{HIT, Packet},
    report::{Section, Table, Target},
    stats::{Estimate, Random, Rounds, number},
};
use crate::{
    bpf::{self, Input},
    loaded::Loaded,
};

/// Watched ports of the two loads that are compared.
const ONE: u32 = 1;
const ALL: u32 = 65_535;

/// Turns of all programs on a packet in one round.
const TURNS: u32 = 5;

const MOST_TCP4: f64 = 6.0;
const MOST_OTHER: f64 = 10.0;
const MOST_RATIO: f64 = 1.05;

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Runner {
    Empty { cgroup: bool, bare: bool },
    Ours { program: usize, ports: u32 },
}

type Cell = (Runner, Packet);

/// An object loaded for a number of ports.
struct Load {
    ports: u32,
    tc: Loaded,
    cgroup: Loaded,
}

impl Load {
    fn new(ports: u32) -> Self {
        let load = |atomic| {
            let mut loaded = Loaded::new(ports, atomic);
            let watched = if ports == ONE { HIT..=HIT } else { 1..=u16::MAX };
            let first = *watched.start();
            loaded.watch_all(watched.flat_map(|port| {
                let slot = Some(port - first);
                [(false, port, slot), (true, port, slot)]
            }));
            loaded
        };
        Self { ports, tc: load(false), cgroup: load(true) }
    }

    fn program(&self, index: usize) -> BorrowedFd<'_> {
        let name = programs::ALL[index];
        let loaded = if is_cgroup(index) { &self.cgroup } else { &self.tc };
        loaded.program(name)
    }
}

fn is_cgroup(program: usize) -> bool {
    [programs::CGROUP_IN, programs::CGROUP_OUT].contains(&programs::ALL[program])
}

fn is_bare(program: usize) -> bool {
    [programs::BARE_IN, programs::BARE_OUT].contains(&programs::ALL[program])
}

fn empty(program: usize) -> Runner {
    Runner::Empty { cgroup: is_cgroup(program), bare: is_bare(program) }
}

/// Whether a program meets such a packet.
fn meets(program: usize, packet: Packet) -> bool {
    if is_bare(program) || is_cgroup(program) { packet.has_ip() } else { true }
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for program in 0..programs::ALL.len() {
        for packet in Packet::ALL {
            if !meets(program, packet) {
                continue;
            }
            cells.push((empty(program), packet));
            cells.push((Runner::Ours { program, ports: ONE }, packet));
            if packet != Packet::Unwatched {
                cells.push((Runner::Ours { program, ports: ALL }, packet));
            }
        }
    }
    cells.sort_unstable();
    cells.dedup();
    cells
}

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    // Packets come from a real device: what comes from loopback is not counted at a cgroup.
    let lab = Lab::new()?;
    let device = lab.device.index;
    let processors = Processors::choose()?;
    let rounds = lab.ns.run(|| {
        processors.measure()?;
        measure_on(plan, device)
    })?;
    Ok(report(&rounds))
}

fn measure_on(plan: &Plan, device: u32) -> Result<Rounds<Cell>> {
    let tc = Program::empty(Kind::Classifier).context("load an empty tc program")?;
    let cgroup = Program::empty(Kind::CgroupSkb).context("load an empty cgroup program")?;
    let cells = cells();
    let mut rounds = Rounds::default();
    for round in 0..plan.program_rounds {
        let loads = [Load::new(ONE), Load::new(ALL)];
        let mut random = Random::new(round);
        let mut packets = Packet::ALL.to_vec();
        random.shuffle(&mut packets);
        for packet in packets {
            let mut runners: Vec<Runner> =
                cells.iter().filter(|cell| cell.1 == packet).map(|cell| cell.0).collect();
            let mut turns = Rounds::default();
            for turn in 0..TURNS {
                random.shuffle(&mut runners);
                for &runner in &runners {
                    let (program, bare) = match runner {
                        Runner::Empty { cgroup: true, .. } => (cgroup.as_fd(), false),
                        Runner::Empty { bare, .. } => (tc.as_fd(), bare),
                        Runner::Ours { program, ports } => {
                            let load = loads.iter().find(|load| load.ports == ports);
                            let load = load.context("no load with so many ports")?;
                            (load.program(program), is_bare(program))
                        }
                    };
                    let nanoseconds = Way { program, packet, bare, device }
                        .time(plan.program_runs / TURNS)
                        .with_context(|| format!("run {runner:?} on {}", packet.name()))?;
                    turns.record(runner, turn, nanoseconds);
                }
            }
            for &runner in &runners {
                rounds.record((runner, packet), round, middle(&turns, runner)?);
            }
        }
    }
    Ok(rounds)
}

/// Nanoseconds of a run. Ours is what the empty one takes and what ours takes more in the same turn,
/// so that a round holds the middle of these differences.
fn middle(turns: &Rounds<Runner>, runner: Runner) -> Result<f64> {
    let found = match runner {
        Runner::Empty { .. } => turns.of(&runner).map(|estimate| estimate.median),
        Runner::Ours { program, .. } => turns
            .of(&empty(program))
            .zip(turns.over(&runner, &empty(program)))
            .map(|(empty, added)| empty.median + added.median),
    };
    found.context("a program was not timed")
}

/// A packet on its way through a program.
#[derive(Clone, Copy)]
struct Way<'a> {
    program: BorrowedFd<'a>,
    packet: Packet,
    bare: bool,
    device: u32,
}

impl Way<'_> {
    /// Nanoseconds of one run. The kernel's own answer has no fractions.
    fn time(self, runs: u32) -> Result<f64> {
        if self.packet == Packet::LaterFragment {
            let first = Self { packet: Packet::FirstFragment, ..self };
            first.run(1)?;
        }
        self.run(runs / 10)?;
        Ok(self.run(runs)?.as_secs_f64() * 1e9 / f64::from(runs.max(1)))
    }

    fn run(self, repeat: u32) -> Result<Duration> {
        let bytes = self.packet.bytes(self.bare);
        let (gso_segs, gso_size) = self.packet.gso();
        let input = Input {
            packet: &bytes,
            gso_segs,
            gso_size,
            ifindex: self.device,
            repeat,
            ..Input::default()
        };
        Ok(clock::time(|| bpf::test_run(self.program, input).map(drop))?)
    }
}

/// A program, a packet, and what they cost.
struct Cost {
    program: usize,
    packet: Packet,
    empty: Estimate,
    added: Estimate,
    added_all: Option<Estimate>,
    ratio: Option<Estimate>,
}

fn costs(rounds: &Rounds<Cell>) -> Vec<Cost> {
    let mut costs = Vec::new();
    for program in 0..programs::ALL.len() {
        for packet in Packet::ALL {
            let empty = (empty(program), packet);
            let one = (Runner::Ours { program, ports: ONE }, packet);
            let all = (Runner::Ours { program, ports: ALL }, packet);
            if let (Some(alone), Some(added)) = (rounds.of(&empty), rounds.over(&one, &empty)) {
                costs.push(Cost {
                    program,
                    packet,
                    empty: alone,
                    added,
                    added_all: rounds.over(&all, &empty),
                    ratio: rounds.ratio(&all, &one),
                });
            }
        }
    }
    costs
}

fn report(rounds: &Rounds<Cell>) -> Section {
    let costs = costs(rounds);
    let find = |program: usize, packet: Packet| {
        costs.iter().find(|cost| cost.program == program && cost.packet == packet)
    };
    let mut head = vec!["packet".to_owned()];
    head.extend(programs::ALL.map(str::to_owned));
    let table = |title: &str, cell: &dyn Fn(&Cost) -> Option<String>| Table {
        title: title.to_owned(),
        head: head.clone(),
        rows: Packet::ALL
            .iter()
            .map(|&packet| {
                let mut row = vec![packet.name().to_owned()];
                row.extend(
                    (0..programs::ALL.len())
                        .map(|program| find(program, packet).and_then(cell).unwrap_or_default()),
                );
                row
            })
            .collect(),
    };
    let tables = vec![
        table("ns added to an empty program, one port watched", &|cost| Some(cost.added.text())),
        table("ns added to an empty program, 65,535 ports watched", &|cost| {
            cost.added_all.map(|added| added.text())
        }),
        table("ns of the empty program", &|cost| Some(number(cost.empty.median))),
        table("time with 65,535 ports / time with one", &|cost| {
            let ratio = cost.ratio?;
            Some(format!("{:.3} ({:.3} to {:.3})", ratio.median, ratio.low, ratio.high))
        }),
    ];
    let chart = Chart {
        file: "programs",
        title: "Added to an empty program in BPF_PROG_TEST_RUN".to_owned(),
        unit: "ns a packet",
        logarithmic: false,
        series: [0, 2, 4].map(|program: usize| programs::ALL[program].to_owned()).to_vec(),
        groups: Packet::ALL
            .iter()
            .map(|&packet| {
                let values =
                    [0, 2, 4].map(|program| find(program, packet).map(|cost| cost.added.median));
                (packet.name().to_owned(), values.to_vec())
            })
            .collect(),
    };
    let json = costs
        .iter()
        .map(|cost| {
            json!({
                "program": programs::ALL[cost.program],
                "packet": cost.packet.name(),
                "empty_ns": cost.empty.json(),
                "added_ns": cost.added.json(),
                "added_ns_65535_ports": cost.added_all.map(|added| added.json()),
                "ratio_65535_to_one": cost.ratio.map(|ratio| ratio.json()),
            })
        })
        .collect();
    Section {
        name: "programs",
        title: "The programs alone".to_owned(),
        method: "`BPF_PROG_TEST_RUN` of each program and of an empty one of the same type, on one \
                 packet again and again; the clock is read around the call. Programs and maps are \
                 loaded anew in each round, in which all take several turns on each packet; the \
                 middle difference to the empty one of the same turn counts. Cgroup programs add atomically, tc programs do not have \
                 to."
        .to_owned(),
        targets: targets(&costs),
        tables,
        charts: vec![chart],
        json,
    }
}

fn targets(costs: &[Cost]) -> Vec<Target> {
    let is_tcp4 = |cost: &&Cost| cost.packet == Packet::Tcp4;
    let most = |promise: &str, limit: f64, which: &dyn Fn(&&Cost) -> bool| {
        let worst = costs
            .iter()
            .filter(|cost| which(cost))
            .max_by(|a, b| a.added.median.total_cmp(&b.added.median));
        worst.map(|cost| Target {
            promise: promise.to_owned(),
            measured: format!(
                "at most {} ns ({}, {})",
                cost.added.text(),
                programs::ALL[cost.program],
                cost.packet.name()
            ),
            kept: cost.added.median <= limit,
        })
    };
    let ratio = costs
        .iter()
        .filter(|cost| cost.packet.is_counted_whole())
        .filter_map(|cost| Some((cost, cost.ratio?)))
        .max_by(|(_, a), (_, b)| a.median.total_cmp(&b.median))
        .map(|(cost, ratio)| Target {
            promise: "65,535 ports cost what one costs (at most 1.05 times)".to_owned(),
            measured: format!(
                "at most {:.3} times ({}, {})",
                ratio.median,
                programs::ALL[cost.program],
                cost.packet.name()
            ),
            kept: ratio.median <= MOST_RATIO,
        });
    [
        most("TCP/IPv4 at tc: at most 6 ns over an empty program", MOST_TCP4, &|cost| {
            is_tcp4(cost) && !is_cgroup(cost.program)
        }),
        most("the same at a cgroup, where adds are atomic", MOST_TCP4, &|cost| {
            is_tcp4(cost) && is_cgroup(cost.program)
        }),
        most("any other counted packet without fragments: at most 10 ns", MOST_OTHER, &|cost| {
            cost.packet.is_counted_whole() && !is_tcp4(cost)
        }),
        ratio,
    ]
    .into_iter()
    .flatten()
    .collect()
}
