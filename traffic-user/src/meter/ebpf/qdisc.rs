//! The clsact qdiscs that we made, and the notes by which we know them.

use std::{fs, path::PathBuf};

use aya::programs::tc;

use super::{
    clsact::{self, Place},
    namespace,
};
use crate::accounting::ident::shown;
use crate::meter::{
    devices::Device,
    error::{MeterError, cause},
    lock,
};

/// Gives the device a clsact qdisc unless it has one, and notes that it is ours to take away.
pub(super) fn make(device: &Device) -> Result<bool, MeterError> {
    match clsact::place(device.index)? {
        Place::Clsact => return Ok(is_ours(device.index)),
        Place::Ingress => return Err(MeterError::QdiscInTheWay { device: shown(&device.name) }),
        Place::Free => {}
    }
    note(device.index)?;
    tc::qdisc_add_clsact(&device.name).map_err(|error| {
        forget(device.index);
        MeterError::Attach { target: shown(&device.name), hook: "tc", cause: cause(error) }
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

/// Removes notes with the number of this namespace that say nothing any more: of another one that had the
/// number before, and of devices that are gone.
pub(super) fn tidy(present: &[Device]) {
    let (Ok(folder), Ok(netns)) = (lock::run_folder(), lock::netns()) else {
        return;
    };
    let here = namespace::cookie();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| {
            name.strip_prefix("clsact-")?.strip_prefix(&netns.to_string())?.strip_prefix('-')
        });
        let Some(index) = index.and_then(|index| index.parse::<u32>().ok()) else {
            continue;
        };
        let noted = fs::read_to_string(entry.path()).ok();
        let noted = noted.and_then(|noted| noted.trim().parse::<u64>().ok());
        let another = noted.is_some() && here.is_some() && noted != here;
        if another || present.iter().all(|device| device.index != index) {
            let _ = fs::remove_file(entry.path());
        }
    }
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
