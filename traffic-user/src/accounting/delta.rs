//! What was counted between two snapshots.
//!
//! Totals are subtracted only inside one epoch of one meter, and the meter says which epoch it is: a
//! restart is told, never guessed from a smaller number, because a restarted counter may be past the
//! old one already. Every outcome has a name, so that no zero is silent:
//!
//! | next to the snapshot before | charged | [`Seam`] |
//! |---|---|---|
//! | there is none | nothing, or all since the epoch began, as [`First`] says | `First` |
//! | same meter, layer and epoch | the difference | `Same` |
//! | same meter and layer, another epoch | all that the new epoch counted | `Restarted` |
//! | another meter or layer | nothing: a new baseline | `Replaced` |
//!
//! Groups are joined by their ports and transport, never by position or name. One that appears inside
//! an epoch begins at zero, since it got its counters in this epoch. Nothing here fails or panics:
//! what cannot be true becomes an [`Anomaly`] and charges nothing.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use super::{
    anomaly::{Anomaly, Owner},
    ident::{Group, PortRange, Transport},
    reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Skipped, Snapshot, Traffic},
    units,
};

const NANOS: i128 = 1_000_000_000;

/// One counter at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Which life of it.
    pub epoch: Epoch,
    /// Total since that began.
    pub total: u64,
}

/// What one counter did between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first reading: what it counted belongs to a time that nobody watched.
    Baseline,
    /// Went on, by this much.
    Advanced(u64),
    /// Began again from zero: all that it has counted since is new.
    Restarted(u64),
    /// Is smaller inside one epoch, which no honest meter shows.
    Regressed {
        /// By how much.
        by: u64,
    },
}

impl Step {
    /// What is charged for it.
    pub const fn charge(self) -> u64 {
        match self {
            Self::Advanced(amount) | Self::Restarted(amount) => amount,
            Self::Baseline | Self::Regressed { .. } => 0,
        }
    }
}

/// Compares two readings of one counter.
pub const fn step(prev: Option<Counter>, next: Counter) -> Step {
    let Some(prev) = prev else {
        return Step::Baseline;
    };
    if prev.epoch.0 != next.epoch.0 {
        return Step::Restarted(next.total);
    }
    match next.total.checked_sub(prev.total) {
        Some(amount) => Step::Advanced(amount),
        None => Step::Regressed { by: prev.total - next.total },
    }
}

/// What to do with the totals of a snapshot that nothing comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// They belong to a time that nobody watched: charge nothing.
    Baseline,
    /// The epoch is known to have begun under our eyes: charge all of it.
    Charge,
}

impl First {
    /// [`First::Charge`] if the epoch is known to have begun no earlier than we did, both in seconds
    /// of Unix time.
    pub const fn when(since: Option<i64>, started: i64) -> Self {
        match since {
            Some(since) if since >= started => Self::Charge,
            _ => Self::Baseline,
        }
    }
}

/// How a snapshot follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    /// There is none before.
    First(First),
    /// Both are of one epoch.
    Same,
    /// The counters began again; what the old ones counted after they were last read is lost.
    Restarted {
        /// Epoch of the one before.
        from: Epoch,
    },
    /// The one before counted something else.
    Replaced {
        /// Its meter.
        meter: &'static str,
        /// Its layer.
        layer: Layer,
    },
}

/// What one group was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDelta {
    /// Which group.
    pub group: Arc<Group>,
    /// Charged to each lane.
    pub lanes: Lanes,
    /// Whether it is still watched.
    pub watched: bool,
}

/// What was counted between two snapshots of one meter. Layer and epoch are the later one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deltas {
    /// Name of the meter.
    pub meter: &'static str,
    /// What its bytes include.
    pub layer: Layer,
    /// Life of the counters that were read last.
    pub epoch: Epoch,
    /// How the two snapshots are joined.
    pub seam: Seam,
    /// End of the earlier snapshot's window, nanoseconds of Unix time; for a first one that is
    /// charged, the begin of its epoch, where that is known.
    pub from: Option<i128>,
    /// End of the later one's window, likewise.
    pub to: i128,
    /// Whether all that passed was counted. Never better than what the later snapshot says of its
    /// whole epoch, since nothing tells in which part of it something was missed.
    pub coverage: Coverage,
    /// One for each group of the later snapshot, in its order.
    pub groups: Vec<GroupDelta>,
    /// What was in no group; `None` where one of the two cannot tell.
    pub skipped: Option<Skipped>,
}

impl Deltas {
    /// All groups together.
    pub fn total(&self) -> Traffic {
        self.groups.iter().map(|group| group.lanes.total()).sum()
    }

