//! The ledger as a whole, in files.

use std::{
    fs,
    ops::ControlFlow,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::*;
use crate::accounting::{
    reading::{Coverage, Layer, Traffic},
    retention::Keep,
    subject::{Subject, SubjectKind},
    tick::{Cursors, Left, Plan},
    usage::{Bucket, By, Entry, Event, Level, Usage},
};

mod failures;
mod laws;
mod questions;

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("traffic-ledger-{}-{number}", std::process::id());
        // In memory, where it can be: what waits for a disk here is of no interest.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let path = place.join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.0, Options::default()).unwrap().0
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.0).unwrap().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn user(email: &str) -> Subject {
    Subject::User(email.into())
}

fn usage(layer: Layer, input_bytes: u64, output_bytes: u64) -> Usage {
    let traffic = Traffic { input_bytes, output_bytes, ..Traffic::default() };
    Usage { layer, traffic, coverage: Coverage::Complete }
}

fn payload(input_bytes: u64, output_bytes: u64) -> Usage {
    usage(Layer::Payload, input_bytes, output_bytes)
}

fn entry(subject: &Subject, usage: Usage) -> Entry {
    Entry { subject: subject.clone(), name: None, usage }
}

fn plan(at: i64, entries: Vec<Entry>) -> Plan {
    Plan { at, entries, ..Plan::default() }
}

fn span(begin: i64, end: i64) -> Span {
    Span { begin, end }
}

/// Tidies until nothing is left to do.
fn tidy(ledger: &mut Ledger, now: i64) {
    while ledger.tidy(now).unwrap() != Tidied::Nothing {}
}

/// Input and output bytes of each span, of the first layer.
fn history(reader: &Reader, subject: &Subject, spans: &[Span]) -> Vec<(u64, u64)> {
    let bytes = |usages: &Vec<Usage>| {
        usages
            .first()
            .map_or((0, 0), |usage| (usage.traffic.input_bytes, usage.traffic.output_bytes))
    };
    reader.history(subject, spans).unwrap().iter().map(bytes).collect()
}

fn all(reader: &Reader, level: Option<Level>) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let count = reader
        .buckets(Span::ALL, Wanted { level, subjects: None }, &mut |bucket| {
            buckets.push(bucket);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(count, u64::try_from(buckets.len()).unwrap());
    buckets
}

#[test]
fn what_is_booked_is_read_by_another_process_while_the_daemon_writes() {
    let folder = Folder::new();
    assert!(Reader::open(&folder.0).unwrap().is_none(), "there is none yet");
    let mut ledger = folder.ledger();
    let reader = folder.reader();
    assert_eq!(reader.extent().unwrap(), None);
    let (a, b) = (user("a@x"), user("b@x"));
    let entries = vec![
        entry(&a, payload(1, 10)),
        entry(&a, usage(Layer::L3, 2, 12)),
        entry(&b, payload(5, 5)),
    ];
    ledger.commit(&plan(1000, entries)).unwrap();
    ledger.commit(&plan(1199, vec![entry(&a, payload(100, 0))])).unwrap();
    ledger.commit(&plan(1200, vec![entry(&a, payload(1000, 0))])).unwrap();

    assert_eq!(reader.extent().unwrap(), Some(span(900, 1500)));
    let spans = [span(0, 900), span(900, 1200), span(1200, 1500), span(1500, 9000)];
    let usages = reader.history(&a, &spans).unwrap();
    assert_eq!(
        usages,
        [vec![], vec![usage(Layer::L3, 2, 12), payload(101, 10)], vec![payload(1000, 0)], vec![]]
    );
    assert_eq!(reader.totals(&a).unwrap()[1], payload(1101, 10));
    assert_eq!(reader.totals(&user("nobody")).unwrap(), []);
    assert!(reader.knows(&a).unwrap() && !reader.knows(&user("nobody")).unwrap());
    assert_eq!(
        reader.layers(SubjectKind::User, span(0, 1200)).unwrap(),
        [Layer::L3, Layer::Payload]
    );
    assert_eq!(reader.layers(SubjectKind::User, span(1200, 1500)).unwrap(), [Layer::Payload]);
    assert_eq!(reader.layers(SubjectKind::Group, Span::ALL).unwrap(), []);
    let known = reader.subjects(None).unwrap();
    let known: Vec<_> = known.iter().map(|k| (k.subject.key(), k.first, k.last)).collect();
    assert_eq!(known, [("a@x".into(), 1000, 1200), ("b@x".into(), 1000, 1000)]);
}

#[test]
fn a_ranking_is_by_what_was_asked_for_and_equal_ones_are_in_order() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let users: Vec<_> = ["d", "c", "b", "a"].map(user).into();
    let amounts = [(5, 5), (9, 0), (5, 5), (0, 100)];
    let entries =
        users.iter().zip(amounts).map(|(user, (up, down))| entry(user, payload(up, down)));
    ledger.commit(&plan(1000, entries.collect())).unwrap();
    let reader = folder.reader();
    let top = |by, most| {
        let ranking = reader.top(SubjectKind::User, Layer::Payload, Span::ALL, by, most).unwrap();
        assert_eq!(ranking.subjects, 4);
        assert_eq!(ranking.total, Some(payload(19, 110)));
        ranking.places.iter().map(|place| place.subject.key()).collect::<Vec<_>>()
    };
    assert_eq!(top(By::Total, 9), ["a", "b", "d", "c"]);
    assert_eq!(top(By::Total, 2), ["a", "b"]);
    assert_eq!(top(By::Up, 2), ["c", "b"]);
    assert_eq!(top(By::Down, 1), ["a"]);
    assert_eq!(top(By::Down, 0), [""; 0]);
    let empty = reader.top(SubjectKind::User, Layer::L3, Span::ALL, By::Total, 9).unwrap();
    assert_eq!((empty.places.len(), empty.subjects, empty.total), (0, 0, None));
}

