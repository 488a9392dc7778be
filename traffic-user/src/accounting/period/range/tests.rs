//! Dates and times as people write them, right and wrong.

use proptest::prelude::*;

use super::{super::zone, *};

const DAYS: Last = Last { count: 30, period: Period::Day };

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_second()
}

fn now() -> i64 {
    at("2026-11-24T16:23:45Z")
}

fn berlin() -> Calendar {
    Calendar::new(zone("Europe/Berlin").unwrap(), 15).unwrap()
}

fn asked(from: &str, to: &str) -> Asked {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Asked { from: some(from), to: some(to), last: None }
}

#[track_caller]
fn check(from: &str, to: &str, want: (&str, &str)) {
    let span = asked(from, to).range(&berlin(), DAYS, now()).unwrap();
    assert_eq!(span, Span { begin: at(want.0), end: at(want.1) }, "{from} {to}");
}

#[track_caller]
fn refused(from: &str, to: &str, want: &str) {
    let error = asked(from, to).range(&berlin(), DAYS, now()).unwrap_err();
    assert_eq!(error.to_string(), want);
}

#[test]
fn dates_are_read_in_the_zone_and_the_last_one_is_in_the_range() {
    check("2026-11-01", "2026-11-02", ("2026-10-31T23:00:00Z", "2026-11-02T23:00:00Z"));
    check("2026-11", "2026-11", ("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z"));
    check("2026-W48", "2026-w48", ("2026-11-22T23:00:00Z", "2026-11-29T23:00:00Z"));
    check("yesterday", "yesterday", ("2026-11-22T23:00:00Z", "2026-11-23T23:00:00Z"));
    check("today", "now", ("2026-11-23T23:00:00Z", "2026-11-24T16:23:45Z"));
    check(
        "2026-11-24 01:30",
        "2026-11-24T02:00:30",
        ("2026-11-24T00:30:00Z", "2026-11-24T01:00:30Z"),
    );
    check(
        "2026-11-24T01:30Z",
        "2026-11-24T03:30+01:00",
        ("2026-11-24T01:30:00Z", "2026-11-24T02:30:00Z"),
    );
}

#[test]
fn without_an_end_it_is_now_and_without_a_beginning_the_usual_time_before_the_end() {
    check("2026-11-24", "", ("2026-11-23T23:00:00Z", "2026-11-24T16:25:00Z"));
    check("", "2026-11-30", ("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z"));
    check("", "", ("2026-10-25T23:00:00Z", "2026-11-24T23:00:00Z"));
}

#[test]
fn a_time_that_comes_twice_begins_with_the_first_and_ends_with_the_second() {
    check("2026-10-25T02:30", "2026-10-25T02:30", ("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"));
}

#[test]
fn what_no_calendar_has_says_what_there_is() {
    for (text, why) in [
        ("2026-02-30", "2026-02 has days 01 to 28"),
        ("2028-02-30", "2028-02 has days 01 to 29"),
        ("2026-11-00", "2026-11 has days 01 to 30"),
        ("2026-13-01", "a year has months 01 to 12"),
        ("2026-00", "a year has months 01 to 12"),
        ("2025-W53", "2025 has weeks W01 to W52"),
        ("2026-W54", "2026 has weeks W01 to W53"),
        ("0000-01-01", "write a year from 0001 to 9998"),
        ("9999-01-01", "write a year from 0001 to 9998"),
        ("2026-11-24T24:00", "a day has the times 00:00 to 23:59"),
        ("2026-11-24T12:60", "a day has the times 00:00 to 23:59"),
        ("2026-03-29T02:30", "in Europe/Berlin the clock was put from +01 to +02 there"),
    ] {
        refused(text, "", &format!("--from: `{text}` does not exist: {why}"));
        refused("", text, &format!("--to: `{text}` does not exist: {why}"));
    }
}

#[test]
fn what_is_no_date_says_how_dates_are_written() {
    for text in [
        "24.11.2026",
        "2026",
        "2026-1-1",
        "2026-11-24T",
        "2026-11-24T1:00",
        "2026-11-24T13:00+99",
        "2026-11T13:00",
        "2026-W1",
        "+026-11-24",
        "-2026-11-24",
        "2026-11-24-01",
        "tomorrow",
        "é",
        " ",
    ] {
        refused(
            text,
            "",
            &format!(
                "--from: `{text}` is no date: write 2026-11-24, 2026-11-24T13:00, 2026-11, 2026-W48, today or yesterday"
            ),
        );
    }
    let error = asked("\u{1b}[2J", "").range(&berlin(), DAYS, now()).unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
}

