//! The clsact qdiscs that we made, and the notes by which we know them.

use std::{fs, path::PathBuf};

use aya::programs::tc;

use super::{clsact, namespace};
use crate::meter::{
    devices::Device,
    error::{MeterError, cause},
    lock,
};

/// Gives the device a clsact qdisc unless it has one, and notes that it is ours to take away.
pub(super) fn make(device: &Device) -> Result<bool, MeterError> {
    if clsact::has_clsact(device.index)? {
        return Ok(is_ours(device.index));
    }
    note(device.index)?;
    tc::qdisc_add_clsact(&device.name).map_err(|error| {
        forget(device.index);
        MeterError::Attach { target: device.name.clone(), hook: "tc", cause: cause(error) }
    })?;
    Ok(true)
}

/// Takes a qdisc that we made away again, if nobody else has put a filter on it.
pub(super) fn drop_unused(device: &Device) {
    let unused = clsact::filters(device.index).is_ok_and(|filters| filters.is_empty());
    if unused && let Err(error) = clsact::delete_clsact(device.index) {
        tracing::debug!(%error, device = device.name, "the clsact qdisc is gone already");
    }
    forget(device.index);
}

fn forget(index: u32) {
    if let Ok(path) = note_path(index) {
        let _ = fs::remove_file(path);
    }
}

/// The note that the clsact qdisc of this device was made by us. It survives a crash, and nothing
/// in the qdisc itself could say it. The cookie of the network namespace is in it, because the number in its
/// name is given to another one when this one is gone.
fn note_path(index: u32) -> Result<PathBuf, MeterError> {
    Ok(lock::run_folder()?.join(format!("clsact-{}-{index}", lock::netns()?)))
}

fn note(index: u32) -> Result<(), MeterError> {
    let path = note_path(index)?;
    let cookie = namespace::cookie().map_or_else(String::new, |cookie| cookie.to_string());
    fs::write(&path, cookie).map_err(|cause| MeterError::File { doing: "create", path, cause })
}

/// Whether we made the clsact qdisc of this device. Where the kernel has no cookies, or an older version
/// wrote the note, only filters of ours on it say that the device is still the one that was meant.
pub(super) fn is_ours(index: u32) -> bool {
    let Ok(noted) = note_path(index).and_then(|path| {
        fs::read_to_string(&path).map_err(|cause| MeterError::File { doing: "read", path, cause })
    }) else {
        return false;
    };
    match (noted.trim().parse::<u64>().ok(), namespace::cookie()) {
        (Some(noted), Some(here)) => noted == here,
        _ => clsact::filters(index).is_ok_and(|found| found.iter().any(clsact::Filter::is_ours)),
    }
}
