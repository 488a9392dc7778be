//! What holds for every history and for any two snapshots.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    tests::{CELLS, cell, group, snapshot},
    *,
};

const NAMES: [&str; 5] = ["443", "443/tcp", "443/udp=q", "20000-50000", "80+8080=web"];

/// What can happen between two looks.
#[derive(Clone, Debug)]
enum Event {
    /// A packet or more.
    Count {
        group: usize,
        cell: usize,
        amount: u64,
    },
    /// A packet of no group.
    Skip(u64),
    Watch(usize),
    GiveUp(usize),
    /// The counters begin again from zero; what nobody read is lost.
    Restart,
    /// Somebody looks; a look that is missed is an event that is not there.
    Look {
        turn: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let group = 0..NAMES.len();
    prop_oneof![
        8 => (group.clone(), 0..CELLS, 0u64..1 << 40)
            .prop_map(|(group, cell, amount)| Event::Count { group, cell, amount }),
        2 => (0u64..1 << 40).prop_map(Event::Skip),
        2 => group.clone().prop_map(Event::Watch),
        1 => group.prop_map(Event::GiveUp),
        1 => Just(Event::Restart),
        4 => (0usize..8).prop_map(|turn| Event::Look { turn }),
    ]
}

/// The truth: a meter, and what it counted since it was last read.
#[derive(Default)]
struct World {
    epoch: u64,
    readings: Vec<GroupReading>,
    skipped: u64,
    unread: BTreeMap<(String, usize), u64>,
    unread_skipped: u64,
}

impl World {
    fn find(&mut self, group: &Group) -> Option<&mut GroupReading> {
        self.readings.iter_mut().find(|r| r.group.same_ports(group))
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Count { group, cell: n, amount } => {
                let name = group_name(group);
                let Some(reading) = self.find(&name).filter(|reading| reading.watched) else {
                    return;
                };
                *cell(&mut reading.lanes, n) += amount;
                *self.unread.entry((name.to_string(), n)).or_default() += amount;
            }
            Event::Skip(amount) => {
                self.skipped += amount;
                self.unread_skipped += amount;
            }
            Event::Watch(group) => {
                let group = group_name(group);
                match self.find(&group) {
                    Some(reading) => reading.watched = true,
                    None => self.readings.push(GroupReading {
                        group,
                        lanes: Lanes::default(),
                        watched: true,
                    }),
                }
            }
            Event::GiveUp(group) => {
                if let Some(reading) = self.find(&group_name(group)) {
                    reading.watched = false;
                }
            }
            Event::Restart => {
                let epoch = self.epoch + 1;
                *self = Self { epoch, ..Self::default() };
            }
            Event::Look { .. } => {}
        }
    }

    fn look(&self, turn: usize) -> Snapshot {
        let mut snapshot = snapshot(self.epoch, 0, &[]);
        let mut readings = self.readings.clone();
        if !readings.is_empty() {
            let turn = turn % readings.len();
            readings.rotate_left(turn);
        }
        snapshot.groups = readings.into();
        let unwatched = Traffic { output_bytes: self.skipped, ..Traffic::default() };
        snapshot.skipped = Some(Skipped { unwatched, ..Skipped::default() });
        snapshot
    }
}

fn group_name(n: usize) -> Arc<Group> {
    group(NAMES[n])
}

fn readings() -> impl Strategy<Value = Vec<GroupReading>> {
    let value = prop_oneof![0u64..4, any::<u64>(), Just(u64::MAX)];
    let lanes = prop::collection::vec(value, CELLS).prop_map(|values| {
        let mut lanes = Lanes::default();
        for (n, value) in values.into_iter().enumerate() {
            *cell(&mut lanes, n) = value;
        }
        lanes
    });
    let reading = (0..NAMES.len(), lanes, any::<bool>()).prop_map(|(name, lanes, watched)| {
        GroupReading { group: group_name(name), lanes, watched }
    });
    prop::collection::vec(reading, 0..8)
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    (0u64..2, any::<bool>(), any::<i128>(), readings()).prop_map(|(epoch, l3, end, groups)| {
        let mut snapshot = snapshot(epoch, 0, &[]);
        snapshot.layer = if l3 { Layer::L3 } else { Layer::L3Skb };
        snapshot.window.end = end;
        snapshot.groups = groups.into();
        snapshot
    })
}

