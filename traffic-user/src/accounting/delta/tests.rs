//! Each outcome by example.

use super::{super::reading::Window, *};

pub(super) fn group(text: &str) -> Arc<Group> {
    Arc::new(text.parse().unwrap())
}

/// All four counters of all four lanes, each `by` more than the one before.
fn lanes(first: u64, by: u64) -> Lanes {
    let mut lanes = Lanes::default();
    for n in 0..CELLS {
        *cell(&mut lanes, n) = first + by * n as u64;
    }
    lanes
}

pub(super) const CELLS: usize = 16;

pub(super) fn cell(lanes: &mut Lanes, n: usize) -> &mut u64 {
    let Lanes { tcp4, tcp6, udp4, udp6 } = lanes;
    let lane = [tcp4, tcp6, udp4, udp6].into_iter().nth(n / 4).unwrap();
    match n % 4 {
        0 => &mut lane.input_bytes,
        1 => &mut lane.input_packets,
        2 => &mut lane.output_bytes,
        _ => &mut lane.output_packets,
    }
}

pub(super) fn snapshot(epoch: u64, end: i128, groups: &[(&str, Lanes)]) -> Snapshot {
    Snapshot {
        meter: "tcx",
        layer: Layer::L3,
        epoch: Epoch(epoch),
        since: Some(40),
        window: Window { begin: end - 1, end },
        coverage: Coverage::Complete,
        groups: groups
            .iter()
            .map(|(text, lanes)| GroupReading { group: group(text), lanes: *lanes, watched: true })
            .collect(),
        skipped: None,
    }
}

fn charged(deltas: &Deltas) -> Vec<(String, Lanes)> {
    let text = |group: &GroupDelta| (group.group.to_string(), group.lanes);
    deltas.groups.iter().map(text).collect()
}

fn counter(epoch: u64, total: u64) -> Counter {
    let epoch = Epoch(epoch);
    Counter { epoch, total }
}

#[test]
fn a_counter_advances_restarts_or_lies() {
    for (prev, next, want, charge) in [
        (None, counter(1, 900), Step::Baseline, 0),
        (Some(counter(1, 900)), counter(1, 900), Step::Advanced(0), 0),
        (Some(counter(1, 900)), counter(1, 930), Step::Advanced(30), 30),
        (Some(counter(1, 900)), counter(2, 30), Step::Restarted(30), 30),
        // Not told apart by value: a restarted counter may already be past the old one.
        (Some(counter(1, 900)), counter(2, 5000), Step::Restarted(5000), 5000),
        (Some(counter(1, 900)), counter(1, 899), Step::Regressed { by: 1 }, 0),
        (Some(counter(1, u64::MAX)), counter(1, 0), Step::Regressed { by: u64::MAX }, 0),
    ] {
        assert_eq!(step(prev, next), want);
        assert_eq!(want.charge(), charge);
    }
}

#[test]
fn the_difference_is_taken_lane_by_lane_and_by_ports() {
    let prev = snapshot(1, 10, &[("443=web", lanes(5, 1)), ("53/udp", lanes(0, 1))]);
    // In another order and under another name.
    let next = snapshot(1, 20, &[("53/udp", lanes(7, 1)), ("443=site", lanes(105, 3))]);
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Charge);
    assert_eq!(anomalies, []);
    assert_eq!(deltas.seam, Seam::Same);
    assert_eq!((deltas.from, deltas.to), (Some(10), 20));
    assert_eq!(
        charged(&deltas),
        [("53/udp".into(), lanes(7, 0)), ("443=site".into(), lanes(100, 2))]
    );
}

#[test]
fn a_group_that_appears_inside_an_epoch_begins_at_zero() {
    let prev = snapshot(1, 10, &[("443", lanes(9, 0))]);
    let next = snapshot(1, 20, &[("443", lanes(9, 0)), ("443/tcp", lanes(4, 1))]);
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
    assert_eq!(anomalies, []);
    assert_eq!(charged(&deltas), [("443".into(), lanes(0, 0)), ("443/tcp".into(), lanes(4, 1))]);
}

#[test]
fn the_first_snapshot_is_charged_only_if_its_epoch_began_under_our_eyes() {
    let next = snapshot(1, 50 * NANOS, &[("443", lanes(9, 1))]);
    let (deltas, anomalies) = diff(None, &next, First::when(Some(40), 41));
    assert_eq!(anomalies, []);
    assert_eq!(deltas.seam, Seam::First(First::Baseline));
    assert_eq!(charged(&deltas), [("443".into(), lanes(0, 0))]);
    assert_eq!(deltas.elapsed(), None);

    let (deltas, _) = diff(None, &next, First::when(Some(40), 40));
    assert_eq!(charged(&deltas), [("443".into(), lanes(9, 1))]);
    assert_eq!(deltas.elapsed(), Some(Duration::from_secs(10)));

    assert_eq!(First::when(None, 0), First::Baseline);
}

#[test]
fn a_new_epoch_is_charged_whole_and_leaves_a_gap() {
    let prev = snapshot(1, 10, &[("443", lanes(900, 0)), ("80", lanes(1, 0))]);
    let next = snapshot(2, 20, &[("443", lanes(5000, 1))]);
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
    assert_eq!(anomalies, []);
    assert_eq!(deltas.seam, Seam::Restarted { from: Epoch(1) });
    assert_eq!(charged(&deltas), [("443".into(), lanes(5000, 1))]);
    assert_eq!(deltas.coverage, Coverage::Gap);
}

