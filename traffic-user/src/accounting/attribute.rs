//! Whose bytes they were: kernel bytes of groups joined with the payload of users.
//!
//! The kernel sees every byte and no user; the proxy sees users, but only payload and often late. So
//! kernel bytes wait in a pool, one for each group and direction, and payload that the proxy reports
//! draws from the pools of the user's groups. What holds at every tick:
//!
//! - **nothing is lost**: in each group and direction, what its users were charged and what is pending
//!   (`unattributed`) add up to the kernel's bytes exactly;
//! - **bounded draw**: a user is charged at most [a multiple](pool) of his payload, learned from the
//!   group's own past, never below 1 nor above 4. So he who moved little is never charged for
//!   another's spliced download, whose bytes are still there when its payload is reported at last;
//! - payload that is reported before its bytes are on the wire, because it lies in socket buffers,
//!   keeps a **bounded claim** on later ones;
//! - a user in several groups has one counter with the proxy: he is counted once in totals, and what he
//!   moved is looked for where bytes are pending, in proportion;
//! - what a user or group was charged stays when the config loses them.
//!
//! A user whom the proxy counts and the config does not name (one added by its API) draws where he was
//! named last, else from the only inbound if there is just one, else nowhere: a guess would take bytes
//! that another one's payload is going to ask for.

use std::{collections::HashMap, sync::Arc};

use super::{
    anomaly::Anomaly,
    delta::{Deltas, First},
    ident::{Group, PortRange, Transport},
    payload::{Gap, PayloadDeltas, PayloadSeam},
    proxy::{Inbound, Payload, Subject, Way},
    reading::{Coverage, Traffic},
    relay::Relayed,
    stats::Wire,
};
use pool::{Pool, split};
use state::{GroupState, Life, Sides, UserState};

mod pool;
mod state;
mod summary;

pub use summary::once;

/// Payload that a user may be ahead of the wire: what lies in socket buffers.
const CREDIT_MOST: u64 = 64 << 20;
/// A claim that finds no bytes loses one part in this many at each tick.
const CREDIT_DECAY: u64 = 8;

/// Totals of groups and users since the accounting began, and what is pending.
///
/// One tick is one step: [`tick`](Self::tick) takes what kernel and proxy counted, then
/// [`report`](Self::report) says how things stand.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    groups: Vec<GroupState>,
    by_ports: HashMap<(Vec<PortRange>, Transport), usize>,
    by_tag: HashMap<Arc<str>, usize>,
    /// Groups of the config, in its order.
    configured: Vec<usize>,
    users: Vec<UserState>,
    by_email: HashMap<Arc<str>, usize>,
    uncounted: Vec<Arc<str>>,
    relay: Option<Relayed>,
    polled: bool,
    coverage: Coverage,
    life: Life,
    gaps: Vec<Gap>,
    events: Vec<Anomaly>,
}

impl Merge {
    /// Takes the proxy's config: at the start, and whenever it changed.
    ///
    /// Without the inbound of its API, whose traffic is nobody's. `uncounted` are users of a level that the proxy's policy does not count. Groups and users that
    /// are gone keep what they were charged; ports that stay, under whatever tag, go on.
    pub fn configure(&mut self, inbounds: &[Inbound], uncounted: &[Arc<str>]) {
        self.uncounted = uncounted.to_vec();
        self.by_tag.clear();
        self.configured.clear();
        for group in &mut self.groups {
            group.configured = false;
            group.members.clear();
            group.nameless = 0;
            group.users_unknown = false;
            for share in &mut group.shares {
                share.member = false;
            }
        }
        let former: Vec<_> =
            self.users.iter_mut().map(|user| std::mem::take(&mut user.homes)).collect();
        for inbound in inbounds {
            let at = self.group(&Arc::new(inbound.group.clone()));
            if let Some(tag) = &inbound.tag {
                self.by_tag.entry(Arc::clone(tag)).or_insert(at);
            }
            for email in &inbound.users.emails {
                self.admit(email, at);
            }
            let group = &mut self.groups[at];
            group.nameless += inbound.users.nameless;
            group.users_unknown |= inbound.users.unknown;
            if !group.configured {
                group.configured = true;
                group.group = Arc::new(inbound.group.clone());
                group.tag.clone_from(&inbound.tag);
                group.protocol = Some(Arc::clone(&inbound.protocol));
                self.configured.push(at);
            }
        }
        // What one who is no longer named still moves belongs where he was.
        for (user, homes) in self.users.iter_mut().zip(former) {
            if user.homes.is_empty() {
                user.homes = homes;
            }
        }
    }

    /// Takes what was counted since the tick before.
    ///
    /// `kernel` is `None` when no kernel meter was read, `payload` when the proxy was not polled or
    /// did not answer: what is missing comes with a later tick.
    pub fn tick(&mut self, kernel: Option<&Deltas>, payload: Option<&PayloadDeltas>) {
        if let Some(kernel) = kernel {
            self.count(kernel);
        }
        self.gaps.clear();
        self.events.clear();
        if let Some(payload) = payload {
            self.charge(payload);
        }
        for way in Way::ALL {
            self.draw(way, kernel.is_some());
        }
        if let Some(payload) = payload {
            self.end_poll(payload.seam);
        }
        for user in &mut self.users {
            user.fresh = Payload::default();
        }
    }

