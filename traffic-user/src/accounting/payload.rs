//! What a proxy moved between two polls of its counters.
//!
//! The proxy's meter has no epoch: it says for how long it has been running, and each counter may be
//! set back by anybody. So this is where an epoch is found, and every outcome has a name:
//!
//! | next to the poll before | charged | [`PayloadSeam`] |
//! |---|---|---|
//! | there is none | nothing, or all, as [`First`] says | `First` |
//! | the same life of the proxy | the difference; all of a counter that appears | `Same` |
//! | the same, and a counter fell: somebody else reset it | all that it counted since | `Reset` |
//! | a life that began after the last poll | all that it counted | `Restarted` |
//! | nothing tells whether it is the same | as in one life: never more than was moved | `Unclear` |
//! | a life that began earlier, and is not the one before | nothing: a new baseline | `Replaced` |
//!
//! A restart is told by age, never by values, because a restarted counter may be past the old one
//! already: a proxy that is younger than the time since the last poll is another one. That holds
//! after missed polls as well, when its uptime may be larger than the one before. Only where age fits
//! both (an answer in the first second of a life, or no uptime at all) values decide.
//!
//! What no reader can know is a [`Gap`] with its bounds. One loss leaves no trace at all: a counter
//! that was reset and climbed past its last value before the next poll.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use super::{
    anomaly::Anomaly,
    delta::First,
    proxy::{CounterName, Payload, Product, ProxySnapshot, Subject},
    reading::{Coverage, Window},
};
use life::{Life, Poll, life};

mod life;

const NANOS: i128 = 1_000_000_000;

/// How a poll follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadSeam {
    /// There is none before.
    First(First),
    /// Both are of one life of the proxy.
    Same,
    /// One life, but somebody else set counters back.
    Reset,
    /// The proxy began again; what the old one counted after it was last read is lost.
    Restarted,
    /// Nothing tells whether it is the same life.
    Unclear,
    /// Another proxy, which ran before the last poll already.
    Replaced,
}

/// Why something was not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The proxy ended between two polls.
    Restarted,
    /// Somebody else set the counter back.
    Reset,
    /// The counter was away and came back: it may have begun again in between.
    Returned,
    /// It cannot be told whether the proxy began again.
    Unclear,
    /// Another proxy answers.
    Replaced,
    /// The first value was no number of bytes, so there was nothing to subtract from.
    NoBaseline,
}

impl Cause {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Reset => "reset",
            Self::Returned => "returned",
            Self::Unclear => "unclear",
            Self::Replaced => "replaced",
            Self::NoBaseline => "no-baseline",
        }
    }
}

/// Payload that may have been moved and that no reader can know. None of it is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Of which counter; `None` for each of them.
    pub counter: Option<CounterName>,
    /// Why.
    pub cause: Cause,
    /// Bytes of one counter at least: always 0, because nothing need have passed.
    pub least: Payload,
    /// Bytes of one counter at most; `None` where nothing bounds it.
    pub most: Option<Payload>,
    /// It was moved after this, nanoseconds of Unix time.
    pub from: i128,
    /// It was moved before this, likewise.
    pub to: i128,
}

/// What a proxy moved between two polls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadDeltas {
    /// How the two polls are joined.
    pub seam: PayloadSeam,
    /// End of the earlier poll, nanoseconds of Unix time; for a first one that is charged, the latest
    /// time at which the proxy can have begun.
    pub from: Option<i128>,
    /// End of the later one, likewise.
    pub to: i128,
    /// Charged to each subject that the proxy has a counter of, in the order of the poll; 0 for one
    /// that did not move.
    pub charges: Vec<(Subject, Payload)>,
    /// Those who had a counter in the life before, where that has ended.
    pub gone: Vec<Subject>,
    /// What was not seen.
    pub gaps: Vec<Gap>,
    /// What happened to the counters.
    pub anomalies: Vec<Anomaly>,
    /// `Gap` if something may be missing.
    pub coverage: Coverage,
}

