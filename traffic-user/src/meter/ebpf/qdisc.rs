//! The clsact qdiscs that we made, and the notes by which we know them.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use aya::programs::tc;

use super::clsact;
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
    tc::qdisc_add_clsact(&device.name).map_err(|error| MeterError::Attach {
        target: device.name.clone(),
        hook: "tc",
        cause: cause(error),
    })?;
    Ok(true)
}

/// Takes a qdisc that we made away again, if nobody else has put a filter on it.
pub(super) fn drop_unused(device: &Device) {
    let unused = clsact::filters(device.index).is_ok_and(|filters| filters.is_empty());
    if unused && let Err(error) = clsact::delete_clsact(device.index) {
        tracing::debug!(%error, device = device.name, "the clsact qdisc is gone already");
    }
    if let Ok(path) = note_path(device.index) {
        let _ = fs::remove_file(path);
    }
}

/// The note that the clsact qdisc of this device was made by us. It survives a crash, and nothing
/// in the qdisc itself could say it.
fn note_path(index: u32) -> Result<PathBuf, MeterError> {
    Ok(lock::run_folder()?.join(format!("clsact-{}-{index}", lock::netns()?)))
}

fn note(index: u32) -> Result<(), MeterError> {
    let path = note_path(index)?;
    File::create(&path).map(drop).map_err(|cause| MeterError::File { doing: "create", path, cause })
}

pub(super) fn is_ours(index: u32) -> bool {
    note_path(index).is_ok_and(|path| path.exists())
}