    /// Begins a user's numbers anew. What he was charged stays in the kernel's bytes of his groups, as
    /// bytes that are charged to nobody.
    pub fn reset_user(&mut self, email: &str) {
        let Some(at) = self.by_email.get(email) else {
            return;
        };
        let user = &mut self.users[*at];
        user.total = Payload::default();
        user.credit = Payload::default();
        for group in &mut self.groups {
            if let Some(share) = group.share_of.get(at) {
                let wire = std::mem::take(&mut group.shares[*share].wire);
                group.released.input = group.released.input.saturating_add(wire.input);
                group.released.output = group.released.output.saturating_add(wire.output);
            }
        }
    }

    /// Begins the numbers of the groups with this port anew, and those of the users who are in no
    /// other.
    pub fn reset_port(&mut self, port: u16) {
        for (at, group) in self.groups.iter_mut().enumerate() {
            if !group.group.ports().any(|one| one == port) {
                continue;
            }
            group.kernel = group.kernel.map(|_| Traffic::default());
            group.inbound = group.inbound.map(|_| Payload::default());
            group.uplink.pending = 0;
            group.downlink.pending = 0;
            group.released = Wire::default();
            group.span = Sides::default();
            for share in &mut group.shares {
                share.wire = Wire::default();
                let user = &mut self.users[share.user];
                if user.homes.iter().all(|(home, _)| *home == at) {
                    user.total = Payload::default();
                    user.credit = Payload::default();
                }
            }
        }
    }

    /// Kernel bytes that each user was charged since this was last asked, in all groups. Beginning a
    /// user's or a port's numbers anew takes nothing from them.
    pub fn take_drawn(&mut self) -> Vec<(Arc<str>, Wire)> {
        self.users
            .iter_mut()
            .filter(|user| user.drawn != Wire::default())
            .map(|user| (Arc::clone(&user.email), std::mem::take(&mut user.drawn)))
            .collect()
    }

    /// Begins the kernel's side anew, because its bytes are of another kind from now on and no sum of
    /// both means anything. What the proxy counted stays.
    pub fn other_layer(&mut self) {
        for group in &mut self.groups {
            group.kernel = None;
            group.uplink = Pool::default();
            group.downlink = Pool::default();
            group.released = Wire::default();
            group.span = Sides::default();
            group.life = Sides::default();
            group.poll = Sides { wire: Wire::default(), ..group.poll };
            for share in &mut group.shares {
                share.wire = Wire::default();
            }
        }
        for user in &mut self.users {
            user.credit = Payload::default();
        }
        self.relay = None;
        self.life.whole = false;
    }

    /// Takes what moved on no watched port.
    pub fn beside(&mut self, more: Relayed) {
        let before = self.relay.get_or_insert(Relayed { traffic: Traffic::default(), ..more });
        before.traffic = before.traffic.plus(more.traffic);
        before.coverage = before.coverage.max(more.coverage);
    }

    fn count(&mut self, kernel: &Deltas) {
        self.coverage = self.coverage.max(kernel.coverage);
        for group in &mut self.groups {
            group.active = false;
        }
        for delta in &kernel.groups {
            let at = self.group(&delta.group);
            self.groups[at].count(delta.lanes.total());
        }
        if let Some(skipped) = kernel.skipped {
            let (traffic, coverage) = (skipped.unwatched, kernel.coverage);
            self.beside(Relayed { traffic, coverage });
        }
    }

    fn charge(&mut self, payload: &PayloadDeltas) {
        self.polled = true;
        self.coverage = self.coverage.max(payload.coverage);
        self.gaps.clone_from(&payload.gaps);
        self.events.clone_from(&payload.anomalies);
        let another = match payload.seam {
            PayloadSeam::First(_) | PayloadSeam::Restarted | PayloadSeam::Replaced => true,
            PayloadSeam::Same | PayloadSeam::Reset | PayloadSeam::Unclear => false,
        };
        for user in &mut self.users {
            user.active = false;
            if another {
                // What lay in the buffers of a process died with it.
                user.credit = Payload::default();
            }
        }
        for (subject, charge) in &payload.charges {
            match subject {
                Subject::User(email) if *charge != Payload::default() => {
                    let at = self.user(email);
                    if let ([], [only]) = (&*self.users[at].homes, &*self.configured) {
                        let home = (*only, self.groups[*only].share(at));
                        self.users[at].homes.push(home);
                    }
                    let user = &mut self.users[at];
                    user.counted = true;
                    user.total = user.total.plus(*charge);
                    user.fresh = user.fresh.plus(*charge);
                    user.active = true;
                }
                Subject::Inbound(tag) => {
                    if let Some(at) = self.by_tag.get(tag) {
                        let group = &mut self.groups[*at];
                        group.inbound = Some(group.inbound.unwrap_or_default().plus(*charge));
                        group.poll.inbound = group.poll.inbound.plus(*charge);
                    }
                }
                Subject::User(email) => {
                    if let Some(at) = self.by_email.get(email) {
                        self.users[*at].counted = true;
                    }
                }
                Subject::Outbound(_) => {}
            }
        }
    }

