//! Debian packages: what is offered, and installing it.
//!
//! Never removes a package, and never installs one that was not announced. A package of another
//! release that keeps one of the archive from being installed is set to the archive's own version.

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{missing::Missing, place, root};

/// Whether this machine has Debian's package tools.
pub(crate) fn present() -> bool {
    ["apt-get", "apt-cache"].into_iter().all(|tool| place::program(tool).is_some())
}

/// The version of a package that `apt-get install` would take, if any.
pub(crate) fn candidate(sh: &Shell, package: &str) -> Option<String> {
    let policy = cmd!(sh, "apt-cache policy {package}").quiet().ignore_stderr().read().ok()?;
    parse_candidate(&policy).map(str::to_owned)
}

fn parse_candidate(policy: &str) -> Option<&str> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
}

/// Reads the archives' lists again; an old or empty list names files that are not there.
pub(crate) fn update(sh: &Shell) -> Result<()> {
    eprintln!("apt-get update (the lists of packages are absent or too old)");
    root::command(sh, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "update", "--quiet"])?
        .quiet()
        .ignore_stdout()
        .run()
        .context("read the lists of Debian packages")
}

/// Installs packages, after saying so; with `install` false it only says.
///
/// # Errors
///
/// [`Missing`] when it may not, or is not on Debian; else what apt-get failed with.
pub(crate) fn install(sh: &Shell, install: bool, packages: &[&str], why: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !install || !present() {
        return Err(missing(&names, why).into());
    }
    if packages.iter().any(|package| candidate(sh, package).is_none()) {
        update(sh)?;
    }
    eprintln!("installing Debian packages: {names} ({why})");
    if try_install(sh, packages).is_ok() {
        return Ok(());
    }
    // The usual reason: an archive moved on and the lists still name the files of yesterday.
    update(sh)?;
    let Err(error) = try_install(sh, packages) else {
        return Ok(());
    };
    let replaced = in_the_way(sh, packages);
    if replaced.is_empty() {
        return Err(error.context(format!("install {names} ({why})")));
    }
    let versions = replaced.join(" ");
    eprintln!("setting to the archive's own version, because another is in the way: {versions}");
    let mut words = vec!["--allow-downgrades"];
    words.extend(packages);
    words.extend(replaced.iter().map(String::as_str));
    try_install(sh, &words).with_context(|| format!("install {names} with {versions} ({why})"))
}

/// Packages that would have to go for these to be installed, with the version that the archive has.
/// Empty when one of them is not in the archive.
fn in_the_way(sh: &Shell, packages: &[&str]) -> Vec<String> {
    let trial = cmd!(sh, "apt-get install --simulate --no-install-recommends {packages...}");
    let Ok(trial) = trial.quiet().ignore_stderr().read() else {
        return Vec::new();
    };
    let version = |package: &str| {
        let list = cmd!(sh, "apt-cache madison {package}").quiet().ignore_stderr().read().ok()?;
        Some(format!("{package}={}", parse_madison(&list)?))
    };
    let found: Option<Vec<_>> = parse_removed(&trial).map(version).collect();
    found.unwrap_or_default()
}

fn parse_removed(trial: &str) -> impl Iterator<Item = &str> {
    trial.lines().filter_map(|line| line.strip_prefix("Remv ")?.split_whitespace().next())
}

/// The newest version of an archive; the list begins with it.
fn parse_madison(list: &str) -> Option<&str> {
    list.lines().next()?.split('|').nth(1).map(str::trim)
}

fn missing(names: &str, why: &str) -> Missing {
    Missing {
        what: format!("{names} ({why})"),
        cure: if present() {
            format!("apt-get install --no-install-recommends {names}")
        } else {
            format!("install what Debian calls {names}")
        },
    }
}

fn try_install(sh: &Shell, packages: &[&str]) -> Result<()> {
    let mut words = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--quiet",
        "--yes",
        "--no-install-recommends",
        "--no-remove",
        "-o",
        "Dpkg::Use-Pty=0",
        "-o",
        "DPkg::Lock::Timeout=300",
    ];
    words.extend(packages);
    // stdout is for results: what apt says is a message.
    let output = root::command(sh, &words)?.quiet().ignore_status().output()?;
    if output.status.success() {
        return Ok(());
    }
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    anyhow::bail!("apt-get install ended with {}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_read_from_the_trial() {
        let trial = "Remv qemu-utils [1:10.0.2]\nInst qemu-system-x86 (1:7.2 Debian:12 [amd64])\n";
        assert_eq!(parse_removed(trial).collect::<Vec<_>>(), ["qemu-utils"]);
        let list = "qemu-utils | 1:7.2+b3 | http://archive/debian bookworm/main amd64 Packages\n\
                    qemu-utils | 1:7.2 | http://archive/security bookworm/main amd64 Packages\n";
        assert_eq!(parse_madison(list), Some("1:7.2+b3"));
        assert_eq!(parse_madison(""), None);
    }

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(policy), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(parse_candidate("rustc:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
