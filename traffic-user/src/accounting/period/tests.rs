//! Periods in zones where the clock does what it can.

use proptest::prelude::*;

use super::*;

/// Zones with all that a clock can do: none, whole and half hours, half-hour summer time, changes at
/// and over midnight, a day that was left out.
const ZONES: [&str; 11] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Havana",
    "Asia/Kolkata",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "+05:45",
];

fn calendar(name: &str, billing_day: u8) -> Calendar {
    Calendar::new(zone(name).unwrap(), billing_day).unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_second()
}

#[track_caller]
fn check(name: &str, period: Period, instant: &str, from: &str, until: &str) {
    let span = calendar(name, 1).period(period, at(instant));
    let got = (utc(span.begin).to_string(), utc(span.end).to_string());
    assert_eq!(got, (from.to_owned(), until.to_owned()), "{name} {}", period.name());
}

#[test]
fn each_period_begins_where_the_clock_of_the_zone_says() {
    let now = "2026-11-24T16:23:45Z";
    check("UTC", Period::Minutes, now, "2026-11-24T16:20:00Z", "2026-11-24T16:25:00Z");
    check("UTC", Period::Hour, now, "2026-11-24T16:00:00Z", "2026-11-24T17:00:00Z");
    check("Asia/Kolkata", Period::Hour, now, "2026-11-24T15:30:00Z", "2026-11-24T16:30:00Z");
    check("UTC", Period::Day, now, "2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z");
    check("Asia/Shanghai", Period::Day, now, "2026-11-24T16:00:00Z", "2026-11-25T16:00:00Z");
    check("UTC", Period::Week, now, "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z");
    check("-05:00", Period::Month, now, "2026-11-01T05:00:00Z", "2026-12-01T05:00:00Z");
    // Before 1970 as well.
    check(
        "UTC",
        Period::Day,
        "1969-12-31T23:59:59Z",
        "1969-12-31T00:00:00Z",
        "1970-01-01T00:00:00Z",
    );
}

#[test]
fn a_day_has_23_or_25_hours_where_the_clock_is_changed() {
    let berlin = calendar("Europe/Berlin", 1);
    for (day, hours) in [("2026-03-29T12:00:00Z", 23), ("2026-10-25T12:00:00Z", 25)] {
        let span = berlin.period(Period::Day, at(day));
        assert_eq!(span.seconds(), hours * 3600, "{day}");
        let parts: Vec<_> = berlin.periods(Period::Hour, span).collect();
        assert_eq!(parts.len() as u64, hours);
        assert!(parts.iter().all(|part| part.seconds() == 3600), "{parts:?}");
    }
    let week = berlin.period(Period::Week, at("2026-10-25T12:00:00Z"));
    assert_eq!(week.seconds(), (7 * 24 + 1) * 3600);
}

#[test]
fn an_hour_that_comes_twice_is_two_hours_with_names_of_their_own() {
    let berlin = calendar("Europe/Berlin", 1);
    let night = Span { begin: at("2026-10-24T23:00:00Z"), end: at("2026-10-25T03:00:00Z") };
    let names: Vec<_> =
        berlin.periods(Period::Hour, night).map(|p| berlin.label(Period::Hour, p.begin)).collect();
    assert_eq!(
        names,
        ["2026-10-25 01:00", "2026-10-25 02:00 +02", "2026-10-25 02:00 +01", "2026-10-25 03:00",]
    );
}

#[test]
fn half_an_hour_that_comes_twice_ends_an_hour_early() {
    // At 02:00 (+11) the clock goes back to 01:30 (+10:30).
    let island = calendar("Australia/Lord_Howe", 1);
    let night = Span { begin: at("2026-04-04T14:00:00Z"), end: at("2026-04-04T15:30:01Z") };
    let lengths: Vec<_> =
        island.periods(Period::Hour, night).map(|span| span.seconds() / 60).collect();
    assert_eq!(lengths, [60, 30, 60]);
}