    /// Lets payload and older claims draw from the pools of one direction. Claims age where `counted`
    /// says that bytes could have come.
    fn draw(&mut self, way: Way, counted: bool) {
        let mut claims: Vec<Vec<(usize, u64)>> = vec![Vec::new(); self.groups.len()];
        for user in &mut self.users {
            let fresh = user.fresh.way(way);
            let credit = user.credit.way_mut(way);
            let lapsed = if counted { credit.div_ceil(CREDIT_DECAY) } else { 0 };
            let asked = fresh.saturating_add(*credit - lapsed);
            *credit = if user.homes.is_empty() { 0 } else { asked };
            if asked == 0 {
                continue;
            }
            if let [(group, share)] = *user.homes {
                claims[group].push((share, asked));
                let group = &mut self.groups[group];
                *group.poll.own.way_mut(way) = group.poll.own.way(way).saturating_add(fresh);
                let pool = group.pool(way);
                pool.payload = pool.payload.saturating_add(fresh);
                continue;
            }
            let pending: Vec<u64> =
                user.homes.iter().map(|(group, _)| self.groups[*group].pool(way).pending).collect();
            let parts = split(asked, &pending);
            let of_fresh = split(fresh, &pending);
            for ((group, share), (part, fresh)) in
                user.homes.iter().zip(parts.into_iter().zip(of_fresh))
            {
                claims[*group].push((*share, part));
                let pool = self.groups[*group].pool(way);
                pool.payload = pool.payload.saturating_add(fresh);
            }
        }
        for (group, claims) in self.groups.iter_mut().zip(claims) {
            let pool = group.pool(way);
            if claims.is_empty() || pool.pending == 0 {
                continue;
            }
            let multiple = pool.multiple();
            let drawn = pool.draw(claims.iter().map(|(_, part)| multiple.claim(*part)).collect());
            for ((share, part), wire) in claims.into_iter().zip(drawn) {
                let share = &mut group.shares[share];
                let charged = share.wire.way_mut(way);
                *charged = charged.saturating_add(wire);
                let user = &mut self.users[share.user];
                let drawn = user.drawn.way_mut(way);
                *drawn = drawn.saturating_add(wire);
                // Payload that got as many bytes is on the wire: what is short then is the overhead
                // that was estimated, and claims nothing later.
                let found = wire.min(part);
                let credit = user.credit.way_mut(way);
                *credit = credit.saturating_sub(found);
                if user.homes.len() > 1 {
                    let shared = group.poll.shared.way_mut(way);
                    *shared = shared.saturating_add(found);
                }
            }
        }
        for user in &mut self.users {
            let credit = user.credit.way_mut(way);
            *credit = (*credit).min(CREDIT_MOST);
        }
    }

    fn end_poll(&mut self, seam: PayloadSeam) {
        let (begins, whole) = match seam {
            PayloadSeam::First(first) => (true, first == First::Charge),
            PayloadSeam::Restarted => (true, true),
            PayloadSeam::Replaced => (true, false),
            PayloadSeam::Same | PayloadSeam::Reset | PayloadSeam::Unclear => (false, false),
        };
        if begins {
            self.life = Life { whole, polls: 0, ..self.life };
        }
        self.life.polls = self.life.polls.saturating_add(1);
        // Wire and payload are of one span, unless payload of it was lost or not charged.
        let joined = !begins || seam == PayloadSeam::First(First::Charge);
        for group in &mut self.groups {
            if group.kernel.is_none() {
                group.active = group.poll.own.total() != 0 || group.poll.inbound.total() != 0;
            }
            let mut poll = std::mem::take(&mut group.poll);
            poll.wire = Wire { input: group.uplink.since_poll, output: group.downlink.since_poll };
            if joined {
                group.span = group.span.plus(poll);
            }
            if begins {
                group.life = Sides::default();
            }
            group.life = group.life.plus(poll);
            group.uplink.end_poll(joined);
            group.downlink.end_poll(joined);
        }
    }

    /// The group with these ports, made if need be.
    fn group(&mut self, group: &Arc<Group>) -> usize {
        let key = (group.ranges().to_vec(), group.transport());
        *self.by_ports.entry(key).or_insert_with(|| {
            self.groups.push(GroupState::new(group));
            self.groups.len() - 1
        })
    }

    fn user(&mut self, email: &Arc<str>) -> usize {
        if let Some(at) = self.by_email.get(email) {
            return *at;
        }
        self.users.push(UserState::new(email));
        let at = self.users.len() - 1;
        self.by_email.insert(Arc::clone(email), at);
        at
    }

    /// Makes a user of the config a member of a group.
    fn admit(&mut self, email: &Arc<str>, group: usize) {
        let user = self.user(email);
        let state = &mut self.groups[group];
        let share = state.share(user);
        if !state.shares[share].member {
            state.shares[share].member = true;
            state.members.push(share);
            self.users[user].homes.push((group, share));
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod splice;
#[cfg(test)]
mod tests;