#[test]
fn hours_and_days_are_summed_up_and_short_buckets_go_when_they_are_old() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let a = user("a@x");
    for at in [0, 3500, 3600, DAY - 1, DAY] {
        ledger.commit(&plan(at, vec![entry(&a, payload(1, 0))])).unwrap();
    }
    let levels = |reader: &Reader| {
        Level::ALL.map(|level| {
            let buckets = all(reader, Some(level));
            buckets.iter().map(|b| (b.span.begin, b.usage.traffic.input_bytes)).collect::<Vec<_>>()
        })
    };
    let minutes = vec![(0, 1), (3300, 1), (3600, 1), (DAY - 300, 1), (DAY, 1)];
    let hours = vec![(0, 2), (3600, 1), (DAY - 3600, 1)];
    let reader = folder.reader();
    tidy(&mut ledger, DAY - 1);
    assert_eq!(levels(&reader), [minutes.clone(), hours[..2].to_vec(), vec![]]);
    tidy(&mut ledger, DAY);
    assert_eq!(levels(&reader), [minutes, hours.clone(), vec![(0, 4)]]);
    // Two days after the first hour: only buckets that have ended by then may go.
    tidy(&mut ledger, 2 * DAY + 3600);
    let minutes = vec![(3600, 1), (DAY - 300, 1), (DAY, 1)];
    let hours = [hours, vec![(DAY, 1)]].concat();
    assert_eq!(levels(&reader), [minutes, hours, vec![(0, 4), (DAY, 1)]]);
    tidy(&mut ledger, 62 * DAY);
    assert_eq!(levels(&reader), [vec![], vec![], vec![(0, 4), (DAY, 1)]]);
    assert_eq!(reader.totals(&a).unwrap(), [payload(5, 0)]);
    assert_eq!(reader.subjects(None).unwrap()[0].last, DAY);
    // What is cut and cannot be divided any more belongs where it begins, and is said to be unsure.
    let usages = reader.history(&a, &[span(0, 100), span(100, DAY), span(DAY, 2 * DAY)]).unwrap();
    let unsure = Usage { coverage: Coverage::Estimated, ..payload(4, 0) };
    assert_eq!(usages, [vec![unsure], vec![], vec![payload(1, 0)]]);
}

#[test]
fn a_clock_that_goes_back_books_into_what_was_summed_up_and_let_go() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let a = user("a@x");
    let book = |ledger: &mut Ledger, at| {
        ledger.commit(&plan(at, vec![entry(&a, payload(1, 0))])).unwrap();
    };
    book(&mut ledger, 100);
    tidy(&mut ledger, 2 * DAY);
    // The bucket is there and summed up; then it is gone; then its hour is gone as well.
    book(&mut ledger, 100);
    tidy(&mut ledger, 3 * DAY);
    book(&mut ledger, 100);
    tidy(&mut ledger, 3 * DAY);
    tidy(&mut ledger, 80 * DAY);
    book(&mut ledger, 100);
    let reader = folder.reader();
    assert_eq!(
        history(&reader, &user("a@x"), &[span(0, DAY), span(DAY, 99 * DAY)]),
        [(4, 0), (0, 0)]
    );
    tidy(&mut ledger, 80 * DAY);
    let days = all(&reader, Some(Level::Day));
    assert_eq!(days.len(), 1);
    assert_eq!((days[0].span, days[0].usage), (span(0, DAY), payload(4, 0)));
    assert_eq!(all(&reader, None).len(), 1);
    // An hour forth and back again.
    for at in [81 * DAY, 81 * DAY + 3600, 81 * DAY + 10, 81 * DAY + 3610] {
        book(&mut ledger, at);
    }
    let begins: Vec<_> = all(&reader, None).iter().map(|bucket| bucket.span.begin).collect();
    assert_eq!(begins, [0, 81 * DAY, 81 * DAY + 3600]);
    assert_eq!(reader.totals(&a).unwrap(), [payload(8, 0)]);
}

