//! A small file system in memory, in the place of a folder: one that a test can fill to the last byte.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What takes the room that is left.
const FILLER: &str = "filler";

/// The file system, until the value goes.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Puts one of so many bytes in the place of a folder, which is made. Nobody but its owner and his
    /// group may look inside.
    ///
    /// # Panics
    ///
    /// Without the right to mount.
    pub fn at(path: &Path, bytes: u64) -> Self {
        Self::mount(path, MsFlags::empty(), bytes)
    }

    /// An empty one that takes nothing.
    ///
    /// # Panics
    ///
    /// As [`at`](Self::at).
    pub fn for_reading(path: &Path) -> Self {
        Self::mount(path, MsFlags::MS_RDONLY, 1 << 20)
    }

    fn mount(path: &Path, flags: MsFlags, bytes: u64) -> Self {
        fs::create_dir_all(path).expect("make a folder");
        let options = format!("size={bytes},mode=0750");
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .expect("mount a file system in memory");
        Self(path.to_owned())
    }

    /// Takes all the room that is left.
    ///
    /// # Panics
    ///
    /// When anything but the end of the room stops it.
    pub fn fill(&self) {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.join(FILLER))
            .expect("make a file");
        for size in [1 << 16, 1] {
            let piece = vec![0x5a; size];
            loop {
                match filler.write(&piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => panic!("fill the disk: {error}"),
                }
            }
        }
    }

    /// Gives the room back that [`fill`](Self::fill) took.
    ///
    /// # Panics
    ///
    /// When it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.0.join(FILLER)).expect("remove a file");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("left mounted: {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::need;

    #[test]
    fn a_disk_is_full_when_it_is_filled_and_goes_with_its_value() {
        need!(Root);
        let place = std::env::temp_dir().join(format!("traffic-disk-{}", std::process::id()));
        let disk = Disk::at(&place, 1 << 20);
        let write = || File::create(place.join("a")).and_then(|mut file| file.write_all(b"a"));
        write().expect("room for a byte");
        fs::remove_file(place.join("a")).expect("remove a file");
        disk.fill();
        assert_eq!(write().expect_err("no room").kind(), io::ErrorKind::StorageFull);
        disk.free();
        write().expect("room for a byte");
        drop(disk);
        assert_eq!(fs::read_dir(&place).expect("a folder").count(), 0);
        fs::remove_dir(&place).expect("remove the folder");
    }
}
