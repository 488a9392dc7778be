//! What an honest meter does not show, as values: the core does not fail.

use std::{fmt, sync::Arc};

use super::{ident::Group, reading::Layer};

/// Whose counter it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A lane of a group.
    Lane {
        /// Which group.
        group: Arc<Group>,
        /// Name of the lane.
        lane: &'static str,
    },
    /// A reason why packets are in no group.
    Skipped(&'static str),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lane { group, lane } => write!(f, "{lane} of group {group}"),
            Self::Skipped(reason) => write!(f, "skipped.{reason}"),
        }
    }
}

/// Something that an honest meter does not show. None of it charges anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anomaly {
    /// A counter became smaller inside one epoch.
    Regressed {
        /// Which meter.
        meter: &'static str,
        /// Whose counter.
        owner: Owner,
        /// Name of the counter: `input_bytes` and so on.
        counter: &'static str,
        /// By how much.
        by: u64,
    },
    /// A group that was watched is gone from a later snapshot of the epoch: what it counted since is
    /// not known. Were it to come back with its old numbers, they would be charged again.
    Vanished {
        /// Which meter.
        meter: &'static str,
        /// Which group.
        group: Arc<Group>,
    },
    /// A snapshot was given to follow one of another meter or layer.
    Replaced {
        /// Meter and layer before.
        from: (&'static str, Layer),
        /// Meter and layer now.
        to: (&'static str, Layer),
    },
    /// A meter of the frame before gave no snapshot.
    Silent {
        /// Which meter.
        meter: &'static str,
    },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regressed { meter, owner, counter, by } => write!(
                f,
                "{meter}: {counter} of {owner} fell by {by} within one epoch; nothing is charged"
            ),
            Self::Vanished { meter, group } => write!(
                f,
                "{meter}: group {group} is gone; what it counted since it was last read is not known"
            ),
            Self::Replaced { from, to } => write!(
                f,
                "{} ({}) follows {} ({}): not subtracted, counting begins anew",
                to.0,
                to.1.name(),
                from.0,
                from.1.name()
            ),
            Self::Silent { meter } => write!(f, "{meter}: no reading this time"),
        }
    }
}
