//! Single ticks and what they owe.

use std::sync::Arc;

use super::{
    super::{
        proxy::{Inbound, Subject as Counted, Users, Way},
        reading::{Epoch, GroupReading, Lane, Lanes, Skipped, Window},
        subject::GroupKey,
    },
    *,
};

const START: i128 = 1_000_000 * NANOS;

pub(super) fn snapshot(meter: &'static str, epoch: u64, at: i128, bytes: u64) -> Snapshot {
    let layer = if meter == "nft" { Layer::L3Skb } else { Layer::L3 };
    let tcp4 = Traffic { input_bytes: bytes, input_packets: 1, ..Traffic::default() };
    Snapshot {
        meter,
        layer,
        epoch: Epoch(epoch),
        since: None,
        window: Window { begin: at, end: at },
        coverage: Coverage::Complete,
        groups: Arc::new([GroupReading {
            group: Arc::new("443/tcp=web".parse().unwrap()),
            lanes: Lanes { tcp4, ..Lanes::default() },
            watched: true,
        }]),
        skipped: None,
    }
}

pub(super) fn frame(snapshots: impl IntoIterator<Item = Snapshot>) -> Frame {
    let mut snapshots = snapshots.into_iter().peekable();
    let mut frame = Frame::new(snapshots.peek().map_or(0, |snapshot| snapshot.window.end));
    for snapshot in snapshots {
        frame.insert(snapshot);
    }
    frame
}

fn begin(cursors: Cursors, second: i128) -> State {
    State::begin(cursors, Begin { now: START + second * NANOS, boot: 1 })
}

/// Reads one meter and gives what its group is charged, with the kinds of events.
fn charged(state: &mut State, next: Snapshot) -> (u64, Vec<String>) {
    state.tick(frame([next]), None);
    taken(state)
}

fn taken(state: &mut State) -> (u64, Vec<String>) {
    let plan = state.plan(0);
    let group = |entry: &&Entry| matches!(entry.subject, Subject::Group(_));
    let bytes = plan.entries.iter().filter(group).map(|e| e.usage.traffic.input_bytes).sum();
    (bytes, plan.events.iter().map(|event| event.kind.clone()).collect())
}

fn at(meter: &'static str, epoch: u64, second: i128, bytes: u64) -> Snapshot {
    snapshot(meter, epoch, START + second * NANOS, bytes)
}

fn since(second: i128, next: Snapshot) -> Snapshot {
    let since = i64::try_from((START + second * NANOS) / NANOS).unwrap();
    Snapshot { since: Some(since), ..next }
}

#[test]
fn everything_that_was_counted_is_owed_to_its_subject() {
    let mut state = begin(Cursors::default(), 0);
    let mut next = at("tcx", 7, 10, 100);
    let packet = |input_bytes| Traffic { input_bytes, input_packets: 1, ..Traffic::default() };
    next.skipped = Some(Skipped {
        unwatched: packet(30),
        other: packet(5),
        loopback: packet(1000),
        ..Skipped::default()
    });
    state.tick(frame([since(0, next)]), None);
    let mut plan = state.plan(42);
    plan.entries.sort_by(|a, b| a.subject.cmp(&b.subject));
    let key: GroupKey = "443/tcp".parse().unwrap();
    let traffic =
        |input_bytes, input_packets| Traffic { input_bytes, input_packets, ..Traffic::default() };
    let want = [
        (Subject::Host, None, traffic(135, 3)),
        (Subject::Group(key.clone()), Some(Arc::from("web")), traffic(100, 1)),
        (Subject::Lane(key, Lane::Tcp4), None, traffic(100, 1)),
        (Subject::Relay, None, traffic(30, 1)),
    ]
    .map(|(subject, name, traffic)| Entry {
        subject,
        name,
        usage: Usage { layer: Layer::L3, traffic, coverage: Coverage::Complete },
    });
    assert_eq!(plan.entries, want);
    assert_eq!(plan.at, 42);
    assert!(state.plan(43).entries.is_empty(), "it is owed once");
}

