//! Histories to the letter.

use std::sync::Arc;

use super::*;
use crate::accounting::{
    billing::Unit,
    history::{Terms, Who, rows, series},
    period::zone,
    reading::{Layer, Traffic},
    subject::Subject,
    usage::Span,
};

const DAY: i64 = 86_400;
/// 2026-11-21 00:00 in Shanghai.
const BEGIN: i64 = 1_795_190_400;

fn usage(layer: Layer, input_bytes: u64, output_bytes: u64, coverage: Coverage) -> Usage {
    let traffic = Traffic { input_bytes, output_bytes, input_packets: 3, output_packets: 4 };
    Usage { layer, traffic, coverage }
}

fn report(subject: Subject, name: Option<&str>, booked: &[Vec<Usage>]) -> HistoryReport {
    let terms = Terms {
        calendar: Calendar::new(zone("Asia/Shanghai").unwrap(), 15).unwrap(),
        counting: Counting::Larger,
        unit: Unit::Gb,
    };
    let asked = Span { begin: BEGIN, end: BEGIN + 4 * DAY };
    let now = BEGIN + 3 * DAY + 3600;
    let rows = rows(&terms.calendar, Period::Day, asked, Span { begin: 0, end: now }, now);
    HistoryReport {
        taken_at: now,
        host: "vps1".into(),
        period: Period::Day,
        asked,
        subjects: vec![Who { subject, name: name.map(Arc::from) }],
        series: series(&rows, booked),
        terms,
    }
}

fn group() -> HistoryReport {
    let group = Subject::group(&"443/tcp".parse().unwrap());
    let booked = [
        vec![usage(Layer::L3, 1_500_000_000, 500_000_000, Coverage::Complete)],
        vec![],
        vec![usage(Layer::L3, 1_000_000, 4_000_000_000, Coverage::Gap)],
        vec![usage(Layer::L3, 0, 1000, Coverage::Complete)],
    ];
    report(group, Some("vless-in\u{1b}"), &booked)
}

#[test]
fn a_table_says_whose_when_and_what_the_bytes_are() {
    let want = "port 443/tcp (vless-in\\u{1b}) on vps1, by day, 2026-11-21 00:00 to 2026-11-25 00:00 (Asia/Shanghai)

layer 3 bytes, as on the wire
 PERIOD              IN       OUT   TOTAL  BILLED    NOTE
 2026-11-21 Sat  1.5 GB  500.0 MB  2.0 GB  1.5 GB
 2026-11-22 Sun       -         -       -       -
 2026-11-23 Mon  1.0 MB    4.0 GB  4.0 GB  4.0 GB     GAP
 2026-11-24 Tue     0 B    1.0 kB  1.0 kB  1.0 kB  so far
 total           1.5 GB    4.5 GB  6.0 GB  4.5 GB

billed: the larger direction of each period; of more than one, that of each billing month
";
    assert_eq!(table(&group(), None), want);
}

#[test]
fn a_terminal_shows_bars_as_wide_as_it_is() {
    let text = table(&group(), Some(80));
    let bars: Vec<&str> =
        text.lines().filter_map(|line| line.find(['░', '█', '▏']).map(|at| &line[at..])).collect();
    assert_eq!(bars, ["░░░░░░░░██▌", "█████████████████████", "▏"]);
    assert!(text.lines().all(|line| line.chars().count() <= 80 || !line.starts_with(" 2")));
    // No room for a bar that says anything.
    assert_eq!(table(&group(), Some(60)), table(&group(), None));
}

#[test]
fn lines_for_spreadsheets_leave_out_what_was_not_booked() {
    let mut with_user = group();
    with_user.subjects[0].subject = Subject::User("a@x".into());
    let want = "\"layer\",\"period\",\"from\",\"to\",\"whole\",\"running\",\"input_bytes\",\"output_bytes\",\"input_packets\",\"output_packets\",\"total_bytes\",\"billed_bytes\",\"coverage\"
\"l3\",\"2026-11-21\",\"2026-11-20T16:00:00Z\",\"2026-11-21T16:00:00Z\",\"true\",\"false\",1500000000,500000000,3,4,2000000000,1500000000,\"complete\"
\"l3\",\"2026-11-22\",\"2026-11-21T16:00:00Z\",\"2026-11-22T16:00:00Z\",\"true\",\"false\",,,,,,,\"\"
\"l3\",\"2026-11-23\",\"2026-11-22T16:00:00Z\",\"2026-11-23T16:00:00Z\",\"true\",\"false\",1000000,4000000000,3,4,4001000000,4000000000,\"gap\"
\"l3\",\"2026-11-24\",\"2026-11-23T16:00:00Z\",\"2026-11-24T16:00:00Z\",\"true\",\"true\",0,1000,3,4,1000,1000,\"complete\"
";
    assert_eq!(csv(&group()), want);
    // A user has no packets.
    let first = csv(&with_user).lines().nth(1).unwrap().to_owned();
    assert!(
        first.ends_with(",1500000000,500000000,,,2000000000,1500000000,\"complete\""),
        "{first}"
    );
}

#[test]
fn json_has_null_for_what_was_not_booked() {
    let text = json(&group()).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["kind"], "history");
    assert_eq!(document["time_zone"], "Asia/Shanghai");
    assert_eq!(document["from"], "2026-11-20T16:00:00Z");
    assert_eq!(document["subjects"][0]["key"], "443/tcp");
    let layer = &document["layers"][0];
    assert_eq!(layer["periods"][1]["input_bytes"], serde_json::Value::Null);
    assert_eq!(layer["periods"][2]["coverage"], "gap");
    assert_eq!(layer["total"]["total_bytes"], 6_001_001_000_u64);
    assert_eq!(layer["total"]["billed_bytes"], 4_500_001_000_u64);
}

#[test]
fn a_user_has_payload_first_and_then_his_share_of_the_wire() {
    let booked = [
        vec![
            usage(Layer::L3, 20, 30, Coverage::Complete),
            usage(Layer::Payload, 10, 20, Coverage::Complete),
        ],
        vec![],
        vec![],
        vec![],
    ];
    let text = table(&report(Subject::User("a@x".into()), None, &booked), None);
    let (payload, share) = (text.find("payload bytes").unwrap(), text.find("his share").unwrap());
    assert!(payload < share, "{text}");
    assert!(text.contains(" total           10 B  20 B   30 B    20 B\n"), "{text}");
}

#[test]
fn nothing_booked_is_said() {
    let text = table(&report(Subject::Host, None, &[]), None);
    assert_eq!(text.lines().nth(1), Some("nothing was booked in this time"));
}