#[test]
fn days_are_those_of_the_time_zone_and_of_a_new_one_from_where_the_old_ones_end() {
    let folder = Folder::new();
    // Half an hour past a whole one, and one day of 23 hours.
    let zone = |offset: i64| {
        Calendar::new(move |second| {
            let day = grid(second + offset, DAY);
            span(day.begin - offset, day.end - offset)
        })
    };
    let options = |offset| Options { calendar: zone(offset), ..Options::default() };
    let a = user("a@x");
    let (mut ledger, _) = Ledger::open(&folder.0, options(19_800)).unwrap();
    let midnight = 10 * DAY - 19_800;
    for at in [midnight - 1, midnight, midnight + DAY - 1] {
        ledger.commit(&plan(at, vec![entry(&a, payload(1, 0))])).unwrap();
    }
    tidy(&mut ledger, midnight + DAY);
    drop(ledger);
    let (mut ledger, _) = Ledger::open(&folder.0, options(0)).unwrap();
    for at in [midnight + DAY, 11 * DAY] {
        ledger.commit(&plan(at, vec![entry(&a, payload(1, 0))])).unwrap();
    }
    tidy(&mut ledger, 12 * DAY);
    let reader = folder.reader();
    let days: Vec<_> = all(&reader, Some(Level::Day))
        .iter()
        .map(|bucket| (bucket.span, bucket.usage.traffic.input_bytes))
        .collect();
    let last = midnight + DAY;
    assert_eq!(
        days,
        [
            (span(midnight - DAY, midnight), 1),
            (span(midnight, last), 2),
            (span(last, 11 * DAY), 1),
            (span(11 * DAY, 12 * DAY), 1),
        ]
    );
    assert_eq!(history(&reader, &a, &[span(midnight, last)]), [(2, 0)]);
}

#[test]
fn how_it_is_kept_can_change_while_it_is_open() {
    let folder = Folder::new();
    let mut store = Store::open(&folder.0, Options::default(), 0).unwrap().store;
    let a = user("a@x");
    let noon = DAY / 2;
    for at in [0, noon, DAY, DAY + noon] {
        store.commit(&plan(at, vec![entry(&a, payload(1, 0))])).unwrap();
    }
    let mut kept = |options, now| {
        store.keep(options);
        // A few steps each time.
        (0..20).for_each(|_| store.tidy(now).unwrap());
        let begins = |level| {
            let buckets = all(&folder.reader(), level);
            buckets.iter().map(|bucket| bucket.span.begin).collect::<Vec<_>>()
        };
        [Some(Level::Minutes), Some(Level::Day)].map(begins)
    };
    let day = |n: i64| n * DAY;
    let all_of = vec![0, noon, DAY, DAY + noon];
    assert_eq!(kept(Options::default(), day(1)), [all_of.clone(), vec![0]]);
    let short = Retention { minutes: Keep::For(Duration::from_hours(12)), ..Retention::default() };
    // Days that begin at noon from where those of before end.
    let calendar = Calendar::new(move |second| {
        let day = grid(second + noon, DAY);
        span(day.begin - noon, day.end - noon)
    });
    let options = Options { retention: short, calendar };
    assert_eq!(kept(options.clone(), day(2) - 1), [all_of[3..].to_vec(), vec![0, DAY]]);
    assert_eq!(kept(options, day(3)), [vec![], vec![0, DAY, DAY + noon]]);
    assert_eq!(folder.reader().totals(&a).unwrap(), [payload(4, 0)]);
}

