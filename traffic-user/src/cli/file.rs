//! Results that go to a file: whole, or not at all.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Who may read a result: its owner and his group.
const MODE: u32 = 0o640;

/// Writes a result to `path`, or to stdout without one.
///
/// A file is written beside its place, in the same folder, and put there when it is complete: whatever
/// goes wrong, what was there before stays.
pub(super) fn write<T>(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<T> {
    let Some(path) = path else {
        let mut stdout = BufWriter::new(io::stdout().lock());
        let done = write(&mut stdout)?;
        stdout.flush().context("cannot write to stdout")?;
        return Ok(done);
    };
    let shown = path.to_string_lossy().escape_debug().to_string();
    let cannot = |cause: &str| format!("cannot write {shown}: {cause}");
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            bail!("{}", cannot("it is a folder\n  remedy: name a file in it"))
        }
        // A pipe or a device is no file that another could take the place of.
        Ok(there) if !there.is_file() => {
            let file = OpenOptions::new().write(true).open(path);
            let mut file = BufWriter::new(file.with_context(|| cannot("it cannot be opened"))?);
            let done = write(&mut file)?;
            file.flush().with_context(|| cannot("it took no more"))?;
            return Ok(done);
        }
        Ok(_) | Err(_) => {}
    }
    // Behind a link lies the file that is meant.
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
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
    let mut aside = tempfile::Builder::new()
        .prefix(".traffic-")
        .permissions(fs::Permissions::from_mode(MODE))
        .tempfile_in(&folder)
        .with_context(|| cannot("its folder takes no new file"))?;
    let mut buffer = BufWriter::new(aside.as_file_mut());
    let done = write(&mut buffer).with_context(|| cannot("what was there before stays"))?;
    buffer.flush().with_context(|| cannot("what was there before stays"))?;
    drop(buffer);
    aside.as_file().sync_all().with_context(|| cannot("what was there before stays"))?;
    aside
        .persist(&place)
        .map_err(|error| error.error)
        .with_context(|| cannot("its place is taken"))?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path, text: &str) -> Result<()> {
        write(Some(path), |to| Ok(to.write_all(text.as_bytes())?))
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
        let failed = write(Some(&path), |to| -> Result<()> {
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
}
