//! Each rule by example.

use super::{
    super::{
        delta::{GroupDelta, Seam},
        payload::Cause,
        proxy::{CounterName, ProxySnapshot, Users},
        reading::{Epoch, GroupReading, Lanes, Layer, Skipped, Snapshot, Window},
        stats::{ApiReport, GroupStats, StatsReport},
    },
    *,
};

pub(super) fn group(text: &str) -> Arc<Group> {
    Arc::new(text.parse().unwrap())
}

/// `443=in`: the name is the tag as well.
pub(super) fn inbound(text: &str, users: &[&str]) -> Inbound {
    let group: Group = text.parse().unwrap();
    Inbound {
        tag: group.name().map(Arc::from),
        group,
        protocol: "vless".into(),
        users: Users {
            emails: users.iter().map(|email| Arc::from(*email)).collect(),
            nameless: 0,
            unknown: users.is_empty(),
        },
    }
}

/// What the kernel counted: input and output bytes.
pub(super) fn kernel(groups: &[(&str, u64, u64)]) -> Deltas {
    let delta = |(text, input_bytes, output_bytes): &(&str, u64, u64)| GroupDelta {
        group: group(text),
        lanes: Lanes {
            tcp4: Traffic {
                input_bytes: *input_bytes,
                output_bytes: *output_bytes,
                ..Traffic::default()
            },
            ..Lanes::default()
        },
        watched: true,
    };
    Deltas {
        meter: "tcx",
        layer: Layer::L3,
        epoch: Epoch(1),
        seam: Seam::Same,
        from: None,
        to: 0,
        coverage: Coverage::Complete,
        groups: groups.iter().map(delta).collect(),
        skipped: None,
    }
}

/// What the proxy counted, a user without a prefix: uplink and downlink.
pub(super) fn payload(seam: PayloadSeam, charges: &[(&str, u64, u64)]) -> PayloadDeltas {
    let charge = |(who, uplink, downlink): &(&str, u64, u64)| {
        let subject = match who.strip_prefix("in:") {
            Some(tag) => Subject::Inbound(tag.into()),
            None => Subject::User((*who).into()),
        };
        (subject, Payload { uplink: *uplink, downlink: *downlink })
    };
    PayloadDeltas {
        seam,
        from: None,
        to: 0,
        charges: charges.iter().map(charge).collect(),
        gone: Vec::new(),
        gaps: Vec::new(),
        anomalies: Vec::new(),
        coverage: Coverage::Complete,
    }
}

pub(super) fn merge(inbounds: &[Inbound]) -> Merge {
    let mut merge = Merge::default();
    merge.configure(inbounds, &[]);
    merge
}

pub(super) fn report(merge: &Merge) -> StatsReport {
    let api = ApiReport { state: "ok", since: None, product: None, uptime: None };
    merge.report(7, api)
}

pub(super) fn of<'a>(report: &'a StatsReport, text: &str) -> &'a GroupStats {
    let wanted = group(text);
    report.groups.iter().find(|group| group.group.same_ports(&wanted)).unwrap()
}

/// Each user's kernel bytes in and out, then what is nobody's.
#[track_caller]
fn shares(merge: &Merge, text: &str, want: &[(&str, u64, u64)], nobody: (u64, u64)) {
    let report = report(merge);
    let group = of(&report, text);
    let wire = |user: &super::super::stats::UserStats| {
        let wire = user.wire.unwrap();
        (user.email.to_string(), wire.input, wire.output)
    };
    let got: Vec<_> = group.users.iter().map(wire).collect();
    let want: Vec<_> = want.iter().map(|(email, i, o)| ((*email).to_owned(), *i, *o)).collect();
    assert_eq!(got, want);
    let unattributed = group.unattributed.unwrap();
    assert_eq!((unattributed.input, unattributed.output), nobody);
}

const SAME: PayloadSeam = PayloadSeam::Same;

