//! What holds for every history of a proxy and of those who read it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::{proxy::Way, reading::Window},
    tests::{name, poll},
    *,
};

const NAMES: [&str; 4] = ["user>>>a up", "user>>>a down", "user>>>b up", "inbound>>>in down"];

/// What can happen between two looks.
#[derive(Clone, Debug)]
enum Event {
    /// Bytes pass; the counter is made if it was not there.
    Move {
        counter: usize,
        amount: i64,
    },
    /// Time passes, in milliseconds.
    Wait(u32),
    Restart,
    /// Another reader sets counters back, one or all.
    Reset(Option<usize>),
    /// A counter is taken away; it begins at zero if it comes again.
    Drop(usize),
    /// We look; a look that is missed is an event that is not there.
    Poll {
        /// How long that takes, in milliseconds.
        takes: u16,
        uptime: bool,
        bounded: bool,
        /// One that comes below zero.
        broken: Option<usize>,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let counter = 0..NAMES.len();
    prop_oneof![
        8 => (counter.clone(), 0i64..1 << 40)
            .prop_map(|(counter, amount)| Event::Move { counter, amount }),
        3 => prop_oneof![0u32..1500, 0u32..100_000].prop_map(Event::Wait),
        1 => Just(Event::Restart),
        1 => prop::option::of(counter.clone()).prop_map(Event::Reset),
        1 => counter.clone().prop_map(Event::Drop),
        5 => (0u16..2000, prop::bool::weighted(0.9), any::<bool>(), prop::option::weighted(0.1, counter))
            .prop_map(|(takes, uptime, bounded, broken)| Event::Poll { takes, uptime, bounded, broken }),
    ]
}

/// What one counter did since we last read it.
#[derive(Clone, Copy, Default)]
struct Truth {
    /// In this life of the proxy.
    moved: i64,
    /// In lives that ended.
    lost: i64,
    /// It was set back, or taken away.
    began_again: bool,
}

/// The truth: a proxy, and what it moved since we last looked.
struct World {
    /// Boot time in milliseconds.
    now: i128,
    started: i128,
    counters: BTreeMap<usize, i64>,
    truth: [Truth; NAMES.len()],
    restarted: bool,
}

impl World {
    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Move { counter, amount } => {
                *self.counters.entry(counter).or_default() += amount;
                self.truth[counter].moved += amount;
            }
            Event::Wait(time) => self.now += i128::from(time),
            Event::Restart => {
                self.started = self.now;
                self.counters.clear();
                self.restarted = true;
                for truth in &mut self.truth {
                    truth.lost += std::mem::take(&mut truth.moved);
                }
            }
            Event::Reset(which) => {
                for (counter, value) in &mut self.counters {
                    if which.is_none_or(|which| which == *counter) {
                        *value = 0;
                        self.truth[*counter].began_again = true;
                    }
                }
            }
            Event::Drop(counter) => {
                if self.counters.remove(&counter).is_some() {
                    self.truth[counter].began_again = true;
                }
            }
            Event::Poll { .. } => {}
        }
    }

    /// The clock goes on while we look, and the uptime is asked in the middle.
    fn look(&mut self, takes: u16, uptime: bool, broken: Option<usize>) -> ProxySnapshot {
        let begin = self.now;
        let age = (begin + i128::from(takes) / 2 - self.started) / 1000;
        self.now += i128::from(takes);
        let mut snapshot = poll(0, None, &[]);
        snapshot.uptime = uptime.then(|| u32::try_from(age).unwrap());
        snapshot.boot = Window { begin: begin * 1_000_000, end: self.now * 1_000_000 };
        snapshot.window = snapshot.boot;
        snapshot.counters = self
            .counters
            .iter()
            .map(|(n, value)| (name(NAMES[*n]), if broken == Some(*n) { -3 } else { *value }))
            .collect();
        snapshot
    }
}

/// What was moved and not charged. Never less than nothing: that would be charged twice.
fn missing(moved: i64, charged: i64) -> Result<u64, TestCaseError> {
    u64::try_from(moved - charged)
        .map_err(|_| TestCaseError::fail(format!("{charged} charged of {moved} moved")))
}

