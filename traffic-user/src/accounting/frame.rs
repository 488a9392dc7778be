//! All meters at one tick, side by side.
//!
//! A frame holds at most one snapshot of each meter and never a number of two: layers and epochs
//! differ, and bytes of different kinds have no sum. So there is no total of a frame, only
//! [`Frame::total`] of one meter in it, which carries its layer and epoch along.

use std::collections::HashSet;

use super::{
    anomaly::Anomaly,
    delta::{Deltas, First, diff},
    ident::Group,
    reading::{Coverage, Epoch, GroupReading, Layer, Snapshot, Traffic},
    relay::Devices,
};

/// The snapshots of all meters that were read at one tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    at: i128,
    snapshots: Vec<Snapshot>,
    devices: Option<Devices>,
}

/// A sum inside one snapshot, with what it is a sum of. Two of these cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// Whose numbers.
    pub meter: &'static str,
    /// What its bytes include.
    pub layer: Layer,
    /// Life of its counters.
    pub epoch: Epoch,
    /// Whether all was counted since that began.
    pub coverage: Coverage,
    /// The sum since then.
    pub traffic: Traffic,
}

impl Total {
    fn new(snapshot: &Snapshot, traffic: Traffic) -> Self {
        Self {
            meter: snapshot.meter,
            layer: snapshot.layer,
            epoch: snapshot.epoch,
            coverage: snapshot.coverage,
            traffic,
        }
    }
}

impl Frame {
    /// A frame without snapshots. `at` is the time of the tick, nanoseconds of Unix time.
    pub const fn new(at: i128) -> Self {
        Self { at, snapshots: Vec::new(), devices: None }
    }

    /// Adds what a meter said. Gives back the one of the same meter that was in its place: a meter
    /// is in a frame once.
    pub fn insert(&mut self, snapshot: Snapshot) -> Option<Snapshot> {
        match self.position(snapshot.meter) {
            Some(at) => Some(std::mem::replace(&mut self.snapshots[at], snapshot)),
            None => {
                self.snapshots.push(snapshot);
                None
            }
        }
    }

    /// Adds what the devices have moved, beside a meter that sees its groups alone.
    pub fn set_devices(&mut self, devices: Devices) {
        self.devices = Some(devices);
    }

    /// What the devices have moved, where that was asked.
    pub const fn devices(&self) -> Option<&Devices> {
        self.devices.as_ref()
    }

    /// Time of the tick, nanoseconds of Unix time.
    pub const fn at(&self) -> i128 {
        self.at
    }

    /// In the order they were added.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// What `meter` said, if it was read.
    pub fn snapshot(&self, meter: &str) -> Option<&Snapshot> {
        self.snapshots.get(self.position(meter)?)
    }

    /// All groups of one meter together.
    pub fn total(&self, meter: &str) -> Option<Total> {
        let snapshot = self.snapshot(meter)?;
        Some(Total::new(snapshot, snapshot.total()))
    }

    /// What `meter` says of a group; its name does not matter.
    pub fn reading(&self, meter: &str, group: &Group) -> Option<&GroupReading> {
        find(self.snapshot(meter)?, group)
    }

    /// What every meter says of a group, side by side. Meters that do not know it are left out.
    pub fn of_group(&self, group: &Group) -> impl Iterator<Item = Total> {
        self.snapshots.iter().filter_map(move |snapshot| {
            let reading = find(snapshot, group)?;
            Some(Total::new(snapshot, reading.lanes.total()))
        })
    }

    /// Every group that any meter knows, once, in the order of their first appearance.
    pub fn groups(&self) -> Vec<&Group> {
        let mut seen = HashSet::new();
        self.snapshots
            .iter()
            .flat_map(|snapshot| snapshot.groups.iter())
            .map(|reading| reading.group.as_ref())
            .filter(|group| seen.insert((group.ranges(), group.transport())))
            .collect()
    }

    /// What each meter counted since an earlier frame, and what is wrong with it.
    ///
    /// `first` is asked for each snapshot that has none before it. `earlier` is best made by
    /// [`following`](Self::following), so that a meter which was silent for a while goes on from its
    /// last reading.
    pub fn since(
        &self,
        earlier: Option<&Self>,
        first: impl Fn(&Snapshot) -> First,
    ) -> (Vec<Deltas>, Vec<Anomaly>) {
        let mut anomalies = Vec::new();
        let deltas = self
            .snapshots
            .iter()
            .map(|next| {
                let prev = earlier.and_then(|earlier| earlier.snapshot(next.meter));
                let (deltas, found) = diff(prev, next, first(next));
                anomalies.extend(found);
                deltas
            })
            .collect();
        let before = earlier.map_or(&[][..], |earlier| &earlier.snapshots);
        let silent = before.iter().map(|snapshot| snapshot.meter);
        anomalies.extend(
            silent
                .filter(|meter| self.position(meter).is_none())
                .map(|meter| Anomaly::Silent { meter }),
        );
        (deltas, anomalies)
    }

    /// This frame with the last snapshots of the meters that are missing in it: what the next frame
    /// is to be subtracted from.
    #[must_use]
    pub fn following(mut self, earlier: Self) -> Self {
        for snapshot in earlier.snapshots {
            if self.position(snapshot.meter).is_none() {
                self.snapshots.push(snapshot);
            }
        }
        self
    }

