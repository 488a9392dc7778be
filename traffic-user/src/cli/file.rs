//! Results that go to a file: whole, or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    unistd::linkat,
};
use tempfile::TempPath;

use crate::ledger::{self, LedgerError};

/// Who may read a result that takes no other's place: its owner and his group.
const MODE: u32 = 0o640;
/// Most links that are followed to a file that is not there yet.
const LINKS: usize = 40;

/// Writes a result to `path`, or to stdout without one. Never over the ledger of the folder `state`.
///
/// A file has no name until it is complete, and is put in its place then: whatever goes wrong, a signal
/// too, what was there before stays and nothing else is left. Where the file system knows no files without
/// a name it has one beside its place, which a signal leaves there.
pub(super) fn write<T>(
    state: &Path,
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<T> {
    let Some(path) = path else {
        let mut stdout = BufWriter::new(io::stdout().lock());
        let cannot = || "cannot write to stdout".to_owned();
        let done = placed(write(&mut stdout), cannot)?;
        stdout.flush().with_context(cannot)?;
        return Ok(done);
    };
    let shown = path.to_string_lossy().escape_debug().to_string();
    let cannot = |cause: &str| format!("cannot write {shown}: {cause}");
    let there = match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            bail!("{}", cannot("it is a folder\n  remedy: name a file in it"))
        }
        // A pipe or a device is no file that another could take the place of.
        Ok(there) if !there.is_file() => {
            let file = OpenOptions::new().write(true).open(path);
            let mut file = BufWriter::new(file.with_context(|| cannot("it cannot be opened"))?);
            let no_more = || cannot("it took no more");
            let done = placed(write(&mut file), no_more)?;
            file.flush().with_context(no_more)?;
            return Ok(done);
        }
        Ok(there) => Some(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| cannot("it cannot be looked at")),
    };
    let place = behind(path).with_context(|| cannot("it is a link that leads nowhere"))?;
    let folder = match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    if !folder.is_dir() {
        let folder = folder.to_string_lossy().escape_debug().to_string();
        bail!(
            "{}",
            cannot(&format!(
                "there is no folder {folder}\n  remedy: make it, or name a file in another"
            ))
        );
    }
    if is_of_ledger(state, &folder, &place, there.as_ref()) {
        bail!("{}", cannot("it belongs to the ledger\n  remedy: name another file"));
    }
    let aside = Aside::new(&folder).with_context(|| cannot("its folder takes no new file"))?;
    let stays = || cannot("what was there before stays");
    let mut buffer = BufWriter::new(aside.file());
    let done = placed(write(&mut buffer), stays)?;
    buffer.flush().with_context(stays)?;
    drop(buffer);
    if let Some(there) = &there {
        take_after(aside.file(), there).with_context(stays)?;
    }
    aside.file().sync_all().with_context(stays)?;
    aside.put(&folder, &place).with_context(|| cannot("its place is taken"))?;
    Ok(done)
}

/// Says where it was to be written, unless it is the ledger's fault.
fn placed<T>(done: Result<T>, place: impl Fn() -> String) -> Result<T> {
    done.map_err(|error| {
        if error.chain().any(|cause| cause.is::<LedgerError>()) {
            error
        } else {
            error.context(place())
        }
    })
}

/// Behind a link lies the file that is meant, be it there or not.
fn behind(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(place) => return Ok(place),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut place = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&place) else { return Ok(place) };
        place = place.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    Err(io::Error::other("too many links"))
}

/// Whether it is one of the files that are kept in the state folder, or a name of one.
fn is_of_ledger(state: &Path, folder: &Path, place: &Path, there: Option<&fs::Metadata>) -> bool {
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let ledger = fs::metadata(ledger::path(state)).ok();
    if let (Some(there), Some(ledger)) = (there, &ledger)
        && same(there, ledger)
    {
        return true;
    }
    let beside =
        matches!((fs::metadata(folder), fs::metadata(state)), (Ok(a), Ok(b)) if same(&a, &b));
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned());
    let ours = |name: &str| name.starts_with(ledger::FILE) || name == "lock";
    beside && name.is_some_and(|name| ours(&name))
}

