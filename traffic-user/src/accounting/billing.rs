//! How a provider counts what is paid for.

use super::{reading::Traffic, stats::Wire};

/// Which bytes of the two directions a provider counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Counting {
    /// Both together.
    #[default]
    Both,
    /// The direction with more of them, over the whole period.
    Larger,
    /// What leaves the host.
    Output,
}

impl Counting {
    /// Every way to count.
    pub const ALL: [Self; 3] = [Self::Both, Self::Larger, Self::Output];

    /// As it is written: `both`, `larger` or `output`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Larger => "larger",
            Self::Output => "output",
        }
    }

    /// What is paid for of a period's traffic, in bytes of its layer.
    ///
    /// The larger direction of a month is not the sum of the larger directions of its days: give the sum
    /// of the period that is billed, never add up what this gives for its parts.
    pub const fn bytes(self, input: u64, output: u64) -> u64 {
        match self {
            Self::Both => input.saturating_add(output),
            Self::Larger if input > output => input,
            Self::Larger | Self::Output => output,
        }
    }

    /// The same of counted traffic.
    pub const fn of(self, traffic: Traffic) -> u64 {
        self.bytes(traffic.input_bytes, traffic.output_bytes)
    }

    /// The same of a share of the wire.
    pub const fn of_wire(self, wire: Wire) -> u64 {
        self.bytes(wire.input, wire.output)
    }
}

/// What a provider means by a gigabyte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Unit {
    /// 2^30 bytes.
    #[default]
    Gib,
    /// 10^9 bytes.
    Gb,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 2] = [Self::Gib, Self::Gb];

    /// As it is written: `GiB` or `GB`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gib => "GiB",
            Self::Gb => "GB",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_way_of_counting_takes_its_own_bytes() {
        for (counting, want) in [
            (Counting::Both, [7, 7, u64::MAX]),
            (Counting::Larger, [4, 4, u64::MAX]),
            (Counting::Output, [4, 3, 1]),
        ] {
            let got = [(3, 4), (4, 3), (u64::MAX, 1)].map(|(i, o)| counting.bytes(i, o));
            assert_eq!(got, want, "{}", counting.name());
        }
    }

    #[test]
    fn the_larger_direction_of_two_days_is_not_the_sum_of_their_larger_directions() {
        let day =
            |input_bytes, output_bytes| Traffic { input_bytes, output_bytes, ..Traffic::default() };
        let (monday, tuesday) = (day(10, 1), day(1, 10));
        assert_eq!(Counting::Larger.of(monday) + Counting::Larger.of(tuesday), 20);
        assert_eq!(Counting::Larger.of(monday.plus(tuesday)), 11);
    }

    proptest! {
        #[test]
        fn no_way_of_counting_takes_more_than_both(input: u64, output: u64) {
            let both = Counting::Both.bytes(input, output);
            let larger = Counting::Larger.bytes(input, output);
            prop_assert!(larger <= both);
            prop_assert_eq!(larger, input.max(output));
            prop_assert!(Counting::Output.bytes(input, output) <= larger);
        }
    }
}
