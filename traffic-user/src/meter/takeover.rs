//! From one kind of meter to another, where both are ours and one was left to count: a new kernel, or
//! another `--meter`. Also from what a killed run left, which goes on counting for nobody, and from rules
//! of a form that an earlier build had.
//!
//! The new one is counting before the old one is taken off. What the old one has then is its last word, and
//! what the new one has right after that is where its numbers begin: nothing is in both. The new one is read
//! before as well. Where it is the same, no packet passed meanwhile, and nothing is missing from both. Else it
//! is tried again, to find a moment between two packets; if there is none, at most as much as the new one
//! counted in the quickest try is in neither, and that is told as a gap.

use std::path::PathBuf;

use super::{
    ebpf::{self, Pinned},
    error::{MeterError, chain},
    iptables,
    kernel::Meter,
    nft,
};
use crate::accounting::{
    ident::MeterKind,
    reading::{Coverage, Snapshot, Traffic},
};

/// How often a moment without a packet is looked for.
const TRIES: u32 = 5;

/// The end of one meter and the beginning of another.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The last reading of the one that was taken off.
    pub last: Snapshot,
    /// The reading of the other at that time, from which it is to be charged.
    pub baseline: Snapshot,
    /// What is at most in neither of the two.
    pub unseen: Traffic,
}

impl Handover {
    /// `before` and `baseline` are readings of the new one, right before and after the `last` of the old one.
    fn between(before: &Snapshot, mut last: Snapshot, baseline: Snapshot) -> Self {
        let mut unseen = baseline.total();
        // Counters that began again in between have all they say from after it.
        if before.epoch == baseline.epoch {
            unseen = unseen.less(before.total());
        }
        if unseen != Traffic::default() {
            last.coverage = Coverage::Gap;
        }
        Self { last, baseline, unseen }
    }
}

/// The try in which the least passed; the first in which nothing did.
fn quickest<E>(mut attempt: impl FnMut() -> Result<Handover, E>) -> Result<Handover, E> {
    let mut best = attempt()?;
    for _ in 1..TRIES {
        if best.unseen == Traffic::default() {
            break;
        }
        let next = attempt()?;
        if next.unseen.bytes() < best.unseen.bytes() {
            best = next;
        }
    }
    Ok(best)
}

/// What may have been left to count.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// Folder of the pins.
    pub(super) pins: PathBuf,
    /// Whether what was left to go on is taken over as well; without it only what a killed run left.
    pub(super) persist: bool,
}

/// Takes the place of meters of another kind that were left to count, one after the other. Gives those
/// that were taken off, even when another cannot be read or taken off, which goes on then.
pub(super) fn take_over(meter: &mut Meter, left: &Left) -> (Vec<Handover>, Option<MeterError>) {
    let mut done = Vec::new();
    let error = each(meter, left, &mut done).err();
    (done, error)
}

fn each(meter: &mut Meter, left: &Left, done: &mut Vec<Handover>) -> Result<(), MeterError> {
    let kind = meter.kind();
    if !matches!(kind, MeterKind::Ebpf(_)) {
        take_over_programs(meter, left, done)?;
    }
    if kind != MeterKind::Nft {
        if let Some(rules) = or_absent(nft::Installed::open())?
            && (left.persist || !rules.persist())
        {
            done.push(at_one_time(|| rules.read(), meter)?);
        }
        or_absent(nft::clean_left(left.persist).map(Some))?;
    }
    // Those of the form that earlier builds had are of another kind for every meter.
    if let Some(rules) = or_absent(nft::Installed::open_former())?
        && (left.persist || !rules.persist())
    {
        done.push(at_one_time(|| rules.read(), meter)?);
    }
    or_absent(nft::clean_former(left.persist).map(Some))?;
    if kind != MeterKind::Iptables && iptables::is_anything_here() {
        if let Some(rules) = or_absent(iptables::Installed::open())?
            && (left.persist || !rules.persist())
        {
            done.push(at_one_time(|| rules.read(), meter)?);
        }
        iptables::clean_left(left.persist)?;
    }
    Ok(())
}

