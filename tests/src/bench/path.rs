//! Part (b): what a packet costs more on its way from a device to a socket when it is counted.
//!
//! Frames enter the receive path of a veth device by XDP's live frames: the kernel hands them to the
//! stack in line, in batches as a driver would, and the call returns when the last one has arrived at
//! its socket. No other thread, no wake-up and no timer is part of what is timed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Plan,
    chart::Chart,
    kernel::{Kind, Program},
    lab::{Deaf, Lab, OwnCgroup, Processors},
    packets::{HIT, Packet},
    report::{Section, Table, Target},
    stats::{Estimate, Random, Rounds, number},
    ways::{Installed, Way},
};

/// Packets that show how many more there is time for.
const PROBE: u32 = 512;
/// A multiple of what enters at once.
const STEP: u32 = 64;
const MOST_PACKETS: f64 = (1 << 20) as f64;

/// Ways that can be put in place and taken away in one namespace.
const INTERLEAVED: [Way; 11] = [
    Way::None,
    Way::NoneAgain,
    Way::Empty,
    Way::Tcx,
    Way::Tc,
    Way::Cgroup,
    Way::NftMeter,
    Way::IptablesMeter,
    Way::NftRule,
    Way::NftSet,
    Way::IptablesNft,
];

const MOST_TCX: f64 = 30.0;
const MOST_SPREAD: f64 = 50.0;
const PART_OF_RULE: f64 = 0.5;
const PART_OF_SET: f64 = 0.25;
const TIMES_IPTABLES: f64 = 500.0;
const TIMES_ONE_PORT: f64 = 1.1;
const RESOLVED: f64 = 5.0;

/// How many ports are watched, and whether the packets hit the last one or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    pub(super) ports: u16,
    pub(super) spread: bool,
}

impl Load {
    const fn hit(ports: u16) -> Self {
        Self { ports, spread: false }
    }

    const fn spread(ports: u16) -> Self {
        Self { ports, spread: true }
    }

    /// All loads of a whole run.
    pub(super) const WHOLE: &[Self] = &[
        Self::hit(1),
        Self::hit(10),
        Self::hit(100),
        Self::hit(1000),
        Self::hit(10_000),
        Self::spread(10_000),
    ];

    /// Loads that show that all of it works.
    pub(super) const QUICK: &[Self] = &[Self::hit(1), Self::hit(1000), Self::spread(1000)];

    fn watched(self) -> Vec<u16> {
        (HIT - self.ports + 1..=HIT).collect()
    }

    fn name(self) -> String {
        let ports = number(self.ports.into());
        match (self.ports, self.spread) {
            (1, _) => "1 port".to_owned(),
            (_, false) => format!("{ports} ports"),
            (_, true) => format!("{ports} ports, all hit"),
        }
    }

    /// Whether a way can count under this load.
    fn suits(self, way: Way) -> bool {
        !(self.spread && way == Way::NftRule)
    }
}

type Cell = (Load, Way);

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let cgroup = OwnCgroup::enter()?;
    let lab = Lab::new()?;
    let processors = Processors::choose()?;
    let rounds = lab.ns.run(|| {
        let mut stand = Stand { plan, cgroup: &cgroup, processors, rounds: Rounds::default() };
        for load in plan.loads {
            stand.load(&lab, *load).with_context(|| format!("packets to {}", load.name()))?;
        }
        anyhow::Ok(stand.rounds)
    })?;
    Ok(report(plan, &rounds))
}

struct Stand<'a> {
    plan: &'a Plan,
    cgroup: &'a OwnCgroup,
    processors: Processors,
    rounds: Rounds<Cell>,
}

