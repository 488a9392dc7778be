//! vnStat, to be measured beside ours: fetched from Debian once, kept between clones, never installed. Its
//! package would start a daemon that watches all devices of this machine from then on.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{apt, place};

/// Tells the measurement under which folder its files are.
pub(crate) const FOLDER: &str = "TRAFFIC_VNSTAT";
/// It, and the library that a machine need not have.
const PACKAGES: [&str; 2] = ["vnstat", "libsqlite3-0"];
const DAEMON: &str = "usr/sbin/vnstatd";

/// The folder that its files are under. `None` where it is installed, and where it cannot be had: that
/// leaves its column of the report empty, and is said.
pub(crate) fn find(sh: &Shell, install: bool) -> Option<PathBuf> {
    if ["vnstat", "vnstatd"].iter().all(|program| place::program(program).is_some()) {
        return None;
    }
    let found = place::cache().and_then(|cache| {
        let folder = cache.join("vnstat");
        if !folder.join(DAEMON).is_file() {
            anyhow::ensure!(install, "it is not installed, and nothing is to be fetched");
            anyhow::ensure!(apt::present(), "it is fetched from Debian, with apt");
            fetch(sh, &folder)?;
        }
        Ok(folder)
    });
    found.inspect_err(|error| eprintln!("vnStat is not measured: {error:#}")).ok()
}

/// Fetches it into `folder`, which is there whole or not at all.
fn fetch(sh: &Shell, folder: &Path) -> Result<()> {
    let work = folder.with_extension(process::id().to_string());
    let done = (|| {
        let (debs, root) = (work.join("debs"), work.join("root"));
        for folder in [&debs, &root] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        eprintln!("fetching Debian packages: {} (measured beside ours)", PACKAGES.join(" "));
        if PACKAGES.iter().any(|package| apt::candidate(sh, package).is_none())
            || download(sh, &debs).is_err()
        {
            // The lists are absent, or name the files of yesterday.
            apt::update(sh)?;
            download(sh, &debs)?;
        }
        for deb in sh.read_dir(&debs)? {
            cmd!(sh, "dpkg --extract {deb} {root}").quiet().run()?;
        }
        anyhow::ensure!(root.join(DAEMON).is_file(), "its package holds no {DAEMON}");
        match fs::rename(&root, folder) {
            // Another one was faster.
            Err(_) if folder.join(DAEMON).is_file() => Ok(()),
            renamed => renamed.with_context(|| format!("make {}", folder.display())),
        }
    })();
    let _ = fs::remove_dir_all(&work);
    done
}

fn download(sh: &Shell, debs: &Path) -> Result<()> {
    let _inside = sh.push_dir(debs);
    cmd!(sh, "apt-get --quiet=2 download {PACKAGES...}")
        .quiet()
        .ignore_stderr()
        .run()
        .with_context(|| format!("download {}", PACKAGES.join(" ")))
}
