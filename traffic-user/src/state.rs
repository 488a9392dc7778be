//! The folder in which what must outlive a boot is kept.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Where it is, if nothing else is said.
pub(crate) const DEFAULT: &str = "/var/lib/traffic";

/// The state folder cannot be made or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the state folder {} (choose another with --state, or run with --no-ledger)", .path.display())]
pub(crate) struct StateError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Makes the folder if need be. Its group may read it, others may not look inside.
pub(crate) fn folder(path: &Path) -> Result<(), StateError> {
    let failed = |doing, cause| StateError { doing, path: path.into(), cause };
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(failed("use", io::Error::from(io::ErrorKind::NotADirectory)));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|cause| failed("create", cause))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o750))
        .map_err(|cause| failed("protect", cause))
}