/// Pins are read and go; filters of a killed run, which nobody can read, go.
fn take_over_programs(
    meter: &mut Meter,
    left: &Left,
    done: &mut Vec<Handover>,
) -> Result<(), MeterError> {
    let pinned = match Pinned::open(&left.pins) {
        // Of pins nothing would be taken over, whatever is there.
        Err(_) if !left.persist => None,
        pinned => pinned?,
    };
    match pinned {
        Some(pinned) if pinned.is_here()? => {
            if left.persist {
                done.push(at_one_time(|| pinned.read(), meter)?);
                drop(pinned);
                ebpf::clean(&left.pins, false)?;
            }
            Ok(())
        }
        _ => {
            // Where tc cannot even be listed, nothing of ours stands on it.
            if let Err(error) = ebpf::clean_left() {
                tracing::debug!(error = chain(&error), "filters are not looked for");
            }
            Ok(())
        }
    }
}

fn at_one_time(
    read: impl Fn() -> Result<Snapshot, MeterError>,
    meter: &mut Meter,
) -> Result<Handover, MeterError> {
    let Handover { last, baseline, unseen } = quickest(|| {
        let before = meter.read()?;
        let last = read()?;
        Ok(Handover::between(&before, last, meter.read()?))
    })?;
    if last.meter != baseline.meter {
        tracing::warn!(
            from = last.meter,
            to = baseline.meter,
            "counting goes on with another meter, from a zero of its own"
        );
    }
    Ok(Handover { last, baseline, unseen })
}

/// Without the tools or the kernel's part there are no rules of ours, and what others gave our name is
/// not ours.
fn or_absent<T>(opened: Result<Option<T>, MeterError>) -> Result<Option<T>, MeterError> {
    match opened {
        Err(
            MeterError::NoTool { .. }
            | MeterError::Denied { .. }
            | MeterError::Unsupported { .. }
            | MeterError::ForeignRules { .. },
        ) => Ok(None),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use super::*;
    use crate::accounting::reading::{Epoch, GroupReading, Lanes, Layer, Window};

    fn reading(epoch: u64, bytes: u64) -> Snapshot {
        let udp4 = Traffic { input_bytes: bytes, ..Traffic::default() };
        Snapshot {
            meter: "nft",
            layer: Layer::L3Skb,
            epoch: Epoch(epoch),
            since: None,
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: Arc::new([GroupReading {
                group: Arc::new("443".parse().unwrap()),
                lanes: Lanes { udp4, ..Lanes::default() },
                watched: true,
            }]),
            skipped: None,
        }
    }

    /// Tries in which so much passed; gives how many were made, with the one that is taken.
    fn tried(passed: &[u64]) -> (usize, Handover) {
        let mut made = 0;
        let handover = quickest(|| {
            let passed = passed[made];
            made += 1;
            let (before, after) = (reading(1, 1000), reading(1, 1000 + passed));
            Ok::<_, Infallible>(Handover::between(&before, reading(7, passed), after))
        });
        let Ok(handover) = handover;
        (made, handover)
    }

    #[test]
    fn a_moment_between_two_packets_is_looked_for_and_what_is_in_neither_is_known() {
        for (passed, tries, unseen) in
            [(&[0][..], 1, 0), (&[100, 300, 0], 3, 0), (&[300, 100, 200, 100, 500], 5, 100)]
        {
            let (made, Handover { last, baseline, unseen: found }) = tried(passed);
            assert_eq!((made, found.input_bytes), (tries, unseen), "{passed:?}");
            let gap = if unseen == 0 { Coverage::Complete } else { Coverage::Gap };
            assert_eq!(last.coverage, gap, "{passed:?}");
            // Both are of the same try.
            let began = baseline.groups[0].lanes.udp4.input_bytes - 1000;
            assert_eq!(last.groups[0].lanes.udp4.input_bytes, began);
        }
    }

    #[test]
    fn counters_that_begin_again_meanwhile_have_seen_nothing_before() {
        let handover = Handover::between(&reading(1, 1000), reading(7, 5), reading(2, 40));
        assert_eq!(handover.unseen.input_bytes, 40);
    }
}
