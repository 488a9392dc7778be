//! `cargo xtask clean`: takes away what the other verbs left.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{place, root, toolchain};

/// Removes measurements, cached build tools and what `traffic` left in the kernel. Installed packages
/// and cargo's own results stay.
pub(crate) fn clean(sh: &Shell) -> Result<()> {
    let binary = place::target().join("release").join("traffic");
    if binary.is_file() {
        eprintln!("traffic clean (what it left in the kernel)");
        let prefix = root::prefix()?;
        let mut words = prefix
            .iter()
            .map(Path::new)
            .chain([binary.as_path(), Path::new("clean")]);
        let program = words.next().unwrap_or(&binary);
        cmd!(sh, "{program} {words...}")
            .quiet()
            .run()
            .context("clean up the kernel")?;
    }
    remove(&place::target().join("bench"), "measurements")?;
    for folder in toolchain::cached()? {
        remove(&folder, "a linker for eBPF; the next build makes it again")?;
    }
    Ok(())
}

fn remove(folder: &Path, what: &str) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    eprintln!("removing {} ({what})", folder.display());
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}
