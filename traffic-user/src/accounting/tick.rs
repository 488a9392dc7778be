//! One tick: from readings to what is to be booked.
//!
//! [`State`] holds what was read last of every meter, what the merge knows, and what is *owed* to the
//! ledger: counted and not booked yet. A [`Plan`] takes all that is owed together with the *cursors*,
//! the readings up to which it was counted. Both are stored in one transaction or not at all, so
//!
//! > booked + owed = counted up to the last readings, and booked = counted up to the cursors,
//!
//! at every time. A plan that could not be stored is [taken back](State::take_back): it is owed again,
//! and the next one carries it. A process that dies takes its state along, and the next one subtracts
//! its first readings from the cursors of the last plan that was stored. Nothing is lost, because
//! readings are totals, and nothing is counted twice.
//!
//! # The first reading of a kernel meter
//!
//! | the ledger's last reading of it | charged |
//! |---|---|
//! | of the same epoch | the difference |
//! | of the same epoch, but another meter counted since | nothing: that one has counted it |
//! | of another epoch, and this one began after that reading or under us | all of it |
//! | of another epoch, and this one ran beside it, or nothing tells | nothing: a new baseline |
//! | none, and the epoch began under us or after the last reading of any meter | all of it |
//! | none else | nothing: a new baseline |
//!
//! Where there was a ledger that cannot be read any more, the first readings are a gap as well.
//!
//! In the life of one process another epoch of a meter is always charged: we saw it begin. Counters
//! that go on under another name, since the program moved to another hook, have their epoch to tell.
//! The proxy's counters follow [`payload`]; after a boot of the host all that a proxy counted since
//! then is charged, if the ledger knew it before.

use std::collections::{HashMap, HashSet};

use super::{
    anomaly::Anomaly,
    attribute::Merge,
    delta::{Deltas, First, diff},
    frame::Frame,
    ident::Group,
    payload::{self, Kept, PayloadDeltas, Polls},
    proxy::{CounterName, Payload, ProxySnapshot},
    reading::{Coverage, Epoch, Layer, Snapshot, Traffic},
    relay::{Devices, Relay, Relayed},
    subject::Subject,
    usage::{Entry, Event, Usage},
    zeros::Zeros,
};

mod events;
mod owed;

const NANOS: i128 = 1_000_000_000;
/// Bytes that may lie in the sockets of a proxy, neither counted by it nor passed on.
const BUFFERS: u64 = 64 << 20;
/// What was counted over a longer time than this is told to be booked late.
const LATE: i128 = 600 * NANOS;
/// Events that wait for a ledger that cannot be written.
const EVENTS: usize = 1000;

/// Readings up to which the ledger has booked: what the next ones are subtracted from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursors {
    /// The last snapshot of each kernel meter.
    pub kernel: Vec<Snapshot>,
    /// Meters that were read at the last tick.
    pub active: Vec<&'static str>,
    /// The proxy's.
    pub proxy: Option<ProxyCursor>,
    /// The devices', beside a meter that sees its groups alone.
    pub devices: Option<Devices>,
    /// Where groups that were reset begin for people.
    pub zeros: Zeros,
    /// What was left to go on without a process.
    pub left: Option<Left>,
}

/// Counters that go on when their process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The boot of the host in which they were left.
    pub boot: u64,
    /// The meter that they are of.
    pub meter: &'static str,
    /// Their life, when they were last read.
    pub epoch: Option<Epoch>,
    /// Where they are to be found, for those who left them.
    pub place: String,
}

/// The last poll of a proxy, and in which life of the host it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyCursor {
    /// Tells one boot of the host from another.
    pub boot: u64,
    /// The readings.
    pub kept: Kept,
}

/// What one transaction of the ledger takes: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "what is not stored has to be taken back"]
pub struct Plan {
    /// The time that it is booked at, seconds of Unix time.
    pub at: i64,
    /// What is owed, each subject and layer once. Zero only where something was lost.
    pub entries: Vec<Entry>,
    /// Where the next readings go on from.
    pub cursors: Cursors,
    /// In order of time.
    pub events: Vec<Event>,
}

/// When and where a state begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Nanoseconds of Unix time.
    pub now: i128,
    /// Tells this boot of the host from others.
    pub boot: u64,
}

