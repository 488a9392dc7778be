//! From one kind of meter to another, where both are ours and one was left to count: a new kernel, or
//! another `--meter`. Also from what a killed run left, which goes on counting for nobody, and from rules
//! of a form that an earlier build had.
//!
//! The new one is counting before the old one is taken off. What the old one has then is its last word, and
//! what the new one has right after that is where its numbers begin: nothing is in both. The new one is read
//! before as well. Where it is the same, so that nothing passed meanwhile, nothing is in none of them either.
//! Else what passed is tried to be met between two packets again; where none is, as much as the new one
//! counted in the quickest of the tries is at most in neither of them, and is told as a gap.

use std::path::PathBuf;

use super::{
    ebpf::{self, Pinned},
    error::MeterError,
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
    if left.persist
        && !matches!(kind, MeterKind::Ebpf(_))
        && let Some(pinned) = Pinned::open(&left.pins)?
        && pinned.is_here()?
    {
        done.push(at_one_time(|| pinned.read(), meter)?);
        drop(pinned);
        ebpf::clean(&left.pins, false)?;
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

fn at_one_time(
    read: impl Fn() -> Result<Snapshot, MeterError>,
    meter: &mut Meter,
) -> Result<Handover, MeterError> {
    let counted = |snapshot: &Snapshot| -> Traffic {
        snapshot.groups.iter().map(|reading| reading.lanes.total()).sum()
    };
    let attempt = |meter: &mut Meter| -> Result<Handover, MeterError> {
        let before = meter.read()?;
        let last = read()?;
        let baseline = meter.read()?;
        let unseen = counted(&baseline).less(counted(&before));
        Ok(Handover { last, baseline, unseen })
    };
    let mut best = attempt(meter)?;
    for _ in 1..TRIES {
        if best.unseen == Traffic::default() {
            break;
        }
        let next = attempt(meter)?;
        if next.unseen.bytes() < best.unseen.bytes() {
            best = next;
        }
    }
    let Handover { mut last, baseline, unseen } = best;
    if unseen != Traffic::default() {
        last.coverage = Coverage::Gap;
    }
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
