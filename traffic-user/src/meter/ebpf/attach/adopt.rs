//! What an earlier run left attached: taken over, or found broken.
//!
//! A link or filter that does not stand any more says that packets were missed: nobody put it back while no
//! daemon ran. Links say so by their pin, which outlives them. Filters have none, so that a name in the same
//! folder stands for the two of a device: `tcx_IFINDEX_in`, `tc_IFINDEX`, `cgroup_out`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::AsFd as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::tc::SchedClassifierLink};

use super::{
    Attachments, Held, Link, OnDevice, Side, attach_error, attach_type, cgroup_pin, cgroup_program,
    clsact, filters_stand, load, program_for, qdisc, stands_at, stands_on, take_off_filter,
};
use crate::accounting::ident::shown;
use crate::meter::{
    devices::Device,
    ebpf::Hook,
    error::{MeterError, cause},
};

impl Attachments {
    /// Takes over what is attached under our pins or names, with the programs of `ebpf` in the place
    /// of the old ones. Each packet is seen by exactly one of them.
    pub(in crate::meter::ebpf) fn adopt(
        &mut self,
        ebpf: &mut Ebpf,
        present: &[Device],
    ) -> Result<(), MeterError> {
        self.adopted = true;
        match self.hook {
            Hook::Tcx => self.adopt_links(ebpf, present),
            Hook::Tc => self.adopt_filters(ebpf, present),
            Hook::Cgroup => self.adopt_cgroup(ebpf),
        }
    }

    fn adopt_links(&mut self, ebpf: &mut Ebpf, present: &[Device]) -> Result<(), MeterError> {
        let Some(folder) = self.pins.clone() else {
            return Ok(());
        };
        let mut links = device_links(&folder)?;
        for device in present {
            let mut held = Vec::new();
            for side in Side::BOTH {
                let Some(path) = links.remove(&(device.index, side.name().to_owned())) else {
                    continue;
                };
                let name = program_for(device, side)?;
                let program = load::classifier(ebpf, name)?;
                let program = load::descriptor(program.fd(), name)?;
                let replaced = Link::open(&path).and_then(|link| {
                    if !stands_on(&link, device.index) {
                        // With its device in another network namespace it would count there.
                        link.end();
                        return Err(io::ErrorKind::NotFound.into());
                    }
                    link.replace(program.as_fd()).map(|()| link)
                });
                match replaced {
                    Ok(link) => held.push(link),
                    // Somebody took it off, or it outlived its device and another got the number.
                    Err(error) => {
                        tracing::debug!(%error, device = device.name, "a pinned link leads nowhere");
                        self.lose(format!("our link on {} led nowhere", shown(&device.name)));
                        remove(&path)?;
                    }
                }
            }
            if held.len() == Side::BOTH.len() {
                let held = held.into_iter().map(Held::Link).collect();
                let on = OnDevice { device: device.clone(), held, made_qdisc: false };
                self.devices.insert(on.device.index, on);
            } else {
                // Half a pair counts half: begin anew for this device.
                if !held.is_empty() {
                    self.lose(format!("half of our links on {} was gone", shown(&device.name)));
                }
                held.into_iter().for_each(Link::end);
            }
        }
        // Of devices that are gone. One may have come back with another number.
        if !links.is_empty() {
            self.lose(format!("{} links of ours were at devices that are gone", links.len()));
        }
        links.values().try_for_each(|path| remove(path))
    }

    fn adopt_filters(&mut self, ebpf: &mut Ebpf, present: &[Device]) -> Result<(), MeterError> {
        let mut noted = match &self.pins {
            Some(folder) => noted_filters(folder)?,
            None => BTreeMap::new(),
        };
        for device in present {
            let ours: Vec<_> = clsact::filters(device.index)?
                .into_iter()
                .filter(clsact::Filter::is_ours)
                .collect();
            let mut held: BTreeMap<Side, Held> = BTreeMap::new();
            for found in ours {
                // A second one of a side would count each packet again.
                if held.contains_key(&found.side) {
                    take_off_filter(device, &found)?;
                    continue;
                }
                let name = program_for(device, found.side)?;
                let program = load::classifier(ebpf, name)?;
                let link = SchedClassifierLink::attached(
                    &device.name,
                    attach_type(found.side),
                    found.priority,
                    found.handle.into(),
                    None,
                )
                .map_err(|error| attach_error(device, "tc", error))?;
                let link = program
                    .attach_to_link(link)
                    .and_then(|id| program.take_link(id))
                    .map_err(|error| attach_error(device, "tc", error))?;
                held.insert(found.side, Held::Filter(Some(link)));
            }
            // One whose filters are gone stays noted, and is missed below.
            if !held.is_empty() {
                noted.remove(&device.index);
                self.note_filters(device);
                let (device, held) = (device.clone(), held.into_values().collect());
                let made_qdisc = qdisc::is_ours(device.index);
                self.devices.insert(device.index, OnDevice { device, held, made_qdisc });
            }
        }
        if !noted.is_empty() {
            self.lose(format!("our filters were gone from {} devices", noted.len()));
        }
        noted.values().try_for_each(|path| remove(path))
    }