/// What one tick found.
#[derive(Clone, Debug, Default)]
pub struct Ticked {
    /// Of each kernel meter that was read, the one of the tick before first.
    pub kernel: Vec<Deltas>,
    /// Of the proxy, if it was polled.
    pub payload: Option<PayloadDeltas>,
    /// What the devices moved beside the groups, where a meter sees these alone.
    pub relayed: Option<Relayed>,
    /// What is wrong with the kernel's meters.
    pub anomalies: Vec<Anomaly>,
}

/// Everything that one tick hands on to the next.
#[derive(Debug, Default)]
pub struct State {
    /// The last snapshot of each kernel meter.
    frame: Frame,
    /// Meters whose last snapshot is another process's.
    inherited: HashSet<&'static str>,
    active: Vec<&'static str>,
    /// Nanoseconds of Unix time.
    started: i128,
    boot: u64,
    polls: Polls,
    /// What was booked of them is not known any more.
    forgot: bool,
    /// Cursor of another boot, until the proxy is polled in this one.
    former: Option<ProxyCursor>,
    /// Boot time from which on a proxy's life was watched; `None` without one.
    watched: Option<i128>,
    /// What the kernel counted since the last poll.
    unreported: Payload,
    merge: Merge,
    relay: Relay,
    zeros: Zeros,
    left: Option<Left>,
    layer: Option<Layer>,
    owed: HashMap<(Subject, Layer), Owed>,
    events: Vec<Event>,
    /// What was wrong with the kernel's meters at the last tick, so that it is told once.
    kernel_wrong: events::Standing,
    /// What was wrong with the proxy's at the last poll, likewise.
    proxy_wrong: events::Standing,
}

#[derive(Clone, Debug, Default)]
struct Owed {
    name: Option<std::sync::Arc<str>>,
    traffic: Traffic,
    coverage: Coverage,
}

impl State {
    /// Goes on from what the ledger has; from nothing without one.
    pub fn begin(cursors: Cursors, begin: Begin) -> Self {
        let mut frame = Frame::new(begin.now);
        let inherited = cursors.kernel.iter().map(|snapshot| snapshot.meter).collect();
        for snapshot in cursors.kernel {
            frame.insert(snapshot);
        }
        let (polls, former) = match cursors.proxy {
            Some(cursor) if cursor.boot == begin.boot => (Polls::resumed(cursor.kept), None),
            other => (Polls::default(), other),
        };
        Self {
            frame,
            inherited,
            active: cursors.active,
            started: begin.now,
            boot: begin.boot,
            polls,
            former,
            relay: Relay::resumed(cursors.devices),
            zeros: cursors.zeros,
            left: cursors.left,
            ..Self::default()
        }
    }

    /// What was counted before the first readings is not known to be booked, though the ledger once knew: it is
    /// told, and marked as a gap.
    pub fn forgot(&mut self) {
        self.forgot = true;
    }

    /// Merges with a proxy from now on; `boot_time` is the clock of [`ProxySnapshot::boot`].
    pub fn watch_proxy(&mut self, boot_time: i128) {
        self.watched.get_or_insert(boot_time);
    }

    /// Takes what was read. The frame's time is the tick's.
    ///
    /// `poll` is a poll of the proxy that was not given before.
    pub fn tick(&mut self, frame: Frame, poll: Option<&ProxySnapshot>) -> Ticked {
        let mut ticked = Ticked::default();
        let before = |snapshot: &&Snapshot| self.active.contains(&snapshot.meter);
        let (mut snapshots, others): (Vec<_>, Vec<_>) = frame.snapshots().iter().partition(before);
        snapshots.extend(others);
        let forgot = !snapshots.is_empty() && std::mem::take(&mut self.forgot);
        if forgot {
            self.note(events::forgotten(frame.at()));
        }
        for snapshot in &snapshots {
            let (mut deltas, anomalies) = self.subtract(snapshot, frame.at());
            if forgot {
                deltas.coverage = Coverage::Gap;
            }
            self.book_kernel(&deltas);
            ticked.anomalies.extend(anomalies);
            ticked.kernel.push(deltas);
        }
        ticked.relayed = self.follow_devices(frame.devices(), &ticked.kernel);
        self.change_meters(&snapshots, frame.at());
        let wrong = ticked.anomalies.iter().map(|anomaly| events::of_anomaly(frame.at(), anomaly));
        let fresh = events::told_once(&mut self.kernel_wrong, wrong.collect());
        self.note_all(fresh);
        for snapshot in snapshots {
            self.inherited.remove(snapshot.meter);
            self.zeros.forget_former(snapshot);
        }
        let at = frame.at();
        self.frame = frame.following(std::mem::take(&mut self.frame));
        ticked.payload = poll.map(|poll| self.follow(poll, &ticked.kernel, at));
        self.attribute(&ticked);
        if let Some(relayed) = ticked.relayed {
            self.merge.beside(relayed);
        }
        ticked
    }