    /// Time between the two; `None` without an earlier one, or when the clock did not go forward.
    pub fn elapsed(&self) -> Option<Duration> {
        let nanos = self.to.checked_sub(self.from?)?;
        let nanos = u64::try_from(nanos).ok().filter(|nanos| *nanos != 0)?;
        Some(Duration::from_nanos(nanos))
    }

    /// A part of these deltas as bytes and packets a second; `None` where [`elapsed`](Self::elapsed) is.
    pub fn per_second(&self, part: Traffic) -> Option<Traffic> {
        let elapsed = self.elapsed()?;
        let rate = |amount| units::per_second(amount, elapsed);
        Some(Traffic {
            input_bytes: rate(part.input_bytes)?,
            input_packets: rate(part.input_packets)?,
            output_bytes: rate(part.output_bytes)?,
            output_packets: rate(part.output_packets)?,
        })
    }
}

/// Subtracts two snapshots, the earlier one first. See the [module](self) for what is charged.
///
/// ```
/// use traffic_user::accounting::{
///     delta::{First, diff},
///     reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Snapshot, Traffic, Window},
/// };
///
/// let group = std::sync::Arc::new("443".parse()?);
/// let at = |end, input_bytes| Snapshot {
///     meter: "tcx",
///     layer: Layer::L3,
///     epoch: Epoch(7),
///     since: None,
///     window: Window { begin: end, end },
///     coverage: Coverage::Complete,
///     groups: std::sync::Arc::new([GroupReading {
///         group: std::sync::Arc::clone(&group),
///         lanes: Lanes { tcp4: Traffic { input_bytes, ..Traffic::default() }, ..Lanes::default() },
///         watched: true,
///     }]),
///     skipped: None,
/// };
/// let (deltas, anomalies) = diff(Some(&at(0, 100)), &at(2_000_000_000, 400), First::Baseline);
/// assert_eq!(deltas.total().input_bytes, 300);
/// assert_eq!(deltas.per_second(deltas.total()).map(|rate| rate.input_bytes), Some(150));
/// assert!(anomalies.is_empty());
/// # Ok::<(), traffic_user::accounting::ident::GroupError>(())
/// ```
pub fn diff(prev: Option<&Snapshot>, next: &Snapshot, first: First) -> (Deltas, Vec<Anomaly>) {
    let mut anomalies = Vec::new();
    let seam = seam(prev, next, first);
    // The epoch that the values before are of; `None` leaves nothing to subtract from.
    let before = match seam {
        Seam::First(First::Charge) | Seam::Same => Some(next.epoch),
        Seam::Restarted { from } => Some(from),
        Seam::First(First::Baseline) | Seam::Replaced { .. } => None,
    };
    let mut coverage = next.coverage;
    if matches!(seam, Seam::Restarted { .. } | Seam::Replaced { .. }) {
        coverage = Coverage::Gap;
    }
    if let Seam::Replaced { meter, layer } = seam {
        anomalies.push(Anomaly::Replaced { from: (meter, layer), to: (next.meter, next.layer) });
    }

    let mut compare =
        Compare { meter: next.meter, before, now: next.epoch, anomalies: &mut anomalies };
    let was = Joined::of(prev.map_or(&[], |prev| &prev.groups));
    let is = Joined::of(&next.groups);
    let groups = is
        .groups
        .iter()
        .map(|now| GroupDelta {
            group: Arc::clone(&now.group),
            lanes: compare.lanes(&now.group, was.lanes(&now.group), &now.lanes),
            watched: now.watched,
        })
        .collect();
    let skipped = match (seam, prev.and_then(|prev| prev.skipped), next.skipped) {
        // Nothing says since when a meter counts these that could not tell them before.
        (Seam::Same, None, _) | (_, _, None) => None,
        (_, was, Some(is)) => Some(compare.skipped(&was.unwrap_or_default(), &is)),
    };
    if seam == Seam::Same {
        for gone in was.groups.iter().filter(|group| group.watched) {
            if !is.index.contains_key(&key(&gone.group)) {
                coverage = Coverage::Gap;
                anomalies
                    .push(Anomaly::Vanished { meter: next.meter, group: Arc::clone(&gone.group) });
            }
        }
    }

    let from = match seam {
        Seam::First(First::Baseline) => None,
        Seam::First(First::Charge) => next.since.map(|since| i128::from(since) * NANOS),
        Seam::Same | Seam::Restarted { .. } | Seam::Replaced { .. } => {
            prev.map(|prev| prev.window.end)
        }
    };
    let deltas = Deltas {
        meter: next.meter,
        layer: next.layer,
        epoch: next.epoch,
        seam,
        from,
        to: next.window.end,
        coverage,
        groups,
        skipped,
    };
    (deltas, anomalies)
}

