//! `cargo xtask clean`: takes away what the other verbs left.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{place, root};

/// Removes what `traffic` left in the kernel, measurements, cached build tools and kernels. Installed
/// packages and cargo's own results stay.
pub(crate) fn clean(sh: &Shell) -> Result<()> {
    let binary = place::target().join("release").join("traffic");
    if binary.is_file() {
        eprintln!("traffic clean (what it left in the kernel)");
        let prefix = root::prefix()?;
        let mut words = prefix.iter().map(Path::new).chain([binary.as_path(), Path::new("clean")]);
        let program = words.next().unwrap_or(&binary);
        cmd!(sh, "{program} {words...}").quiet().run().context("clean up the kernel")?;
    }
    remove(&place::target().join("bench"), "measurements")?;
    let cache = place::cache()?;
    if cache.is_dir() {
        for entry in fs::read_dir(&cache).with_context(|| format!("read {}", cache.display()))? {
            remove(&entry?.path(), "made again by the next build or test")?;
        }
    }
    eprintln!("installed packages stay, as does cargo's folder ({})", place::target().display());
    Ok(())
}

fn remove(folder: &Path, what: &str) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    eprintln!("removing {} ({what})", folder.display());
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}
