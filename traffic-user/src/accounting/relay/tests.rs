//! Each outcome by example, and what holds for all.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
    super::{
        delta::{First, GroupDelta},
        reading::{Epoch, Lanes, Layer},
    },
    *,
};

fn traffic(input_bytes: u64, output_bytes: u64) -> Traffic {
    Traffic { input_bytes, output_bytes, ..Traffic::default() }
}

/// What the groups counted since the last tick.
fn groups(seam: Seam, input: u64, output: u64) -> Deltas {
    let delta = GroupDelta {
        group: Arc::new("443".parse().unwrap()),
        lanes: Lanes { tcp4: traffic(input, output), ..Lanes::default() },
        watched: true,
    };
    Deltas {
        meter: "nft",
        layer: Layer::L3Skb,
        epoch: Epoch(1),
        seam,
        from: Some(0),
        to: 1,
        coverage: Coverage::Complete,
        groups: vec![delta],
        skipped: None,
    }
}

fn same(input: u64, output: u64) -> Deltas {
    groups(Seam::Same, input, output)
}

fn devices(readings: &[(u32, u64, u64)]) -> Devices {
    let reading =
        |&(index, input, output): &_| DeviceReading { index, traffic: traffic(input, output) };
    Devices { boot: 1, readings: readings.iter().map(reading).collect() }
}

fn found(input: u64, output: u64, coverage: Coverage) -> Option<Relayed> {
    Some(Relayed { traffic: traffic(input, output), coverage })
}

#[test]
fn what_the_devices_moved_beyond_the_groups_is_an_estimate_from_the_second_tick_on() {
    let mut relay = Relay::default();
    let first = groups(Seam::First(First::Charge), 70, 7);
    assert_eq!(relay.tick(Some(&devices(&[(2, 1000, 500)])), &first), None);
    let next = relay.tick(Some(&devices(&[(2, 1500, 900)])), &same(100, 100));
    assert_eq!(next, found(400, 300, Coverage::Estimated));
    // Nothing moved at all.
    let next = relay.tick(Some(&devices(&[(2, 1500, 900)])), &same(0, 0));
    assert_eq!(next, found(0, 0, Coverage::Estimated));
}

#[test]
fn groups_that_moved_more_than_the_devices_leave_nothing_and_never_less() {
    let mut relay = Relay::resumed(Some(devices(&[(2, 0, 0)])));
    assert_eq!(relay.tick(Some(&devices(&[(2, 10, 10)])), &same(30, 30)), None);
    // One direction can be told.
    let next = relay.tick(Some(&devices(&[(2, 15, 110)])), &same(30, 0));
    assert_eq!(next, found(0, 100 - 20, Coverage::Estimated));
    // About a tick's worth is kept of what was ahead, not all that ever was.
    let next = relay.tick(Some(&devices(&[(2, 1015, 110)])), &same(0, 0));
    assert_eq!(next, found(1000 - 30, 0, Coverage::Estimated));
    for tick in 1..10 {
        assert_eq!(relay.tick(Some(&devices(&[(2, 1015, 110)])), &same(80, 80)), None, "{tick}");
    }
    let next = relay.tick(Some(&devices(&[(2, 2015, 110)])), &same(0, 0));
    assert_eq!(next, found(1000 - 80, 0, Coverage::Estimated));
    // And after a while none of it.
    assert_eq!(relay.tick(Some(&devices(&[(2, 2015, 110)])), &same(80, 80)), None);
    for _ in 0..80 {
        relay.tick(Some(&devices(&[(2, 2015, 110)])), &same(0, 0));
    }
    let next = relay.tick(Some(&devices(&[(2, 3015, 110)])), &same(0, 0));
    assert_eq!(next, found(1000, 0, Coverage::Estimated));
}

