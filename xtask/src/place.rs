//! Where things are: the project, its build results, and what is kept between clones.

use std::{
    env,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folder of the workspace.
pub(crate) fn project() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Cargo's folder for results.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| project().join("target"), |dir| project().join(dir))
}

/// Build tools and downloads that a clean clone can use again.
///
/// # Errors
///
/// Without `HOME` and `XDG_CACHE_HOME` there is no such place.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep build tools: set one")?;
    Ok(base.join("traffic-build"))
}

/// The full path of a program as a shell would find it.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    find(name, &[])
}

/// The full path of an installed program. Administrators' folders are searched as well: a user's
/// `PATH` often lacks them.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    find(name, &["/usr/local/sbin", "/usr/sbin", "/sbin"])
}

fn find(name: &str, more: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(more.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}
