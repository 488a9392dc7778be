//! Folders of a measurement, on a disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

/// Not where files are kept in memory: a commit waits for the disk.
const PLACE: &str = "/var/tmp";
const PREFIX: &str = "traffic-bench-";

/// A folder that goes with the value.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Made anew. Those that a killed run left go first: they take gigabytes.
    pub(super) fn new(name: &str) -> Result<Self> {
        sweep(Path::new(PLACE))?;
        let name = format!("{PREFIX}{}-{name}", process::id());
        let folder = Self(Path::new(PLACE).join(name));
        fs::create_dir(&folder.0)
            .with_context(|| format!("create the folder {}", folder.0.display()))?;
        Ok(folder)
    }

    /// For a command line.
    pub(super) fn text(&self) -> Result<&str> {
        self.0.to_str().context("a folder with a name in UTF-8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("left behind: {}: {error}", self.0.display());
        }
    }
}

/// Removes folders whose process is no more.
fn sweep(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| format!("read {}", place.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let owner = owner.and_then(|owner| owner.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_and_nothing_else() {
        let place = std::env::temp_dir().join(format!("traffic-folder-{}", process::id()));
        let make = |name: &str| {
            let path = place.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        // No process has the number 0.
        let left = make("traffic-bench-0-ledger");
        let others =
            [format!("traffic-bench-{}-ledger", process::id()), "traffic-bench-x".to_owned()]
                .map(|name| make(&name));
        sweep(&place).unwrap();
        assert!(!left.exists());
        assert!(others.iter().all(|other| other.exists()));
        fs::remove_dir_all(&place).unwrap();
    }
}
