//! Two clocks, read together: one for people, one that nobody sets.

use nix::time::{ClockId, clock_gettime};

/// One instant on both clocks, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instant {
    /// Unix time.
    pub(super) unix: i128,
    /// Since boot, with the time of sleep.
    pub(super) boot: i128,
}

/// Now.
pub(super) fn now() -> Instant {
    Instant { unix: read(ClockId::CLOCK_REALTIME), boot: read(ClockId::CLOCK_BOOTTIME) }
}

/// Both clocks are there on every kernel that this runs on; 0 stands for one that is not.
fn read(clock: ClockId) -> i128 {
    clock_gettime(clock)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}