fn amount(deltas: &PayloadDeltas, counter: usize) -> u64 {
    let CounterName { subject, way } = name(NAMES[counter]);
    let charges = deltas.charges.iter().filter(|(who, _)| *who == subject);
    charges.map(|(_, payload)| payload.way(way)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is charged is what was moved, up to what no reader can know, and that is within the
    /// bounds of a gap that was reported. Nothing is charged twice.
    #[test]
    fn charges_and_gaps_are_what_was_moved(
        events in prop::collection::vec(event(), 1..80),
        begin in prop_oneof![Just(First::Baseline), Just(First::Charge)],
    ) {
        let mut world = World {
            now: 5_000_000,
            started: 3_000_000,
            counters: BTreeMap::new(),
            truth: Default::default(),
            restarted: false,
        };
        let mut polls = Polls::default();
        // Age at the last poll, if that told it: lives are told apart if it is more than a moment.
        let mut settled = 0;
        // Counters whose last value may be of another life.
        let mut muddled = [false; NAMES.len()];
        for event in &events {
            world.happen(event);
            let Event::Poll { takes, uptime, bounded, broken } = *event else { continue };
            let told = uptime && settled > 20_000;
            let snapshot = world.look(takes, uptime, broken);
            settled = if uptime { world.now - world.started } else { 0 };
            let most = [Way::Uplink, Way::Downlink].map(|way| {
                let of = |(n, _): &(usize, &Truth)| name(NAMES[*n]).way == way;
                let moved = world.truth.iter().enumerate().filter(of).map(|(_, t)| t.moved + t.lost);
                moved.max().unwrap_or(0).unsigned_abs()
            });
            let most = Payload { uplink: most[0], downlink: most[1] };
            let known: Vec<_> =
                NAMES.iter().map(|n| polls.counters.get(&name(n)).and_then(|k| k.value)).collect();
            let deltas = polls.follow(&snapshot, begin, bounded.then_some(most));
            prop_assert_eq!(deltas.coverage == Coverage::Gap, !deltas.gaps.is_empty());
            let first = matches!(deltas.seam, PayloadSeam::First(_));
            prop_assert!(deltas.seam != PayloadSeam::Replaced);
            if deltas.seam == PayloadSeam::Restarted {
                prop_assert!(world.restarted);
            }
            if told {
                prop_assert!(deltas.seam != PayloadSeam::Unclear);
            }

            for n in 0..NAMES.len() {
                let charged = i64::try_from(amount(&deltas, n)).unwrap();
                let Truth { moved, lost, began_again } = world.truth[n];
                let value = world.counters.get(&n).filter(|_| broken != Some(n)).copied();
                let whose = name(NAMES[n]);
                let gap = deltas
                    .gaps
                    .iter()
                    .find(|gap| gap.counter.is_none() || gap.counter.as_ref() == Some(&whose));
                if let (Some(most), Some(_)) = (gap.and_then(|gap| gap.most), value) {
                    prop_assert!(missing(moved + lost, charged)? <= most.way(whose.way));
                }
                if deltas.seam == PayloadSeam::Unclear {
                    muddled[n] = true;
                }
                let Some(value) = value else {
                    // What it moved is charged, or missed, when it can be read again.
                    prop_assert_eq!(charged, 0);
                    prop_assert!(lost == 0 || first || gap.is_some());
                    world.truth[n].lost = 0;
                    if first && begin == First::Baseline {
                        world.truth[n].moved = 0;
                    }
                    continue;
                };
                world.truth[n] = Truth::default();
                if first && begin == First::Baseline {
                    prop_assert_eq!(charged, 0);
                    continue;
                }
                // Nobody can know of a counter that was set back and is past its last value again,
                // nor of one that was set back before it was ever seen.
                let is = value.unsigned_abs();
                let hidden = began_again && known[n].is_none_or(|was| is >= was);
                let missed = missing(moved + lost, charged)?;
                prop_assert!(
                    missed == 0 || gap.is_some() || hidden || first,
                    "{missed} of {whose} are missed and in no gap: {deltas:?}"
                );
                // And a gap is not made of nothing.
                if told && !world.restarted && !began_again && !muddled[n] {
                    prop_assert!(gap.is_none_or(|gap| gap.cause != Cause::Reset));
                    prop_assert!(missed == 0 || gap.is_some_and(|g| g.cause == Cause::NoBaseline));
                }
                muddled[n] = false;
            }
            world.restarted = false;
        }
    }

    /// Any two polls at all: no panic, and nothing above what the counters show.
    #[test]
    fn nothing_is_charged_that_no_counter_shows(
        polls in prop::collection::vec(
            (
                prop::option::of(any::<u32>()),
                prop_oneof![0i128..1 << 70, any::<i128>()],
                prop::collection::vec((0..NAMES.len(), any::<i64>()), 0..6),
            ),
            1..5,
        ),
        most in prop::option::of((any::<u64>(), any::<u64>())),
    ) {
        let mut state = Polls::default();
        let most = most.map(|(uplink, downlink)| Payload { uplink, downlink });
        for (uptime, at, counters) in polls {
            let mut snapshot = poll(0, None, &[]);
            snapshot.uptime = uptime;
            snapshot.boot = Window { begin: at / 2, end: at };
            snapshot.window = Window { begin: at / 4, end: at / 3 };
            snapshot.counters = counters.iter().map(|(n, v)| (name(NAMES[*n]), *v)).collect();
            let deltas = state.follow(&snapshot, First::Charge, most);
            for n in 0..NAMES.len() {
                let shown = counters.iter().filter(|(m, _)| *m == n).map(|(_, value)| *value).max();
                let shown = shown.map_or(0, |value| u64::try_from(value).unwrap_or(0));
                prop_assert!(amount(&deltas, n) <= shown);
            }
        }
    }
}
