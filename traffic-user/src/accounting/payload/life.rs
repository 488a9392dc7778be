//! Whether two polls saw one life of the proxy: its age against the time between them tells, and where that
//! fits both, whether they came over one connection.

use super::{
    super::{
        proxy::{Product, ProxySnapshot},
        reading::Window,
    },
    NANOS,
};

/// The proxy's clock and ours may run apart by one part in this many.
const DRIFT: i128 = 1000;

/// When and by whom a poll was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poll {
    pub(super) product: Option<Product>,
    pub(super) connection: u64,
    pub(super) uptime: Option<u32>,
    pub(super) window: Window,
    pub(super) boot: Window,
}

/// Whether two polls saw the same life of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It did.
    Same,
    /// The second began after the first poll.
    New,
    /// Its age fits neither: it ran before, and is not the one that answered.
    Other,
    /// Its age fits both, or is not known.
    Unclear,
}

/// Compares the age of the proxy with the time since the last poll.
pub(super) fn life(last: &Poll, next: &ProxySnapshot) -> Life {
    // Something in between may hold a connection for a proxy that begins again, so age is asked first.
    let one_connection = next.connection != 0 && next.connection == last.connection;
    let unclear = if one_connection { Life::Same } else { Life::Unclear };
    let Some(uptime) = next.uptime else { return unclear };
    // Times are windows, and the uptime lacks its fraction of a second.
    let least = next.boot.begin.saturating_sub(last.boot.end);
    let most = next.boot.end.saturating_sub(last.boot.begin);
    if most < 0 {
        return Life::Unclear;
    }
    let drift = most / DRIFT;
    let (age_least, age_most) = (i128::from(uptime) * NANOS, (i128::from(uptime) + 1) * NANOS);
    let before = i128::from(last.uptime.unwrap_or(0)) * NANOS;
    let another = matches!((last.product, next.product), (Some(a), Some(b)) if a != b);

    let may_be_new = age_least <= most.saturating_add(drift);
    let old_enough = age_most > least.saturating_add(before).saturating_sub(drift);
    let young_enough = last.uptime.is_none()
        || age_least < most.saturating_add(before).saturating_add(drift + NANOS);
    let may_be_same = old_enough && young_enough && !another;
    match (may_be_same, may_be_new) {
        (true, false) => Life::Same,
        (true, true) => unclear,
        (false, true) => Life::New,
        (false, false) => Life::Other,
    }
}
