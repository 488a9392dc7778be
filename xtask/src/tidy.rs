//! The project's rules as code.

use anyhow::Result;

/// Checks.
pub(crate) fn tidy() -> Result<()> {
    Ok(())
}
