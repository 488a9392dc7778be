//! How things stand after a tick, and what is wrong with them.

use std::sync::Arc;

use super::{
    super::{
        anomaly::Anomaly,
        delta::{First, diff},
        payload::Polls,
        proxy::{Inbound, Payload, ProxySnapshot, Way},
        reading::{Coverage, Snapshot},
        stats::{ApiReport, GroupStats, StatsReport, SystemTotal, UserStats, Wire},
    },
    Merge,
    state::GroupState,
};

const NANOS: i128 = 1_000_000_000;
/// Epochs that began within this time of one another are one.
const TOGETHER: i128 = 2 * NANOS;

/// Payload may be above the wire by what lies in socket buffers, and by one part in this many.
const AHEAD: u64 = 32 << 20;
const AHEAD_PART: u64 = 50;
/// The API is silent if after this many polls there is less than one byte of payload in so many on
/// the wire, of which there are this many at least.
const SILENT_POLLS: u32 = 30;
const SILENT_PART: u64 = 1000;
const SILENT_WIRE: u64 = 64 << 20;

/// The totals of kernel and proxy as they stand, joined once: for a report without a daemon.
///
/// They are of one time only if both epochs began together; otherwise coverage is `Estimated`, there is
/// no ratio of the two, and neither contradicts the other.
pub fn once(
    kernel: Option<&Snapshot>,
    poll: Option<&ProxySnapshot>,
    inbounds: &[Inbound],
    uncounted: &[Arc<str>],
) -> Merge {
    let mut merge = Merge::default();
    merge.configure(inbounds, uncounted);
    let began = poll.and_then(|poll| poll.window.end.checked_sub(i128::from(poll.uptime?) * NANOS));
    let since = kernel.and_then(|kernel| kernel.since).map(|since| i128::from(since) * NANOS);
    let together =
        began.zip(since).is_some_and(|(a, b)| a.saturating_sub(b).saturating_abs() <= TOGETHER);
    if kernel.is_some() && poll.is_some() && !together {
        merge.coverage = Coverage::Estimated;
        merge.life.apart = true;
    }
    let deltas = kernel.map(|kernel| diff(None, kernel, First::Charge));
    let payload = poll.map(|poll| Polls::default().follow(poll, First::Charge, None));
    merge.tick(deltas.as_ref().map(|(deltas, _)| deltas), payload.as_ref());
    merge.events.extend(deltas.into_iter().flat_map(|(_, anomalies)| anomalies));
    merge
}

impl GroupState {
    fn pending(&self) -> Wire {
        Wire {
            input: self.uplink.pending.saturating_add(self.released.input),
            output: self.downlink.pending.saturating_add(self.released.output),
        }
    }

    fn overhead(&self) -> Option<(u64, u64)> {
        self.kernel?;
        let users = self.span.own.plus(self.span.shared).total();
        let payload = if users == 0 { self.span.inbound.total() } else { users };
        (payload != 0).then(|| (self.span.wire.total(), payload))
    }

    /// What one meter says against the other, over the proxy's life.
    fn contradictions(&self, whole: bool, polls: u32) -> Vec<Anomaly> {
        let mut found = Vec::new();
        if self.kernel.is_none() {
            return found;
        }
        for way in Way::ALL {
            let (payload, wire) = (self.life.own.way(way), self.life.wire.way(way));
            let most = wire.saturating_add(wire / AHEAD_PART).saturating_add(AHEAD);
            if whole && payload > most {
                found.push(Anomaly::AboveWire {
                    group: Arc::clone(&self.group),
                    way,
                    payload,
                    wire,
                });
            }
        }
        let users = self.life.own.plus(self.life.shared).total();
        let (payload, wire) = (users.max(self.life.inbound.total()), self.life.wire.total());
        let counted = !self.members.is_empty() || self.inbound.is_some();
        if counted && polls >= SILENT_POLLS && wire >= SILENT_WIRE && payload < wire / SILENT_PART {
            found.push(Anomaly::ApiSilent { group: Arc::clone(&self.group), payload, wire });
        }
        found
    }
}