#[test]
fn a_plan_that_is_taken_back_is_owed_again_with_what_came_after() {
    let mut state = begin(Cursors::default(), 0);
    assert_eq!(charged(&mut state, at("tcx", 7, 1, 1000)), (0, vec![]));
    state.tick(frame([at("tcx", 7, 2, 1100)]), None);
    let plan = state.plan(2);
    assert_eq!(plan.cursors.kernel[0].groups[0].lanes.tcp4.input_bytes, 1100);
    state.tick(frame([at("tcx", 7, 3, 1110)]), None);
    state.take_back(plan);
    assert_eq!(taken(&mut state).0, 110);
}

#[test]
fn another_process_goes_on_from_the_cursors() {
    let mut first = begin(Cursors::default(), 0);
    charged(&mut first, since(0, at("tcx", 7, 10, 100)));
    let cursors = first.cursors();
    let resumed = |next| charged(&mut begin(cursors.clone(), 20), next);
    assert_eq!(resumed(at("tcx", 7, 30, 350)), (250, vec![]));
    // Another epoch: charged only if it cannot have run beside the one that was read.
    let restarted = vec!["restarted".to_owned()];
    assert_eq!(resumed(since(15, at("tcx", 8, 30, 350))), (350, restarted.clone()));
    assert_eq!(resumed(since(25, at("tcx", 8, 30, 350))), (350, restarted));
    let unwatched = vec!["unwatched".to_owned()];
    assert_eq!(resumed(since(5, at("tcx", 8, 30, 350))), (0, unwatched.clone()));
    assert_eq!(resumed(at("tcx", 8, 30, 350)), (0, unwatched));
}

/// What is booked as a gap: whose, in which layer, and how much of it was seen.
fn gaps(state: &mut State) -> Vec<(Subject, &'static str, u64)> {
    let gap = |entry: &Entry| entry.usage.coverage == Coverage::Gap;
    let mut gaps: Vec<_> = state.plan(0).entries.into_iter().filter(gap).collect();
    gaps.sort_by(|a, b| a.subject.cmp(&b.subject));
    let of = |entry: Entry| (entry.subject, entry.usage.layer.name(), entry.usage.traffic.bytes());
    gaps.into_iter().map(of).collect()
}

#[test]
fn a_loss_is_booked_to_whom_it_may_concern_though_nothing_was_counted_since() {
    let mut state = begin(Cursors::default(), 100);
    state.watch_proxy(100 * NANOS);
    let key: GroupKey = "443/tcp".parse().unwrap();
    let (host, group) = (Subject::Host, Subject::Group(key.clone()));
    state.tick(frame([at("tcx", 7, 101, 100)]), Some(&poll(101, 50, 1000)));
    state.tick(frame([at("tcx", 7, 102, 130)]), Some(&poll(102, 51, 1500)));
    assert_eq!(gaps(&mut state), []);
    // Both begin again, and have counted nothing.
    let empty = ProxySnapshot { counters: Vec::new(), ..poll(103, 0, 0) };
    let mut next = at("tcx", 8, 103, 0);
    Arc::make_mut(&mut next.groups)[0].lanes = Lanes::default();
    state.tick(frame([next]), Some(&empty));
    let plan = state.plan(0);
    let of_group = plan.entries.iter().find(|entry| entry.subject == group).unwrap();
    assert_eq!(of_group.name.as_deref(), Some("web"));
    state.take_back(plan);
    let user = Subject::User("a@x".into());
    let wanted = [(host.clone(), "l3", 0), (group.clone(), "l3", 0), (user.clone(), "payload", 0)];
    assert_eq!(gaps(&mut state), wanted);
    // Once; and what is counted with it has its gap as well.
    state.tick(frame([at("tcx", 8, 104, 0)]), Some(&ProxySnapshot { ..poll(104, 1, 0) }));
    assert_eq!(gaps(&mut state), []);
    state.tick(frame([at("tcx", 9, 105, 70)]), Some(&poll(105, 0, 30)));
    let wanted = [
        (host, "l3", 0),
        (group, "l3", 70),
        (Subject::Lane(key, Lane::Tcp4), "l3", 70),
        (user, "payload", 37),
    ];
    assert_eq!(gaps(&mut state), wanted);
}