    fn adopt_cgroup(&mut self, ebpf: &mut Ebpf) -> Result<(), MeterError> {
        let Some(folder) = self.pins.clone() else {
            return Ok(());
        };
        for side in Side::BOTH {
            let path = folder.join(cgroup_pin(side));
            let name = cgroup_program(side);
            let program = load::cgroup_skb(ebpf, name)?;
            let program = load::descriptor(program.fd(), name)?;
            let adopted =
                Link::open(&path).and_then(|link| link.replace(program.as_fd()).map(|()| link));
            match adopted {
                Ok(link) => self.cgroup.push(link),
                Err(error) => match error.raw_os_error() {
                    // Its cgroup was removed, perhaps made again, or somebody took it off.
                    Some(libc::ENOLINK) => remove(&path)?,
                    Some(libc::ENOENT) => {}
                    _ => {
                        return Err(MeterError::Attach {
                            target: shown(&path.display().to_string()),
                            hook: "cgroup",
                            cause: cause(error),
                        });
                    }
                },
            }
        }
        if self.cgroup.len() < Side::BOTH.len() {
            self.lose("what counted at the cgroup was taken off while no daemon ran".to_owned());
            self.leave_cgroup();
        }
        Ok(())
    }

    /// Leaves a name by which the next start knows that both filters stood on the device.
    pub(super) fn note_filters(&self, device: &Device) {
        let Some(path) = self.filter_note(device) else {
            return;
        };
        if let Err(error) = symlink(&device.name, path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, device = device.name, "filters that vanish may not be missed");
        }
    }

    /// They are taken off, and nobody is to miss them.
    pub(super) fn forget_note(&self, device: &Device) {
        if self.hook == Hook::Tc
            && let Some(path) = self.filter_note(device)
        {
            let _ = fs::remove_file(path);
        }
    }

    /// Whether nothing stands for the filters on this device.
    pub(super) fn lacks_note(&self, device: &Device) -> bool {
        self.hook == Hook::Tc
            && self.filter_note(device).is_some_and(|path| path.symlink_metadata().is_err())
    }

    fn filter_note(&self, device: &Device) -> Option<PathBuf> {
        self.pins.as_ref().map(|folder| folder.join(format!("tc_{}", device.index)))
    }
}

/// Whether something that a run attached to stay does not stand any more, so that packets are missed, as its
/// pins say. Of filters only in the network namespace that is counted (`here`).
pub(in crate::meter::ebpf) fn is_broken(
    hook: Hook,
    folder: &Path,
    here: bool,
) -> Result<bool, MeterError> {
    let leads_nowhere = |path: &Path| match Link::open(path) {
        Ok(link) => link.target().is_ok_and(|target| target.is_none()),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let is_elsewhere =
        |path: &Path, device| here && Link::open(path).is_ok_and(|link| !stands_on(&link, device));
    Ok(match hook {
        Hook::Tcx => {
            let links = device_links(folder)?;
            let devices: BTreeSet<u32> = links.keys().map(|(index, _)| *index).collect();
            links
                .iter()
                .any(|((device, _), path)| leads_nowhere(path) || is_elsewhere(path, *device))
                || links.len() < devices.len() * Side::BOTH.len()
        }
        Hook::Tc => here && noted_filters(folder)?.keys().any(|index| !filters_stand(*index)),
        Hook::Cgroup => {
            Side::BOTH.iter().any(|side| leads_nowhere(&folder.join(cgroup_pin(*side))))
        }
    })
}

/// Whether pinned links are at another cgroup than the one with this number. Those that lead nowhere are
/// at none.
pub(in crate::meter::ebpf) fn counts_another_cgroup(folder: &Path, number: u64) -> bool {
    Side::BOTH.iter().any(|side| {
        Link::open(&folder.join(cgroup_pin(*side))).is_ok_and(|link| {
            link.target().is_ok_and(|target| target.is_some()) && !stands_at(&link, number)
        })
    })
}

/// Pinned links by device and name of the side.
fn device_links(folder: &Path) -> Result<BTreeMap<(u32, String), PathBuf>, MeterError> {
    named(folder, |name| {
        let (index, side) = name.strip_prefix("tcx_")?.split_once('_')?;
        Some((index.parse().ok()?, side.to_owned()))
    })
}

/// Notes of filters by device.
fn noted_filters(folder: &Path) -> Result<BTreeMap<u32, PathBuf>, MeterError> {
    named(folder, |name| name.strip_prefix("tc_")?.parse().ok())
}

fn named<K: Ord>(
    folder: &Path,
    key: impl Fn(&str) -> Option<K>,
) -> Result<BTreeMap<K, PathBuf>, MeterError> {
    let failed = |cause| MeterError::File { doing: "read", path: folder.into(), cause };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let key = path.file_name().and_then(|name| name.to_str()).and_then(&key);
        if let Some(key) = key {
            found.insert(key, path);
        }
    }
    Ok(found)
}

fn remove(path: &Path) -> Result<(), MeterError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(MeterError::File { doing: "remove", path: path.into(), cause })
        }
        _ => Ok(()),
    }
}