impl Merge {
    /// How things stand after the last tick.
    ///
    /// `taken_at` is nanoseconds of Unix time.
    pub fn report(&self, taken_at: i128, api: ApiReport) -> StatsReport {
        let listed = self.listed();
        let mut order = self.configured.clone();
        order.extend((0..self.groups.len()).filter(|at| !self.groups[*at].configured));
        let mut seen = vec![0_usize; self.users.len()];
        for (group, listed) in self.groups.iter().zip(&listed) {
            for share in listed {
                seen[group.shares[*share].user] += 1;
            }
        }
        let groups = order.into_iter().map(|at| self.group_stats(at, &listed[at], &seen)).collect();
        let mut unplaced: Vec<_> = self
            .users
            .iter()
            .zip(&seen)
            .filter(|(user, seen)| **seen == 0 && user.total != Payload::default())
            .map(|(user, _)| UserStats {
                email: Arc::clone(&user.email),
                payload: user.total,
                counted: user.counted,
                wire: None,
                shared: false,
                configured: false,
            })
            .collect();
        unplaced.sort_unstable_by(|a, b| a.email.cmp(&b.email));
        let anomalies = self.anomalies(&unplaced);
        StatsReport {
            taken_at,
            api,
            coverage: self.coverage,
            groups,
            unplaced,
            system_total: self.system_total(),
            relay: self.relay,
            gaps: self.gaps.clone(),
            anomalies,
        }
    }

    /// The shares that each group shows: its members in the order of the config, then who else drew
    /// from it or does, by name.
    fn listed(&self) -> Vec<Vec<usize>> {
        let mut listed: Vec<Vec<usize>> =
            self.groups.iter().map(|group| group.members.clone()).collect();
        let mut drawing: Vec<Vec<usize>> = vec![Vec::new(); self.groups.len()];
        for user in self.users.iter().filter(|user| user.total != Payload::default()) {
            for (group, share) in &user.homes {
                drawing[*group].push(*share);
            }
        }
        for ((group, listed), mut drawing) in self.groups.iter().zip(&mut listed).zip(drawing) {
            drawing.retain(|share| group.shares[*share].wire == Wire::default());
            let charged = (0..).zip(&group.shares).filter(|(_, s)| s.wire != Wire::default());
            let mut others: Vec<usize> = charged
                .map(|(share, _)| share)
                .chain(drawing)
                .filter(|share| !group.shares[*share].member)
                .collect();
            let email = |share: &usize| &self.users[group.shares[*share].user].email;
            others.sort_unstable_by(|a, b| email(a).cmp(email(b)));
            listed.extend(others);
        }
        listed
    }

    fn group_stats(&self, at: usize, listed: &[usize], seen: &[usize]) -> GroupStats {
        let group = &self.groups[at];
        let users = listed
            .iter()
            .map(|share| &group.shares[*share])
            .map(|share| UserStats {
                email: Arc::clone(&self.users[share.user].email),
                payload: self.users[share.user].total,
                counted: self.users[share.user].counted,
                wire: group.kernel.map(|_| share.wire),
                shared: seen[share.user] > 1,
                configured: share.member,
            })
            .collect();
        GroupStats {
            group: Arc::clone(&group.group),
            tag: group.tag.clone(),
            protocol: group.protocol.clone(),
            configured: group.configured,
            users,
            users_unknown: group.users_unknown,
            group_total: group.inbound,
            kernel: group.kernel,
            overhead: if self.life.apart { None } else { group.overhead() },
            unattributed: group.kernel.map(|_| group.pending()),
        }
    }

    fn system_total(&self) -> SystemTotal {
        let users: Payload = self.users.iter().map(|user| user.total).sum();
        let nobody: Payload = self
            .groups
            .iter()
            .filter(|group| group.shares.is_empty())
            .filter_map(|group| group.inbound)
            .sum();
        SystemTotal {
            payload: users.plus(nobody),
            polled: self.polled,
            active_users: self.users.iter().filter(|user| user.active).count(),
            active_groups: self.groups.iter().filter(|group| group.active).count(),
        }
    }

    fn anomalies(&self, unplaced: &[UserStats]) -> Vec<Anomaly> {
        let mut found = self.events.clone();
        for group in self.configured.iter().map(|at| &self.groups[*at]) {
            if !self.life.apart {
                found.extend(group.contradictions(self.life.whole, self.life.polls));
            }
            if group.nameless > 0 {
                found.push(Anomaly::Nameless {
                    group: Arc::clone(&group.group),
                    users: group.nameless,
                });
            }
        }
        if !self.uncounted.is_empty() {
            found.push(Anomaly::NotCounted { users: self.uncounted.clone() });
        }
        if !unplaced.is_empty() {
            let users = unplaced.iter().map(|user| Arc::clone(&user.email)).collect();
            found.push(Anomaly::Unplaced { users });
        }
        found
    }
}