#[test]
fn payload_draws_at_most_the_multiple_and_the_rest_stays_unattributed() {
    let mut merge = merge(&[inbound("443=in", &["a", "b"])]);
    merge.tick(Some(&kernel(&[("443", 500, 90_000)])), None);
    shares(&merge, "443", &[("a", 0, 0), ("b", 0, 0)], (500, 90_000));
    // 1.0497 times each one's payload, whatever waits there.
    merge.tick(None, Some(&payload(SAME, &[("a", 100, 1000)])));
    shares(&merge, "443", &[("a", 104, 1049), ("b", 0, 0)], (396, 88_951));
    merge.tick(None, Some(&payload(SAME, &[("b", 0, 80_000)])));
    shares(&merge, "443", &[("a", 104, 1049), ("b", 0, 83_979)], (396, 4972));
}

#[test]
fn one_known_user_does_not_answer_for_scans() {
    let mut merge = merge(&[inbound("443=in", &["a"])]);
    for _ in 0..1000 {
        let charges = [("a", 10, 10), ("in:in", 0, 0)];
        merge.tick(Some(&kernel(&[("443", 900, 900)])), Some(&payload(SAME, &charges)));
    }
    let report = report(&merge);
    let wire = of(&report, "443").users[0].wire.unwrap();
    assert_eq!((wire.input, wire.output), (10_000, 10_000));
    assert_eq!(of(&report, "443").unattributed, Some(Wire { input: 890_000, output: 890_000 }));
}

#[test]
fn what_is_too_little_is_shared_by_payload() {
    let mut merge = merge(&[inbound("443=in", &["a", "b", "c"])]);
    let charges = [("c", 0, 500), ("a", 0, 500), ("b", 0, 500)];
    merge.tick(Some(&kernel(&[("443", 0, 1000)])), Some(&payload(SAME, &charges)));
    shares(&merge, "443", &[("a", 0, 334), ("b", 0, 333), ("c", 0, 333)], (0, 0));
}

#[test]
fn payload_that_is_ahead_of_the_wire_claims_later_bytes() {
    let mut merge = merge(&[inbound("443=in", &["a", "b"])]);
    merge.tick(Some(&kernel(&[("443", 0, 600)])), Some(&payload(SAME, &[("a", 0, 1000)])));
    shares(&merge, "443", &[("a", 0, 600), ("b", 0, 0)], (0, 0));
    // A tick without a poll serves the claim too; an eighth of it has lapsed.
    merge.tick(Some(&kernel(&[("443", 0, 5000)])), None);
    shares(&merge, "443", &[("a", 0, 967), ("b", 0, 0)], (0, 4633));
    // It is served; nothing more is claimed.
    merge.tick(Some(&kernel(&[("443", 0, 5000)])), None);
    shares(&merge, "443", &[("a", 0, 967), ("b", 0, 0)], (0, 9633));
}

#[test]
fn a_claim_that_finds_nothing_lapses_and_is_bounded() {
    let mut one = merge(&[inbound("443=in", &["a"])]);
    one.tick(Some(&kernel(&[("443", 0, 0)])), Some(&payload(SAME, &[("a", 0, 1000)])));
    for _ in 0..60 {
        one.tick(Some(&kernel(&[("443", 0, 0)])), None);
    }
    one.tick(Some(&kernel(&[("443", 0, 5000)])), None);
    shares(&one, "443", &[("a", 0, 0)], (0, 5000));

    let mut two = merge(&[inbound("443=in", &["a"])]);
    two.tick(Some(&kernel(&[("443", 0, 0)])), Some(&payload(SAME, &[("a", 0, 1 << 40)])));
    two.tick(Some(&kernel(&[("443", 0, 1 << 41)])), None);
    let claim = 64_u64 << 20;
    let served = (claim - claim / 8) * 68_796 / 65_536;
    shares(&two, "443", &[("a", 0, served)], (0, (1 << 41) - served));

    // What lay in the buffers of a process died with it.
    let mut three = merge(&[inbound("443=in", &["a"])]);
    three.tick(Some(&kernel(&[("443", 0, 0)])), Some(&payload(SAME, &[("a", 0, 1000)])));
    three.tick(
        Some(&kernel(&[("443", 0, 5000)])),
        Some(&payload(PayloadSeam::Restarted, &[("a", 0, 100)])),
    );
    shares(&three, "443", &[("a", 0, 104)], (0, 4896));
}