impl PayloadDeltas {
    /// All who may have moved something that is in no charge; some of them more than once.
    pub fn losers(&self) -> impl Iterator<Item = &Subject> {
        let each = self.gaps.iter().any(|gap| gap.counter.is_none());
        let charged = self.charges.iter().map(|(subject, _)| subject);
        let all = charged.chain(&self.gone).filter(move |_| each);
        let own = self.gaps.iter().filter_map(|gap| Some(&gap.counter.as_ref()?.subject));
        all.chain(own)
    }

    /// Takes note that counters which were polled before ended with a boot of the host: what they moved
    /// after that poll is not known.
    pub(super) fn after_boot(&mut self, kept: &Kept) {
        let cause = match self.seam {
            PayloadSeam::First(First::Charge) => Cause::Restarted,
            // It went on elsewhere, and this poll is the baseline.
            _ => Cause::Unclear,
        };
        self.gaps.push(Gap {
            counter: None,
            cause,
            least: Payload::default(),
            most: None,
            from: kept.window.end,
            to: self.from.unwrap_or(self.to).max(kept.window.end),
        });
        self.gone
            .extend(subjects(kept.counters.iter().map(|counter| counter.name.subject.clone())));
        self.coverage = Coverage::Gap;
    }

    /// The first gap of each cause, and how many there are.
    pub fn causes(&self) -> Vec<(&Gap, usize)> {
        let mut causes: Vec<(&Gap, usize)> = Vec::new();
        for gap in &self.gaps {
            match causes.iter_mut().find(|(first, _)| first.cause == gap.cause) {
                Some((_, count)) => *count += 1,
                None => causes.push((gap, 1)),
            }
        }
        causes
    }
}

/// [`First::Charge`] if the proxy certainly began after `watched`: boot time (of the clock of
/// [`ProxySnapshot::boot`]) since when its traffic is accounted for.
pub fn first(poll: &ProxySnapshot, watched: i128) -> First {
    let began = |uptime: u32| poll.boot.begin.saturating_sub((i128::from(uptime) + 1) * NANOS);
    match poll.uptime.map(began) {
        Some(began) if began >= watched => First::Charge,
        _ => First::Baseline,
    }
}

/// What is remembered of the polls before. Worth nothing after a boot of this host, since the clock
/// that tells a restart begins again with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    last: Option<Poll>,
    /// Every counter of this life of the proxy, those that are gone as well.
    counters: HashMap<CounterName, Known>,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// Last good value; `None` when a baseline was wanted and none was good.
    value: Option<u64>,
    /// Number of the poll that saw a good one last.
    seen: u64,
}

/// What is known of one counter of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCounter {
    /// Which.
    pub name: CounterName,
    /// Its last good value; `None` when there was none.
    pub value: Option<u64>,
    /// In how many of the last polls it was missing.
    pub away: u64,
}

/// The last poll of a proxy, and every counter of that life of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Who answered.
    pub product: Option<Product>,
    /// Its age then, whole seconds.
    pub uptime: Option<u32>,
    /// When it was polled, nanoseconds of Unix time.
    pub window: Window,
    /// The same since boot: see [`ProxySnapshot::boot`].
    pub boot: Window,
    /// In no order.
    pub counters: Vec<KeptCounter>,
}

