//! What is drawn.

use super::*;
use crate::accounting::{
    history::{Terms, Who, rows, series},
    period::{Calendar, Period},
    reading::{Coverage, Layer, Traffic},
    subject::Subject,
    usage::{By, Ranked, Span, Usage},
};

fn usage(input_bytes: u64, output_bytes: u64) -> Usage {
    let traffic = Traffic { input_bytes, output_bytes, ..Traffic::default() };
    Usage { layer: Layer::L3, traffic, coverage: Coverage::Complete }
}

fn count(svg: &str, colour: &str) -> usize {
    svg.matches(&format!("fill=\"{colour}\"")).count()
}

fn days(booked: &[Vec<Usage>]) -> HistoryReport {
    let asked = Span { begin: 0, end: 3 * 86_400 };
    let rows = rows(&Calendar::default(), Period::Day, asked, asked, asked.end);
    HistoryReport {
        taken_at: asked.end,
        host: "vps1".into(),
        terms: Terms::default(),
        period: Period::Day,
        asked,
        subjects: vec![Who { subject: Subject::User("<a&b>".into()), name: None }],
        series: series(&rows, booked),
    }
}

#[test]
fn each_period_with_traffic_has_a_bar_of_two_colours() {
    let svg = history(&days(&[vec![usage(1 << 20, 1 << 21)], vec![], vec![usage(5, 7)]])).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!((count(&svg, "#E08A2C"), count(&svg, "#3B7DD8")), (2, 2));
    assert!(svg.contains("user &lt;a&amp;b&gt; on vps1, by day"), "{svg}");
    assert!(svg.contains("1970-01-01") && svg.contains("MiB"), "{svg}");
    assert!(!svg.contains("<script") && !svg.contains("<a&b>"), "{svg}");
}

#[test]
fn nothing_booked_is_a_picture_too() {
    let svg = history(&days(&[])).unwrap();
    assert!(svg.contains("nothing was booked in this time"), "{svg}");
    assert_eq!(count(&svg, "#E08A2C"), 0);
}

#[test]
fn each_place_has_a_bar_and_a_name() {
    let place = |email: &str, bytes| Ranked {
        subject: Subject::User(email.into()),
        name: None,
        usage: usage(0, bytes),
    };
    let places = vec![place("alice@x", u64::MAX), place("bob@x", 1), place("carol@x", 0)];
    let report = TopReport {
        taken_at: 0,
        host: "vps1".into(),
        terms: Terms::default(),
        field: Field::Users,
        by: By::Total,
        span: Span { begin: 0, end: 86_400 },
        rankings: vec![(Layer::L3, Ranking { places, subjects: 3, total: Some(usage(0, 9)) })],
    };
    let svg = top(&report).unwrap();
    assert_eq!(count(&svg, "#3B7DD8"), 3);
    for name in ["alice@x", "bob@x", "carol@x"] {
        assert_eq!(svg.matches(name).count(), 1, "{name}: {svg}");
    }
}