#[test]
fn a_range_the_wrong_way_round_or_in_the_future_is_refused() {
    refused(
        "2026-11-02",
        "2026-11-01",
        "the range is the wrong way round: --from 2026-11-02 is not before --to 2026-11-01: exchange the two",
    );
    refused(
        "2026-11-24T13:00",
        "2026-11-24T12:00",
        "the range is the wrong way round: --from 2026-11-24T13:00 is not before --to 2026-11-24T12:00: exchange the two",
    );
    refused(
        "2026-11-24T13:00",
        "2026-11-24T13:00",
        "nothing lies between --from 2026-11-24T13:00 and --to 2026-11-24T13:00: write a later end",
    );
    refused(
        "2027-01-01",
        "",
        "--from 2027-01-01 has not come yet (now it is 2026-11-24 17:23): write an earlier date",
    );
}

#[test]
fn so_long_back_is_the_present_period_and_those_before_it() {
    let last = |text: &str| {
        let last = Some(text.parse().unwrap());
        Asked { last, ..Asked::default() }.range(&berlin(), DAYS, now()).unwrap()
    };
    for (text, from, until) in [
        ("1d", "2026-11-23T23:00:00Z", "2026-11-24T23:00:00Z"),
        ("30d", "2026-10-25T23:00:00Z", "2026-11-24T23:00:00Z"),
        ("12h", "2026-11-24T05:00:00Z", "2026-11-24T17:00:00Z"),
        ("4w", "2026-11-01T23:00:00Z", "2026-11-29T23:00:00Z"),
        ("6mo", "2026-05-31T22:00:00Z", "2026-11-30T23:00:00Z"),
        ("1y", "2025-11-30T23:00:00Z", "2026-11-30T23:00:00Z"),
        ("1min", "2026-11-24T16:20:00Z", "2026-11-24T16:25:00Z"),
        (" 11 min", "2026-11-24T16:10:00Z", "2026-11-24T16:25:00Z"),
    ] {
        assert_eq!(last(text), Span { begin: at(from), end: at(until) }, "{text}");
    }
}

#[test]
fn no_time_back_at_all_is_refused_with_its_remedy() {
    for (text, want) in [
        ("0d", "`0d` is no time at all: write at least 1, as in 1d for today"),
        ("5m", "`5m` may be minutes or months: write 5min or 5mo"),
        (
            "999999999999999999999d",
            "`999999999999999999999d` is too long: at most 40000 minutes, hours, days, weeks or months can be asked for",
        ),
        (
            "4000y",
            "`4000y` is too long: at most 40000 minutes, hours, days, weeks or months can be asked for",
        ),
    ] {
        assert_eq!(text.parse::<Last>().unwrap_err().to_string(), want);
    }
    for text in ["", "d", "30", "-1d", "1.5d", "30 days", "m", "١d", "1d1h"] {
        assert_eq!(text.parse::<Last>(), Err(LastError::Text(text.into())));
    }
    let both = Asked { last: Some(DAYS), ..asked("today", "") };
    assert_eq!(both.range(&berlin(), DAYS, now()), Err(RangeError::Twice));
}

proptest! {
    #[test]
    fn any_text_is_a_range_or_refused(
        from in "[0-9TWZ:+ -]{0,24}", to in ".{0,12}", back in "[0-9]{0,22}[a-z]{0,3}", now: i64
    ) {
        let calendar = berlin();
        let check = |span: Result<Span, RangeError>| span.is_ok_and(|span| span.is_empty());
        prop_assert!(!check(asked(&from, "").range(&calendar, DAYS, now)));
        prop_assert!(!check(asked("", &to).range(&calendar, DAYS, now)));
        if let Ok(last) = back.parse::<Last>() {
            prop_assert!(last.count > 0);
            let asked = Asked { last: Some(last), ..Asked::default() };
            prop_assert!(asked.range(&calendar, DAYS, now).is_ok());
        }
    }

    /// A date that is asked for from and to is that day.
    #[test]
    fn every_date_of_the_calendar_is_read(days in 0i64..36_500) {
        let calendar = berlin();
        let day = calendar.period(Period::Day, days * 86_400);
        let name = calendar.label(Period::Day, day.begin);
        prop_assert_eq!(asked(&name, &name).range(&calendar, DAYS, i64::MAX), Ok(day));
    }
}
