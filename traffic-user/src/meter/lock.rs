//! One daemon for each network namespace: a second one would count every byte again.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::error::MeterError;

/// Where locks and notes about what we made live until the next boot.
pub(super) const RUN_FOLDER: &str = "/run/traffic";

/// Longest number with the longest path.
const MOST_CONTENT: u64 = 5000;

/// Held as long as the daemon lives; the kernel lets go of it however the daemon ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: Flock<File>,
}

/// Who holds the lock of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Number of the process.
    pub pid: u32,
    /// The state folder whose ledger it writes, if it writes one.
    pub books: Option<PathBuf>,
}

impl Holder {
    /// Who counts in this network namespace; `None` when nobody does or it cannot be told. Takes no lock, so
    /// that nobody who starts finds one.
    pub fn of_this_netns() -> Option<Self> {
        let path = Path::new(RUN_FOLDER).join(format!("netns-{}.lock", netns().ok()?));
        let mut file = File::open(path).ok()?;
        let inode = file.metadata().ok()?.ino();
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let mut lines = text.splitn(2, |byte| *byte == b'\n');
        let pid = std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok()?;
        let books = lines.next().map(|line| line.strip_suffix(b"\n").unwrap_or(line));
        let books = books.filter(|line| !line.is_empty());
        let books = books.map(|line| OsString::from_vec(line.to_vec()).into());
        let held = fs::read_to_string("/proc/locks").ok()?;
        is_held(&held, pid, inode).then_some(Self { pid, books })
    }
}

/// Whether a line of `/proc/locks`, such as `3: FLOCK  ADVISORY  WRITE 812 00:1a:4711 0 EOF`, says that a process
/// holds the lock of a file.
fn is_held(locks: &str, pid: u32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, holder, file, ..] = *fields else { return false };
        holder.parse() == Ok(pid)
            && file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode)
    })
}

impl Lock {
    /// Takes the lock of this network namespace. `books` is the state folder whose ledger the holder writes,
    /// for those who look after it.
    ///
    /// # Errors
    ///
    /// [`MeterError::Busy`] when another daemon has it, [`MeterError::Denied`] without the rights,
    /// [`MeterError::Foreign`] when somebody else's file is there, [`MeterError::File`] when it cannot be made.
    pub fn of_this_netns(books: Option<&Path>) -> Result<Self, MeterError> {
        let lock = Self::of_netns(netns()?)?;
        if let Some(books) = books.and_then(|books| std::path::absolute(books).ok()) {
            let line = [books.as_os_str().as_bytes(), b"\n"].concat();
            // The lock is held; this is only for the message.
            let _written = (&*lock.file).write_all(&line);
        }
        Ok(lock)
    }

    /// Takes the lock of the network namespace with this number.
    pub(super) fn of_netns(number: u64) -> Result<Self, MeterError> {
        let folder = run_folder()?;
        Self::take(&folder.join(format!("netns-{number}.lock"))).map_err(or_denied)
    }

    /// Takes the lock in the file at `path`, which is made if need be and goes when the lock does.
    ///
    /// # Errors
    ///
    /// As [`of_this_netns`](Self::of_this_netns).
    pub fn take(path: &Path) -> Result<Self, MeterError> {
        let failed = |doing, cause| MeterError::File { doing, path: path.into(), cause };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                // What somebody else put there is not followed, nor waited for.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ELOOP) => foreign(path, "is a symbolic link"),
                    Some(libc::ENXIO) => foreign(path, "is no file"),
                    _ => failed("open", error),
                })?;
            let text = content(&file).map_err(|error| failed("read", error))?;
            let text = text.ok_or_else(|| foreign(path, "holds what no lock of ours does"))?;
            let mut file =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
                    if error == Errno::EWOULDBLOCK {
                        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
                        MeterError::Busy { pid, lock: path.into() }
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
            return Ok(Self { path: path.into(), file });
        }
    }
}

/// What is in the file of a lock: the number of a process, and perhaps a folder, or nothing. `None` when it is
/// something else, which is somebody's.
fn content(mut file: &File) -> io::Result<Option<String>> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() > 1 || meta.len() > MOST_CONTENT {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(is_of_a_lock(&text).then_some(text))
}

fn is_of_a_lock(text: &str) -> bool {
    // What a loss of power leaves of a file that was just written.
    let text = text.trim_matches('\0');
    let (number, rest) = text.split_once('\n').unwrap_or((text, ""));
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    text.is_empty() || (is_number && (rest.is_empty() || rest.starts_with('/')))
}

fn foreign(path: &Path, reason: &str) -> MeterError {
    MeterError::Foreign { path: path.into(), reason: reason.to_owned() }
}

impl Drop for Lock {
    /// Removes the file while the lock is still held.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
}

/// The folder for locks and notes, made if need be; nobody but root may look inside.
pub(super) fn run_folder() -> Result<PathBuf, MeterError> {
    let folder = PathBuf::from(RUN_FOLDER);
    let made = fs::create_dir_all(&folder).and_then(|()| {
        let mode = fs::metadata(&folder)?.permissions().mode();
        // One that somebody with other rights made for us is good as it is.
        if mode & 0o777 == 0o700 {
            return Ok(());
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
    });
    made.map_err(|cause| {
        or_denied(MeterError::File { doing: "create", path: folder.clone(), cause })
    })?;
    Ok(folder)
}

/// The kernel's "not permitted" in the folder of locks means that a right is missing.
fn or_denied(error: MeterError) -> MeterError {
    match error {
        MeterError::File { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
            let doing = "use the folder of locks /run/traffic";
            MeterError::Denied {
                doing,
                capability: "the right of root (or CAP_DAC_OVERRIDE)".into(),
            }
        }
        error => error,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_lock_of_ours_is_a_number_and_perhaps_a_folder() {
        for ours in ["", "\0\0\0\0", "812\n", "812\n/var/lib/traffic\n", "812\n/a\nb\n", "812"] {
            assert!(is_of_a_lock(ours), "{ours:?}");
        }
        for theirs in ["precious\n", "\nprecious", "812 x\n", "812\nprecious\n", "root:x:0:0\n"] {
            assert!(!is_of_a_lock(theirs), "{theirs:?}");
        }
    }

    #[test]
    fn who_holds_a_lock_is_told_by_the_kernel() {
        let locks = "1: POSIX  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 34 00:1a:4711 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 56 00:1a:4711 0 EOF\n";
        assert!(is_held(locks, 34, 4711));
        for (pid, inode) in [(34, 471), (3, 4711), (56, 4711), (12, 77)] {
            assert!(!is_held(locks, pid, inode), "{pid} {inode}");
        }
    }
}
