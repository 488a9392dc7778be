//! Two clocks, read together: one for people, one that nobody sets.

use nix::time::{ClockId, clock_gettime};

/// One instant on both clocks, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instant {
    /// Unix time.
    pub(super) unix: i128,
    /// Since boot, without the time of sleep: the clock by which a proxy knows its age.
    pub(super) boot: i128,
}

/// Now.
pub(super) fn now() -> Instant {
    Instant { unix: read(ClockId::CLOCK_REALTIME), boot: read(ClockId::CLOCK_MONOTONIC) }
}

/// Both clocks are there on every kernel that this runs on; 0 stands for one that is not.
fn read(clock: ClockId) -> i128 {
    clock_gettime(clock)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}

/// Nanoseconds since boot, on the clock of a snapshot's `boot`.
pub fn boot_time() -> i128 {
    now().boot
}
