//! Each outcome by example.

use super::{
    super::{proxy::Product, reading::Window},
    *,
};

const SECOND: i128 = NANOS;
/// Unix time when the clock of boot shows 0, in seconds.
const BOOT: i128 = 1_700_000_000;

pub(super) fn name(text: &str) -> CounterName {
    let (who, way) = text.rsplit_once(' ').unwrap();
    CounterName::parse(&format!("{who}>>>traffic>>>{way}link")).unwrap()
}

/// A poll at a second of boot time, of a proxy that was started at another.
pub(super) fn poll(at: i128, started: Option<i128>, counters: &[(&str, i64)]) -> ProxySnapshot {
    let uptime = started.map(|started| u32::try_from(at - started).unwrap());
    let boot = Window { begin: at * SECOND, end: at * SECOND + 1_000_000 };
    let unix = |time: i128| time + BOOT * SECOND;
    ProxySnapshot {
        product: Some(Product::Xray),
        connection: 0,
        uptime,
        window: Window { begin: unix(boot.begin), end: unix(boot.end) },
        boot,
        counters: counters.iter().map(|(text, value)| (name(text), *value)).collect(),
    }
}

fn charged(deltas: &PayloadDeltas) -> Vec<(&str, u64, u64)> {
    deltas
        .charges
        .iter()
        .map(|(subject, payload)| match subject {
            Subject::User(who) | Subject::Inbound(who) | Subject::Outbound(who) => {
                (&**who, payload.uplink, payload.downlink)
            }
        })
        .collect()
}

fn causes(deltas: &PayloadDeltas) -> Vec<(Option<String>, Cause)> {
    let text = |gap: &Gap| (gap.counter.as_ref().map(ToString::to_string), gap.cause);
    deltas.gaps.iter().map(text).collect()
}

fn of(name: &str) -> Option<String> {
    let (who, way) = name.rsplit_once(' ').unwrap();
    Some(format!("{who}>>>traffic>>>{way}link"))
}

/// Follows polls one after another and gives what the last one charges.
fn last(begin: First, polls: &[ProxySnapshot]) -> PayloadDeltas {
    let mut state = Polls::default();
    let deltas = polls.iter().map(|poll| state.follow(poll, begin, None)).last();
    deltas.unwrap()
}

#[test]
fn a_first_poll_is_charged_only_if_the_proxy_began_under_our_eyes() {
    let next = poll(1000, Some(900), &[("user>>>a up", 5), ("user>>>a down", 7)]);
    for (watched, want, charge) in [
        (898, First::Charge, ("a", 5, 7)),
        // Its uptime lacks its fraction: it may have begun a second before.
        (899, First::Charge, ("a", 5, 7)),
        (900, First::Baseline, ("a", 0, 0)),
        (950, First::Baseline, ("a", 0, 0)),
    ] {
        let begin = first(&next, watched * SECOND);
        assert_eq!(begin, want, "{watched}");
        let deltas = last(begin, std::slice::from_ref(&next));
        assert_eq!(deltas.seam, PayloadSeam::First(want));
        assert_eq!(charged(&deltas), [charge]);
        assert_eq!(deltas.coverage, Coverage::Complete);
        let began = (BOOT + 900) * SECOND + 1_000_000;
        assert_eq!(deltas.from, (want == First::Charge).then_some(began));
    }
    assert_eq!(first(&poll(1000, None, &[]), 0), First::Baseline);
}

#[test]
fn counters_of_one_life_are_subtracted_and_new_ones_are_charged_whole() {
    let deltas = last(
        First::Baseline,
        &[
            poll(1000, Some(900), &[("inbound>>>in up", 100), ("user>>>a up", 10)]),
            poll(
                1010,
                Some(900),
                &[("inbound>>>in up", 150), ("user>>>a down", 4), ("user>>>a up", 30)],
            ),
        ],
    );
    assert_eq!(deltas.seam, PayloadSeam::Same);
    assert_eq!(charged(&deltas), [("in", 50, 0), ("a", 20, 4)]);
    assert_eq!((deltas.gaps, deltas.anomalies), (vec![], vec![]));
    assert_eq!(deltas.from, Some((BOOT + 1000) * SECOND + 1_000_000));
}

