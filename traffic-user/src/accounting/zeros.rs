//! Where the numbers of groups begin for people, since somebody reset them.
//!
//! A reset touches no counter of the kernel and takes nothing from what is booked: the readings at that time
//! are kept, and who shows numbers to people shows what was counted after them.

use std::sync::Arc;

use super::{
    ident::Group,
    reading::{Epoch, GroupReading, Lanes, Snapshot},
};

/// The reading of a group when it was reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zero {
    /// Whose reading.
    pub meter: &'static str,
    /// Life of the counters.
    pub epoch: Epoch,
    /// Nanoseconds of Unix time.
    pub at: i128,
    /// The group.
    pub group: Arc<Group>,
    /// What it had counted.
    pub lanes: Lanes,
}

impl Zero {
    fn is_of(&self, snapshot: &Snapshot, reading: &GroupReading) -> bool {
        (self.meter, self.epoch) == (snapshot.meter, snapshot.epoch)
            && self.group.same_ports(&reading.group)
    }
}

/// All of them. Those of counters that are gone mean nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zeros(pub Vec<Zero>);

impl Zeros {
    /// The groups of this reading that are `wanted` begin with it.
    pub fn set(&mut self, snapshot: &Snapshot, wanted: impl Fn(&Group) -> bool, at: i128) {
        for reading in snapshot.groups.iter().filter(|reading| wanted(&reading.group)) {
            self.0.retain(|zero| !zero.is_of(snapshot, reading));
            self.0.push(Zero {
                meter: snapshot.meter,
                epoch: snapshot.epoch,
                at,
                group: Arc::clone(&reading.group),
                lanes: reading.lanes,
            });
        }
    }

    /// Lets go of those of former lives of this meter.
    pub fn forget_former(&mut self, snapshot: &Snapshot) {
        self.0.retain(|zero| zero.meter != snapshot.meter || zero.epoch == snapshot.epoch);
    }

    /// Lets go of those of groups that are not in this reading, or began again before it.
    pub fn forget_fallen(&mut self, snapshot: &Snapshot) {
        let of_it = |zero: &Zero| (zero.meter, zero.epoch) == (snapshot.meter, snapshot.epoch);
        let goes_on = |zero: &Zero| {
            let reading = snapshot.groups.iter().find(|reading| zero.is_of(snapshot, reading));
            reading.is_some_and(|reading| !reading.lanes.fell_below(&zero.lanes))
        };
        self.0.retain(|zero| !of_it(zero) || goes_on(zero));
    }

    /// Takes off what was counted before, and gives for each group when it was reset.
    pub fn apply(&self, snapshot: &mut Snapshot) -> Vec<Option<i128>> {
        let found: Vec<Option<&Zero>> = snapshot
            .groups
            .iter()
            .map(|reading| self.0.iter().find(|zero| zero.is_of(snapshot, reading)))
            .collect();
        if found.iter().any(Option::is_some) {
            let groups = Arc::make_mut(&mut snapshot.groups);
            for (reading, zero) in groups.iter_mut().zip(&found) {
                if let Some(zero) = zero {
                    reading.lanes = reading.lanes.less(&zero.lanes);
                }
            }
        }
        found.into_iter().map(|zero| zero.map(|zero| zero.at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::reading::{Coverage, Layer, Traffic, Window},
        *,
    };

    fn snapshot(epoch: u64, groups: &[(&str, u64)]) -> Snapshot {
        let reading = |&(group, input_bytes): &(&str, u64)| GroupReading {
            group: Arc::new(group.parse().unwrap()),
            lanes: Lanes {
                udp6: Traffic { input_bytes, ..Traffic::default() },
                ..Lanes::default()
            },
            watched: true,
        };
        Snapshot {
            meter: "nft",
            layer: Layer::L3Skb,
            epoch: Epoch(epoch),
            since: None,
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: groups.iter().map(reading).collect(),
            skipped: None,
        }
    }

    fn shown(zeros: &Zeros, mut snapshot: Snapshot) -> Vec<(u64, Option<i128>)> {
        let resets = zeros.apply(&mut snapshot);
        let bytes = snapshot.groups.iter().map(|reading| reading.lanes.udp6.input_bytes);
        bytes.zip(resets).collect()
    }

    #[test]
    fn a_group_is_shown_from_its_last_reset_on_and_the_others_from_the_epoch() {
        let mut zeros = Zeros::default();
        zeros.set(&snapshot(1, &[("80", 100), ("443", 50)]), |group| group.to_string() == "80", 7);
        let now = snapshot(1, &[("80=web", 130), ("443", 60), ("9", 5)]);
        assert_eq!(shown(&zeros, now.clone()), [(30, Some(7)), (60, None), (5, None)]);
        zeros.set(&now, |_| true, 9);
        assert_eq!(zeros.0.len(), 3);
        assert_eq!(shown(&zeros, now), [(0, Some(9)), (0, Some(9)), (0, Some(9))]);
    }

    #[test]
    fn counters_that_began_again_have_no_former_zero() {
        let mut zeros = Zeros::default();
        zeros.set(&snapshot(1, &[("80", 100)]), |_| true, 7);
        assert_eq!(shown(&zeros, snapshot(2, &[("80", 30)])), [(30, None)]);
        // One that fell shows nothing, not less.
        assert_eq!(shown(&zeros, snapshot(1, &[("80", 30)])), [(0, Some(7))]);
        zeros.forget_former(&snapshot(2, &[]));
        assert_eq!(zeros, Zeros::default());
    }
}
