//! What a tick tells beside its numbers.

use std::collections::HashSet;

use super::{
    super::{
        anomaly::{Anomaly, Owner, counter_text},
        delta::Deltas,
        payload::{Gap, PayloadDeltas},
        proxy::{CounterName, Subject as Counted},
        reading::{Lane, Snapshot, Traffic},
        subject::{GroupKey, Subject},
        usage::Event,
    },
    NANOS,
};

const RESTARTED: &str = "restarted";
const GAP: &str = "gap";

fn event(at: i128, kind: &str, what: String) -> Event {
    Event { at, kind: kind.to_owned(), subject: None, what }
}

/// Whether each event of this kind is one of its own, however often it comes.
pub(super) fn is_momentary(kind: &str) -> bool {
    [RESTARTED, "proxy-restarted", "proxy-replaced"].contains(&kind)
}

/// What was wrong at the last look.
pub(super) type Standing = HashSet<(String, Option<Subject>)>;

/// The events that tell something new: what was told last time as well goes on. Each restart is one of
/// its own.
pub(super) fn told_once(standing: &mut Standing, events: Vec<Event>) -> Vec<Event> {
    let key = |event: &Event| (event.kind.clone(), event.subject.clone());
    let now: Standing = events.iter().map(key).collect();
    let before = std::mem::replace(standing, now);
    events
        .into_iter()
        .filter(|event| !before.contains(&key(event)) || is_momentary(&event.kind))
        .collect()
}

/// The counters of a meter began again.
pub(super) fn restarted(at: i128, prev: &Snapshot) -> Event {
    let what = format!(
        "{}: the counters began again; what passed after {} and before they did is not known",
        prev.meter,
        time(prev.window.end)
    );
    event(at, RESTARTED, what)
}

/// Counters whose life began when others of the same meter were still read.
pub(super) fn unwatched(at: i128, prev: &Snapshot, next: &Snapshot) -> Event {
    let began = next.since.map_or_else(
        || "at an unknown time".to_owned(),
        |since| format!("at {}", time(i128::from(since) * NANOS)),
    );
    let what = format!(
        "{}: other counters than those read last at {}, begun {began}: what they hold is not charged",
        next.meter,
        time(prev.window.end)
    );
    event(at, "unwatched", what)
}

/// Counters that were left to go on without a process are not there.
pub(super) fn gone(at: i128, meter: &str, since: i128) -> Event {
    let what = format!(
        "{meter}: what was left to count is gone: what passed between {} and {} is not known",
        time(since),
        time(at)
    );
    event(at, GAP, what)
}

/// What passed while one meter took the place of another.
pub(super) fn unseen(at: i128, from: &str, to: &Snapshot, unseen: Traffic) -> Event {
    let what = format!(
        "from {from} to {}: packets never stopped, and at most {} bytes in and {} out are in neither",
        to.meter, unseen.input_bytes, unseen.output_bytes
    );
    event(at, GAP, what)
}

/// The ledger that knew the last readings is lost.
pub(super) fn forgotten(at: i128) -> Event {
    let what = format!(
        "what was counted between the last booking of the ledger that is lost and {} is not known",
        time(at)
    );
    event(at, GAP, what)
}

/// Counters that went on while another meter counted.
pub(super) fn returned(at: i128, next: &Snapshot) -> Event {
    let what = format!(
        "{}: read again after another meter had counted in its place: what it counted since is not \
         charged",
        next.meter
    );
    event(at, "meter-returned", what)
}

/// Another meter counts.
pub(super) fn meter_changed(at: i128, before: &[&str], now: &[&Snapshot]) -> Event {
    let to: Vec<_> =
        now.iter().map(|next| format!("{} ({})", next.meter, next.layer.name())).collect();
    let to = to.join(", ");
    let what = if now.iter().map(|next| next.meter).eq(before.iter().copied()) {
        format!("counted by {to} in another form from now on")
    } else {
        format!("counted by {to} from now on, by {} before", before.join(", "))
    };
    event(at, "meter-changed", what)
}

/// Much was counted long before it is booked.
pub(super) fn late(at: i128, deltas: &Deltas) -> Event {
    let from = deltas.from.unwrap_or(deltas.to);
    let what = format!(
        "{}: {} bytes that were counted between {} and {} are booked at the end of that time",
        deltas.meter,
        deltas.total().bytes(),
        time(from),
        time(deltas.to)
    );
    event(at, "late", what)
}

/// What an honest meter does not show.
pub(super) fn of_anomaly(at: i128, anomaly: &Anomaly) -> Event {
    let subject = match anomaly {
        Anomaly::Regressed { owner: Owner::Lane { group, lane }, .. } => Lane::ALL
            .into_iter()
            .find(|one| one.name() == *lane)
            .map(|lane| Subject::Lane(GroupKey::of(group), lane)),
        Anomaly::Vanished { group, .. }
        | Anomaly::AboveWire { group, .. }
        | Anomaly::ApiSilent { group, .. }
        | Anomaly::Nameless { group, .. } => Some(Subject::group(group)),
        Anomaly::Negative { counter, .. } | Anomaly::Twice { counter } => user(counter),
        _ => None,
    };
    Event { subject, ..event(at, anomaly.kind(), anomaly.to_string()) }
}

/// What happened to the proxy's counters.
pub(super) fn of_payload(at: i128, payload: &PayloadDeltas) -> Vec<Event> {
    let mut events: Vec<_> =
        payload.anomalies.iter().map(|anomaly| of_anomaly(at, anomaly)).collect();
    let causes = payload.causes();
    events.extend(causes.into_iter().map(|(gap, count)| of_gaps(at, gap, count)));
    events
}

fn of_gaps(at: i128, gap: &Gap, count: usize) -> Event {
    let counter = match &gap.counter {
        None => "each counter".to_owned(),
        Some(name) if count > 1 => format!("{count} counters, {} the first", counter_text(name)),
        Some(name) => counter_text(name),
    };
    let most = match gap.most {
        None => "an unknown number of bytes".to_owned(),
        Some(most) => {
            format!("at most {} bytes of uplink and {} of downlink", most.uplink, most.downlink)
        }
    };
    let what = format!(
        "{counter}: what was moved between {} and {} is not known ({}): {most}",
        time(gap.from),
        time(gap.to),
        gap.cause.name()
    );
    let subject = gap.counter.as_ref().filter(|_| count == 1).and_then(user);
    Event { subject, ..event(at, GAP, what) }
}

fn user(counter: &CounterName) -> Option<Subject> {
    match &counter.subject {
        Counted::User(email) => Some(Subject::User(email.clone())),
        Counted::Inbound(_) | Counted::Outbound(_) => None,
    }
}

/// Whole seconds are enough for people.
fn time(nanos: i128) -> String {
    let second = i64::try_from(nanos.div_euclid(NANOS)).ok();
    second
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}