impl Stand<'_> {
    fn load(&mut self, lab: &Lab, load: Load) -> Result<()> {
        let ports = load.watched();
        let hit = if load.spread { &ports[..] } else { &[HIT] };
        let sockets = Deaf::bind(hit)?;
        let injector = Injector::new(load)?;
        let plan = self.plan;
        for round in 0..plan.path_rounds {
            let mut ways: Vec<Way> = INTERLEAVED
                .into_iter()
                .filter(|way| load.suits(*way))
                .filter(|way| round < plan.rounds_of(*way, load))
                .collect();
            Random::new(round).shuffle(&mut ways);
            for way in ways {
                let nanoseconds = self.cell(lab, way, &ports, &injector, round == 0)?;
                self.rounds.record((load, way), round, nanoseconds);
            }
        }
        // Its hooks stay until the namespace ends, so it gets one of its own, and rounds of its own.
        let other = Lab::new()?;
        let legacy = Way::IptablesLegacy;
        let rounds = plan.path_rounds..plan.path_rounds + plan.rounds_of(legacy, load);
        other.ns.run(|| {
            self.processors.step_aside()?;
            let _sockets = Deaf::bind(hit)?;
            let mut installed = legacy.install(&other, &ports, self.cgroup.path())?;
            for round in rounds {
                let none = lab.ns.run(|| self.cell(lab, Way::None, &ports, &injector, false))?;
                self.rounds.record((load, Way::None), round, none);
                let verified = round == plan.path_rounds;
                let value = self.timed(&other, &mut installed, &injector, legacy, verified)?;
                self.rounds.record((load, legacy), round, value);
            }
            anyhow::Ok(())
        })?;
        drop(sockets);
        Ok(())
    }

    /// Puts a way in place, measures it, and takes it away.
    fn cell(
        &self,
        lab: &Lab,
        way: Way,
        ports: &[u16],
        injector: &Injector,
        verify: bool,
    ) -> Result<f64> {
        self.processors.step_aside()?;
        let mut installed = way.install(lab, ports, self.cgroup.path())?;
        let nanoseconds = self.timed(lab, &mut installed, injector, way, verify)?;
        installed.remove()?;
        Ok(nanoseconds)
    }

    /// Nanoseconds of one packet. What counts must have counted them all.
    fn timed(
        &self,
        lab: &Lab,
        installed: &mut Installed,
        injector: &Injector,
        way: Way,
        verify: bool,
    ) -> Result<f64> {
        let verify = verify || way.is_ours();
        let before = if verify { installed.counted()? } else { None };
        self.processors.measure()?;
        let device = lab.device.index;
        let probe = injector.inject(device, PROBE)?;
        let packets = packets_for(self.plan.path_time, probe);
        let warm = (packets / 8).next_multiple_of(STEP);
        injector.inject(device, warm)?;
        let time = injector.inject(device, packets)?;
        self.processors.step_aside()?;
        if let (Some(before), Some(after)) = (before, installed.counted()?.filter(|_| verify)) {
            let sent = u64::from(PROBE) + u64::from(warm) + u64::from(packets);
            let counted = after.0 - before.0;
            ensure!(counted == sent, "{} counted {counted} of {sent} packets", way.name());
        }
        Ok(time.as_secs_f64() * 1e9 / f64::from(packets))
    }
}

/// How many packets fill the time, when [`PROBE`] of them took so long.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 64 and a million"
)]
fn packets_for(time: Duration, probe: Duration) -> u32 {
    let each = probe.as_secs_f64() / f64::from(PROBE);
    let packets = (time.as_secs_f64() / each).clamp(f64::from(STEP), MOST_PACKETS);
    (packets as u32).next_multiple_of(STEP)
}

/// What packets are made of.
struct Injector {
    program: Program,
    frame: Vec<u8>,
}

impl Injector {
    fn new(load: Load) -> Result<Self> {
        let program = if load.spread {
            Program::spread(HIT - load.ports + 1, load.ports)
        } else {
            Program::empty(Kind::Xdp)
        };
        Ok(Self {
            program: program.context("load the XDP program that passes frames on")?,
            frame: Packet::Udp4.bytes(false),
        })
    }

    fn inject(&self, device: u32, packets: u32) -> Result<Duration> {
        self.program
            .inject(&self.frame, device, packets)
            .context("let frames enter (XDP live frames: Linux 5.18 and later)")
    }
}

fn report(plan: &Plan, rounds: &Rounds<Cell>) -> Section {
    let loads = plan.loads;
    let ways: Vec<Way> = INTERLEAVED.into_iter().chain([Way::IptablesLegacy]).collect();
    let over = |load: Load, way: Way| rounds.over(&(load, way), &(load, Way::None));
    let mut head = vec!["way of counting".to_owned()];
    head.extend(loads.iter().map(|load| load.name()));
    let mut rows = Vec::new();
    for &way in &ways {
        let mut row = vec![way.name().to_owned()];
        row.extend(loads.iter().map(|&load| {
            let estimate = match way {
                Way::None => rounds.of(&(load, way)),
                _ => over(load, way),
            };
            estimate.map(|estimate| estimate.text()).unwrap_or_default()
        }));
        rows.push(row);
    }
    let shown: Vec<Way> =
        ways.iter().copied().filter(|way| !matches!(way, Way::None | Way::NoneAgain)).collect();
    let chart = |file, title: &str, logarithmic, ways: &[Way]| Chart {
        file,
        title: title.to_owned(),
        unit: "ns a packet",
        logarithmic,
        series: loads.iter().map(|load| load.name()).collect(),
        groups: ways
            .iter()
            .map(|&way| {
                let value = |&load| over(load, way).map(|estimate| estimate.median);
                (way.name().to_owned(), loads.iter().map(value).collect())
            })
            .collect(),
    };
    let constant: Vec<Way> = shown
        .iter()
        .copied()
        .filter(|way| !matches!(way, Way::IptablesNft | Way::IptablesLegacy | Way::IptablesMeter))
        .collect();
    let json = loads
        .iter()
        .flat_map(|&load| ways.iter().map(move |&way| (load, way)))
        .filter(|cell| rounds.has(cell))
        .map(|(load, way)| {
            json!({
                "way": way.name(),
                "ports": load.ports,
                "all_hit": load.spread,
                "ns": rounds.of(&(load, way)).map(|estimate| estimate.json()),
                "added_ns": over(load, way).map(|estimate| estimate.json()),
            })
        })
        .collect();
    Section {
        name: "path",
        title: "In the receive path".to_owned(),
        method: "UDP packets of 100 bytes enter a veth device as XDP live frames and go through the \
                 stack to a socket that nobody reads. Each way is put in place, timed and taken away \
                 again within the round; iptables-legacy, whose hooks stay, has a network namespace \
                 and rounds of its own. iptables has two rules a port and direction, and the port \
                 that is hit is the last one. It was checked that each way counted every packet."
            .to_owned(),
        tables: vec![Table {
            title: "ns added to a packet (first row: ns of the whole way without counting)".to_owned(),
            head,
            rows,
        }],
        charts: vec![
            chart("path", "Added to a packet in the receive path", true, &shown),
            chart(
                "path-constant",
                "Added to a packet, without iptables",
                false,
                &constant,
            ),
        ],
        json,
        targets: targets(loads, &over),
    }
}

