//! What is in the books: entries that are made, and sums that are asked for.
//!
//! Bytes and packets of one subject may be of several layers: a user has payload and a share of the
//! wire, a group has `l3` from one meter and `l3-skb` from another. They stand side by side and are
//! never added.

use std::sync::Arc;

use super::{
    reading::{Coverage, Layer, Traffic},
    subject::Subject,
};

/// A span of time, seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First second in it.
    pub begin: i64,
    /// First second behind it.
    pub end: i64,
}

impl Span {
    /// All of time.
    pub const ALL: Self = Self { begin: i64::MIN, end: i64::MAX };

    /// Whether a second is in it.
    pub const fn contains(self, at: i64) -> bool {
        self.begin <= at && at < self.end
    }

    /// Whether another span lies in it.
    pub const fn covers(self, other: Self) -> bool {
        self.begin <= other.begin && other.end <= self.end
    }

    /// Whether they have a second in common.
    pub const fn meets(self, other: Self) -> bool {
        self.begin < other.end && other.begin < self.end
    }
}

/// What was counted, of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What its bytes include. Payload and shares of the wire have no packets.
    pub layer: Layer,
    /// Input is uplink, output is downlink.
    pub traffic: Traffic,
    /// Worst of what it is a sum of; `Estimated` also where the span that was asked for cuts a bucket,
    /// which then belongs to the span that holds its begin.
    pub coverage: Coverage,
}

/// Something to be booked: counted since it was last booked, and not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// To whom.
    pub subject: Subject,
    /// What it is called now, where that is no part of what tells it from others: a group's name.
    pub name: Option<Arc<str>>,
    /// How much.
    pub usage: Usage,
}

/// Something that happened and that the numbers alone do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was noticed, nanoseconds of Unix time.
    pub at: i128,
    /// As scripts know it: `restarted`, `meter-changed`, `gap`, `reset`, ...
    pub kind: String,
    /// Whom it concerns, if not all.
    pub subject: Option<Subject>,
    /// In words, safe to print.
    pub what: String,
}

/// How long a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Five minutes.
    Minutes,
    /// An hour of the day.
    Hour,
    /// A day in the configured time zone.
    Day,
}

impl Level {
    /// From the shortest on.
    pub const ALL: [Self; 3] = [Self::Minutes, Self::Hour, Self::Day];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minutes => "5min",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// What one subject was booked in one bucket, of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// How long.
    pub level: Level,
    /// From when to when.
    pub span: Span,
    /// Whose.
    pub subject: Subject,
    /// What it is called now, such as a group's name. Foreign text.
    pub name: Option<Arc<str>>,
    /// How much.
    pub usage: Usage,
}

/// What a ranking is by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Both directions.
    #[default]
    Total,
    /// Uplink, which is input.
    Up,
    /// Downlink, which is output.
    Down,
}

impl By {
    /// The bytes that count.
    pub const fn of(self, traffic: Traffic) -> u64 {
        match self {
            Self::Total => traffic.bytes(),
            Self::Up => traffic.input_bytes,
            Self::Down => traffic.output_bytes,
        }
    }
}

/// One place of a ranking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Who.
    pub subject: Subject,
    /// What it is called now. Foreign text.
    pub name: Option<Arc<str>>,
    /// How much.
    pub usage: Usage,
}

/// A ranking: its first places and what it is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    /// The first places, the largest first; equal ones by key.
    pub places: Vec<Ranked>,
    /// How many subjects had any traffic.
    pub subjects: usize,
    /// All of them together; `None` when there are none.
    pub total: Option<Usage>,
}

/// What a subject was booked in several spans of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booked {
    /// Who.
    pub subject: Subject,
    /// What it is called now. Foreign text.
    pub name: Option<Arc<str>>,
    /// For each span one sum a layer.
    pub usages: Vec<Vec<Usage>>,
}

/// A subject of which there are records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub subject: Subject,
    /// What it is called now. Foreign text.
    pub name: Option<Arc<str>>,
    /// When it was booked first, seconds of Unix time.
    pub first: i64,
    /// When it was booked last, to about five minutes.
    pub last: i64,
}