#[test]
fn a_restart_is_told_by_age_and_not_by_values() {
    for (uptime_before, at, started, values) in [
        // An ordinary one.
        (100, 1010, 1005, (3, 4)),
        // After missed polls: older than the one before ever was when it was read, all values past.
        (5, 1600, 1300, (5000, 6000)),
        // Right after the last poll.
        (100, 1010, 1001, (10, 10)),
    ] {
        let counters = [("user>>>a down", values.0), ("user>>>a up", values.1)];
        let deltas = last(
            First::Baseline,
            &[
                poll(1000, Some(1000 - uptime_before), &[("user>>>a down", 9), ("user>>>a up", 9)]),
                poll(at, Some(started), &counters),
            ],
        );
        assert_eq!(deltas.seam, PayloadSeam::Restarted);
        let (down, up) = (values.0.unsigned_abs(), values.1.unsigned_abs());
        assert_eq!(charged(&deltas), [("a", up, down)]);
        assert_eq!(causes(&deltas), [(None, Cause::Restarted)]);
        assert_eq!(deltas.gaps[0].from, (BOOT + 1000) * SECOND + 1_000_000);
        assert_eq!(deltas.gaps[0].to, (BOOT + started) * SECOND + 1_000_000);
        assert_eq!(deltas.coverage, Coverage::Gap);
        let began = Some(deltas.gaps[0].to);
        assert_eq!(deltas.anomalies, [Anomaly::ProxyRestarted { began }]);
    }
}

#[test]
fn a_reset_by_somebody_else_concerns_its_counter_alone() {
    let mut state = Polls::default();
    let start = [("user>>>a up", 100), ("user>>>b up", 100)];
    state.follow(&poll(1000, Some(0), &start), First::Baseline, None);
    let most = Payload { uplink: 777, downlink: 0 };
    let next = [("user>>>a up", 40), ("user>>>b up", 140)];
    let deltas = state.follow(&poll(1010, Some(0), &next), First::Baseline, Some(most));
    assert_eq!(deltas.seam, PayloadSeam::Reset);
    assert_eq!(charged(&deltas), [("a", 40, 0), ("b", 40, 0)]);
    assert_eq!(causes(&deltas), [(of("user>>>a up"), Cause::Reset)]);
    assert_eq!(deltas.gaps[0].most, Some(most));
    assert_eq!(deltas.anomalies, [Anomaly::CountersReset { counters: vec![name("user>>>a up")] }]);
}

#[test]
fn an_absent_counter_is_not_zero_and_goes_on_from_its_last_value() {
    let absent = [poll(1000, Some(0), &[("user>>>a up", 100)]), poll(1010, Some(0), &[])];
    assert_eq!(last(First::Baseline, &absent).anomalies, []);
    for (value, charge, cause) in
        [(100, 0, Cause::Returned), (130, 30, Cause::Returned), (99, 99, Cause::Reset)]
    {
        let mut polls = absent.to_vec();
        polls.push(poll(1020, Some(0), &[("user>>>a up", value)]));
        let deltas = last(First::Baseline, &polls);
        assert_eq!(charged(&deltas), [("a", charge, 0)]);
        assert_eq!(causes(&deltas), [(of("user>>>a up"), cause)]);
    }
    // In another life it has no last value.
    let mut polls = absent.to_vec();
    polls.push(poll(1020, Some(1015), &[]));
    polls.push(poll(1030, Some(1015), &[("user>>>a up", 500)]));
    let deltas = last(First::Baseline, &polls);
    assert_eq!((charged(&deltas), causes(&deltas)), (vec![("a", 500, 0)], vec![]));
}

#[test]
fn values_below_zero_charge_nothing_and_the_last_good_one_stays() {
    let counter = name("user>>>a up");
    for value in [-1, i64::MIN] {
        let polls = [
            poll(1000, Some(0), &[("user>>>a up", 100)]),
            poll(1010, Some(0), &[("user>>>a up", value)]),
            poll(1020, Some(0), &[("user>>>a up", 150)]),
        ];
        let deltas = last(First::Baseline, &polls[..2]);
        assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Same, vec![("a", 0, 0)]));
        assert_eq!(deltas.anomalies, [Anomaly::Negative { counter: counter.clone(), value }]);
        let deltas = last(First::Baseline, &polls);
        assert_eq!(charged(&deltas), [("a", 50, 0)]);
        assert_eq!(causes(&deltas), [(of("user>>>a up"), Cause::Returned)]);

        // Where even the first one is none, there is nothing to subtract from.
        let polls = [
            poll(1000, Some(0), &[("user>>>a up", value)]),
            poll(1010, Some(0), &[("user>>>a up", 150)]),
        ];
        let deltas = last(First::Baseline, &polls);
        assert_eq!(charged(&deltas), [("a", 0, 0)]);
        assert_eq!(causes(&deltas), [(of("user>>>a up"), Cause::NoBaseline)]);
    }
}

