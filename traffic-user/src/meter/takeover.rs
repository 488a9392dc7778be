//! From one kind of meter to another, where both are ours and one was left to count: a new kernel, or
//! another `--meter`. Also from what a killed run left, which goes on counting for nobody, and from rules
//! of a form that an earlier build had.
//!
//! The new one is counting before the old one is taken off. Both are read right after one another; what
//! the old one has then is its last word, what the new one has then is where its numbers begin. So a byte
//! is in one of them.

use std::path::PathBuf;

use super::{
    ebpf::{self, Pinned},
    error::MeterError,
    iptables,
    kernel::Meter,
    nft,
};
use crate::accounting::{ident::MeterKind, reading::Snapshot};

/// The end of one meter and the beginning of another.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The last reading of the one that was taken off.
    pub last: Snapshot,
    /// The reading of the other at that time, from which it is to be charged.
    pub baseline: Snapshot,
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
        done.push(at_one_time(pinned.read()?, meter)?);
        drop(pinned);
        ebpf::clean(&left.pins, false)?;
    }
    if kind != MeterKind::Nft {
        if let Some(rules) = or_absent(nft::Installed::open())?
            && (left.persist || !rules.persist())
        {
            done.push(at_one_time(rules.read()?, meter)?);
        }
        or_absent(nft::clean_left(left.persist).map(Some))?;
    }
    // Those of the form that earlier builds had are of another kind for every meter.
    if let Some(rules) = or_absent(nft::Installed::open_former())?
        && (left.persist || !rules.persist())
    {
        done.push(at_one_time(rules.read()?, meter)?);
    }
    or_absent(nft::clean_former(left.persist).map(Some))?;
    if kind != MeterKind::Iptables && iptables::is_anything_here() {
        if let Some(rules) = or_absent(iptables::Installed::open())?
            && (left.persist || !rules.persist())
        {
            done.push(at_one_time(rules.read()?, meter)?);
        }
        iptables::clean_left(left.persist)?;
    }
    Ok(())
}

fn at_one_time(last: Snapshot, meter: &mut Meter) -> Result<Handover, MeterError> {
    let baseline = meter.read()?;
    if last.meter != baseline.meter {
        tracing::warn!(
            from = last.meter,
            to = baseline.meter,
            "counting goes on with another meter, from a zero of its own"
        );
    }
    Ok(Handover { last, baseline })
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