fn seam(prev: Option<&Snapshot>, next: &Snapshot, first: First) -> Seam {
    match prev {
        None => Seam::First(first),
        Some(prev) if prev.meter != next.meter || prev.layer != next.layer => {
            Seam::Replaced { meter: prev.meter, layer: prev.layer }
        }
        Some(prev) if prev.epoch != next.epoch => Seam::Restarted { from: prev.epoch },
        Some(_) => Seam::Same,
    }
}

/// What tells a group from the others: see [`Group::same_ports`].
type Key<'a> = (&'a [PortRange], Transport);

fn key(group: &Group) -> Key<'_> {
    (group.ranges(), group.transport())
}

/// A snapshot's groups, found by their ports.
///
/// Ports that are there twice (a group that was given up, and again under another name) are one
/// group with the sum of both, so that it is charged once.
struct Joined<'a> {
    groups: Cow<'a, [GroupReading]>,
    index: HashMap<Key<'a>, usize>,
}

impl<'a> Joined<'a> {
    fn of(readings: &'a [GroupReading]) -> Self {
        let index: HashMap<_, _> =
            readings.iter().enumerate().map(|(at, reading)| (key(&reading.group), at)).collect();
        if index.len() == readings.len() {
            return Self { groups: readings.into(), index };
        }
        let mut groups: Vec<GroupReading> = Vec::new();
        let mut index = HashMap::new();
        for reading in readings {
            let at = *index.entry(key(&reading.group)).or_insert(groups.len());
            let Some(twin) = groups.get_mut(at) else {
                groups.push(reading.clone());
                continue;
            };
            if reading.watched || !twin.watched {
                twin.group = Arc::clone(&reading.group);
            }
            twin.watched |= reading.watched;
            twin.lanes = Lanes {
                tcp4: twin.lanes.tcp4.plus(reading.lanes.tcp4),
                tcp6: twin.lanes.tcp6.plus(reading.lanes.tcp6),
                udp4: twin.lanes.udp4.plus(reading.lanes.udp4),
                udp6: twin.lanes.udp6.plus(reading.lanes.udp6),
            };
        }
        Self { groups: groups.into(), index }
    }

    /// All zero for a group that is not there: its counters began inside this epoch.
    fn lanes(&self, group: &Group) -> Lanes {
        self.index
            .get(&key(group))
            .and_then(|at| self.groups.get(*at))
            .map(|reading| reading.lanes)
            .unwrap_or_default()
    }
}

/// The same comparison for every counter of a snapshot.
struct Compare<'a> {
    meter: &'static str,
    before: Option<Epoch>,
    now: Epoch,
    anomalies: &'a mut Vec<Anomaly>,
}

impl Compare<'_> {
    fn lanes(&mut self, group: &Arc<Group>, was: Lanes, is: &Lanes) -> Lanes {
        let mut lane = |lane, was, is| {
            let group = || Arc::clone(group);
            self.traffic(|| Owner::Lane { group: group(), lane }, was, is)
        };
        Lanes {
            tcp4: lane("tcp4", was.tcp4, is.tcp4),
            tcp6: lane("tcp6", was.tcp6, is.tcp6),
            udp4: lane("udp4", was.udp4, is.udp4),
            udp6: lane("udp6", was.udp6, is.udp6),
        }
    }

    fn skipped(&mut self, was: &Skipped, is: &Skipped) -> Skipped {
        let mut reason = |name, was, is| self.traffic(|| Owner::Skipped(name), was, is);
        Skipped {
            unwatched: reason("unwatched", was.unwatched, is.unwatched),
            fragment: reason("fragment", was.fragment, is.fragment),
            other: reason("other", was.other, is.other),
            malformed: reason("malformed", was.malformed, is.malformed),
            loopback: reason("loopback", was.loopback, is.loopback),
        }
    }

    fn traffic(&mut self, owner: impl Fn() -> Owner, was: Traffic, is: Traffic) -> Traffic {
        let mut charge = |counter, was, is| {
            let prev = self.before.map(|epoch| Counter { epoch, total: was });
            let next = Counter { epoch: self.now, total: is };
            let step = step(prev, next);
            if let Step::Regressed { by } = step {
                self.anomalies.push(Anomaly::Regressed {
                    meter: self.meter,
                    owner: owner(),
                    counter,
                    by,
                });
            }
            step.charge()
        };
        Traffic {
            input_bytes: charge("input_bytes", was.input_bytes, is.input_bytes),
            input_packets: charge("input_packets", was.input_packets, is.input_packets),
            output_bytes: charge("output_bytes", was.output_bytes, is.output_bytes),
            output_packets: charge("output_packets", was.output_packets, is.output_packets),
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