#[test]
fn devices_that_cannot_be_read_are_made_up_for_at_the_next_tick() {
    let mut relay = Relay::resumed(Some(devices(&[(2, 0, 0)])));
    assert_eq!(relay.tick(None, &same(30, 0)), None);
    assert_eq!(relay.last(), None, "the groups are ahead of what would be stored");
    let next = relay.tick(Some(&devices(&[(2, 100, 0)])), &same(20, 0));
    assert_eq!(next, found(50, 0, Coverage::Estimated));
    assert_eq!(relay.last(), Some(&devices(&[(2, 100, 0)])));
}

#[test]
fn a_device_that_comes_goes_or_begins_again_makes_a_gap_and_no_jump() {
    let cases: [(&[_], u64); 4] = [
        // It came: what it moved before is of another time.
        (&[(2, 150, 0), (3, 9999, 0)], 50),
        // It went.
        (&[], 0),
        // Another one has its name.
        (&[(4, 9999, 0)], 0),
        // Its counters began again.
        (&[(2, 70, 0)], 70),
    ];
    for (next, input) in cases {
        let mut relay = Relay::resumed(Some(devices(&[(2, 100, 0)])));
        let found_now = relay.tick(Some(&devices(next)), &same(0, 0));
        assert_eq!(found_now, found(input, 0, Coverage::Gap), "{next:?}");
        let again = relay.tick(Some(&devices(next)), &same(0, 0));
        let told = if input > 0 { Coverage::Estimated } else { Coverage::Gap };
        assert_eq!(again, found(0, 0, told), "{next:?}");
    }
}

#[test]
fn another_epoch_of_the_rules_or_another_boot_begins_anew_with_a_gap() {
    let restarted = groups(Seam::Restarted { from: Epoch(9) }, 5, 5);
    let mut relay = Relay::resumed(Some(devices(&[(2, 100, 0)])));
    assert_eq!(relay.tick(Some(&devices(&[(2, 500, 0)])), &restarted), None);
    let next = relay.tick(Some(&devices(&[(2, 600, 0)])), &same(10, 0));
    assert_eq!(next, found(90, 0, Coverage::Gap));

    let mut relay = Relay::resumed(Some(Devices { boot: 7, ..devices(&[(2, 100, 0)]) }));
    assert_eq!(relay.tick(Some(&devices(&[(2, 500, 0)])), &same(10, 0)), None);
    let next = relay.tick(Some(&devices(&[(2, 600, 0)])), &same(10, 0));
    assert_eq!(next, found(90, 0, Coverage::Gap));
}

#[test]
fn a_gap_of_the_rules_is_one_of_what_passes_beside_them() {
    let mut relay = Relay::resumed(Some(devices(&[(2, 0, 0)])));
    let gap = Deltas { coverage: Coverage::Gap, ..same(10, 0) };
    let next = relay.tick(Some(&devices(&[(2, 100, 0)])), &gap);
    assert_eq!(next, found(90, 0, Coverage::Gap));
}

proptest! {
    /// What is found adds up to what passed beside the groups, although the devices are read a little before
    /// the groups, and now and then not at all.
    #[test]
    fn what_is_found_adds_up_to_what_passed_beside(
        ticks in prop::collection::vec((0u64..1000, 0u64..1000, 0u64..50, prop::bool::weighted(0.8)), 1..60)
    ) {
        let mut relay = Relay::resumed(Some(devices(&[(2, 0, 0)])));
        let (mut moved, mut beside, mut sum) = (0, 0, 0);
        let mut found = |devices: Option<Devices>, groups| {
            let step = relay.tick(devices.as_ref(), &same(groups, 0));
            sum += step.map_or(0, |step| step.traffic.input_bytes);
        };
        for (own, others, between, readable) in ticks {
            moved += own + others;
            beside += others;
            found(readable.then(|| devices(&[(2, moved, 0)])), own + between);
            moved += between;
        }
        found(Some(devices(&[(2, moved, 0)])), 0);
        prop_assert_eq!(sum, beside);
    }
}
