//! From one kind of meter to another, where both are ours and one was left to count: a new kernel, or
//! another `--meter`.
//!
//! The new one is counting before the old one is taken off. Both are read right after one another; what
//! the old one has then is its last word, what the new one has then is where its numbers begin. So a byte
//! is in one of them.

use std::path::Path;

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

/// Takes the place of meters of another kind that were left to count.
///
/// # Errors
///
/// When one is there and cannot be read or taken off; it goes on then.
pub(super) fn take_over(meter: &mut Meter, pins: &Path) -> Result<Option<Handover>, MeterError> {
    let kind = meter.kind();
    let mut handover = None;
    if !matches!(kind, MeterKind::Ebpf(_))
        && let Some(pinned) = Pinned::open(pins)?
    {
        handover = Some(Handover { last: pinned.read()?, baseline: meter.read()? });
        drop(pinned);
        ebpf::clean(pins, false)?;
    }
    if kind != MeterKind::Nft
        && let Some(rules) = absent_without_tools(nft::Installed::open())?
    {
        handover = Some(Handover { last: rules.read()?, baseline: meter.read()? });
        nft::clean(false)?;
    }
    if kind != MeterKind::Iptables
        && let Some(rules) = absent_without_tools(iptables::Installed::open())?
    {
        handover = Some(Handover { last: rules.read()?, baseline: meter.read()? });
        iptables::clean(false)?;
    }
    if let Some(handover) = &handover {
        tracing::warn!(
            from = handover.last.meter,
            to = kind.name(),
            "counting goes on with another meter, from a zero of its own"
        );
    }
    Ok(handover)
}

/// Without the tools that set rules there are none to take over.
fn absent_without_tools<T>(opened: Result<Option<T>, MeterError>) -> Result<Option<T>, MeterError> {
    match opened {
        Err(MeterError::NoTool { .. } | MeterError::Denied { .. }) => Ok(None),
        opened => opened,
    }
}