    /// Takes the last reading of a meter that was taken off, and that of another at that time: this one
    /// is charged from there on. Both may have the same name, where counters of another form take the place
    /// of those of before. When others were read since and these ran beside them, nothing of them is charged.
    /// `unseen` is what is at most in neither of them. Gives that for people.
    pub fn hand_over(
        &mut self,
        last: Snapshot,
        baseline: Snapshot,
        unseen: Traffic,
    ) -> Option<String> {
        let ran_beside = |read: &Snapshot| {
            let begins = last.since.map(|since| (i128::from(since) + 1) * NANOS);
            read.epoch != last.epoch && begins.is_none_or(|begins| begins <= read.window.end)
        };
        if last.meter == baseline.meter && self.frame.snapshot(last.meter).is_some_and(ran_beside) {
            return None;
        }
        let mut frame = Frame::new(last.window.end);
        let (from, at) = (last.meter, baseline.window.end);
        let missed =
            (unseen != Traffic::default()).then(|| events::unseen(at, from, &baseline, unseen));
        frame.insert(last);
        self.tick(frame, None);
        self.note(events::meter_changed(at, &[from], &[&baseline]));
        self.active = vec![baseline.meter];
        self.inherited.remove(baseline.meter);
        self.frame.insert(baseline);
        let event = missed?;
        let what = event.what.clone();
        self.note(event);
        Some(what)
    }

    /// Groups that are `wanted` begin anew for people, with their last readings. Nothing of what is counted
    /// or booked changes. `at` is nanoseconds of Unix time.
    pub fn begin_at_zero(&mut self, wanted: impl Fn(&Group) -> bool, at: i128) {
        let active = |snapshot: &&Snapshot| self.active.contains(&snapshot.meter);
        for snapshot in self.frame.snapshots().iter().filter(active) {
            self.zeros.set(snapshot, &wanted, at);
        }
    }

    /// Lets go of what is owed, because there is no ledger.
    pub fn forget(&mut self) {
        self.owed.clear();
        self.events.clear();
    }

    /// Takes note that we set counters of the proxy to zero; see [`Polls::reset`].
    pub fn counters_were_reset(&mut self, values: &[(CounterName, i64)]) {
        let payload = self.polls.reset(values);
        self.book_payload(&payload);
        self.merge.tick(None, Some(&payload));
        self.book_shares();
    }

    /// What is owed, to be stored together with the cursors. `at` is seconds of Unix time.
    pub fn plan(&mut self, at: i64) -> Plan {
        let entries = self
            .owed
            .drain()
            .map(|((subject, layer), Owed { name, traffic, coverage })| Entry {
                subject,
                name,
                usage: Usage { layer, traffic, coverage },
            })
            .collect();
        let events = std::mem::take(&mut self.events);
        Plan { at, entries, cursors: self.cursors(), events }
    }

    /// Owes again what could not be stored.
    pub fn take_back(&mut self, plan: Plan) {
        for Entry { subject, name, usage } in plan.entries {
            let owed = self.owed.entry((subject, usage.layer)).or_default();
            owed.name = owed.name.take().or(name);
            owed.traffic = owed.traffic.plus(usage.traffic);
            owed.coverage = owed.coverage.max(usage.coverage);
        }
        let mut events = plan.events;
        events.append(&mut self.events);
        // The first ones tell what went wrong.
        events.truncate(EVENTS);
        self.events = events;
    }

    /// Readings up to which everything is booked or owed.
    pub fn cursors(&self) -> Cursors {
        let polled = self.polls.kept().map(|kept| ProxyCursor { boot: self.boot, kept });
        Cursors {
            kernel: self.frame.snapshots().to_vec(),
            active: self.active.clone(),
            proxy: polled.or_else(|| self.former.clone()),
            devices: self.relay.last().cloned(),
            zeros: self.zeros.clone(),
            left: self.left.clone().map(|left| Left { epoch: self.epoch_of(left.meter), ..left }),
        }
    }

    fn epoch_of(&self, meter: &str) -> Option<Epoch> {
        self.frame.snapshot(meter).map(|last| last.epoch)
    }

