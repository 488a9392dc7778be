//! `cargo xtask tidy`: the project's own rules as code. Also a test, so that none is forgotten.
//!
//! The rules read text, not types: enough to catch a slip, not an adversary. Each names file, line,
//! rule and what to do; each is pure over [`Source`]s and is seen to bite in its tests.

mod files;
mod layers;
mod paths;

use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use crate::place;

/// A text file of the project.
struct Source {
    /// From the project's folder, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is this file or lies in this folder.
    fn is_in(&self, place: &str) -> bool {
        self.path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A rule that was broken.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from 1; 0 where the whole file, or its absence, is meant.
    line: usize,
    what: String,
}

impl Finding {
    fn at(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Self { path: source.path.clone(), line, what: what.into() }
    }

    fn absent(path: &str, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 0, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Checks all rules.
///
/// # Errors
///
/// Lists every finding.
pub(crate) fn tidy() -> Result<()> {
    let findings = findings(&sources()?);
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = findings.iter().map(|finding| format!("\n  {finding}")).collect();
    bail!("{} rules of the project are broken:{}", findings.len(), lines.concat())
}

fn findings(sources: &[Source]) -> Vec<Finding> {
    let mut findings = files::check(sources);
    findings.extend(layers::check(sources));
    findings
}

/// The files that are, or with the next `git add` would be, in the repository.
fn sources() -> Result<Vec<Source>> {
    let sh = Shell::new()?;
    sh.change_dir(place::project());
    // Root may look at a user's clone.
    let list = cmd!(sh, "git -c safe.directory=* ls-files -z --cached --others --exclude-standard")
        .quiet()
        .read()
        .context("list the project's files")?;
    let mut sources = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        // Deleted and not yet committed, or a link.
        let file = place::project().join(path);
        if !file.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        let bytes = fs::read(&file).with_context(|| format!("read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_keeps_its_rules() {
        if let Err(err) = tidy() {
            panic!("{err}");
        }
    }
}
