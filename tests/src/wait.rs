//! Waiting for a condition, with a deadline and without a fixed pause.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that is expected to happen at once. Long, because the machine may be
/// busy with other things: a test that works never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(2);

/// Looks until there is something.
///
/// # Panics
///
/// With `what`, when there is still nothing at the deadline.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        thread::sleep(PERIOD);
    }
}