#[test]
fn counters_that_moved_to_another_hook_go_on() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("tcx", 7, 10, 100));
    let changed = vec!["meter-changed".to_owned()];
    assert_eq!(charged(&mut state, at("tc", 7, 20, 130)), (30, changed));
    assert_eq!(charged(&mut state, at("tc", 7, 30, 135)), (5, vec![]));
}

#[test]
fn a_fallback_takes_over_and_gives_back_without_a_byte_lost_or_counted_twice() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("tcx", 7, 10, 100));
    // The last reading of one and the first of the other at one tick.
    state.tick(frame([since(20, at("nft", 1, 20, 3)), at("tcx", 7, 20, 140)]), None);
    let plan = state.plan(0);
    let group: Vec<_> = plan
        .entries
        .iter()
        .filter(|entry| matches!(entry.subject, Subject::Group(_)))
        .map(|entry| (entry.usage.layer.name(), entry.usage.traffic.input_bytes))
        .collect();
    assert_eq!(group.len(), 2);
    assert!(group.contains(&("l3", 40)) && group.contains(&("l3-skb", 3)), "{group:?}");
    assert_eq!(plan.events.iter().map(|e| &*e.kind).collect::<Vec<_>>(), ["meter-changed"]);

    assert_eq!(charged(&mut state, at("nft", 1, 30, 10)), (7, vec![]));
    // Pinned programs went on counting all the while.
    let (bytes, kinds) = charged(&mut state, at("tcx", 7, 40, 147));
    assert_eq!((bytes, kinds), (0, vec!["meter-returned".into(), "meter-changed".into()]));
    assert_eq!(charged(&mut state, at("tcx", 7, 50, 150)), (3, vec![]));
}

#[test]
fn a_meter_that_hands_over_is_charged_to_its_end_and_the_next_one_from_there() {
    let mut first = begin(Cursors::default(), 0);
    charged(&mut first, at("tcx", 7, 10, 100));
    let mut state = begin(first.cursors(), 100);
    let (last, baseline) = (at("tcx", 7, 101, 170), at("nft", 1, 101, 40));
    let said = state.hand_over(last.clone(), baseline.clone(), Traffic::default());
    assert_eq!(said, None);
    assert_eq!(taken(&mut state), (70, vec!["meter-changed".into()]));
    assert_eq!(charged(&mut state, at("nft", 1, 110, 45)), (5, vec![]));

    let mut state = begin(first.cursors(), 100);
    let unseen = Traffic { input_bytes: 9, ..Traffic::default() };
    let said = state.hand_over(last, baseline, unseen);
    assert!(said.is_some_and(|said| said.contains("at most 9 bytes in and 0 out")));
    assert_eq!(taken(&mut state), (70, vec!["meter-changed".into(), "gap".into()]));
}

#[test]
fn counters_of_another_form_take_the_place_of_those_of_the_same_meter_once() {
    let mut first = begin(Cursors::default(), 0);
    charged(&mut first, at("nft", 7, 10, 100));
    let mut state = begin(first.cursors(), 100);
    state.hand_over(at("nft", 7, 101, 170), at("nft", 8, 101, 40), Traffic::default());
    assert_eq!(taken(&mut state), (70, vec!["meter-changed".into()]));
    assert_eq!(charged(&mut state, at("nft", 8, 110, 45)), (5, vec![]));

    // They could not be taken off, and counted on beside the new ones.
    let mut state = begin(state.cursors(), 200);
    let unseen = Traffic { input_bytes: 9, ..Traffic::default() };
    let said = state.hand_over(at("nft", 7, 201, 300), at("nft", 8, 201, 60), unseen);
    assert_eq!(said, None, "nothing of it is charged, and nothing is missed");
    assert_eq!(taken(&mut state), (0, vec![]));
    assert_eq!(charged(&mut state, at("nft", 8, 210, 65)), (20, vec![]));
}