#[test]
fn the_largest_value_fits() {
    let deltas = last(
        First::Charge,
        &[poll(9, Some(0), &[("user>>>a down", i64::MAX), ("user>>>a up", i64::MAX)])],
    );
    let most = i64::MAX.unsigned_abs();
    assert_eq!(charged(&deltas), [("a", most, most)]);
    assert_eq!(deltas.charges[0].1.total(), u64::MAX - 1);
}

#[test]
fn a_name_that_comes_twice_counts_once() {
    let deltas =
        last(First::Charge, &[poll(9, Some(0), &[("user>>>a up", 5), ("user>>>a up", 6)])]);
    assert_eq!(charged(&deltas), [("a", 5, 0)]);
    assert_eq!(deltas.anomalies, [Anomaly::Twice { counter: name("user>>>a up") }]);
}

#[test]
fn without_an_uptime_values_decide_and_it_is_said() {
    let before = poll(1000, None, &[("user>>>a up", 100), ("user>>>b up", 100)]);
    let next = poll(1010, None, &[("user>>>a up", 130), ("user>>>b up", 20)]);
    let deltas = last(First::Baseline, &[before.clone(), next]);
    assert_eq!(deltas.seam, PayloadSeam::Unclear);
    assert_eq!(charged(&deltas), [("a", 30, 0), ("b", 20, 0)]);
    assert_eq!(causes(&deltas), [(None, Cause::Unclear), (of("user>>>b up"), Cause::Reset)]);
    // One that comes again settles it, and nothing is charged a second time.
    let again = poll(1020, Some(1004), &[("user>>>a up", 131), ("user>>>b up", 20)]);
    let next = poll(1010, None, &[("user>>>a up", 130), ("user>>>b up", 20)]);
    let deltas = last(First::Baseline, &[before, next, again]);
    assert_eq!(
        (deltas.seam, charged(&deltas)),
        (PayloadSeam::Same, vec![("a", 1, 0), ("b", 0, 0)])
    );
}

#[test]
fn in_the_first_second_of_a_life_values_decide() {
    // Zero seconds old at 1000, ten seconds old at 1010: the same, or another one.
    let deltas = last(
        First::Charge,
        &[
            poll(1000, Some(1000), &[("user>>>a up", 50)]),
            poll(1010, Some(1000), &[("user>>>a up", 70)]),
        ],
    );
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Unclear, vec![("a", 20, 0)]));
    assert_eq!(deltas.coverage, Coverage::Gap);
}

#[test]
fn another_proxy_that_ran_before_is_a_new_baseline() {
    let before = poll(1000, Some(900), &[("user>>>a up", 500)]);
    let deltas =
        last(First::Baseline, &[before.clone(), poll(1010, Some(10), &[("user>>>a up", 400)])]);
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Replaced, vec![("a", 0, 0)]));
    assert_eq!(causes(&deltas), [(None, Cause::Replaced)]);
    // A clock that jumped does not make another proxy of it.
    let deltas = last(First::Baseline, &[before, poll(1010, Some(10), &[("user>>>a up", 510)])]);
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Same, vec![("a", 10, 0)]));
}

#[test]
fn a_slow_poll_is_no_restart() {
    let mut slow = poll(1003, Some(1000 - 86_400), &[("user>>>a up", 60)]);
    slow.boot.end += 2 * SECOND;
    slow.window.end += 2 * SECOND;
    slow.uptime = Some(86_404);
    let deltas =
        last(First::Baseline, &[poll(1000, Some(1000 - 86_400), &[("user>>>a up", 50)]), slow]);
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Same, vec![("a", 10, 0)]));
}

#[test]
fn one_connection_is_one_life_where_age_does_not_tell() {
    let over = |connection, counters: &[(&str, i64)]| {
        let mut poll = poll(1000, Some(1000), counters);
        poll.connection = connection;
        poll
    };
    let deltas =
        last(First::Charge, &[over(1, &[("user>>>a up", 5)]), over(1, &[("user>>>a up", 7)])]);
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Same, vec![("a", 2, 0)]));
    // Over another one it may be another proxy.
    let deltas =
        last(First::Charge, &[over(1, &[("user>>>a up", 5)]), over(2, &[("user>>>a up", 7)])]);
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Unclear, vec![("a", 2, 0)]));
    // When nothing is left of what was counted, all that comes is new, though it may be more.
    let deltas = last(
        First::Charge,
        &[
            over(1, &[("user>>>a up", 5)]),
            over(2, &[("inbound>>>in up", 0)]),
            over(2, &[("user>>>a up", 7)]),
        ],
    );
    assert_eq!((deltas.seam, charged(&deltas)), (PayloadSeam::Same, vec![("a", 7, 0)]));
}