#[test]
fn a_user_in_two_groups_is_counted_once_and_draws_where_bytes_are_pending() {
    let mut merge = merge(&[inbound("443=in", &["a", "b"]), inbound("8443=two", &["a"])]);
    merge.tick(
        Some(&kernel(&[("443", 0, 3000), ("8443", 0, 1000)])),
        Some(&payload(SAME, &[("a", 0, 2000), ("in:in", 5, 6)])),
    );
    shares(&merge, "443", &[("a", 0, 1574), ("b", 0, 0)], (0, 1426));
    shares(&merge, "8443", &[("a", 0, 524)], (0, 476));
    let report = report(&merge);
    assert_eq!(report.system_total.payload, Payload { uplink: 0, downlink: 2000 });
    assert_eq!((report.system_total.active_users, report.system_total.active_groups), (1, 2));
    let user = &of(&report, "8443").users[0];
    assert_eq!((user.shared, user.payload.downlink), (true, 2000));
    assert!(!of(&report, "443").users[1].shared);
    assert_eq!(of(&report, "443").group_total, Some(Payload { uplink: 5, downlink: 6 }));
    assert_eq!(of(&report, "8443").group_total, None);
    assert_eq!(of(&report, "443").overhead, Some((3000, 1500)));
    assert_eq!(of(&report, "443").overhead_ratio(), Some(2.0));
}

#[test]
fn a_config_that_changes_loses_nothing() {
    let mut merge = merge(&[inbound("443=in", &["a", "b"]), inbound("8443=two", &["c"])]);
    let first = [("a", 0, 1000), ("b", 0, 1000), ("c", 0, 1000), ("in:two", 0, 1000)];
    let wire = [("443", 0, 3000), ("8443", 0, 1000), ("53/udp", 10, 10)];
    merge.tick(Some(&kernel(&wire)), Some(&payload(SAME, &first)));
    // One group is gone, one has another tag; a user moved, another is gone.
    merge.configure(&[inbound("80=three", &["z", "a"]), inbound("443=other", &["c"])], &[]);
    let second = [("a", 0, 50), ("b", 0, 50), ("c", 0, 50), ("in:other", 0, 9), ("in:two", 0, 9)];
    merge.tick(Some(&kernel(&[("443", 0, 500), ("80", 0, 40)])), Some(&payload(SAME, &second)));
    shares(&merge, "443", &[("c", 0, 52), ("a", 0, 1049), ("b", 0, 1101)], (0, 1298));
    shares(&merge, "80", &[("z", 0, 0), ("a", 0, 40)], (0, 0));
    shares(&merge, "8443", &[("c", 0, 1000)], (0, 0));
    shares(&merge, "53/udp", &[], (10, 10));
    let report = report(&merge);
    let order: Vec<_> = report
        .groups
        .iter()
        .map(|g| (g.port().unwrap(), g.configured, g.protocol.is_some()))
        .collect();
    assert_eq!(
        order,
        [(80, true, true), (443, true, true), (8443, false, true), (53, false, false)]
    );
    assert_eq!(of(&report, "443").tag.as_deref(), Some("other"));
    assert_eq!(of(&report, "443").group_total, Some(Payload { uplink: 0, downlink: 9 }));
    assert_eq!(of(&report, "8443").group_total, Some(Payload { uplink: 0, downlink: 1000 }));
    assert_eq!(report.system_total.payload, Payload { uplink: 0, downlink: 3150 });
    assert_eq!(report.anomalies, []);
}