#[test]
fn a_meter_that_is_silent_for_a_while_goes_on() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("tcx", 7, 10, 100));
    state.tick(Frame::new(START + 20 * NANOS), None);
    assert_eq!(taken(&mut state), (0, vec![]));
    assert_eq!(charged(&mut state, at("tcx", 7, 30, 160)), (60, vec![]));
}

#[test]
fn a_new_epoch_under_our_eyes_is_charged_though_the_clock_was_set_back() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("nft", 1, 10, 100));
    let next = since(-3590, at("nft", 2, -3580, 25));
    assert_eq!(charged(&mut state, next), (25, vec!["restarted".into()]));
}

#[test]
fn what_is_wrong_for_long_is_told_once() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("tcx", 7, 10, 100));
    assert_eq!(charged(&mut state, at("tcx", 7, 20, 90)), (0, vec!["regressed".into()]));
    assert_eq!(charged(&mut state, at("tcx", 7, 30, 80)), (0, vec![]));
    assert_eq!(charged(&mut state, at("tcx", 7, 40, 85)), (5, vec![]));
    assert_eq!(charged(&mut state, at("tcx", 7, 50, 84)), (0, vec!["regressed".into()]));
}

#[test]
fn what_was_counted_long_before_is_told_to_be_late() {
    let mut state = begin(Cursors::default(), 0);
    charged(&mut state, at("tcx", 7, 10, 100));
    assert_eq!(charged(&mut state, at("tcx", 7, 1000, 200)), (100, vec!["late".into()]));
}

pub(super) fn poll(second: i128, uptime: u32, downlink: i64) -> ProxySnapshot {
    let name = |way| CounterName { subject: Counted::User("a@x".into()), way };
    let time = second * NANOS;
    ProxySnapshot {
        product: None,
        connection: 1,
        uptime: Some(uptime),
        window: Window { begin: START + time, end: START + time },
        boot: Window { begin: time, end: time },
        counters: vec![(name(Way::Uplink), 7), (name(Way::Downlink), downlink)],
    }
}

/// What the user is charged, by layer.
fn user(state: &mut State) -> Vec<(&'static str, u64, u64)> {
    let mut entries: Vec<_> = state
        .plan(0)
        .entries
        .into_iter()
        .filter(|entry| entry.subject == Subject::User("a@x".into()))
        .map(|entry| {
            let Traffic { input_bytes, output_bytes, .. } = entry.usage.traffic;
            (entry.usage.layer.name(), input_bytes, output_bytes)
        })
        .collect();
    entries.sort_unstable();
    entries
}

#[test]
fn users_are_booked_with_payload_and_their_share_of_the_wire() {
    let mut state = begin(Cursors::default(), 100);
    state.watch_proxy(100 * NANOS);
    let users = Users { emails: vec!["a@x".into()], ..Users::default() };
    let group = "443/tcp=web".parse().unwrap();
    let inbound = Inbound { group, tag: Some("web".into()), protocol: "vmess".into(), users };
    state.merge_mut().configure(&[inbound], &[]);
    let wire = |second, output_bytes| {
        let mut next = at("tcx", 7, second, 1000);
        Arc::make_mut(&mut next.groups)[0].lanes.tcp4.output_bytes = output_bytes;
        frame([next])
    };
    state.tick(wire(101, 0), Some(&poll(101, 50, 1000)));
    assert_eq!(user(&mut state), [], "what was before is nobody's");
    state.tick(wire(102, 515), Some(&poll(102, 51, 1500)));
    assert_eq!(user(&mut state), [("l3", 0, 515), ("payload", 0, 500)]);
    // Beginning the shown numbers anew takes nothing from the books.
    state.merge_mut().reset_user("a@x");
    state.tick(wire(103, 1030), Some(&poll(103, 52, 2000)));
    assert_eq!(user(&mut state), [("l3", 0, 515), ("payload", 0, 500)]);
    // And setting the proxy's counters to zero books what they had moved until then.
    let name = |way| CounterName { subject: Counted::User("a@x".into()), way };
    state.counters_were_reset(&[(name(Way::Uplink), 8), (name(Way::Downlink), 2010)]);
    assert_eq!(user(&mut state), [("payload", 1, 10)]);
}