impl Polls {
    /// Takes a poll in and says what it charges. See the [module](self).
    ///
    /// `begin` says what to do with totals that nothing comes before (see [`first`]). `most` is the
    /// most that any one counter can have moved since the last poll, if the caller knows it, such as
    /// what the kernel saw in that time: it bounds the gaps.
    ///
    /// Uptime and counters have to be of one process: whoever polls asks for both on one connection.
    /// Uptime is compared with [`ProxySnapshot::boot`]; where that clock runs on while the host sleeps
    /// and the proxy's does not, a sleep longer than the proxy's age looks like a restart.
    ///
    /// ```
    /// use traffic_user::accounting::{
    ///     delta::First,
    ///     payload::{PayloadSeam, Polls},
    ///     proxy::{CounterName, ProxySnapshot},
    ///     reading::Window,
    /// };
    ///
    /// let poll = |second: i128, uptime, bytes| {
    ///     let at = Window { begin: second * 1_000_000_000, end: second * 1_000_000_000 };
    ///     let name = CounterName::parse("user>>>a@x>>>traffic>>>downlink").unwrap();
    ///     ProxySnapshot {
    ///         product: None,
    ///         connection: 0,
    ///         uptime: Some(uptime),
    ///         window: at,
    ///         boot: at,
    ///         counters: vec![(name, bytes)],
    ///     }
    /// };
    /// let mut polls = Polls::default();
    /// polls.follow(&poll(1000, 500, 70), First::Baseline, None);
    /// let deltas = polls.follow(&poll(1010, 510, 75), First::Baseline, None);
    /// assert_eq!((deltas.seam, deltas.charges[0].1.downlink), (PayloadSeam::Same, 5));
    /// // A minute of polls is missed; the proxy is 40 seconds old, and past the old value.
    /// let deltas = polls.follow(&poll(1070, 40, 90), First::Baseline, None);
    /// assert_eq!((deltas.seam, deltas.charges[0].1.downlink), (PayloadSeam::Restarted, 90));
    /// ```
    pub fn follow(
        &mut self,
        next: &ProxySnapshot,
        begin: First,
        most: Option<Payload>,
    ) -> PayloadDeltas {
        let last = self.last;
        let mut seam = match last.map(|last| life(&last, next)) {
            None => PayloadSeam::First(begin),
            Some(Life::New) => PayloadSeam::Restarted,
            Some(Life::Unclear) => PayloadSeam::Unclear,
            // An age that does not fit is the fault of a clock, unless the counters are others too.
            Some(Life::Other) if self.differs(next) => PayloadSeam::Replaced,
            Some(Life::Same | Life::Other) => PayloadSeam::Same,
        };
        let began =
            next.uptime.map(|uptime| next.window.end.saturating_sub(i128::from(uptime) * NANOS));
        let from = match seam {
            PayloadSeam::First(First::Charge) => began,
            PayloadSeam::First(First::Baseline) => None,
            PayloadSeam::Same
            | PayloadSeam::Reset
            | PayloadSeam::Restarted
            | PayloadSeam::Unclear
            | PayloadSeam::Replaced => last.map(|last| last.window.end),
        };
        let gap = |counter, cause| Gap {
            counter,
            cause,
            least: Payload::default(),
            most,
            from: from.unwrap_or(next.window.end),
            to: match (cause, began) {
                (Cause::Restarted, Some(began)) => began.max(from.unwrap_or(began)),
                _ => next.window.end,
            },
        };

        let mut deltas = PayloadDeltas {
            seam,
            from,
            to: next.window.end,
            charges: Vec::with_capacity(next.counters.len() / 2 + 1),
            gone: Vec::new(),
            gaps: Vec::new(),
            anomalies: Vec::new(),
            coverage: Coverage::Complete,
        };
        match seam {
            PayloadSeam::First(_) | PayloadSeam::Same | PayloadSeam::Reset => {}
            PayloadSeam::Restarted => {
                deltas.gaps.push(gap(None, Cause::Restarted));
                deltas.anomalies.push(Anomaly::ProxyRestarted { began });
            }
            PayloadSeam::Unclear => {
                deltas.gaps.push(gap(None, Cause::Unclear));
                deltas.anomalies.push(Anomaly::ProxyUnclear);
            }
            PayloadSeam::Replaced => {
                deltas.gaps.push(gap(None, Cause::Replaced));
                deltas.anomalies.push(Anomaly::ProxyReplaced);
            }
        }
        let fresh = match seam {
            PayloadSeam::First(_) | PayloadSeam::Restarted | PayloadSeam::Replaced => true,
            // All of them began anew, so all that they are and will be is new, whatever happened.
            PayloadSeam::Unclear => self.nothing_is_left(next),
            PayloadSeam::Same | PayloadSeam::Reset => false,
        };
        if fresh {
            deltas.gone = subjects(self.counters.drain().map(|(name, _)| name.subject));
        }
        let baseline = matches!(seam, PayloadSeam::First(First::Baseline) | PayloadSeam::Replaced);

        let mut fell = Vec::new();
        for (name, value) in &next.counters {
            let charge = match self.charge(name, *value, baseline) {
                Ok((charge, cause)) => {
                    deltas.gaps.extend(cause.map(|cause| gap(Some(name.clone()), cause)));
                    fell.extend((cause == Some(Cause::Reset)).then(|| name.clone()));
                    charge
                }
                Err(anomaly) => {
                    deltas.anomalies.push(anomaly);
                    0
                }
            };
            add(&mut deltas.charges, name, charge);
        }
        if !fell.is_empty() {
            deltas.anomalies.push(Anomaly::CountersReset { counters: fell });
            if seam == PayloadSeam::Same {
                seam = PayloadSeam::Reset;
            }
        }
        deltas.seam = seam;
        self.count += 1;
        self.last = Some(Poll {
            product: next.product,
            connection: next.connection,
            uptime: next.uptime,
            window: next.window,
            boot: next.boot,
        });
        if !deltas.gaps.is_empty() {
            deltas.coverage = Coverage::Gap;
        }
        deltas
    }

