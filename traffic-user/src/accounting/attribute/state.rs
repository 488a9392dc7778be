//! What is kept of groups and users between ticks.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        ident::Group,
        proxy::{Payload, Way},
        reading::Traffic,
        stats::Wire,
    },
    pool::Pool,
};

/// The proxy's life as it was watched.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// It began under our eyes.
    pub(super) whole: bool,
    /// Kernel and proxy are of different spans: only to be shown side by side.
    pub(super) apart: bool,
    pub(super) polls: u32,
}

/// One group, as long as the accounting runs.
#[derive(Clone, Debug)]
pub(super) struct GroupState {
    pub(super) group: Arc<Group>,
    pub(super) tag: Option<Arc<str>>,
    pub(super) protocol: Option<Arc<str>>,
    pub(super) configured: bool,
    pub(super) nameless: usize,
    pub(super) users_unknown: bool,
    pub(super) kernel: Option<Traffic>,
    pub(super) inbound: Option<Payload>,
    pub(super) uplink: Pool,
    pub(super) downlink: Pool,
    /// What users were charged whose numbers began anew since.
    pub(super) released: Wire,
    pub(super) shares: Vec<Share>,
    pub(super) share_of: HashMap<usize, usize>,
    /// Shares of the users whom the config names, in its order.
    pub(super) members: Vec<usize>,
    pub(super) active: bool,
    /// Since the accounting began, in polls whose two sides are of one span.
    pub(super) span: Sides,
    /// Since the proxy's life began.
    pub(super) life: Sides,
    /// This poll's.
    pub(super) poll: Sides,
}

/// Wire and payload of a group over the same time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sides {
    pub(super) wire: Wire,
    /// Of users that are in this group alone.
    pub(super) own: Payload,
    /// Of users in several groups, as far as it found bytes here.
    pub(super) shared: Payload,
    pub(super) inbound: Payload,
}

impl Sides {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            wire: Wire {
                input: self.wire.input.saturating_add(other.wire.input),
                output: self.wire.output.saturating_add(other.wire.output),
            },
            own: self.own.plus(other.own),
            shared: self.shared.plus(other.shared),
            inbound: self.inbound.plus(other.inbound),
        }
    }
}

/// What one user was charged in one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) user: usize,
    pub(super) wire: Wire,
    pub(super) member: bool,
}

/// One user, likewise.
#[derive(Clone, Debug)]
pub(super) struct UserState {
    pub(super) email: Arc<str>,
    /// The proxy was seen to have a counter of him.
    pub(super) counted: bool,
    pub(super) total: Payload,
    /// Payload of this tick.
    pub(super) fresh: Payload,
    /// Payload that has found no kernel bytes yet.
    pub(super) credit: Payload,
    /// Where he draws: group, and his share in it.
    pub(super) homes: Vec<(usize, usize)>,
    pub(super) active: bool,
    /// Kernel bytes he was charged and that nobody has taken note of yet.
    pub(super) drawn: Wire,
}

impl GroupState {
    pub(super) fn new(group: &Arc<Group>) -> Self {
        Self {
            group: Arc::clone(group),
            tag: None,
            protocol: None,
            configured: false,
            nameless: 0,
            users_unknown: false,
            kernel: None,
            inbound: None,
            uplink: Pool::default(),
            downlink: Pool::default(),
            released: Wire::default(),
            shares: Vec::new(),
            share_of: HashMap::new(),
            members: Vec::new(),
            active: false,
            span: Sides::default(),
            life: Sides::default(),
            poll: Sides::default(),
        }
    }

    pub(super) fn pool(&mut self, way: Way) -> &mut Pool {
        match way {
            Way::Uplink => &mut self.uplink,
            Way::Downlink => &mut self.downlink,
        }
    }

    pub(super) fn share(&mut self, user: usize) -> usize {
        *self.share_of.entry(user).or_insert_with(|| {
            self.shares.push(Share { user, wire: Wire::default(), member: false });
            self.shares.len() - 1
        })
    }

    pub(super) fn count(&mut self, traffic: Traffic) {
        let before = self.kernel.unwrap_or_default();
        let after = before.plus(traffic);
        self.kernel = Some(after);
        // Not `traffic` itself: a total that is full takes no more, and the sums must hold.
        self.uplink.add(after.input_bytes - before.input_bytes);
        self.downlink.add(after.output_bytes - before.output_bytes);
        self.active = traffic.packets() != 0 || traffic.bytes() != 0;
    }
}

impl UserState {
    pub(super) fn new(email: &Arc<str>) -> Self {
        Self {
            email: Arc::clone(email),
            counted: false,
            total: Payload::default(),
            fresh: Payload::default(),
            credit: Payload::default(),
            homes: Vec::new(),
            active: false,
            drawn: Wire::default(),
        }
    }
}