#[test]
fn what_was_left_must_still_be_there_within_one_boot() {
    let mut first = begin(Cursors::default(), 100);
    first.tick(frame([snapshot("nft", 7, 110 * NANOS, 1000)]), None);
    let left = |cursors: Cursors, boot| {
        let state = State::begin(cursors, Begin { now: 200 * NANOS, boot });
        state.left().map(|left| (left.meter, left.place.clone()))
    };
    let boot = first.boot;
    first.leave("nft", None);
    assert_eq!(left(first.cursors(), boot), None);
    first.leave("nft", Some("here".to_owned()));
    let wanted = Some(("nft", "here".to_owned()));
    assert_eq!(left(first.cursors(), boot), wanted);
    assert_eq!(left(first.cursors(), boot + 1), None, "another boot has taken it away");
    first.leave("tcx", None);
    assert_eq!(left(first.cursors(), boot), wanted, "it goes on beside a run of another meter");
    let mut later = first.cursors();
    later.kernel[0].epoch = Epoch(8);
    assert_eq!(left(later, boot), None, "somebody who knew nothing of it has read others since");

    let mut next = State::begin(first.cursors(), Begin { now: 200 * NANOS, boot });
    let what = next.left_is_gone(200 * NANOS).unwrap();
    let [event] = next.plan(200).events.try_into().unwrap();
    assert_eq!((event.kind.as_str(), event.what), ("gap", what));
    assert_eq!(next.left(), None);
}

#[test]
fn what_is_taken_off_on_purpose_is_not_missed_and_the_rest_goes_on_from_where_it_is() {
    let mut state = begin(Cursors::default(), 100);
    let is_left = |state: &State| begin(state.cursors(), 200).left().is_some();
    state.leave("nft", Some(String::new()));
    assert_eq!(charged(&mut state, snapshot("nft", 7, 110 * NANOS, 1000)).0, 0);
    state.begin_at_zero(|_| true, 110 * NANOS);
    assert_eq!(charged(&mut state, snapshot("nft", 7, 120 * NANOS, 1500)).0, 500);
    // Its counters go on, and what they have counted meanwhile is charged.
    let rest = frame([snapshot("nft", 7, 121 * NANOS, 1700)]);
    state.took_off("nft", Some(rest), "port 80".to_owned(), 121 * NANOS);
    assert_eq!(taken(&mut state), (200, vec!["cleaned".to_owned()]));
    assert!(is_left(&state) && state.cursors().zeros.0.len() == 1);
    // They begin again with the rules, in the same epoch.
    let rest = frame([snapshot("nft", 7, 122 * NANOS, 30)]);
    state.took_off("nft", Some(rest), "port 443".to_owned(), 122 * NANOS);
    assert_eq!(taken(&mut state), (30, vec!["cleaned".to_owned()]));
    assert!(is_left(&state) && state.cursors().zeros.0.is_empty());
    let (bytes, kinds) = charged(&mut state, snapshot("nft", 7, 130 * NANOS, 70));
    assert_eq!((bytes, kinds), (40, vec![]));
    state.took_off("nft", None, "all".to_owned(), 140 * NANOS);
    assert!(!is_left(&state));
}