    /// Takes note that we set counters to zero ourselves, and charges what they had moved since the last
    /// poll. `values` is what the proxy said they were, so nothing is lost.
    ///
    /// A poll that was under way may still tell the old values: it must not be followed.
    pub fn reset(&mut self, values: &[(CounterName, i64)]) -> PayloadDeltas {
        let at = self.last.map_or(0, |last| last.window.end);
        let mut deltas = PayloadDeltas {
            seam: PayloadSeam::Same,
            from: self.last.map(|last| last.window.end),
            to: at,
            charges: Vec::new(),
            gone: Vec::new(),
            gaps: Vec::new(),
            anomalies: Vec::new(),
            coverage: Coverage::Complete,
        };
        // Before the first poll there is nothing to subtract from, and the first poll is a baseline.
        if self.last.is_none() {
            return deltas;
        }
        let seen = self.count.saturating_sub(1);
        for (name, value) in values {
            let is = u64::try_from(*value).unwrap_or(0);
            let charge = match self.counters.get(name).map(|known| known.value) {
                None => is,
                Some(None) => 0,
                Some(Some(was)) => is.checked_sub(was).unwrap_or(is),
            };
            self.counters.insert(name.clone(), Known { value: Some(0), seen });
            add(&mut deltas.charges, name, charge);
        }
        deltas
    }

    /// What has to be kept so that another process of this host can go on; `None` before the first poll.
    pub fn kept(&self) -> Option<Kept> {
        // Connections are numbered by each process anew.
        let last = Poll { connection: 0, ..self.last? };
        let counters = self
            .counters
            .iter()
            .map(|(name, known)| KeptCounter {
                name: name.clone(),
                value: known.value,
                away: self.count.saturating_sub(known.seen + 1),
            })
            .collect();
        Some(Kept {
            product: last.product,
            uptime: last.uptime,
            window: last.window,
            boot: last.boot,
            counters,
        })
    }

