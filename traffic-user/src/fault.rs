//! Points at which a test makes the program fail, to see that nothing is lost or left behind.
//!
//! `TRAFFIC_FAULT` names the point. Nobody sets it by accident, and nothing but the process's own life
//! can be harmed by it.

use nix::sys::signal::{Signal, raise};

/// The environment variable.
const VARIABLE: &str = "TRAFFIC_FAULT";

/// Panics here when asked to.
pub(crate) fn panic_at(point: &str) {
    assert!(!is_named(point), "asked to fail at {point} by {VARIABLE}");
}

/// Ends the process here as `kill -9` would, when asked to.
pub(crate) fn die_at(point: &str) {
    if is_named(point) {
        let _ = raise(Signal::SIGKILL);
    }
}

/// What the kernel is to refuse here, when asked to.
///
/// # Errors
///
/// One of its own, when the point is named.
pub(crate) fn refuse_at(point: &str) -> std::io::Result<()> {
    if is_named(point) {
        return Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
    }
    Ok(())
}

/// Ends the process here as its service manager would, when asked to.
pub(crate) fn signal_at(point: &str) {
    if is_named(point) {
        let _ = raise(Signal::SIGTERM);
    }
}

fn is_named(point: &str) -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == point)
}