/// Counters are in no order.
fn sorted(mut cursors: Cursors) -> Cursors {
    let counters = cursors.proxy.as_mut().map(|proxy| &mut proxy.kept.counters);
    counters.into_iter().for_each(|counters| counters.sort_by(|a, b| a.name.cmp(&b.name)));
    cursors
}

#[test]
fn a_proxy_goes_on_from_its_cursor_and_after_a_boot_from_zero() {
    let mut first = begin(Cursors::default(), 100);
    first.watch_proxy(100 * NANOS);
    first.tick(Frame::new(0), Some(&poll(101, 50, 1000)));
    first.tick(Frame::new(0), Some(&poll(102, 51, 1500)));
    assert_eq!(user(&mut first), [("payload", 0, 500)]);
    let cursors = sorted(first.cursors());

    let told = |boot, next: &ProxySnapshot| {
        let mut state = State::begin(cursors.clone(), Begin { now: START + 200 * NANOS, boot });
        state.watch_proxy(next.boot.begin - NANOS);
        let payload = state.tick(Frame::new(0), Some(next)).payload.unwrap();
        let kinds = state.plan(0).events.into_iter().map(|event| event.kind).collect::<Vec<_>>();
        (payload.coverage, kinds)
    };
    let gap = || vec!["gap".to_owned()];
    assert_eq!(told(1, &poll(300, 249, 1800)), (Coverage::Complete, vec![]));
    assert_eq!(told(2, &poll(90, 80, 1800)), (Coverage::Gap, gap()));
    assert_eq!(told(2, &poll(90, 5000, 1800)), (Coverage::Gap, gap()));
    let resumed = |boot, next: &ProxySnapshot| {
        let mut state = State::begin(cursors.clone(), Begin { now: START + 200 * NANOS, boot });
        assert_eq!(sorted(state.cursors()), cursors, "kept until the proxy is polled");
        state.watch_proxy(next.boot.begin - NANOS);
        state.tick(Frame::new(0), Some(next));
        assert_ne!(sorted(state.cursors()), cursors);
        user(&mut state)
    };
    // The same life, a later one, and one after a boot of the host.
    assert_eq!(resumed(1, &poll(300, 249, 1800)), [("payload", 0, 300)]);
    assert_eq!(resumed(1, &poll(300, 20, 1800)), [("payload", 7, 1800)]);
    assert_eq!(resumed(2, &poll(90, 80, 1800)), [("payload", 7, 1800)]);
    // One on another host, which went on while this one was booted: a baseline, and a gap.
    assert_eq!(resumed(2, &poll(90, 5000, 1800)), [("payload", 0, 0)]);
}

#[test]
fn what_a_lost_ledger_knew_is_a_gap_of_all_groups_and_the_host_and_is_told_once() {
    let mut state = begin(Cursors::default(), 0);
    state.forgot();
    state.tick(frame([at("tcx", 7, 10, 100)]), None);
    let plan = state.plan(0);
    let mut gaps: Vec<_> = plan.entries.iter().map(|entry| (&entry.subject, entry.usage)).collect();
    gaps.sort_by_key(|(subject, _)| *subject);
    let nothing = Usage { layer: Layer::L3, traffic: Traffic::default(), coverage: Coverage::Gap };
    assert_eq!(
        gaps,
        [(&Subject::Host, nothing), (&Subject::Group("443/tcp".parse().unwrap()), nothing)]
    );
    assert_eq!(plan.events.len(), 1);
    assert_eq!(plan.events[0].kind, "gap");
    state.tick(frame([at("tcx", 7, 20, 130)]), None);
    let plan = state.plan(0);
    assert!(plan.events.is_empty());
    assert!(plan.entries.iter().all(|entry| entry.usage.coverage == Coverage::Complete));
    state.take_back(plan);
    assert_eq!(taken(&mut state).0, 30);
}