#[test]
fn a_group_keeps_its_books_when_it_is_renamed() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    for name in [None, Some("web"), Some("web"), Some("vless-in")] {
        let subject = Subject::group(&"443/tcp".parse().unwrap());
        let name = name.map(Into::into);
        let entries = vec![Entry { subject, name, usage: usage(Layer::L3, 1, 1) }];
        ledger.commit(&plan(1000, entries)).unwrap();
    }
    let known = folder.reader().subjects(Some(SubjectKind::Group)).unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].name.as_deref(), Some("vless-in"));
    assert_eq!(folder.reader().totals(&known[0].subject).unwrap(), [usage(Layer::L3, 4, 4)]);
}

#[test]
fn events_are_kept_in_their_order_with_whom_they_concern() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let event = |second: i128, kind: &str, subject| Event {
        at: second * 1_000_000_000,
        kind: kind.into(),
        subject,
        what: format!("{kind} happened"),
    };
    let events = [
        event(10, "restarted", None),
        event(20, "gap", Some(user("a@x"))),
        event(20, "reset", Some(Subject::Host)),
    ];
    ledger.commit(&Plan { events: events.to_vec(), ..plan(20, vec![]) }).unwrap();
    let reader = folder.reader();
    assert_eq!(reader.events(Span::ALL, 10).unwrap(), events);
    assert_eq!(reader.events(Span::ALL, 2).unwrap(), events[1..]);
    assert_eq!(reader.events(span(0, 20), 10).unwrap(), events[..1]);
    let last = |kind, subject: Option<&Subject>| reader.last_event(kind, subject).unwrap();
    assert_eq!(last("restarted", None).as_ref(), Some(&events[0]));
    assert_eq!(last("gap", Some(&user("a@x"))).as_ref(), Some(&events[1]));
    assert_eq!(last("gap", None), None);
    assert_eq!(last("gap", Some(&user("b@x"))), None);
}

#[test]
fn a_full_sum_takes_no_more_and_stops_nothing() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let a = user("a@x");
    for _ in 0..3 {
        ledger.commit(&plan(0, vec![entry(&a, payload(u64::MAX, 1 << 62))])).unwrap();
    }
    tidy(&mut ledger, 2 * DAY);
    let most = u64::try_from(i64::MAX).unwrap();
    assert_eq!(folder.reader().totals(&a).unwrap(), [payload(most, most)]);
}

#[test]
fn free_pages_are_given_back_in_small_steps() {
    let folder = Folder::new();
    let end = 1000 * DAY;
    generate(&folder.0, Sample { users: 1000, groups: 0, days: 3, hours: 24, end }).unwrap();
    let mut ledger = folder.ledger();
    let pages = |ledger: &Ledger| -> i64 {
        ledger.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap()
    };
    let before = pages(&ledger);
    let mut steps = 0;
    while ledger.tidy(end + 90 * DAY).unwrap() != Tidied::Nothing {
        steps += i64::from(ledger.db.is_autocommit());
    }
    let after = pages(&ledger);
    assert!(before > 5000 && after < 2048, "{before} {after}");
    assert!(steps > 2 * 24 * 12 + 3 * 24 + (before - after) / 256, "{steps}");
}

#[test]
fn a_generated_ledger_adds_up_on_every_level() {
    let folder = Folder::new();
    let end = 20_000 * DAY;
    let sample = Sample { users: 20, groups: 3, days: 65, hours: 6, end };
    let total = generate(&folder.0, sample).unwrap();
    let reader = folder.reader();
    let span_of = |days: i64| span(end - days * DAY, end);
    for days in [65, 60, 2] {
        let top = |span| reader.top(SubjectKind::User, Layer::Payload, span, By::Total, 3).unwrap();
        let whole = top(span_of(days));
        assert_eq!(whole.subjects, 20);
        // Cut at both ends, so that hours have to stand in for the days there.
        let cut = span(end - days * DAY + HOUR, end - HOUR);
        let edges = [span(end - days * DAY, cut.begin), span(cut.end, end)];
        let parts = edges.map(top).into_iter().chain([top(cut)]);
        let sum: Traffic = parts.filter_map(|part| part.total).map(|usage| usage.traffic).sum();
        assert_eq!(sum, whole.total.unwrap().traffic, "{days}");
        if days == 65 {
            assert_eq!(sum, total);
        }
    }
    let user = user("user-7@example.org");
    let leaves: u64 = all(&reader, None)
        .iter()
        .filter(|b| b.subject == user && b.usage.layer == Layer::Payload)
        .map(|bucket| bucket.usage.traffic.bytes())
        .sum();
    assert_eq!(leaves, reader.totals(&user).unwrap()[1].traffic.bytes());
}