/// What was charged, in an order that does not depend on the snapshot's.
fn sorted(deltas: &Deltas) -> BTreeMap<String, [(&'static str, Traffic); 4]> {
    let charge = |group: &GroupDelta| (group.group.to_string(), group.lanes.each());
    deltas.groups.iter().map(charge).collect()
}

fn sorted_text(anomalies: &[Anomaly]) -> Vec<String> {
    let mut text: Vec<_> = anomalies.iter().map(ToString::to_string).collect();
    text.sort_unstable();
    text
}

proptest! {
    /// However the looks are spaced, and whatever restarts in between: the charges of every counter
    /// add up to all that it counted, but for what was lost unread. So nothing is charged twice.
    #[test]
    fn charges_telescope(events in prop::collection::vec(event(), 1..120), first in prop_oneof![
        Just(First::Baseline), Just(First::Charge)
    ]) {
        let mut world = World::default();
        let mut last: Option<Snapshot> = None;
        let mut want: BTreeMap<(String, usize), u64> = BTreeMap::new();
        let mut got = want.clone();
        let (mut want_skipped, mut got_skipped) = (0, 0);
        for event in &events {
            world.happen(event);
            let Event::Look { turn } = event else { continue };
            let next = world.look(*turn);
            let (deltas, anomalies) = diff(last.as_ref(), &next, first);
            prop_assert_eq!(anomalies, vec![]);
            let restarted = last.as_ref().is_some_and(|last| last.epoch != next.epoch);
            prop_assert_eq!(deltas.coverage == Coverage::Gap, restarted);
            for delta in &deltas.groups {
                for n in 0..CELLS {
                    let charge = *cell(&mut delta.lanes.clone(), n);
                    *got.entry((delta.group.to_string(), n)).or_default() += charge;
                }
            }
            got_skipped += deltas.skipped.unwrap().unwatched.output_bytes;
            let unread = std::mem::take(&mut world.unread);
            let unread_skipped = std::mem::take(&mut world.unread_skipped);
            if last.is_some() || first == First::Charge {
                for (counter, amount) in unread {
                    *want.entry(counter).or_default() += amount;
                }
                want_skipped += unread_skipped;
            }
            last = Some(next);
        }
        got.retain(|_, amount| *amount != 0);
        want.retain(|_, amount| *amount != 0);
        prop_assert_eq!(got, want);
        prop_assert_eq!(got_skipped, want_skipped);
    }

    /// Any two snapshots at all: no panic, no group twice, nothing above what the counter shows, and
    /// the order of the groups does not matter.
    #[test]
    fn nothing_is_charged_that_was_not_counted(
        prev in prop::option::of(any_snapshot()),
        next in any_snapshot(),
        turns in (0usize..8, 0usize..8),
    ) {
        let (deltas, anomalies) = diff(prev.as_ref(), &next, First::Charge);
        let _ = deltas.per_second(deltas.total());
        let mut seen = std::collections::BTreeSet::new();
        for delta in &deltas.groups {
            prop_assert!(seen.insert(delta.group.to_string()));
            let listed = next.groups.iter().filter(|r| r.group.same_ports(&delta.group));
            let mut sum = [0u64; CELLS];
            for reading in listed {
                for (n, sum) in sum.iter_mut().enumerate() {
                    *sum = sum.saturating_add(*cell(&mut reading.lanes.clone(), n));
                }
            }
            for (n, sum) in sum.iter().enumerate() {
                prop_assert!(cell(&mut delta.lanes.clone(), n) <= &mut sum.clone());
            }
        }

        let turned = |snapshot: &Snapshot, turn: usize| {
            let mut snapshot = snapshot.clone();
            let turn = turn.min(snapshot.groups.len());
            let groups = Arc::make_mut(&mut snapshot.groups);
            groups.rotate_left(turn);
            groups.reverse();
            snapshot
        };
        let other = prev.as_ref().map(|prev| turned(prev, turns.0));
        let (again, anomalies_again) =
            diff(other.as_ref(), &turned(&next, turns.1), First::Charge);
        prop_assert_eq!(sorted(&deltas), sorted(&again));
        prop_assert_eq!(sorted_text(&anomalies), sorted_text(&anomalies_again));
        prop_assert_eq!(deltas.coverage, again.coverage);
    }
}
