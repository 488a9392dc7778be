//! The clock for what the kernel does within one call: the processor time of this thread.
//!
//! Unlike the time of day it stands still while another program is let in, so that a machine that is
//! not quite idle only widens the intervals.

use std::{io, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Processor time of this thread so far.
pub(super) fn now() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Processor time that `work` takes of this thread.
pub(super) fn time(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let begin = now()?;
    work()?;
    Ok(now()?.saturating_sub(begin))
}