/// A file gets the owner and the rights of the one whose place it takes.
fn take_after(file: &File, there: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    let mut mode = there.mode() & 0o7777;
    if (own.uid(), own.gid()) != (there.uid(), there.gid())
        && fchown(file, Some(there.uid()), Some(there.gid())).is_err()
    {
        // What its owner and group might do others must not be allowed in their place.
        mode &= MODE;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// A file that is not in its place yet.
enum Aside {
    /// It goes with the process.
    Nameless(File),
    Named(File, TempPath),
}

impl Aside {
    fn new(folder: &Path) -> io::Result<Self> {
        let nameless = OpenOptions::new()
            .write(true)
            .mode(MODE)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(folder)
            .and_then(|file| {
                file.set_permissions(fs::Permissions::from_mode(MODE))?;
                Ok(file)
            });
        // Whatever the reason is, the other way tells it better.
        if let Ok(file) = nameless {
            return Ok(Self::Nameless(file));
        }
        let (file, path) = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(MODE))
            .tempfile_in(folder)?
            .into_parts();
        Ok(Self::Named(file, path))
    }

    const fn file(&self) -> &File {
        match self {
            Self::Nameless(file) | Self::Named(file, _) => file,
        }
    }

    fn put(self, folder: &Path, place: &Path) -> io::Result<()> {
        let file = match self {
            Self::Named(_, path) => return path.persist(place).map_err(|error| error.error),
            Self::Nameless(file) => file,
        };
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |to: &Path| {
            linkat(AT_FDCWD, source.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)
                .map_err(io::Error::from)
        };
        match link(place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        // A name is not linked over another one, but renamed; it has this one no longer than that takes.
        let named = tempfile::Builder::new().prefix(PREFIX).make_in(folder, link)?;
        named.into_temp_path().persist(place).map_err(|error| error.error)
    }
}

/// Names of files that are not in their place yet begin with it.
const PREFIX: &str = ".traffic-";

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path, text: &str) -> Result<()> {
        write(Path::new("/nowhere"), Some(path), |to| Ok(to.write_all(text.as_bytes())?))
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_others_may_not_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        text(&path, "one").unwrap();
        text(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0);
        assert_eq!(files(folder.path()), ["out.csv"]);
    }

    #[test]
    fn what_fails_half_way_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        text(&path, "before").unwrap();
        let failed = write(Path::new("/nowhere"), Some(&path), |to| -> Result<()> {
            to.write_all(&[b'x'; 100_000])?;
            bail!("half way")
        });
        assert!(format!("{:#}", failed.unwrap_err()).ends_with("half way"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(files(folder.path()), ["out.csv"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = text(&folder.path().join("no/out.csv"), "x").unwrap_err().to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert!(error.contains("remedy: make it"), "{error}");
        let error = text(folder.path(), "x").unwrap_err().to_string();
        assert!(error.contains("it is a folder"), "{error}");
        assert_eq!(files(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_device_stays_one_and_a_link_leads_to_its_file() {
        text(Path::new("/dev/null"), "x").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("real"), folder.path().join("link"));
        text(&path, "before").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        text(&link, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_device_that_is_full_says_so() {
        let error = text(Path::new("/dev/full"), "x").unwrap_err();
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
    }

    #[test]
    fn a_file_has_no_name_until_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        for there in [&[][..], &["out.csv"]] {
            write(Path::new("/nowhere"), Some(&path), |to| {
                to.write_all(&[b'x'; 100_000])?;
                assert_eq!(files(folder.path()), there);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(files(folder.path()), ["out.csv"]);
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_rights_and_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        text(&path, "before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        // Only root may give it to others.
        let root = nix::unistd::geteuid().is_root();
        if root {
            std::os::unix::fs::chown(&path, Some(1234), Some(2345)).unwrap();
        }
        text(&path, "after").unwrap();
        let there = fs::metadata(&path).unwrap();
        assert_eq!(there.mode() & 0o7777, 0o604);
        assert!(!root || (there.uid(), there.gid()) == (1234, 2345));
    }

    #[test]
    fn a_link_to_a_file_that_is_not_there_yet_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        text(&link, "x").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(folder.path().join("real")).unwrap(), "x");
        let round = folder.path().join("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert!(text(&round, "x").is_err());
    }

    #[test]
    fn the_ledger_is_never_written_over() {
        let state = tempfile::tempdir().unwrap();
        fs::write(ledger::path(state.path()), "ledger").unwrap();
        fs::write(state.path().join("lock"), "1").unwrap();
        std::os::unix::fs::symlink(ledger::path(state.path()), state.path().join("link")).unwrap();
        fs::hard_link(ledger::path(state.path()), state.path().join("other")).unwrap();
        let before = files(state.path());
        for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "lock", "link", "other"] {
            let path = state.path().join("../").join(state.path().file_name().unwrap()).join(name);
            let error = write(state.path(), Some(&path), |to| Ok(to.write_all(b"x")?)).unwrap_err();
            assert!(error.to_string().contains("it belongs to the ledger"), "{name}: {error}");
        }
        assert_eq!(files(state.path()), before);
        assert_eq!(fs::read_to_string(ledger::path(state.path())).unwrap(), "ledger");
        let path = state.path().join("out.csv");
        write(state.path(), Some(&path), |to| Ok(to.write_all(b"x")?)).unwrap();
    }
}
