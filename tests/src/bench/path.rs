//! Part (b): what a packet costs more on its way from a device to a socket when it is counted.
//!
//! Frames enter the receive path of a veth device by XDP's live frames: the kernel hands them to the
//! stack in line, in batches as a driver would, and the call returns when the last one has arrived at
//! its socket. No other thread, no wake-up and no timer is part of what is timed.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Plan,
    chart::Chart,
    kernel::{Kind, Program},
    lab::{Deaf, Lab, OwnCgroup, Processors},
    packets::{HIT, Packet},
    report::{Section, Table, Target},
    stats::{Estimate, Random, Rounds, number, percentile},
    ways::{Installed, Way},
};

/// Packets that show how many more there is time for.
const PROBE: u32 = 512;
/// A multiple of what enters at once.
const STEP: u32 = 64;
/// Calls in one turn.
const CALLS: u32 = 24;
/// Of all calls of a side in a round the fastest tenth counts: what a neighbour on the same processor
/// takes away is never negative, lasts longer than a call, and meets either side alike only in the long
/// run.
const FASTEST: usize = 10;
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
        // A count, not something measured: 10 and not 10.0.
        let ports = match self.ports {
            0..1000 => self.ports.to_string(),
            _ => number(self.ports.into()),
        };
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

/// Measures and reports; all ways, or those with one of these words in their names.
pub(super) fn measure(plan: &Plan, words: &[String]) -> Result<Section> {
    let wanted = |way: &Way| {
        words.is_empty()
            || matches!(way, Way::None | Way::NoneAgain)
            || words.iter().any(|word| way.name().contains(word.as_str()))
    };
    let ways: Vec<Way> =
        INTERLEAVED.into_iter().chain([Way::IptablesLegacy]).filter(wanted).collect();
    let cgroup = OwnCgroup::enter()?;
    let lab = Lab::new()?;
    let processors = Processors::choose()?;
    let times = lab.ns.run(|| {
        let mut stand = Stand { plan, ways, cgroup: &cgroup, processors, times: Times::default() };
        for load in plan.loads {
            stand.load(&lab, *load).with_context(|| format!("packets to {}", load.name()))?;
        }
        anyhow::Ok(stand.times)
    })?;
    Ok(report(plan, &times))
}

/// What was timed.
#[derive(Default)]
struct Times {
    /// Nanoseconds of a packet, the whole way.
    whole: Rounds<Cell>,
    /// What the way adds to nothing, timed in turns with it or right before.
    added: Rounds<Cell>,
}

struct Stand<'a> {
    plan: &'a Plan,
    ways: Vec<Way>,
    cgroup: &'a OwnCgroup,
    processors: Processors,
    times: Times,
}

