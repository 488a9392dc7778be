//! Groups that are to be watched. A change that the meter cannot make leaves what is watched as it is, and
//! is tried again at each tick.

use std::time::Instant;

use crate::{
    accounting::{ident::Groups, usage::Event},
    meter::{Meter, MeterError, chain},
};

/// A change of the groups until it is made.
#[derive(Debug, Default)]
pub(super) struct Pending {
    wanted: Option<Groups>,
    /// In its place, where there is no room for all.
    fewer: Option<Groups>,
    /// Why it was not made last time, so that it is said once.
    refused: Option<String>,
}

impl Pending {
    /// Watches these groups and no others, at the next [`settle`](Self::settle) that can.
    pub(super) fn want(&mut self, groups: Groups) {
        self.wanted = Some(groups);
        self.fewer = None;
    }

    /// The same, or, where these do not fit, `fewer`.
    pub(super) fn want_or(&mut self, groups: Groups, fewer: Groups) {
        self.want(groups);
        self.fewer = Some(fewer);
    }

    /// Nothing is to be changed any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Makes the change, if there is one. Gives what is to be known of it. `now` is nanoseconds of Unix time.
    pub(super) fn settle(&mut self, meter: &mut Meter, now: i128) -> Option<Event> {
        let groups = self.wanted.as_ref()?;
        let event = |what| Event { at: now, kind: "groups".to_owned(), subject: None, what };
        let (made, count) = match (meter.watch(groups), &self.fewer) {
            (Err(MeterError::Full { .. }), Some(fewer)) => (meter.watch(fewer), fewer.len()),
            (made, _) => (made, groups.len()),
        };
        match made {
            Ok(()) => {
                self.wanted = None;
                self.refused.take()?;
                let what =
                    format!("{count} groups are watched now, as they should have been before");
                tracing::info!("{what}");
                Some(event(what))
            }
            Err(error) => {
                let why = chain(&error);
                if self.refused.as_ref() == Some(&why) {
                    return None;
                }
                let remedy =
                    error.remedy().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
                let what = format!(
                    "the groups cannot be changed: {why}{remedy}: those of before go on, and it is tried again at each tick"
                );
                tracing::warn!("{what}");
                self.refused = Some(why);
                Some(event(what))
            }
        }
    }
}

/// Part of the time that [`Sparing`] gives.
const PART: u32 = 50;

/// Work that a tick does without when it takes too much of the time: on a host with very many connections the list
/// of those that listen is long to read.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    not_before: Option<Instant>,
}

impl Sparing {
    /// Does the work, unless it has had its part of the time.
    pub(super) fn perhaps<T>(&mut self, work: impl FnOnce() -> T) -> Option<T> {
        let begin = Instant::now();
        if self.not_before.is_some_and(|time| begin < time) {
            return None;
        }
        let done = work();
        self.not_before = Some(begin + begin.elapsed() * PART);
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_takes_long_is_not_done_again_at_once() {
        let mut sparing = Sparing::default();
        let slow = || std::thread::sleep(Duration::from_millis(20));
        assert_eq!([sparing.perhaps(slow), sparing.perhaps(slow)], [Some(()), None]);
        let mut sparing = Sparing { not_before: Some(Instant::now()) };
        assert_eq!(sparing.perhaps(|| 1), Some(1));
    }
}