#[test]
fn a_midnight_that_was_left_out_or_came_twice_begins_a_day_once() {
    let day = |name, instant| calendar(name, 1).period(Period::Day, at(instant));
    // The clock goes from 00:00 to 01:00.
    let paulo = day("America/Sao_Paulo", "2018-11-04T12:00:00Z");
    assert_eq!(
        (utc(paulo.begin).to_string(), paulo.seconds()),
        ("2018-11-04T03:00:00Z".into(), 23 * 3600)
    );
    // From 00:01 back to 23:01 of the day before, which stays over.
    let johns = day("America/St_Johns", "2006-10-29T03:00:00Z");
    assert_eq!(
        (utc(johns.begin).to_string(), johns.seconds()),
        ("2006-10-29T02:30:00Z".into(), 25 * 3600)
    );
    // 30 December 2011 did not come.
    let apia = calendar("Pacific/Apia", 1);
    let days = Span { begin: at("2011-12-29T10:00:00Z"), end: at("2011-12-31T10:00:01Z") };
    let names: Vec<_> =
        apia.periods(Period::Day, days).map(|span| apia.label(Period::Day, span.begin)).collect();
    assert_eq!(names, ["2011-12-29", "2011-12-31", "2012-01-01"]);
}

#[test]
fn a_billing_month_begins_on_its_day_or_on_the_last_of_a_shorter_month() {
    for (day, want) in [
        (1, ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01", "2026-05-01"]),
        (15, ["2026-01-15", "2026-02-15", "2026-03-15", "2026-04-15", "2026-05-15"]),
        (29, ["2026-01-29", "2026-02-28", "2026-03-29", "2026-04-29", "2026-05-29"]),
        (31, ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
    ] {
        let bills = calendar("Europe/Berlin", day);
        let first = bills.period(Period::Billing, at("2026-01-31T12:00:00Z"));
        let year = Span { begin: first.begin, end: at("2026-05-31T12:00:00Z") };
        let begin: Vec<_> = bills
            .periods(Period::Billing, year)
            .map(|span| bills.label(Period::Billing, span.begin))
            .collect();
        assert_eq!(begin, want, "day {day}");
    }
    let leap = calendar("UTC", 30).period(Period::Billing, at("2028-02-29T12:00:00Z"));
    assert_eq!(utc(leap.begin).to_string(), "2028-02-29T00:00:00Z");
    assert_eq!(utc(leap.end).to_string(), "2028-03-30T00:00:00Z");
    for day in [0, 32, 255] {
        assert_eq!(Calendar::new(TimeZone::UTC, day), Err(BillingDayError(day)));
    }
}

#[test]
fn labels_are_those_of_people() {
    let utc = Calendar::default();
    let new_year = at("2027-01-01T00:00:00Z");
    let labels = Period::ALL.map(|period| utc.label(period, new_year));
    assert_eq!(
        labels,
        ["2027-01-01 00:00", "2027-01-01 00:00", "2027-01-01", "2026-W53", "2027-01", "2027-01-01",]
    );
    assert_eq!(utc.weekday(new_year), "Fri");
}

#[test]
fn zones_are_names_and_offsets() {
    for (text, name) in [
        ("UTC", "UTC"),
        ("Europe/Berlin", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("+08:00", "+08"),
        ("UTC+8", "+08"),
        ("-0330", "-03:30"),
        ("UTC-3", "-03"),
    ] {
        assert_eq!(Calendar::new(zone(text).unwrap(), 1).unwrap().zone_name(), name, "{text}");
    }
    for text in [
        "",
        "Mars/Olympus",
        "+",
        "UTC+",
        "+25",
        "+18:01",
        "+08:60",
        "+8:0",
        "+é",
        "+800",
        "../UTC",
        "/etc/passwd",
        "\u{1b}[2J",
    ] {
        let error = zone(text).unwrap_err().to_string();
        assert!(error.contains("is no time zone"), "{text}: {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
}

fn any_calendar() -> impl Strategy<Value = Calendar> {
    (prop::sample::select(ZONES.as_slice()), 1u8..=31).prop_map(|(name, day)| calendar(name, day))
}

fn any_period() -> impl Strategy<Value = Period> {
    prop::sample::select(Period::ALL.as_slice())
}

/// Within the years 1960 to 2059, often near a change of the clock.
fn any_instant() -> impl Strategy<Value = i64> {
    let changes = [
        "2026-03-29T01:00:00Z",
        "2026-10-25T01:00:00Z",
        "2006-10-29T02:31:00Z",
        "2018-02-18T02:00:00Z",
        "2026-04-04T15:00:00Z",
        "2011-12-30T10:00:00Z",
    ];
    let near = (prop::sample::select(changes.map(at).to_vec()), -100_000i64..100_000);
    prop_oneof![-315_619_200i64..2_840_140_800, near.prop_map(|(change, more)| change + more)]
}

proptest! {
    /// Every second is in its period, and the next one begins where it ends.
    #[test]
    fn periods_follow_one_another_without_a_gap(
        calendar in any_calendar(), period in any_period(), at in any_instant()
    ) {
        let span = calendar.period(period, at);
        prop_assert!(span.contains(at));
        prop_assert_eq!(calendar.period(period, span.begin), span);
        prop_assert_eq!(calendar.period(period, span.end - 1), span);
        prop_assert_eq!(calendar.period(period, span.end).begin, span.end);
        prop_assert_eq!(calendar.period(period, span.begin - 1).end, span.begin);
    }

    /// The parts of a span put together are the span, and each is in one period.
    #[test]
    fn split_and_merge_agree(
        calendar in any_calendar(), period in any_period(), from in any_instant(), length in 0i64..400_000
    ) {
        let span = Span { begin: from, end: from + length };
        let mut at = span.begin;
        for part in calendar.split(period, span) {
            prop_assert_eq!(part.begin, at);
            prop_assert!(!part.is_empty());
            prop_assert_eq!(calendar.period(period, part.begin), calendar.period(period, part.end - 1));
            at = part.end;
        }
        prop_assert_eq!(at, span.end);
        let whole: Vec<_> = calendar.periods(period, span).collect();
        let parts: Vec<_> = calendar.split(period, span).collect();
        prop_assert_eq!(whole.len(), parts.len());
        for (whole, part) in whole.into_iter().zip(parts) {
            prop_assert_eq!(whole.within(span), part);
        }
    }

    /// Whoever sums up hours, days or weeks of a longer period gets the same time.
    #[test]
    fn shorter_periods_fill_the_longer_ones(calendar in any_calendar(), at in any_instant()) {
        let longer = [
            (Period::Hour, Period::Day),
            (Period::Day, Period::Week),
            (Period::Day, Period::Month),
            (Period::Day, Period::Billing),
        ];
        for (short, long) in longer {
            let long = calendar.period(long, at);
            let seconds: u64 = calendar.periods(short, long).map(Span::seconds).sum();
            prop_assert_eq!(seconds, long.seconds());
        }
    }

    #[test]
    fn looking_back_gives_so_many_periods(
        calendar in any_calendar(), period in any_period(), at in any_instant(), count in 1u32..40
    ) {
        let span = calendar.last(period, count, at);
        prop_assert_eq!(calendar.periods(period, span).count(), count as usize);
        prop_assert!(span.contains(at));
    }

    #[test]
    fn no_instant_is_too_much(calendar in any_calendar(), period in any_period(), at: i64) {
        let span = calendar.period(period, at);
        prop_assert!(span.begin <= span.end);
        calendar.label(period, at);
        calendar.clock(at);
    }

    #[test]
    fn any_text_is_a_zone_or_refused(text in ".{0,20}", offset in "[+-][0-9:é]{0,6}") {
        for text in [text, offset] {
            if let Err(error) = zone(&text) {
                prop_assert!(error.to_string().len() < 500);
            }
        }
    }
}