    /// Keeps an event for the ledger.
    pub fn note(&mut self, event: Event) {
        if self.events.len() < EVENTS {
            self.events.push(event);
        }
    }

    /// The last snapshot of each meter.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Readings of counters that nobody else has counted for since: what they count from there on is to be
    /// booked, also by counters that take their place.
    pub fn unfinished(&self) -> Vec<&Snapshot> {
        let read_last =
            |snapshot: &&Snapshot| self.active.is_empty() || self.active.contains(&snapshot.meter);
        self.frame.snapshots().iter().filter(read_last).collect()
    }

    /// What was left to go on without a process in this boot of the host, so that it must still be there.
    pub fn left(&self) -> Option<&Left> {
        // Of another life somebody has read since, who did not know of this.
        let is_last =
            |left: &&Left| left.boot == self.boot && left.epoch == self.epoch_of(left.meter);
        self.left.as_ref().filter(is_last)
    }

    /// Takes note that the counters of a meter go on when this process ends, at a place, or with `None` that
    /// they go with it. What another meter was left to count goes on beside them then.
    pub fn leave(&mut self, meter: &'static str, place: Option<String>) {
        match place {
            Some(place) => {
                let epoch = self.epoch_of(meter);
                self.left = Some(Left { boot: self.boot, meter, epoch, place });
            }
            None if self.left.as_ref().is_some_and(|left| left.meter == meter) => self.left = None,
            None => {}
        }
    }

    /// Takes note that what was left to go on is gone. `at` is nanoseconds of Unix time. Gives that for
    /// people.
    pub fn left_is_gone(&mut self, at: i128) -> Option<String> {
        let Left { meter, .. } = self.left.take()?;
        let since = self.frame.snapshot(meter).map_or(at, |last| last.window.end);
        let event = events::gone(at, meter, since);
        let what = event.what.clone();
        self.note(event);
        Some(what)
    }

    /// Takes note that counters of a meter were taken off on purpose, after their reading was taken: nobody is
    /// to miss them. `rest` is what the meter goes on with, in the same epoch; it is charged. `at` is
    /// nanoseconds of Unix time.
    pub fn took_off(&mut self, meter: &str, rest: Option<Frame>, what: String, at: i128) {
        self.note(Event { at, kind: "cleaned".to_owned(), subject: None, what });
        let Some(frame) = rest else {
            self.left = self.left.take().filter(|left| left.meter != meter);
            return;
        };
        if let Some(rest) = frame.snapshot(meter) {
            self.zeros.forget_fallen(rest);
            if let Some(last) = self.frame.snapshot(meter) {
                // What is gone, or began again, is subtracted from nothing.
                let last = last.without_fallen(rest);
                self.frame.insert(last);
            }
        }
        self.tick(frame, None);
    }

    /// Whose bytes they were.
    pub fn merge(&self) -> &Merge {
        &self.merge
    }

    /// The same, to be configured or begun anew. What is owed does not change with it.
    pub fn merge_mut(&mut self) -> &mut Merge {
        &mut self.merge
    }

    /// Subtracts a snapshot from the last one of its meter. See the [module](self) for the first one.
    fn subtract(&mut self, next: &Snapshot, at: i128) -> (Deltas, Vec<Anomaly>) {
        let begins = next.since.map(|since| (i128::from(since) + 1) * NANOS);
        let began_after = |time: i128| begins.is_some_and(|begins| begins > time);
        let under_us = began_after(self.started);
        let same_counters = |prev: &&Snapshot| (prev.epoch, prev.layer) == (next.epoch, next.layer);
        let prev = self
            .frame
            .snapshot(next.meter)
            .or_else(|| self.frame.snapshots().iter().find(same_counters));
        let (deltas, anomalies, event) = match prev {
            None => {
                let last = self.frame.snapshots().iter().map(|prev| prev.window.end).max();
                let known = under_us || last.is_some_and(began_after);
                let first = if known { First::Charge } else { First::Baseline };
                let (deltas, anomalies) = diff(None, next, first);
                (deltas, anomalies, None)
            }
            Some(prev) if same_counters(&prev) => {
                if !self.active.is_empty() && !self.active.contains(&prev.meter) {
                    let (deltas, anomalies) = diff(None, next, First::Baseline);
                    (deltas, anomalies, Some(events::returned(at, next)))
                } else {
                    // At another hook they go on under another name.
                    let prev = Snapshot { meter: next.meter, ..prev.clone() };
                    let (deltas, anomalies) = diff(Some(&prev), next, First::Baseline);
                    (deltas, anomalies, None)
                }
            }
            Some(prev) => {
                let live = !self.inherited.contains(prev.meter);
                if live || under_us || began_after(prev.window.end) {
                    let (deltas, anomalies) = diff(Some(prev), next, First::Baseline);
                    (deltas, anomalies, Some(events::restarted(at, prev)))
                } else {
                    let (mut deltas, anomalies) = diff(None, next, First::Baseline);
                    deltas.coverage = Coverage::Gap;
                    (deltas, anomalies, Some(events::unwatched(at, prev, next)))
                }
            }
        };
        let over = deltas.from.map_or(0, |from| deltas.to.saturating_sub(from));
        if over > LATE && deltas.total() != Traffic::default() {
            self.note(events::late(at, &deltas));
        }
        self.events.extend(event);
        (deltas, anomalies)
    }