    fn position(&self, meter: &str) -> Option<usize> {
        self.snapshots.iter().position(|snapshot| snapshot.meter == meter)
    }
}

fn find<'a>(snapshot: &'a Snapshot, group: &Group) -> Option<&'a GroupReading> {
    snapshot.groups.iter().find(|reading| reading.group.same_ports(group))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::{
            delta::Seam,
            reading::{Lanes, Window},
        },
        *,
    };

    fn group(text: &str) -> Group {
        text.parse().unwrap()
    }

    fn snapshot(meter: &'static str, layer: Layer, epoch: u64, groups: &[(&str, u64)]) -> Snapshot {
        let readings = groups.iter().map(|(text, input_bytes)| GroupReading {
            group: Arc::new(group(text)),
            lanes: Lanes {
                udp6: Traffic { input_bytes: *input_bytes, ..Traffic::default() },
                ..Lanes::default()
            },
            watched: true,
        });
        Snapshot {
            meter,
            layer,
            epoch: Epoch(epoch),
            since: Some(50),
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: readings.collect(),
            skipped: None,
        }
    }

    fn frame(snapshots: impl IntoIterator<Item = Snapshot>) -> Frame {
        let mut frame = Frame::new(7);
        for snapshot in snapshots {
            assert_eq!(frame.insert(snapshot), None);
        }
        frame
    }

    fn both() -> Frame {
        frame([
            snapshot("tcx", Layer::L3, 1, &[("443=web", 10), ("53/udp", 5)]),
            snapshot("nft", Layer::L3Skb, 2, &[("443", 9), ("53/tcp", 3)]),
        ])
    }

    #[test]
    fn a_meter_is_in_a_frame_once() {
        let mut frame = both();
        let (old, new) = (frame.snapshots()[0].clone(), snapshot("tcx", Layer::L3, 9, &[]));
        assert_eq!(frame.insert(new.clone()), Some(old));
        assert_eq!(frame.snapshots().len(), 2);
        assert_eq!(frame.snapshot("tcx"), Some(&new));
        assert_eq!(frame.at(), 7);
    }

    #[test]
    fn totals_are_of_one_meter_and_say_which() {
        let frame = both();
        let of = |meter| {
            let total = frame.total(meter)?;
            Some((total.layer, total.epoch.0, total.traffic.bytes()))
        };
        assert_eq!(of("tcx"), Some((Layer::L3, 1, 15)));
        assert_eq!(of("nft"), Some((Layer::L3Skb, 2, 12)));
        assert_eq!(of("cgroup"), None);
    }

    #[test]
    fn a_group_is_found_by_its_ports_and_shown_side_by_side() {
        let frame = both();
        let web = group("443=site");
        let side: Vec<_> =
            frame.of_group(&web).map(|total| (total.meter, total.traffic.bytes())).collect();
        assert_eq!(side, [("tcx", 10), ("nft", 9)]);
        assert_eq!(frame.reading("nft", &web).unwrap().group.as_ref(), &group("443"));
        assert_eq!(frame.reading("nft", &group("443/tcp")), None);
        assert_eq!(frame.reading("tc", &web), None);
        let names: Vec<_> = frame.groups().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["443=web", "53/udp", "53/tcp"]);
    }

    #[test]
    fn each_meter_is_subtracted_from_itself() {
        let later = frame([
            snapshot("nft", Layer::L3Skb, 2, &[("443", 19), ("53/tcp", 3)]),
            snapshot("tcx", Layer::L3, 8, &[("443=web", 4)]),
        ]);
        let (deltas, anomalies) = later.since(Some(&both()), |_| First::Charge);
        assert_eq!(anomalies, []);
        let charged: Vec<_> = deltas.iter().map(|d| (d.meter, d.seam, d.total().bytes())).collect();
        let restarted = Seam::Restarted { from: Epoch(1) };
        assert_eq!(charged, [("nft", Seam::Same, 10), ("tcx", restarted, 4)]);
    }

    #[test]
    fn a_first_frame_is_charged_as_its_epoch_allows() {
        for (started, want) in [(50, [15, 12]), (51, [0, 0])] {
            let first = |snapshot: &Snapshot| First::when(snapshot.since, started);
            let (deltas, anomalies) = both().since(None, first);
            assert_eq!(anomalies, []);
            let charged: Vec<_> = deltas.iter().map(|d| d.total().bytes()).collect();
            assert_eq!(charged, want);
        }
    }

    #[test]
    fn a_meter_that_was_silent_goes_on_from_its_last_reading() {
        let silent = frame([snapshot("tcx", Layer::L3, 1, &[("443=web", 10), ("53/udp", 6)])]);
        let (deltas, anomalies) = silent.since(Some(&both()), |_| First::Baseline);
        assert_eq!(deltas.len(), 1);
        assert_eq!(anomalies, [Anomaly::Silent { meter: "nft" }]);

        let before = silent.following(both());
        let again = frame([snapshot("nft", Layer::L3Skb, 2, &[("443", 30), ("53/tcp", 3)])]);
        let (deltas, _) = again.since(Some(&before), |_| First::Baseline);
        assert_eq!(deltas[0].total().bytes(), 21);
    }
}
