//! The folder on bpffs in which maps and links outlive the daemon.
//!
//! ```text
//! /sys/fs/bpf/traffic/maps/{COUNTERS,GROUPS,...}      the set that counts
//! /sys/fs/bpf/traffic/next/...                        a set that is taking over (ABI change, more room)
//! /sys/fs/bpf/traffic/links/{tcx_IFINDEX_in,cgroup_out,...}
//! /sys/fs/bpf/traffic/links/tc_IFINDEX                filters stand on this device: a symbolic link to its name
//! ```
//!
//! Names have no dots, which bpffs refuses.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aya::maps::MapData;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use traffic_ebpf::abi::maps;

use super::{link::Link, load};

use crate::meter::error::MeterError;

/// Where bpffs is mounted by everyone.
const BPFFS: &str = "/sys/fs/bpf";
/// Used when nothing else is asked for.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/traffic";

/// The folder of our pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn next(&self) -> PathBuf {
        self.root.join("next")
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether a set of maps is pinned.
    ///
    /// # Errors
    ///
    /// [`MeterError::Denied`] for a user who may not look: that is not the same as none.
    pub(super) fn exist(&self) -> Result<bool, MeterError> {
        let path = self.maps().join(maps::META);
        path.try_exists().or_else(|cause| match cause.raw_os_error() {
            Some(libc::EACCES) => Err(MeterError::Denied {
                doing: "look at the pinned maps",
                capability: "CAP_DAC_READ_SEARCH".into(),
            }),
            // What a BPF file system says of a name with a dot, which nothing there can have.
            Some(libc::EPERM) => Ok(false),
            _ => Err(MeterError::File { doing: "look at", path, cause }),
        })
    }

    /// Whether links of ours are pinned, though no set of maps says what they count.
    pub(super) fn have_links(&self) -> bool {
        fs::read_dir(self.links()).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| self.is_ours(&entry.path()) && !entry.path().is_dir())
            })
        })
    }

    /// Takes away maps that a start left which was ended before it described them: nothing uses them.
    pub(super) fn forget_begun(&self) {
        for name in maps::PINNED {
            let _ = fs::remove_file(self.maps().join(name));
        }
    }

    /// Makes the folders, and mounts bpffs if it is not there.
    pub(super) fn prepare(&self) -> Result<(), MeterError> {
        self.on_bpffs()?;
        let dotted = |path: &&Path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().contains('.'))
        };
        if self.root.ancestors().take_while(|path| !path.is_dir()).any(|path| dotted(&path)) {
            return Err(MeterError::OtherPins {
                path: self.root.clone(),
                reason: "cannot be: a BPF file system takes no name with a dot".into(),
            });
        }
        for folder in [self.root.clone(), self.maps(), self.links()] {
            make_folder(&folder)?;
        }
        Ok(())
    }

    fn on_bpffs(&self) -> Result<(), MeterError> {
        let existing = self.root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        if is_bpffs(existing) {
            return Ok(());
        }
        let mount_at = if self.root.starts_with(BPFFS) { Path::new(BPFFS) } else { existing };
        let failed =
            |cause| MeterError::NoBpffs { path: self.root.clone(), mount: mount_at.into(), cause };
        if mount_at != Path::new(BPFFS) {
            // Mounting over a folder of somebody else would hide what is in it.
            return Err(failed(io::Error::other("not a BPF file system")));
        }
        mount(Some("bpf"), mount_at, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|error| failed(error.into()))
    }

    /// Takes the whole folder away. Gives a line for each pin; with `dry_run` only says them. What cannot be
    /// removed stays, and is the error once all the rest is gone.
    pub(super) fn remove(&self, dry_run: bool) -> Result<Vec<String>, MeterError> {
        let mut said = Vec::new();
        let mut failed = None;
        // Links first: what they hold stops counting before its maps go.
        for folder in [self.links(), self.maps(), self.next()] {
            let mut names: Vec<PathBuf> = match fs::read_dir(&folder) {
                Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
                Err(_) => continue,
            };
            names.sort();
            for path in names {
                if !self.is_ours(&path) || self.is_of_others(&path) {
                    continue;
                }
                said.push(format!("pin {}", path.display()));
                if !dry_run && let Err(cause) = fs::remove_file(&path) {
                    failed.get_or_insert(MeterError::File { doing: "remove", path, cause });
                }
            }
            if !dry_run {
                // Stays when something of others is inside.
                let _ = fs::remove_dir(&folder);
            }
        }
        if !dry_run {
            let _ = fs::remove_dir(&self.root);
        }
        failed.map_or(Ok(said), Err)
    }

    fn is_ours(&self, path: &Path) -> bool {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return false;
        };
        if path.starts_with(self.links()) {
            ["tcx_", "tc_", "cgroup_"].iter().any(|kind| name.starts_with(kind))
        } else {
            maps::PINNED.contains(&name)
        }
    }

    /// Whether what is pinned under a name of ours is nothing that we pin. What may not be looked at is ours by its
    /// name.
    fn is_of_others(&self, path: &Path) -> bool {
        // Names of filters: see `attach/adopt`.
        if path.is_symlink() {
            return false;
        }
        if path.starts_with(self.links()) {
            return Link::open(path).is_ok_and(|link| !link.is_of_a_kind_of_ours());
        }
        let name = path.file_name().and_then(|name| name.to_str());
        match MapData::from_pin(path) {
            Ok(map) => map.info().is_ok_and(|info| info.name_as_str() != name),
            Err(error) => !load::denied(&error),
        }
    }

    /// Puts the set in `next` in the place of the one in `maps`.
    pub(super) fn promote_next(&self) -> Result<(), MeterError> {
        let (from, to) = (self.next(), self.maps());
        for name in maps::PINNED {
            let path = to.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(|cause| MeterError::File {
                    doing: "remove",
                    path,
                    cause,
                })?;
            }
        }
        let _ = fs::remove_dir(&to);
        fs::rename(&from, &to).map_err(|cause| MeterError::File {
            doing: "rename",
            path: from,
            cause,
        })
    }
}

/// Makes a folder that only root may enter, unless it is there.
pub(super) fn make_folder(path: &Path) -> Result<(), MeterError> {
    let failed = |cause| MeterError::File { doing: "create", path: path.into(), cause };
    // One that is there is somebody's, who chose who may enter.
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// Whether the file system at `path` is a BPF one.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
