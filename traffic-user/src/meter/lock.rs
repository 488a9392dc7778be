//! One daemon for each network namespace: a second one would count every byte again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::error::MeterError;

/// Where locks and notes about what we made live until the next boot.
pub(super) const RUN_FOLDER: &str = "/run/traffic";

/// Held as long as the daemon lives; the kernel lets go of it however the daemon ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock of this network namespace.
    ///
    /// # Errors
    ///
    /// [`MeterError::Busy`] when another daemon has it, [`MeterError::File`] when it cannot be made.
    pub fn of_this_netns() -> Result<Self, MeterError> {
        let folder = run_folder()?;
        Self::take(&folder.join(format!("netns-{}.lock", netns()?)))
    }

    /// Takes the lock in the file at `path`, which is made if need be and goes when the lock does.
    ///
    /// # Errors
    ///
    /// As [`of_this_netns`](Self::of_this_netns).
    pub fn take(path: &Path) -> Result<Self, MeterError> {
        let failed = |doing, cause| MeterError::File { doing, path: path.into(), cause };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|error| failed("open", error))?;
            let mut text = String::new();
            // Only for the message; an empty or strange file does not matter.
            let _ = file.read_to_string(&mut text);
            let mut file =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
                    if error == Errno::EWOULDBLOCK {
                        MeterError::Busy { pid: text.trim().parse().ok(), lock: path.into() }
                    } else {
                        failed("lock", error.into())
                    }
                })?;
            // Its holder may have removed the file after we opened it: then the lock is on a file
            // that nobody else will find.
            if !is_at(&file, path) {
                continue;
            }
            let written = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{}", std::process::id()));
            match written {
                // The lock is held; the number is only for the message.
                Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                    return Err(failed("write", error));
                }
                Ok(()) | Err(_) => {}
            }
            return Ok(Self { path: path.into(), _file: file });
        }
    }
}

impl Drop for Lock {
    /// Removes the file while the lock is still held.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
}

/// The folder for locks and notes, made if need be; nobody but root may look inside.
pub(super) fn run_folder() -> Result<PathBuf, MeterError> {
    let folder = PathBuf::from(RUN_FOLDER);
    let failed = |cause| MeterError::File { doing: "create", path: folder.clone(), cause };
    fs::create_dir_all(&folder).map_err(failed)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    Ok(folder)
}

/// Number of this thread's network namespace.
///
/// # Errors
///
/// [`MeterError::File`] without `/proc`.
pub fn netns() -> Result<u64, MeterError> {
    let path = Path::new("/proc/thread-self/ns/net");
    fs::metadata(path).map(|meta| meta.ino()).map_err(|cause| MeterError::File {
        doing: "look at",
        path: path.into(),
        cause,
    })
}
