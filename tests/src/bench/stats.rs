//! Medians, and how far to trust them.
//!
//! A shared machine adds noise that is larger than what is measured, but it adds it to neighbours in
//! time alike. So variants are measured in rounds, one after the other, and only values of the same
//! round are compared; the median over the rounds is the answer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// How often rounds are drawn again for an interval.
const DRAWS: usize = 2000;

/// A median over rounds with the interval that holds it in 95 % of redrawn rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The middle value.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// From how many rounds.
    pub rounds: usize,
}

impl Estimate {
    /// From one value a round; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let median = median(values)?;
        // The same draws every time: a report can be computed again from its values.
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut medians: Vec<f64> = (0..DRAWS)
            .filter_map(|_| {
                let drawn: Vec<f64> =
                    values.iter().map(|_| values[random.below(values.len())]).collect();
                self::median(&drawn)
            })
            .collect();
        medians.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median,
            low: medians[DRAWS / 40],
            high: medians[DRAWS - 1 - DRAWS / 40],
            rounds: values.len(),
        })
    }

    /// For the JSON report.
    pub fn json(&self) -> Value {
        json!({
            "median": round(self.median),
            "low": round(self.low),
            "high": round(self.high),
            "rounds": self.rounds,
        })
    }

    /// `12.3 (11.9 to 12.8)`, with as many decimals as the size deserves.
    pub fn text(&self) -> String {
        format!("{} ({} to {})", number(self.median), number(self.low), number(self.high))
    }
}

/// A number for people: three or four digits that mean something.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        // A count of things, such as ports, has none.
        size if size >= 100.0 || (size >= 1.0 && value.fract() == 0.0) => 0,
        size if size >= 0.1 || size == 0.0 => 1,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.as_str()),
    };
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut grouped = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Four decimals: what is below is noise, and makes reports differ for nothing.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The middle value, `None` without any.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(upper, sorted[sorted.len() / 2 - 1]))
}

/// The value that so many of a hundred do not exceed, `None` without any.
pub fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (sorted.len() * percent.min(100)).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

/// What was measured, by variant and round.
#[derive(Clone, Debug)]
pub struct Rounds<K>(BTreeMap<K, BTreeMap<u32, f64>>);

impl<K> Default for Rounds<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Rounds<K> {
    /// Keeps one value.
    pub fn record(&mut self, variant: K, round: u32, value: f64) {
        self.0.entry(variant).or_default().insert(round, value);
    }

    /// Whether the variant was measured at all.
    pub fn has(&self, variant: &K) -> bool {
        self.0.contains_key(variant)
    }

    /// The variant alone.
    pub fn of(&self, variant: &K) -> Option<Estimate> {
        let values: Vec<f64> = self.0.get(variant)?.values().copied().collect();
        Estimate::of(&values)
    }

    /// What the variant adds to `base` in the same round.
    pub fn over(&self, variant: &K, base: &K) -> Option<Estimate> {
        self.pairs(variant, base, |value, base| value - base)
    }

    /// How many times `base` of the same round the variant is.
    pub fn ratio(&self, variant: &K, base: &K) -> Option<Estimate> {
        self.pairs(variant, base, |value, base| value / base)
    }

    fn pairs(&self, variant: &K, base: &K, join: impl Fn(f64, f64) -> f64) -> Option<Estimate> {
        let base = self.0.get(base)?;
        let joined: Vec<f64> = self
            .0
            .get(variant)?
            .iter()
            .filter_map(|(round, value)| Some(join(*value, *base.get(round)?)))
            .collect();
        Estimate::of(&joined)
    }
}

/// Numbers that look random (xorshift); for the order of variants and for redrawing.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u32) -> Self {
        Self((u64::from(seed) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let end = end as u64;
        usize::try_from((self.0 >> 11) % end).unwrap_or(0)
    }

    /// Puts the items in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=40).rev().map(f64::from).collect();
        let of = |percent| percentile(&values, percent);
        assert_eq!([of(0), of(50), of(95), of(100)], [1.0, 20.0, 38.0, 40.0].map(Some));
        assert_eq!(percentile(&values[..1], 95), Some(40.0));
        assert_eq!(percentile(&[], 95), None);
    }

    #[test]
    fn differences_are_taken_within_a_round_so_that_drift_does_not_show() {
        let mut rounds = Rounds::default();
        for round in 0..20 {
            let drift = f64::from(round) * 100.0;
            rounds.record("none", round, 600.0 + drift);
            rounds.record("tcx", round, 622.0 + drift);
        }
        let over = rounds.over(&"tcx", &"none").expect("both are there");
        assert_eq!((over.median, over.low, over.high), (22.0, 22.0, 22.0));
        assert_eq!(over.rounds, 20);
    }

    #[test]
    fn rounds_that_only_one_variant_has_are_left_out() {
        let mut rounds = Rounds::default();
        rounds.record(1, 0, 10.0);
        rounds.record(1, 1, 20.0);
        rounds.record(2, 1, 25.0);
        let over = rounds.over(&2, &1).expect("one round in common");
        assert_eq!((over.median, over.rounds), (5.0, 1));
        assert!(rounds.over(&2, &3).is_none());
    }

    #[test]
    fn the_interval_holds_the_median_and_not_much_more() {
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        let estimate = Estimate::of(&values).expect("values");
        assert_eq!(estimate.median, 50.0);
        assert!((30.0..45.0).contains(&estimate.low), "{estimate:?}");
        assert!((55.0..70.0).contains(&estimate.high), "{estimate:?}");
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        let texts = [0.0, -3.12, 12.34, 0.012_34, 999.6, 1234.5, 1_234_567.0].map(number);
        let wanted = ["0.0", "-3.1", "12.3", "0.012", "1,000", "1,234", "1,234,567"];
        assert_eq!(texts, wanted);
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut items: Vec<u32> = (0..50).collect();
        Random::new(7).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
