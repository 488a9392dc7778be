//! From the answer of a server to counters in order. Pure.

use std::{borrow::Cow, fmt::Write as _};

use super::wire::v2ray::Stat;
use crate::accounting::proxy::CounterName;

/// The counters of an answer, in the order of their names, each once.
///
/// A name of another kind is left out. If a name came twice, the larger value stays: counters grow, so
/// it is the later one.
pub(super) fn counters(stats: &[Stat]) -> Vec<(CounterName, i64)> {
    let named = |stat: &Stat| Some((CounterName::parse(&text(&stat.name))?, stat.value));
    let mut counters: Vec<_> = stats.iter().filter_map(named).collect();
    counters.sort_unstable();
    counters.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 = next.1;
        }
        same
    });
    counters
}

/// A name as text. Bytes that are not UTF-8 become `\xNN`, so that two different names stay two.
pub(super) fn text(name: &[u8]) -> Cow<'_, str> {
    if let Ok(name) = std::str::from_utf8(name) {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use prost::Message as _;

    use super::*;
    use crate::meter::proxy::wire::v2ray::QueryStatsResponse;

    fn stat(name: impl Into<Vec<u8>>, value: i64) -> Stat {
        Stat { name: name.into(), value }
    }

    #[track_caller]
    fn check(stats: &[Stat], want: &[(&str, i64)]) {
        let found: Vec<_> =
            counters(stats).into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        let want: Vec<_> = want.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn counters_are_in_order_and_other_names_are_left_out() {
        check(
            &[
                stat("outbound>>>direct>>>traffic>>>uplink", 4),
                stat("user>>>b@x>>>traffic>>>uplink", 2),
                stat("user>>>a@x>>>online", 9),
                stat("inbound>>>in>>>traffic>>>downlink", 3),
                stat("user>>>a@x>>>traffic>>>downlink", 1),
                stat("", 7),
            ],
            &[
                ("user>>>a@x>>>traffic>>>downlink", 1),
                ("user>>>b@x>>>traffic>>>uplink", 2),
                ("inbound>>>in>>>traffic>>>downlink", 3),
                ("outbound>>>direct>>>traffic>>>uplink", 4),
            ],
        );
    }

    #[test]
    fn any_value_is_passed_on_as_it_came() {
        check(
            &[
                stat("user>>>a>>>traffic>>>uplink", i64::MIN),
                stat("user>>>b>>>traffic>>>uplink", -1),
                stat("user>>>c>>>traffic>>>uplink", i64::MAX),
            ],
            &[
                ("user>>>a>>>traffic>>>uplink", i64::MIN),
                ("user>>>b>>>traffic>>>uplink", -1),
                ("user>>>c>>>traffic>>>uplink", i64::MAX),
            ],
        );
    }

    #[test]
    fn of_a_name_that_came_twice_the_larger_value_stays() {
        let name = "user>>>a>>>traffic>>>uplink";
        check(&[stat(name, 5), stat(name, 7), stat(name, 6)], &[(name, 7)]);
    }

    #[test]
    fn names_that_are_not_utf8_stay_apart_and_take_no_others_away() {
        check(
            &[
                stat(b"user>>>\xff@x>>>traffic>>>uplink".as_slice(), 1),
                stat(b"user>>>\xfe@x>>>traffic>>>uplink".as_slice(), 2),
                stat("user>>>é@x>>>traffic>>>uplink", 3),
            ],
            &[
                ("user>>>\\xfe@x>>>traffic>>>uplink", 2),
                ("user>>>\\xff@x>>>traffic>>>uplink", 1),
                ("user>>>é@x>>>traffic>>>uplink", 3),
            ],
        );
    }

    proptest! {
        #[test]
        fn no_answer_makes_a_panic(data in vec(any::<u8>(), 0..200)) {
            if let Ok(answer) = QueryStatsResponse::decode(data.as_slice()) {
                let found = counters(&answer.stat);
                prop_assert!(found.len() <= answer.stat.len());
            }
        }

        #[test]
        fn each_counter_of_an_answer_is_found_once(
            names in vec(("[a-c>]{1,4}", any::<bool>(), any::<i64>()), 0..50),
        ) {
            let way = |up| if up { "uplink" } else { "downlink" };
            let stats: Vec<_> = names
                .iter()
                .map(|(who, up, value)| {
                    stat(format!("user>>>{who}>>>traffic>>>{}", way(*up)), *value)
                })
                .collect();
            let found = counters(&stats);
            prop_assert!(found.is_sorted_by(|a, b| a.0 < b.0));
            for (who, up, _) in &names {
                let name = format!("user>>>{who}>>>traffic>>>{}", way(*up));
                let largest = stats
                    .iter()
                    .filter(|stat| stat.name == name.as_bytes())
                    .map(|stat| stat.value)
                    .max();
                let value =
                    found.iter().find(|(found, _)| found.to_string() == name).map(|(_, value)| *value);
                prop_assert_eq!(value, largest);
            }
        }
    }
}
