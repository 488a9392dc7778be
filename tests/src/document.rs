//! One JSON document of `run --output json` or `dump --json`, and the sums that must hold in it.

use std::ops::{Add, AddAssign, Sub};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// One kind of traffic, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Layer-3 bytes that entered.
    pub input_bytes: u64,
    /// Wire packets that entered.
    pub input_packets: u64,
    /// Layer-3 bytes that left.
    pub output_bytes: u64,
    /// Wire packets that left.
    pub output_packets: u64,
}

impl Traffic {
    /// Input alone.
    pub const fn input(bytes: u64, packets: u64) -> Self {
        Self { input_bytes: bytes, input_packets: packets, output_bytes: 0, output_packets: 0 }
    }

    /// Output alone.
    pub const fn output(bytes: u64, packets: u64) -> Self {
        Self { input_bytes: 0, input_packets: 0, output_bytes: bytes, output_packets: packets }
    }

    /// The same packets seen from the other end.
    #[must_use]
    pub const fn turned(self) -> Self {
        Self {
            input_bytes: self.output_bytes,
            input_packets: self.output_packets,
            output_bytes: self.input_bytes,
            output_packets: self.input_packets,
        }
    }

    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            input_bytes: of(self.input_bytes, other.input_bytes),
            input_packets: of(self.input_packets, other.input_packets),
            output_bytes: of(self.output_bytes, other.output_bytes),
            output_packets: of(self.output_packets, other.output_packets),
        }
    }
}

impl Add for Traffic {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Traffic {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }
}

/// A document as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document(pub Value);

impl Document {
    /// From one line.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    #[track_caller]
    pub fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).unwrap_or_else(|err| panic!("not JSON: {err}\n{line}")))
    }

    #[track_caller]
    fn traffic(&self, path: &[&str]) -> Traffic {
        let object = path.iter().fold(&self.0, |value, key| &value[*key]);
        let number = |key: &str| {
            object[key].as_u64().unwrap_or_else(|| panic!("no {key} of {path:?} in {}", self.0))
        };
        Traffic {
            input_bytes: number("input_bytes"),
            input_packets: number("input_packets"),
            output_bytes: number("output_bytes"),
            output_packets: number("output_packets"),
        }
    }

    /// A group by its ports.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn group(&self, ports: &str) -> Traffic {
        self.traffic(&["ports", ports])
    }

    /// One lane of a group: `tcp4`, `tcp6`, `udp4` or `udp6`.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn lane(&self, ports: &str, lane: &str) -> Traffic {
        self.traffic(&["ports", ports, "lanes", lane])
    }

    /// What was counted for one of the reasons.
    ///
    /// # Panics
    ///
    /// When there is no such reason.
    #[track_caller]
    pub fn skipped(&self, reason: &str) -> Traffic {
        self.traffic(&["skipped", reason])
    }

    /// All groups together, as the document says.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn total(&self) -> Traffic {
        self.traffic(&["total"])
    }

    /// Keys of all groups, sorted.
    pub fn groups(&self) -> Vec<&str> {
        keys(&self.0["ports"])
    }

    /// Devices that are counted, sorted.
    pub fn devices(&self) -> Vec<&str> {
        keys(&self.0["devices"])
    }

    /// A member that is text.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("no text {key} in {}", self.0))
    }

    /// A time after which its numbers were read: that at which it says it began, less what it leaves out
    /// of a millisecond.
    ///
    /// # Panics
    ///
    /// When it does not say.
    #[track_caller]
    pub fn begins(&self) -> Timestamp {
        let end: Timestamp = self.text("taken_at").parse().expect("a time");
        let window = self.0["window_ns"].as_i64().expect("the length of the window");
        end - SignedDuration::from_nanos(window)
    }

    /// Every packet that the hook saw: groups, unwatched and all reasons. Checks on the way that the
    /// lanes add up to their groups, and the groups to the total.
    ///
    /// # Panics
    ///
    /// When they do not.
    #[track_caller]
    pub fn everything(&self) -> Traffic {
        let mut sum = Traffic::default();
        for key in self.groups() {
            let mut lanes = Traffic::default();
            for lane in ["tcp4", "tcp6", "udp4", "udp6"] {
                lanes += self.lane(key, lane);
            }
            assert_eq!(lanes, self.group(key), "lanes of {key}");
            sum += lanes;
        }
        assert_eq!(sum, self.total(), "the groups' sum");
        for reason in keys(&self.0["skipped"]) {
            sum += self.skipped(reason);
        }
        sum
    }
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).collect()
}