impl Stand<'_> {
    fn load(&mut self, lab: &Lab, load: Load) -> Result<()> {
        let ports = load.watched();
        let hit = if load.spread { &ports[..] } else { &[HIT] };
        let _sockets = Deaf::bind(hit)?;
        let injector = Injector::new(load)?;
        let plan = self.plan;
        for round in 0..plan.path_rounds {
            let mut ways: Vec<Way> = self
                .ways
                .iter()
                .copied()
                .filter(|way| *way != Way::IptablesLegacy && load.suits(*way))
                .filter(|way| round < plan.rounds_of(*way, load))
                .collect();
            Random::new(round).shuffle(&mut ways);
            for way in ways {
                let pair = if way.is_quick() {
                    self.in_turns(lab, way, &ports, &injector)?
                } else {
                    self.one_after_the_other(lab, way, &ports, &injector, round == 0)?
                };
                self.record(load, way, round, pair);
            }
        }
        // Its hooks stay until the namespace ends, so it gets one of its own, and rounds of its own.
        let legacy = Way::IptablesLegacy;
        if !self.ways.contains(&legacy) {
            return Ok(());
        }
        let other = Lab::new()?;
        other.ns.run(|| {
            self.processors.step_aside()?;
            let _sockets = Deaf::bind(hit)?;
            let mut installed = legacy.install(&other, &ports, self.cgroup.path())?;
            for round in 0..plan.rounds_of(legacy, load) {
                let none = &mut Installed::Nothing;
                let off = lab.ns.run(|| self.side(lab, none, &injector, false))?;
                let on = self.side(&other, &mut installed, &injector, round == 0)?;
                self.record(load, legacy, round, (off, on));
            }
            anyhow::Ok(())
        })?;
        Ok(())
    }

    fn record(&mut self, load: Load, way: Way, round: u32, (off, on): (f64, f64)) {
        self.times.whole.record((load, way), round, on);
        self.times.added.record((load, way), round, on - off);
    }

    /// Puts a way in place and takes it off and on again in turns: nanoseconds of a packet without it
    /// and with it, so close to one another that what else the machine does is the same for both.
    fn in_turns(
        &self,
        lab: &Lab,
        way: Way,
        ports: &[u16],
        injector: &Injector,
    ) -> Result<(f64, f64)> {
        self.processors.step_aside()?;
        let mut installed = way.install(lab, ports, self.cgroup.path())?;
        let before = installed.counted()?;
        let mut sent = 0;
        let device = lab.device.index;
        let packets = injector.packets_for(self.plan.path_call, device, &mut sent)?;
        installed.set(lab, false)?;
        let mut sides = [Vec::new(), Vec::new()];
        for turn in 0..self.plan.path_turns {
            // Each goes first as often as the other.
            for on in [turn % 2 == 0, turn % 2 != 0] {
                self.processors.step_aside()?;
                installed.set(lab, on)?;
                self.processors.measure()?;
                let unseen = &mut 0;
                let seen = if on { &mut sent } else { unseen };
                injector.turn(packets, device, seen, &mut sides[usize::from(on)])?;
            }
        }
        self.processors.step_aside()?;
        verify(way.name(), before, installed.counted()?, sent)?;
        installed.remove()?;
        let [off, on] = sides.map(|calls| percentile(&calls, FASTEST));
        off.zip(on).context("no call was timed")
    }

    /// Measures nothing, puts a way in place, measures it, and takes it away.
    fn one_after_the_other(
        &self,
        lab: &Lab,
        way: Way,
        ports: &[u16],
        injector: &Injector,
        verified: bool,
    ) -> Result<(f64, f64)> {
        let off = self.side(lab, &mut Installed::Nothing, injector, false)?;
        self.processors.step_aside()?;
        let mut installed = way.install(lab, ports, self.cgroup.path())?;
        let on = self
            .side(lab, &mut installed, injector, verified)
            .with_context(|| format!("packets past {}", way.name()))?;
        installed.remove()?;
        Ok((off, on))
    }

    /// Nanoseconds of one packet. What counts must have counted them all.
    fn side(
        &self,
        lab: &Lab,
        installed: &mut Installed,
        injector: &Injector,
        verified: bool,
    ) -> Result<f64> {
        let before = if verified { installed.counted()? } else { None };
        self.processors.measure()?;
        let device = lab.device.index;
        let mut sent = 0;
        let packets = injector.packets_for(self.plan.path_call, device, &mut sent)?;
        let mut calls = Vec::new();
        for _ in 0..self.plan.path_turns {
            injector.turn(packets, device, &mut sent, &mut calls)?;
        }
        self.processors.step_aside()?;
        if verified {
            verify("it", before, installed.counted()?, sent)?;
        }
        percentile(&calls, FASTEST).context("no call was timed")
    }
}

fn verify(
    name: &str,
    before: Option<(u64, u64)>,
    after: Option<(u64, u64)>,
    sent: u64,
) -> Result<()> {
    if let (Some(before), Some(after)) = (before, after) {
        let counted = after.0 - before.0;
        ensure!(counted == sent, "{name} counted {counted} of {sent} packets");
    }
    Ok(())
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
    /// Goes first. The program is attached to a device where no packet comes: the kernel patches a
    /// direct call to each program that a driver uses, and would do and undo that in every call of
    /// [`inject`](Self::inject) otherwise, which sleeps for tens of milliseconds.
    _attached: OwnedFd,
    _elsewhere: Lab,
    program: Program,
    /// How many ports they go to.
    different: u32,
    frame: Vec<u8>,
}

