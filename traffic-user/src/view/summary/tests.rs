//! The short report to the letter.

use super::*;
use crate::accounting::{
    history::{Standing, Terms, Who},
    reading::{Coverage, Traffic},
    usage::{Event, Span},
};

const NOW: i64 = 1_795_190_400;

fn usage(layer: Layer, input_bytes: u64, output_bytes: u64) -> Usage {
    let traffic = Traffic { input_bytes, output_bytes, ..Traffic::default() };
    Usage { layer, traffic, coverage: Coverage::Complete }
}

fn report() -> SummaryReport {
    let terms = Terms::default();
    let line = |subject, usages: [Vec<Usage>; 3]| {
        let [today, billing, ever] = usages;
        let who = Who { subject, name: None };
        StandingLine { who, standing: Standing { today, billing, ever, months: Vec::new() } }
    };
    let host =
        [vec![], vec![usage(Layer::L3, 1 << 30, 0)], vec![usage(Layer::L3, 1 << 30, 1 << 30)]];
    let payload = usage(Layer::Payload, 1024, 0);
    let share = usage(Layer::L3, 1100, 50);
    let user = [vec![payload, share], vec![payload, share], vec![share, payload]];
    SummaryReport {
        taken_at: NOW,
        host: "vps1".into(),
        today: terms.calendar.period(Period::Day, NOW),
        billing: terms.calendar.period(Period::Billing, NOW),
        extent: Some(Span { begin: NOW - 90 * 86_400, end: NOW }),
        lines: vec![line(Subject::Host, host)],
        users: vec![line(Subject::User("a\u{1b}@x".into()), user)],
        active_users: 4,
        hours: vec![0, 1, 8, 4],
        events: vec![Event {
            at: i128::from(NOW) * 1_000_000_000,
            kind: "gap".into(),
            subject: Some(Subject::Host),
            what: "the host was down".into(),
        }],
        terms,
    }
}

#[test]
fn the_short_report_shows_today_this_month_and_since_ever() {
    let want = "vps1 at 2026-11-20 16:00 (UTC)

 WHO        LAYER        TODAY  SINCE 2026-11-01  SINCE 2026-08-22
 host       l3               -          1.00 GiB          2.00 GiB
 a\\u{1b}@x  payload   1.00 KiB          1.00 KiB          1.00 KiB
 a\\u{1b}@x  l3 share  1.12 KiB          1.12 KiB          1.12 KiB
and 3 more users with less traffic

today by hour  | ▁█▄|

counted: both directions
host l3: layer 3 bytes, as on the wire
user payload: payload bytes, as the proxy counts them
user l3: his share of the wire, layer 3 bytes
2026-11-20 16:00  the host was down
";
    assert_eq!(table(&report()), want);
    let empty = SummaryReport { extent: None, ..report() };
    assert_eq!(table(&empty), "vps1: nothing was booked yet\n");
}

#[test]
fn columns_that_would_have_one_name_are_told_apart() {
    let month = report().billing;
    let text = table(&SummaryReport { extent: Some(Span { end: NOW, ..month }), ..report() });
    let heads = text.lines().nth(2).unwrap();
    assert!(heads.contains(" TODAY  THIS BILLING MONTH  ") && heads.ends_with(" EVER"), "{text}");
    assert!(
        text.contains("\nthis billing month and all that is booked begin on 2026-11-01\n"),
        "{text}"
    );
}

#[test]
fn the_larger_direction_since_ever_is_that_of_each_month() {
    let mut report = report();
    report.terms.counting = crate::accounting::billing::Counting::Larger;
    report.lines[0].standing.months =
        vec![vec![usage(Layer::L3, 1 << 30, 0)], vec![usage(Layer::L3, 0, 1 << 30)]];
    assert_eq!(json(&report).unwrap()["subjects"][0]["ever"][0]["billed_bytes"], 2_u64 << 30);
    let host = table(&report).lines().find(|line| line.starts_with(" host")).unwrap().to_owned();
    assert!(host.ends_with("1.00 GiB          2.00 GiB"), "{host}");
}

#[test]
fn json_has_every_layer_of_everybody() {
    let document = json(&report()).unwrap();
    assert_eq!(document["kind"], "summary");
    assert_eq!(document["today"]["from"], "2026-11-20T00:00:00Z");
    assert_eq!(document["billing"]["to"], "2026-12-01T00:00:00Z");
    assert_eq!(document["subjects"][0]["today"], serde_json::json!([]));
    assert_eq!(document["subjects"][0]["ever"][0]["total_bytes"], 2_u64 << 30);
    assert_eq!(document["users"][0]["ever"][1]["layer"], "payload");
    assert_eq!(document["events"][0]["at"], "2026-11-20T16:00:00.000Z");
}
