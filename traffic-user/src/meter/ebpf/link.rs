//! A link of ours, held by a descriptor: so it can be asked at any time whether it still leads anywhere,
//! which a path on bpffs cannot.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{clsact::Side, sys};

/// `bpf_attach_type` of tcx and of a cgroup.
const TCX: [u32; 2] = [46, 47];
const CGROUP: [u32; 2] = [0, 1];
/// Before all others.
const BPF_F_BEFORE: u32 = 1 << 3;

const fn of(side: Side, [input, output]: [u32; 2]) -> u32 {
    match side {
        Side::Input => input,
        Side::Output => output,
    }
}

/// What keeps a program at one side of a device or cgroup. It ends with this value, unless it is pinned.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    /// Where it is pinned: it stays when we end.
    pin: Option<PathBuf>,
}

impl Link {
    /// First on the hook of a device: a program of others that ends the chain would hide what comes after
    /// it. By the number of the device, which another may be named like meanwhile.
    pub(super) fn tcx(program: BorrowedFd<'_>, device: u32, side: Side) -> io::Result<Self> {
        let fd = sys::create_link(program, device, of(side, TCX), BPF_F_BEFORE)?;
        Ok(Self { fd, pin: None })
    }

    /// At a cgroup, beside all others: a link never asks to be alone.
    pub(super) fn cgroup(
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        side: Side,
    ) -> io::Result<Self> {
        let target = cgroup.as_raw_fd().cast_unsigned();
        let fd = sys::create_link(program, target, of(side, CGROUP), 0)?;
        Ok(Self { fd, pin: None })
    }

    /// One that an earlier start pinned.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: sys::open_pin(path)?, pin: Some(path.into()) })
    }

    /// Makes it outlive us.
    pub(super) fn pin(mut self, path: PathBuf) -> io::Result<Self> {
        sys::pin(self.fd.as_fd(), &path)?;
        self.pin = Some(path);
        Ok(self)
    }

    /// Where it should be pinned and is not.
    pub(super) fn missing_pin(&self) -> Option<&Path> {
        self.pin.as_deref().filter(|path| path.try_exists().is_ok_and(|there| !there))
    }

    /// Pins it again where somebody removed its pin.
    pub(super) fn pin_again(&self) -> Result<(), (PathBuf, io::Error)> {
        match self.missing_pin() {
            Some(path) => {
                sys::pin(self.fd.as_fd(), path).map_err(|error| (path.to_path_buf(), error))
            }
            None => Ok(()),
        }
    }

    /// Number of the device or cgroup that it is at; `None` when it is at none any more: that is gone, or
    /// somebody took the link off.
    pub(super) fn target(&self) -> io::Result<Option<u64>> {
        sys::target_of(self.fd.as_fd()).map(|target| (target != 0).then_some(target))
    }

    /// Whether it is a link at all, at a device or cgroup: one that was opened under a name of ours.
    pub(super) fn is_of_a_kind_of_ours(&self) -> bool {
        sys::is_link(self.fd.as_fd()) && self.target().is_ok()
    }

    /// Whether it is at the device that has this number in this network namespace. A device takes its links with
    /// it into another one, where they count on.
    pub(super) fn is_at_device(&self, device: u32) -> io::Result<bool> {
        sys::is_at_device(self.fd.as_fd(), device)
    }

    /// Puts `program` in the place of the one that it runs.
    pub(super) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        sys::replace_program(self.fd.as_fd(), program)
    }

    /// Ends it and its pin. Its program is off its place when this returns: what is put there next sees no
    /// packet that this one saw.
    pub(super) fn end(self) {
        if let Err(error) = sys::detach_link(self.fd.as_fd()) {
            tracing::debug!(%error, "a link ends with its last descriptor");
        }
        if let Some(path) = &self.pin
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, pin = %path.display(), "a pinned link stays behind");
        }
    }
}

/// Number of the cgroup at this path, by which links know it.
pub(super) fn cgroup_number(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|meta| meta.ino())
}