impl Injector {
    fn new(load: Load) -> Result<Self> {
        let program = if load.spread {
            Program::spread(HIT - load.ports + 1, load.ports)
        } else {
            Program::empty(Kind::Xdp)
        };
        let program = program.context("load the XDP program that passes frames on")?;
        let elsewhere = Lab::new()?;
        let attached = elsewhere
            .ns
            .run(|| program.attach_xdp(elsewhere.device.index))
            .context("attach the XDP program to a device")?;
        Ok(Self {
            _attached: attached,
            _elsewhere: elsewhere,
            program,
            different: if load.spread { load.ports.into() } else { 1 },
            frame: Packet::Udp4.bytes(false),
        })
    }

    /// How many packets fill the time. Lets some enter to find out, and adds them to `sent`.
    fn packets_for(&self, time: Duration, device: u32, sent: &mut u64) -> Result<u32> {
        // The first ones find everything cold.
        self.inject(device, PROBE)?;
        let probe = self.inject(device, PROBE)?;
        *sent += 2 * u64::from(PROBE);
        Ok(packets_for(time, probe))
    }

    /// Lets packets enter in calls of so many each, after some that find everything cold. All are added
    /// to `sent`, and the nanoseconds of one in each call to `calls`.
    fn turn(&self, packets: u32, device: u32, sent: &mut u64, calls: &mut Vec<f64>) -> Result<()> {
        let warm = (packets / 8).max(self.different).next_multiple_of(STEP);
        self.inject(device, warm)?;
        for _ in 0..CALLS {
            calls.push(self.inject(device, packets)?.as_secs_f64() * 1e9 / f64::from(packets));
        }
        *sent += u64::from(warm) + u64::from(CALLS) * u64::from(packets);
        Ok(())
    }

    fn inject(&self, device: u32, packets: u32) -> Result<Duration> {
        self.program
            .inject(&self.frame, device, packets)
            .context("let frames enter (XDP live frames: Linux 5.18 and later)")
    }
}

fn report(plan: &Plan, times: &Times) -> Section {
    let loads = plan.loads;
    let ways: Vec<Way> = INTERLEAVED.into_iter().chain([Way::IptablesLegacy]).collect();
    let over = |load: Load, way: Way| times.added.of(&(load, way));
    let mut head = vec!["way of counting".to_owned()];
    head.extend(loads.iter().map(|load| load.name()));
    let mut rows = Vec::new();
    for &way in &ways {
        let mut row = vec![way.name().to_owned()];
        row.extend(loads.iter().map(|&load| {
            let estimate = match way {
                Way::None => times.whole.of(&(load, way)),
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
        .filter(|cell| times.whole.has(cell))
        .map(|(load, way)| {
            json!({
                "way": way.name(),
                "ports": load.ports,
                "all_hit": load.spread,
                "ns": times.whole.of(&(load, way)).map(|estimate| estimate.json()),
                "added_ns": over(load, way).map(|estimate| estimate.json()),
            })
        })
        .collect();
    Section {
        name: "path",
        title: "In the receive path".to_owned(),
        method: "UDP packets of 100 bytes enter a veth device as XDP live frames and go through the \
                 stack to a socket that nobody reads. In each round each way is put in place, timed \
                 against nothing and taken away again: programs at a device are taken off and put \
                 back in turns, rules are timed for as many turns right after nothing. A turn is \
                 calls of a millisecond; of all calls of a round the fastest tenth counts, because \
                 what neighbours take away is never negative. iptables-legacy, whose hooks stay, has a network \
                 namespace of its own. iptables has two rules a port and direction, and the port \
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