#[test]
fn another_meter_or_layer_is_never_subtracted() {
    let prev = snapshot(1, 10, &[("443", lanes(1, 0))]);
    let mut other_layer = snapshot(1, 20, &[("443", lanes(9, 0))]);
    other_layer.layer = Layer::L3Skb;
    let mut other_meter = snapshot(2, 20, &[("443", lanes(9, 0))]);
    other_meter.meter = "tc";
    for next in [other_layer, other_meter] {
        let (deltas, anomalies) = diff(Some(&prev), &next, First::Charge);
        assert_eq!(charged(&deltas), [("443".into(), lanes(0, 0))]);
        assert_eq!(deltas.coverage, Coverage::Gap);
        let replaced = Anomaly::Replaced { from: ("tcx", Layer::L3), to: (next.meter, next.layer) };
        assert_eq!(anomalies, [replaced]);
        // And goes on from there.
        let (deltas, anomalies) = diff(Some(&next), &next, First::Charge);
        assert_eq!((deltas.seam, anomalies), (Seam::Same, vec![]));
    }
}

#[test]
fn a_counter_that_falls_charges_nothing_and_is_named() {
    let prev = snapshot(1, 10, &[("443", lanes(10, 0))]);
    let mut fell = lanes(11, 0);
    fell.udp6.output_bytes = 3;
    let (deltas, anomalies) =
        diff(Some(&prev), &snapshot(1, 20, &[("443", fell)]), First::Baseline);
    let mut want = lanes(1, 0);
    want.udp6.output_bytes = 0;
    assert_eq!(charged(&deltas), [("443".into(), want)]);
    let text: Vec<_> = anomalies.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        ["tcx: output_bytes of udp6 of group 443 fell by 7 within one epoch; nothing is charged"]
    );
}

#[test]
fn a_watched_group_that_vanishes_is_a_gap_and_one_given_up_is_not() {
    let mut prev = snapshot(1, 10, &[("443", lanes(10, 0)), ("80", lanes(10, 0))]);
    let next = snapshot(1, 20, &[("443", lanes(12, 0))]);
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
    assert_eq!(charged(&deltas), [("443".into(), lanes(2, 0))]);
    assert_eq!(deltas.coverage, Coverage::Gap);
    let vanished = Anomaly::Vanished { meter: "tcx", group: group("80") };
    assert_eq!(anomalies, [vanished]);

    Arc::make_mut(&mut prev.groups)[1].watched = false;
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
    assert_eq!((deltas.coverage, anomalies), (Coverage::Complete, vec![]));
}

#[test]
fn ports_that_are_listed_twice_are_one_group() {
    let mut prev = snapshot(1, 10, &[("443=old", lanes(100, 0))]);
    Arc::make_mut(&mut prev.groups)[0].watched = false;
    let mut next = snapshot(1, 20, &[("443=new", lanes(7, 0)), ("443=old", lanes(100, 0))]);
    Arc::make_mut(&mut next.groups)[1].watched = false;
    let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
    assert_eq!(anomalies, []);
    assert_eq!(charged(&deltas), [("443=new".into(), lanes(7, 0))]);
    assert!(deltas.groups[0].watched);
}

#[test]
fn skipped_is_subtracted_only_between_meters_that_can_tell() {
    let other = |input_packets| {
        let other = Traffic { input_packets, ..Traffic::default() };
        Some(Skipped { other, ..Skipped::default() })
    };
    for (epochs, was, is, want) in [
        ((1, 1), other(5), other(8), other(3)),
        ((1, 1), None, other(8), None),
        ((1, 1), other(5), None, None),
        ((1, 2), other(5), other(8), other(8)),
        ((1, 2), None, other(8), other(8)),
        ((1, 1), other(8), other(5), other(0)),
    ] {
        let (mut prev, mut next) = (snapshot(epochs.0, 10, &[]), snapshot(epochs.1, 20, &[]));
        (prev.skipped, next.skipped) = (was, is);
        let (deltas, anomalies) = diff(Some(&prev), &next, First::Baseline);
        assert_eq!(deltas.skipped, want);
        let fell = was.is_some_and(|was| was.other.input_packets == 8);
        assert_eq!(anomalies.len(), usize::from(fell));
    }
}

#[test]
fn rates_are_between_the_ends_of_the_windows() {
    let prev = snapshot(1, 0, &[]);
    let mut next = snapshot(1, 2 * NANOS, &[("443", lanes(3000, 0))]);
    let (deltas, _) = diff(Some(&prev), &next, First::Baseline);
    let rate = deltas.per_second(deltas.groups[0].lanes.tcp4).unwrap();
    assert_eq!((rate.input_bytes, rate.output_packets), (1500, 1500));
    // A clock that was set back, and extremes of it, give no rate rather than a wrong one.
    for end in [0, -1, i128::MIN, i128::MAX] {
        next.window.end = end;
        let (deltas, _) = diff(Some(&prev), &next, First::Baseline);
        assert_eq!(deltas.per_second(deltas.total()), None);
    }
}