/// The worst of some estimates, by median, and where it was.
fn worst<'a>(
    found: impl Iterator<Item = (&'a Load, Option<Estimate>)>,
) -> Option<(Load, Estimate)> {
    found
        .filter_map(|(load, estimate)| Some((*load, estimate?)))
        .max_by(|(_, a), (_, b)| a.median.total_cmp(&b.median))
}

fn targets(loads: &[Load], over: &impl Fn(Load, Way) -> Option<Estimate>) -> Vec<Target> {
    let hit = || loads.iter().filter(|load| !load.spread);
    let tcx = |load: Load| over(load, Way::Tcx).map(|estimate| estimate.median);
    let mut targets = Vec::new();
    let mut add = |promise: &str, measured: String, kept: bool| {
        targets.push(Target { promise: promise.to_owned(), measured, kept });
    };
    if let Some((load, estimate)) = worst(hit().map(|load| (load, over(*load, Way::Tcx)))) {
        add(
            "receive path: tcx adds at most 30 ns at any number of ports",
            format!("at most {} ns ({})", estimate.text(), load.name()),
            estimate.median <= MOST_TCX,
        );
    }
    for (promise, way, limit) in [
        ("less than half of a single nft rule", Way::NftRule, PART_OF_RULE),
        ("at most a quarter of an nft set", Way::NftSet, PART_OF_SET),
    ] {
        let part = |load: &Load| Some(tcx(*load)? / over(*load, way)?.median);
        let most = hit().filter_map(part).max_by(f64::total_cmp);
        if let Some(most) = most {
            add(promise, format!("at most {most:.2} of it"), most <= limit);
        }
    }
    let thousand = Load::hit(1000);
    let times = [Way::IptablesLegacy, Way::IptablesNft]
        .into_iter()
        .filter_map(|way| Some(over(thousand, way)?.median / tcx(thousand)?.max(0.1)))
        .min_by(f64::total_cmp);
    if let Some(times) = times {
        add(
            "at 1,000 ports at least 500 times less than iptables",
            format!("{} times less", number(times)),
            times >= TIMES_IPTABLES,
        );
    }
    let nft = |load: &Load| Some((load.ports, over(*load, Way::NftMeter)?.median));
    let few = hit().filter_map(nft).min_by_key(|(ports, _)| *ports);
    let many = hit().filter_map(nft).max_by_key(|(ports, _)| *ports);
    if let (Some((few, one)), Some((most, all))) = (few, many) {
        let (few, most) = (number(few.into()), number(most.into()));
        add(
            &format!("our nft rules: {most} ports cost at most 1.1 times as much as {few}"),
            format!("{:.2} times", all / one),
            all / one <= TIMES_ONE_PORT,
        );
    }
    let part =
        |load: &Load| Some(over(*load, Way::NftMeter)?.median / over(*load, Way::NftSet)?.median);
    if let Some(most) = hit().filter_map(part).max_by(f64::total_cmp) {
        add("our nft rules: no dearer than a set", format!("at most {most:.2} of it"), most <= 1.0);
    }
    let spread = loads.iter().filter(|load| load.spread);
    if let Some((load, estimate)) = worst(spread.map(|load| (load, over(*load, Way::Tcx)))) {
        add(
            "spread over 10,000 ports: at most 50 ns",
            format!("{} ns ({})", estimate.text(), load.name()),
            estimate.median <= MOST_SPREAD,
        );
    }
    let again = hit().filter_map(|load| Some((load, over(*load, Way::NoneAgain)?)));
    let off = |estimate: &Estimate| estimate.low.abs().max(estimate.high.abs());
    if let Some((load, estimate)) = again.max_by(|(_, a), (_, b)| off(a).total_cmp(&off(b))) {
        add(
            "the method resolves 5 ns (nothing against nothing)",
            format!("at worst {} ns ({})", estimate.text(), load.name()),
            off(&estimate) <= RESOLVED,
        );
    }
    targets
}
