//! Counters that go on under their pins, read without any daemon.

use std::path::Path;

use super::{Hook, attach, coverage, hook_from, load, maps::Maps, namespace, pins::Pins};
use crate::{
    accounting::reading::{Coverage, Snapshot},
    meter::{
        devices::{Device, Facts},
        error::MeterError,
    },
};

/// Counters that go on under their pins, opened for reading, without any daemon.
pub struct Pinned {
    maps: Maps,
    pins: Pins,
    hook: Hook,
}

impl Pinned {
    /// Opens what is pinned below `folder`; `None` when nothing is.
    ///
    /// # Errors
    ///
    /// [`MeterError::Foreign`] when it is not ours, [`MeterError::Denied`] without the rights.
    pub fn open(folder: &Path) -> Result<Option<Self>, MeterError> {
        let pins = Pins::new(folder);
        if !pins.exist()? || !pins.have_links() && Maps::is_begun(&pins.maps()) {
            return Ok(None);
        }
        let maps = Maps::pinned(&pins.maps()).map_err(|error| match load::denied(&error) {
            true => {
                MeterError::Denied { doing: "open the pinned maps", capability: "CAP_BPF".into() }
            }
            false => error,
        })?;
        let number = maps.meta().hook;
        let hook = hook_from(number).ok_or_else(|| MeterError::Foreign {
            path: folder.into(),
            reason: format!("its hook {number} is not known to this version"),
        })?;
        Ok(Some(Self { maps, pins, hook }))
    }

    /// Reads all counters. Resets nothing. Where something of ours was taken off, which only the next run
    /// puts back, there is a gap.
    ///
    /// # Errors
    ///
    /// [`MeterError::Map`].
    pub fn read(&self) -> Result<Snapshot, MeterError> {
        let broken = attach::is_broken(self.hook, &self.pins.links(), self.is_here()?)?;
        let coverage = if broken { Coverage::Gap } else { coverage(self.maps.meta()) };
        self.maps.snapshot(self.hook.name(), coverage)
    }

    /// Devices that are counted, as far as they are in this network namespace.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`].
    pub fn devices(&self) -> Result<Vec<Device>, MeterError> {
        if !self.is_here()? {
            // Here the same numbers are other devices.
            return Ok(Vec::new());
        }
        let present = Facts::gather()?.devices;
        attach::counted(self.hook, &self.pins.links(), present)
    }

    /// Whether it is this network namespace that is counted.
    ///
    /// # Errors
    ///
    /// [`MeterError::File`] without `/proc`.
    pub fn is_here(&self) -> Result<bool, MeterError> {
        Ok(namespace::are_one(self.maps.meta().netns, namespace::this()?))
    }

    /// The hook in use.
    pub fn hook(&self) -> Hook {
        self.hook
    }
}