    /// Goes on from what was kept on this host since its last boot.
    pub fn resumed(kept: Kept) -> Self {
        let most = kept.counters.iter().map(|counter| counter.away).max().unwrap_or(0);
        let count = most.saturating_add(1);
        let counters = kept
            .counters
            .into_iter()
            .map(|counter| {
                let seen = most - counter.away;
                (counter.name, Known { value: counter.value, seen })
            })
            .collect();
        let last = Poll {
            product: kept.product,
            connection: 0,
            uptime: kept.uptime,
            window: kept.window,
            boot: kept.boot,
        };
        Self { last: Some(last), counters, count }
    }

    /// Whether a poll is certainly of the life that was polled last. Counters may have been set back in it.
    pub fn is_of_this_life(&self, next: &ProxySnapshot) -> bool {
        self.last.is_some_and(|last| life(&last, next) == Life::Same)
    }

    /// What one counter is charged, and why it may be too little.
    fn charge(
        &mut self,
        name: &CounterName,
        value: i64,
        baseline: bool,
    ) -> Result<(u64, Option<Cause>), Anomaly> {
        let now = self.count;
        let good = u64::try_from(value).ok();
        let negative = || Anomaly::Negative { counter: name.clone(), value };
        let known = match self.counters.entry(name.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if good.is_none() && !baseline => return Err(negative()),
            Entry::Vacant(entry) => {
                entry.insert(Known { value: good, seen: now });
                return match good {
                    Some(_) if baseline => Ok((0, None)),
                    // It appeared in a life that is watched: all of it is new.
                    Some(good) => Ok((good, None)),
                    None => Err(negative()),
                };
            }
        };
        if known.seen == now {
            return Err(Anomaly::Twice { counter: name.clone() });
        }
        // One that could not be read is as good as away: it may have begun again.
        let away = known.seen + 1 < now;
        let good = good.ok_or_else(negative)?;
        known.seen = now;
        Ok(match known.value.replace(good) {
            None => (0, Some(Cause::NoBaseline)),
            Some(was) if good < was => (good, Some(Cause::Reset)),
            Some(was) => (good - was, away.then_some(Cause::Returned)),
        })
    }

    /// Whether every counter of the last poll that was not zero is smaller or gone, and there was one.
    fn nothing_is_left(&self, next: &ProxySnapshot) -> bool {
        let left = |(name, value): &(CounterName, i64)| match self.counters.get(name) {
            None => false,
            // What is or was below zero says nothing.
            Some(Known { value: None, .. }) => true,
            Some(Known { value: Some(was), .. }) => {
                *was > 0 && u64::try_from(*value).map_or(true, |is| is >= *was)
            }
        };
        let moved = |known: &Known| known.seen + 1 == self.count && known.value.unwrap_or(0) > 0;
        let began = self.counters.values().any(moved) && !next.counters.iter().any(left);
        // Without an age an empty answer may just be one.
        next.uptime.is_some() && began
    }

    /// Whether a counter of the last poll is smaller or gone.
    fn differs(&self, next: &ProxySnapshot) -> bool {
        let same = |(name, value): &&(CounterName, i64)| {
            let Some(known) = self.counters.get(name) else { return false };
            let is = u64::try_from(*value).ok();
            known.seen + 1 == self.count && (is.is_none() || is >= known.value)
        };
        let seen = self.counters.values().filter(|known| known.seen + 1 == self.count).count();
        next.counters.iter().filter(same).count() < seen
    }
}

/// Each of them once.
fn subjects(all: impl Iterator<Item = Subject>) -> Vec<Subject> {
    all.collect::<HashSet<_>>().into_iter().collect()
}

/// Adds to the subject's charge. Counters of one subject are neighbours, since a poll is in order.
fn add(charges: &mut Vec<(Subject, Payload)>, name: &CounterName, amount: u64) {
    match charges.last_mut() {
        Some((subject, payload)) if *subject == name.subject => {
            let way = payload.way_mut(name.way);
            *way = way.saturating_add(amount);
        }
        _ => {
            let mut payload = Payload::default();
            *payload.way_mut(name.way) = amount;
            charges.push((name.subject.clone(), payload));
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
