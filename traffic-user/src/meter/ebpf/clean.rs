//! What is ours in this network namespace, taken off.

use std::path::Path;

use super::{attach, maps::Maps, namespace, pins::Pins};
use crate::meter::{devices::Facts, error::MeterError, lock};

/// Takes off all of ours in this network namespace: pins, links, filters, and qdiscs that we made.
/// Gives a line for each thing; with `dry_run` only says them.
///
/// # Errors
///
/// [`MeterError::Foreign`] when the pins are not ours; [`MeterError::Busy`] when a daemon in another network
/// namespace counts with them; or what the kernel says: what could be removed before is removed.
pub fn clean(folder: &Path, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let pins = Pins::new(folder);
    // What may not be looked at, or is not whole, has our names.
    if pins.exist()?
        && !Maps::is_begun(&pins.maps())
        && Maps::described(&pins.maps()).is_none()
        && let Err(foreign @ MeterError::Foreign { .. }) = Maps::pinned(&pins.maps())
    {
        return Err(foreign);
    }
    // The caller has the lock of this namespace, and the pins may be those of a daemon in another one.
    let _other = match pins.exist()?.then(|| Maps::described(&pins.maps())).flatten() {
        // One with our number and another cookie is gone, and its daemon too.
        Some(meta) if namespace::inode(meta.netns) != lock::netns()? => {
            Some(lock::Lock::of_netns(namespace::inode(meta.netns))?)
        }
        _ => None,
    };
    let mut said = pins.remove(dry_run)?;
    said.extend(attach::sweep(&Facts::gather()?.devices, dry_run)?);
    Ok(said)
}

/// Takes off what a killed run left on clsact: it counts into maps that nobody can read any more, and would
/// be taken for ours by the next start.
///
/// # Errors
///
/// What the kernel says.
pub fn clean_left() -> Result<(), MeterError> {
    for gone in attach::sweep(&Facts::gather()?.devices, false)? {
        tracing::info!(%gone, "removed what an earlier run left behind");
    }
    Ok(())
}