#[test]
fn a_user_whom_the_config_does_not_name_draws_only_where_there_is_no_choice() {
    let mut one = merge(&[inbound("443=in", &["a"])]);
    one.tick(Some(&kernel(&[("443", 0, 500)])), Some(&payload(SAME, &[("new", 0, 100)])));
    shares(&one, "443", &[("a", 0, 0), ("new", 0, 104)], (0, 396));
    assert_eq!(report(&one).anomalies, []);

    let mut two = merge(&[inbound("443=in", &["a"]), inbound("80=web", &[])]);
    two.tick(
        Some(&kernel(&[("443", 0, 500), ("80", 0, 500)])),
        Some(&payload(SAME, &[("new", 0, 100), ("old", 0, 0), ("in:web", 1, 2)])),
    );
    shares(&two, "443", &[("a", 0, 0)], (0, 500));
    let report = report(&two);
    let unplaced: Vec<_> = report.unplaced.iter().map(|user| (&*user.email, user.wire)).collect();
    assert_eq!(unplaced, [("new", None)]);
    assert_eq!(report.anomalies, [Anomaly::Unplaced { users: vec!["new".into()] }]);
    // Once, and with what nobody is known for.
    assert_eq!(report.system_total.payload, Payload { uplink: 1, downlink: 102 });
    let unknown: Vec<_> = report.groups.iter().map(|group| group.users_unknown).collect();
    assert_eq!(unknown, [false, true]);
    // No user is counted there, so the inbound's counter is the payload.
    assert_eq!(of(&report, "80").overhead, Some((500, 3)));
}

#[test]
fn what_was_not_measured_is_not_zero() {
    let mut merge = merge(&[inbound("443=in", &["a"])]);
    merge.tick(None, Some(&payload(SAME, &[("a", 1, 2)])));
    let first = report(&merge);
    let group = of(&first, "443");
    assert_eq!((group.kernel, group.unattributed, group.users[0].wire), (None, None, None));
    assert_eq!((group.overhead, first.relay), (None, None));
    let unwatched = Traffic { output_bytes: 5, ..Traffic::default() };
    let skipped = Some(Skipped { unwatched, ..Skipped::default() });
    merge.tick(Some(&Deltas { skipped, ..kernel(&[("443", 0, 0)]) }), None);
    merge.tick(Some(&Deltas { skipped, ..kernel(&[("443", 0, 0)]) }), None);
    let traffic = Traffic { output_bytes: 10, ..Traffic::default() };
    let relay = Relayed { traffic, coverage: Coverage::Complete };
    assert_eq!(report(&merge).relay, Some(relay));
}

#[test]
fn a_ratio_is_of_one_span() {
    let mut merge = merge(&[inbound("443=in", &["a"])]);
    let baseline = PayloadSeam::First(First::Baseline);
    let tick = |merge: &mut Merge, wire, seam, bytes| {
        merge.tick(Some(&kernel(&[("443", 0, wire)])), Some(&payload(seam, &[("a", 0, bytes)])));
    };
    tick(&mut merge, 7000, baseline, 0);
    assert_eq!(of(&report(&merge), "443").overhead, None);
    tick(&mut merge, 1100, SAME, 1000);
    // Not polled: its bytes are of the next poll's span.
    merge.tick(Some(&kernel(&[("443", 0, 900)])), None);
    assert_eq!(of(&report(&merge), "443").overhead, Some((1100, 1000)));
    tick(&mut merge, 200, SAME, 1000);
    tick(&mut merge, 5000, PayloadSeam::Restarted, 10);
    assert_eq!(of(&report(&merge), "443").overhead, Some((2200, 2000)));
}