    /// Takes note of which meters are read now.
    fn change_meters(&mut self, snapshots: &[&Snapshot], at: i128) {
        let now: Vec<_> = snapshots.iter().map(|snapshot| snapshot.meter).collect();
        // A tick at which nothing could be read changes nothing.
        if now.is_empty() || now.iter().all(|meter| self.active.contains(meter)) {
            if !now.is_empty() {
                self.active = now;
            }
            return;
        }
        if !self.active.is_empty() {
            self.note(events::meter_changed(at, &self.active, snapshots));
        }
        // The one before may be read once more beside the new one, never again after that.
        self.active = now;
    }

    fn follow(&mut self, poll: &ProxySnapshot, kernel: &[Deltas], at: i128) -> PayloadDeltas {
        let total: Traffic = kernel.iter().map(Deltas::total).sum();
        let moved = Payload { uplink: total.input_bytes, downlink: total.output_bytes };
        let wire = std::mem::take(&mut self.unreported).plus(moved);
        let complete = kernel.iter().all(|deltas| deltas.coverage == Coverage::Complete);
        // What one counter can have moved passed the kernel, or lay in socket buffers.
        let most = (complete && !kernel.is_empty())
            .then(|| wire.plus(Payload { uplink: BUFFERS, downlink: BUFFERS }));
        let former = self.former.take();
        let begin = match former {
            // It was known before this boot, so all that it counted in it is new.
            Some(_) => payload::first(poll, -NANOS),
            None => payload::first(poll, self.watched.unwrap_or(poll.boot.end)),
        };
        let mut payload = self.polls.follow(poll, begin, most);
        if let Some(former) = former {
            payload.after_boot(&former.kept);
        }
        self.book_payload(&payload);
        let fresh = events::told_once(&mut self.proxy_wrong, events::of_payload(at, &payload));
        self.note_all(fresh);
        payload
    }

    fn attribute(&mut self, ticked: &Ticked) {
        if self.watched.is_none() {
            return;
        }
        let mut payload = ticked.payload.as_ref();
        for (left, deltas) in (0..ticked.kernel.len()).rev().zip(&ticked.kernel) {
            if payload.is_none() {
                let total = deltas.total();
                let moved = Payload { uplink: total.input_bytes, downlink: total.output_bytes };
                self.unreported = self.unreported.plus(moved);
            }
            if self.layer.replace(deltas.layer).is_some_and(|layer| layer != deltas.layer) {
                self.merge.other_layer();
            }
            // Payload draws from all that the kernel counted until it was reported.
            let reported = if left == 0 { payload.take() } else { None };
            self.merge.tick(Some(deltas), reported);
            self.book_shares();
        }
        if let Some(payload) = payload {
            self.merge.tick(None, Some(payload));
            self.book_shares();
        }
    }

    /// Books what the devices moved beside the groups, where the meter sees these alone.
    fn follow_devices(&mut self, devices: Option<&Devices>, kernel: &[Deltas]) -> Option<Relayed> {
        let relayed = match kernel {
            [] => None,
            [groups] if groups.layer == Layer::L3Skb && groups.skipped.is_none() => {
                self.relay.tick(devices, groups)
            }
            _ => {
                self.relay.stop();
                None
            }
        };
        let Relayed { traffic, coverage } = relayed?;
        self.owe(Subject::Host, Layer::L3Skb, traffic, coverage);
        self.owe(Subject::Relay, Layer::L3Skb, traffic, coverage);
        relayed
    }

    fn note_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.note(event);
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
