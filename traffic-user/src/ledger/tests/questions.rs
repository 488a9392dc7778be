//! Several questions as of one tick, and readers that take their time.

use super::*;

#[test]
fn questions_that_are_asked_at_once_are_answered_as_of_one_tick() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    let a = user("a@x");
    let mut book = || ledger.commit(&plan(900, vec![entry(&a, payload(1, 0))])).unwrap();
    book();
    let reader = folder.reader();
    let answers = reader.at_once(|reader| -> Result<_, LedgerError> {
        let before = reader.totals(&a)?;
        book();
        let top = reader.top(SubjectKind::User, Layer::Payload, Span::ALL, By::Total, 1)?;
        Ok((before, top.total, reader.extent()?))
    });
    assert_eq!(answers.unwrap(), (vec![payload(1, 0)], Some(payload(1, 0)), Some(span(900, 1200))));
    assert_eq!(reader.totals(&a).unwrap(), [payload(2, 0)]);
    // Buckets that were made since are seen as well.
    ledger.commit(&plan(1800, vec![entry(&a, payload(1, 0))])).unwrap();
    assert_eq!(reader.totals(&a).unwrap(), [payload(3, 0)]);
}

#[test]
fn all_of_a_kind_at_once_are_what_each_of_them_is_alone() {
    let folder = Folder::new();
    let end = 20_000 * DAY;
    generate(&folder.0, Sample { users: 5, groups: 7, days: 65, hours: 6, end }).unwrap();
    let reader = folder.reader();
    let spans = [Span::ALL, span(end - DAY / 2, end), span(end - 63 * DAY + 3600, end - 7200)];
    for (kind, count) in [(SubjectKind::User, 5), (SubjectKind::Group, 7), (SubjectKind::Host, 0)] {
        let all = reader.booked(kind, &spans).unwrap();
        assert_eq!(all.len(), count);
        let known = reader.subjects(Some(kind)).unwrap();
        for (booked, known) in all.iter().zip(known) {
            assert_eq!(booked.subject, known.subject);
            for (span, usages) in spans.iter().zip(&booked.usages) {
                let alone = reader.history(&booked.subject, &[*span]).unwrap();
                assert_eq!(&alone[0], usages, "{span:?}");
                assert!(!usages.is_empty());
            }
        }
    }
}

/// Gives buckets and does something after the first of them.
fn all_while(
    reader: &Reader,
    subjects: Option<&[Subject]>,
    meanwhile: impl FnOnce(),
) -> Result<Vec<(Level, i64, Subject, u64)>, LedgerError> {
    within(reader, Span::ALL, subjects, meanwhile)
}

fn within(
    reader: &Reader,
    span: Span,
    subjects: Option<&[Subject]>,
    meanwhile: impl FnOnce(),
) -> Result<Vec<(Level, i64, Subject, u64)>, LedgerError> {
    let (mut given, mut meanwhile) = (Vec::new(), Some(meanwhile));
    reader.buckets(span, Wanted { level: None, subjects }, &mut |bucket| {
        let bytes = bucket.usage.traffic.bytes();
        given.push((bucket.level, bucket.span.begin, bucket.subject, bytes));
        meanwhile.take().into_iter().for_each(|meanwhile| meanwhile());
        ControlFlow::Continue(())
    })?;
    Ok(given)
}

/// Twelve buckets of five minutes, in two hours, of two users each.
fn two_hours(ledger: &mut Ledger) {
    for n in 0..12 {
        let entries = ["a@x", "b@x"].map(|email| entry(&user(email), payload(1, 0)));
        ledger.commit(&plan(n * 600, entries.to_vec())).unwrap();
    }
}

#[test]
fn no_bucket_is_given_twice_and_none_is_left_out_while_it_is_booked_and_summed_up() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    two_hours(&mut ledger);
    let given = all_while(&folder.reader(), None, || {
        two_hours(&mut ledger);
        tidy(&mut ledger, DAY);
    });
    let mut wanted = Vec::new();
    for n in 0..12 {
        // What was read before the second booking is as it was then.
        let bytes = if n < 2 { 1 } else { 2 };
        wanted.extend(["a@x", "b@x"].map(|a| (Level::Minutes, n * 600, user(a), bytes)));
    }
    assert_eq!(given.unwrap(), wanted);
}

#[test]
fn buckets_of_several_subjects_come_in_the_order_of_time() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    two_hours(&mut ledger);
    let subjects = [user("b@x"), user("nobody"), user("a@x")];
    let given = all_while(&folder.reader(), Some(&subjects), || {}).unwrap();
    assert!(given.is_sorted_by_key(|(_, begin, ..)| *begin) && given.len() == 24, "{given:?}");
    let given = all_while(&folder.reader(), Some(&subjects[..1]), || {}).unwrap();
    assert!(given.iter().all(|(_, _, subject, _)| *subject == user("b@x")) && given.len() == 12);
}

#[test]
fn parts_of_an_hour_that_go_while_they_are_given_are_told() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    two_hours(&mut ledger);
    tidy(&mut ledger, 7200);
    let gone = all_while(&folder.reader(), None, || tidy(&mut ledger, 10 * DAY));
    assert!(matches!(gone, Err(LedgerError::LetGo { .. })), "{gone:?}");
    // Hours that were not begun are given as what is left of them.
    let given = all_while(&folder.reader(), None, || {}).unwrap();
    let wanted =
        [0, 3600].map(|at| [(Level::Hour, at, user("a@x"), 6), (Level::Hour, at, user("b@x"), 6)]);
    assert_eq!(given, wanted.concat());
}

#[test]
fn parts_of_an_hour_that_began_before_the_span_are_not_missed_without_a_word() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    two_hours(&mut ledger);
    tidy(&mut ledger, 7200);
    let span = Span { begin: 600, end: i64::MAX };
    let gone = within(&folder.reader(), span, None, || tidy(&mut ledger, 10 * DAY));
    assert!(matches!(gone, Err(LedgerError::LetGo { .. })), "{gone:?}");
}

#[test]
fn a_reader_that_takes_his_time_does_not_keep_what_is_written_from_being_written_back() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    two_hours(&mut ledger);
    let wal = || fs::metadata(folder.0.join("ledger.db-wal")).unwrap().len();
    let given = all_while(&folder.reader(), None, || {
        // More than 30 MB, were all of it kept.
        for n in 0..1000_i64 {
            let entries = (0..200).map(|a| entry(&user(&format!("{a}@x")), payload(1, 0)));
            ledger.commit(&plan(n * 300, entries.collect())).unwrap();
        }
        assert!(wal() < 8 << 20, "{}", wal());
    });
    assert!(given.is_ok());
}