#[test]
fn meters_that_contradict_one_another_are_named() {
    let mut merge = merge(&[inbound("443=in", &["a"]), inbound("80=web", &["b"])]);
    let mut quiet = inbound("81=x", &["a"]);
    quiet.users.nameless = 2;
    merge.configure(&[inbound("443=in", &["a"]), inbound("80=web", &["b"]), quiet], &["b".into()]);
    let wire = kernel(&[("443", 0, 1 << 20), ("80", 0, 100 << 20), ("81", 0, 0)]);
    let charges = [("b", 0, 1000), ("in:in", 0, 0)];
    merge.tick(Some(&wire), Some(&payload(PayloadSeam::First(First::Charge), &charges)));
    let standing = [
        Anomaly::Nameless { group: group("81=x"), users: 2 },
        Anomaly::NotCounted { users: vec!["b".into()] },
    ];
    assert_eq!(report(&merge).anomalies, standing);
    for _ in 1..30 {
        merge.tick(None, Some(&payload(SAME, &[])));
    }
    let silent = Anomaly::ApiSilent { group: group("80=web"), payload: 1000, wire: 100 << 20 };
    assert_eq!(report(&merge).anomalies[0], silent);
    // Buffers explain a payload that is a little ahead, and no more.
    let ahead = (100 << 20) + (2 << 20) + (32 << 20);
    merge.tick(None, Some(&payload(SAME, &[("b", 0, ahead - 1000)])));
    assert_eq!(report(&merge).anomalies, standing);
    merge.tick(None, Some(&payload(SAME, &[("b", 0, 1)])));
    let (wire, way) = (100 << 20, Way::Downlink);
    let above = Anomaly::AboveWire { group: group("80=web"), way, payload: ahead + 1, wire };
    assert_eq!(report(&merge).anomalies[0], above);
    // A life that began unseen may report what passed before.
    merge.tick(None, Some(&payload(PayloadSeam::Replaced, &[])));
    merge.tick(None, Some(&payload(SAME, &[("b", 0, 1 << 40)])));
    assert_eq!(report(&merge).anomalies, standing);
}

#[test]
fn gaps_and_events_are_of_their_tick() {
    let mut merge = merge(&[inbound("443=in", &["a"])]);
    let gap = Gap {
        counter: None,
        cause: Cause::Restarted,
        least: Payload::default(),
        most: None,
        from: 1,
        to: 2,
    };
    let restarted = PayloadDeltas {
        gaps: vec![gap.clone()],
        anomalies: vec![Anomaly::ProxyRestarted { began: None }],
        coverage: Coverage::Gap,
        ..payload(PayloadSeam::Restarted, &[])
    };
    merge.tick(None, Some(&restarted));
    let first = report(&merge);
    assert_eq!(first.gaps, [gap]);
    assert_eq!(first.anomalies, [Anomaly::ProxyRestarted { began: None }]);
    merge.tick(None, Some(&payload(SAME, &[])));
    let second = report(&merge);
    assert_eq!((second.gaps, second.anomalies), (vec![], vec![]));
    // What was missed stays missed.
    assert_eq!(second.coverage, Coverage::Gap);
}

#[test]
fn totals_of_different_epochs_are_estimated_and_not_compared() {
    let snapshot = Snapshot {
        meter: "tcx",
        layer: Layer::L3,
        epoch: Epoch(1),
        since: Some(1000),
        window: Window::default(),
        coverage: Coverage::Complete,
        groups: Arc::new([GroupReading {
            group: group("443"),
            lanes: kernel(&[("443", 0, 1 << 30)]).groups[0].lanes,
            watched: true,
        }]),
        skipped: None,
    };
    let poll = |uptime| ProxySnapshot {
        product: None,
        connection: 0,
        uptime,
        window: Window { begin: 0, end: 2000 * 1_000_000_000 },
        boot: Window::default(),
        counters: vec![(CounterName::parse("user>>>a>>>traffic>>>downlink").unwrap(), 1 << 29)],
    };
    let inbounds = [inbound("443=in", &["a"])];
    for (uptime, coverage, overhead) in [
        (Some(1000), Coverage::Complete, Some((1 << 30, 1 << 29))),
        (Some(1001), Coverage::Complete, Some((1 << 30, 1 << 29))),
        (Some(10), Coverage::Estimated, None),
        (Some(90_000), Coverage::Estimated, None),
        (None, Coverage::Estimated, None),
    ] {
        let report = report(&once(Some(&snapshot), Some(&poll(uptime)), &inbounds, &[]));
        assert_eq!(report.coverage, coverage, "{uptime:?}");
        assert_eq!(of(&report, "443").overhead, overhead, "{uptime:?}");
        assert_eq!(of(&report, "443").users[0].payload.downlink, 1 << 29);
    }
    let alone = report(&once(Some(&snapshot), None, &inbounds, &[]));
    assert_eq!(
        (alone.coverage, of(&alone, "443").kernel.unwrap().output_bytes),
        (Coverage::Complete, 1 << 30)
    );
}
