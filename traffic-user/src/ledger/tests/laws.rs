//! What holds for every history.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum What {
    /// A plan; the clock moves by so many seconds before it.
    Book { by: i64, user: u8, bytes: u32 },
    /// The clock leaps, tidying up comes after.
    Tidy { by: i64 },
    /// The process dies: in the middle of a transaction, or between two.
    Die { amid: bool },
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        8 => (-4000i64..8000, 0u8..4, 1u32..1000)
            .prop_map(|(by, user, bytes)| What::Book { by, user, bytes }),
        2 => (-2 * DAY..5 * DAY).prop_map(|by| What::Tidy { by }),
        1 => prop::bool::ANY.prop_map(|amid| What::Die { amid }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever the clock goes and whatever was summed up and let go: the buckets add up to what was
    /// booked, in order, on the whole and in every way to cut time into spans.
    #[test]
    fn buckets_add_up_to_what_was_booked(
        whats in prop::collection::vec(what(), 1..60),
        cuts in prop::collection::btree_set(-20i64..400, 0..8),
    ) {
        let folder = Folder::new();
        let options = Options {
            retention: Retention {
                minutes: Keep::For(Duration::from_hours(12)),
                hours: Keep::For(Duration::from_hours(72)),
                days: Keep::Forever,
            },
            // A time zone at half an hour.
            calendar: Calendar::new(|second| {
                let day = grid(second + 19_800, DAY);
                span(day.begin - 19_800, day.end - 19_800)
            }),
        };
        let open = || Ledger::open(&folder.0, options.clone()).unwrap().0;
        let mut ledger = open();
        let mut clock = 10 * DAY;
        let mut booked: BTreeMap<u8, u64> = BTreeMap::new();
        for what in whats {
            match what {
                What::Book { by, user: number, bytes } => {
                    clock += by;
                    let subject = user(&number.to_string());
                    let usage = payload(0, u64::from(bytes));
                    ledger.commit(&plan(clock, vec![entry(&subject, usage)])).unwrap();
                    *booked.entry(number).or_default() += u64::from(bytes);
                }
                What::Tidy { by } => {
                    clock += by;
                    tidy(&mut ledger, clock);
                }
                What::Die { amid } => {
                    if amid {
                        ledger.db.execute_batch("BEGIN IMMEDIATE; DELETE FROM usage").unwrap();
                    }
                    drop(ledger);
                    ledger = open();
                }
            }
        }
        let reader = folder.reader();
        // Of every length, so that days, hours and minutes are cut.
        let mut cuts: Vec<i64> = cuts.iter().map(|n| 8 * DAY + n * 2700).collect();
        cuts.insert(0, i64::MIN);
        cuts.push(i64::MAX);
        let spans: Vec<_> = cuts.windows(2).map(|pair| span(pair[0], pair[1])).collect();
        let leaves = all(&reader, None);
        prop_assert!(leaves.is_sorted_by_key(|bucket| bucket.span.begin));
        for (number, bytes) in &booked {
            let subject = user(&number.to_string());
            let totals = reader.totals(&subject).unwrap();
            prop_assert_eq!(totals, vec![payload(0, *bytes)]);
            let parts: u64 = history(&reader, &subject, &spans).iter().map(|part| part.1).sum();
            prop_assert_eq!(parts, *bytes);
            let of_user = leaves.iter().filter(|bucket| bucket.subject == subject);
            let parts: u64 = of_user.map(|bucket| bucket.usage.traffic.output_bytes).sum();
            prop_assert_eq!(parts, *bytes);
        }
        for span in spans {
            let ranking = reader.top(SubjectKind::User, Layer::Payload, span, By::Down, 9).unwrap();
            for place in ranking.places {
                let part = history(&reader, &place.subject, &[span])[0].1;
                prop_assert_eq!(part, place.usage.traffic.output_bytes);
            }
        }
    }
}
