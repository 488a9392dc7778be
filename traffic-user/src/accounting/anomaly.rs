//! What an honest meter does not show, as values: the core does not fail.

use std::{fmt, sync::Arc};

use super::{
    ident::{Group, shown},
    proxy::{CounterName, Way},
    reading::Layer,
};

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
    /// A counter of the proxy is below zero: it charges nothing, and its last good value stays.
    Negative {
        /// Which.
        counter: CounterName,
        /// What came.
        value: i64,
    },
    /// A proxy's answer names a counter more than once: the first one counts.
    Twice {
        /// Which.
        counter: CounterName,
    },
    /// The proxy began again, and its counters with it.
    ProxyRestarted {
        /// When at the latest, nanoseconds of Unix time; `None` when its answer does not tell.
        began: Option<i128>,
    },
    /// Somebody else set counters back to zero while the proxy went on.
    CountersReset {
        /// Which, in the order of their names.
        counters: Vec<CounterName>,
    },
    /// Nothing tells whether the proxy began again since the last poll: no uptime, or one that fits
    /// both.
    ProxyUnclear,
    /// Another proxy answers, which ran before the last poll already: a new baseline.
    ProxyReplaced,
    /// The proxy reported more payload than the kernel saw on the wire, over its whole life.
    AboveWire {
        /// Where.
        group: Arc<Group>,
        /// In which direction.
        way: Way,
        /// Bytes the proxy reported for users of this group alone.
        payload: u64,
        /// Bytes the kernel saw.
        wire: u64,
    },
    /// The proxy reports almost no payload while the wire runs.
    ApiSilent {
        /// Where.
        group: Arc<Group>,
        /// Bytes the proxy reported.
        payload: u64,
        /// Bytes the kernel saw.
        wire: u64,
    },
    /// Users of a level that the proxy's policy does not count.
    NotCounted {
        /// Who, in the order of the config.
        users: Vec<Arc<str>>,
    },
    /// Users whom the config gives no name: the proxy does not count them.
    Nameless {
        /// Where.
        group: Arc<Group>,
        /// How many.
        users: usize,
    },
    /// Users whom the proxy counts and the config places in no inbound: no wire bytes are charged to
    /// them.
    Unplaced {
        /// Who, by name.
        users: Vec<Arc<str>>,
    },
}

impl Anomaly {
    /// As scripts know it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Regressed { .. } => "regressed",
            Self::Vanished { .. } => "vanished",
            Self::Replaced { .. } => "replaced",
            Self::Silent { .. } => "silent",
            Self::Negative { .. } => "negative",
            Self::Twice { .. } => "twice",
            Self::ProxyRestarted { .. } => "proxy-restarted",
            Self::CountersReset { .. } => "counters-reset",
            Self::ProxyUnclear => "proxy-unclear",
            Self::ProxyReplaced => "proxy-replaced",
            Self::AboveWire { .. } => "above-wire",
            Self::ApiSilent { .. } => "api-silent",
            Self::NotCounted { .. } => "not-counted",
            Self::Nameless { .. } => "nameless",
            Self::Unplaced { .. } => "unplaced",
        }
    }
}

/// Names for people: the first few, safe to print, and how many more there are.
struct Names<'a>(&'a [Arc<str>]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 5;
        let names: Vec<_> = self.0.iter().take(MOST).map(|name| shown(name)).collect();
        f.write_str(&names.join(", "))?;
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The name of a counter, safe to print and not too long.
pub fn counter_text(counter: &CounterName) -> String {
    // Long enough for most emails with what stands around them.
    counter.to_string().chars().take(100).collect::<String>().escape_debug().to_string()
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
            Self::Negative { counter, value } => write!(
                f,
                "proxy: {} is {value}, below zero; nothing is charged",
                counter_text(counter)
            ),
            Self::Twice { counter } => write!(
                f,
                "proxy: {} came more than once; the first value counts",
                counter_text(counter)
            ),
            Self::ProxyRestarted { .. } => f.write_str(
                "proxy: restarted; what it counted after the last poll before that is lost",
            ),
            Self::CountersReset { counters } => {
                let first = counters.first().map(counter_text).unwrap_or_default();
                let count = counters.len();
                write!(f, "proxy: {count} counters were reset by somebody else, {first} the first")
            }
            Self::ProxyUnclear => f.write_str(
                "proxy: whether it restarted since the last poll cannot be told from its uptime",
            ),
            Self::ProxyReplaced => f.write_str(
                "proxy: another one answers, which was running before; counting begins anew",
            ),
            Self::AboveWire { group, way, payload, wire } => write!(
                f,
                "group {group}: {payload} bytes of {} payload, but only {wire} on the wire",
                way.name()
            ),
            Self::ApiSilent { group, payload, wire } => write!(
                f,
                "group {group}: the proxy counted {payload} bytes while {wire} passed on the wire; \
                 its statistics may be off for these users, or long spliced downloads still run"
            ),
            Self::NotCounted { users } => write!(
                f,
                "the proxy's policy does not count the level of {}; switch on statsUserUplink and \
                 statsUserDownlink for it",
                Names(users)
            ),
            Self::Nameless { group, users } => write!(
                f,
                "group {group}: {users} users have no email, so the proxy does not count them"
            ),
            Self::Unplaced { users } => write!(
                f,
                "the proxy counts {}, whom the config places in no inbound: no wire bytes are \
                 charged to them",
                Names(users)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::proxy::Subject, *};

    #[test]
    fn foreign_names_are_shown_escaped_and_shortened() {
        let email: Arc<str> = "\u{1b}[2Ja>>>b\n@x".into();
        let counter = CounterName { subject: Subject::User(Arc::clone(&email)), way: Way::Uplink };
        let long: Arc<str> = "y".repeat(100_000).into();
        let users = [vec![email, long], vec!["z".into(); 7]].concat();
        for (anomaly, want) in [
            (
                Anomaly::Negative { counter: counter.clone(), value: -5 },
                "user>>>\\u{1b}[2Ja>>>b\\n@x>>>traffic>>>uplink is -5",
            ),
            (Anomaly::Twice { counter: counter.clone() }, "\\u{1b}[2Ja>>>b\\n@x"),
            (Anomaly::CountersReset { counters: vec![counter] }, "\\u{1b}[2Ja>>>b\\n@x"),
            (Anomaly::NotCounted { users: users.clone() }, "yyy…, z, z, z and 4 more"),
            (Anomaly::Unplaced { users }, "\\u{1b}[2Ja>>>b\\n@x, yyy"),
        ] {
            let text = anomaly.to_string();
            assert!(text.contains(want), "{text}");
            assert!(!text.contains(char::is_control) && text.len() < 300, "{text}");
        }
    }
}
