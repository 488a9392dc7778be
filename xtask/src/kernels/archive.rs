//! Debian's archive, read by an apt that has nothing to do with this machine's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use super::PREFIX;

/// A Debian archive to use in place of the one in this machine's sources.
const ARCHIVE: &str = "TRAFFIC_DEBIAN_ARCHIVE";

/// Keys of the archive, of Debian's package `debian-archive-keyring`.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    Main,
    Security,
}

/// Addresses of Debian's two archives.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Archives {
    main: String,
    security: String,
}

impl Archives {
    pub(super) fn of_this_machine() -> Result<Self> {
        let text = match env::var(ARCHIVE) {
            Ok(address) => address,
            Err(_) => sources(Path::new("/etc/apt")),
        };
        Self::read(&text).with_context(|| {
            format!(
                "the sources of packages under /etc/apt name no Debian archive to fetch kernels from: \
                 set {ARCHIVE} to the address of one (it ends in /debian)"
            )
        })
    }

    /// From any text with addresses in it. One archive lies beside the other, where only one is named.
    fn read(text: &str) -> Option<Self> {
        let addresses = || {
            text.lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .flat_map(str::split_ascii_whitespace)
                .filter(|word| word.contains("://"))
                .map(|word| word.trim_end_matches('/'))
        };
        let main = addresses().find(|address| address.ends_with("/debian"));
        let security = addresses().find(|address| address.ends_with("/debian-security"));
        Some(Self {
            main: main.or_else(|| security?.strip_suffix("-security"))?.to_owned(),
            security: security
                .map_or_else(|| format!("{}-security", main.unwrap_or_default()), str::to_owned),
        })
    }

    pub(super) fn of(&self, archive: Archive) -> &str {
        match archive {
            Archive::Main => &self.main,
            Archive::Security => &self.security,
        }
    }
}

/// All of the machine's sources, of either form, with lists of mirrors put in.
fn sources(apt: &Path) -> String {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
            path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
        }));
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        text.push_str(&fs::read_to_string(file).unwrap_or_default());
        text.push('\n');
    }
    let mirrors: Vec<_> = text
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("mirror+file:"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    text + &mirrors.concat()
}

/// apt with one source, and with lists and caches that are not the machine's.
pub(super) struct Apt<'a> {
    sh: &'a Shell,
    suite: &'a str,
    settings: Vec<String>,
}

impl<'a> Apt<'a> {
    /// Reads the list of the suite.
    pub(super) fn new(sh: &'a Shell, address: &str, suite: &'a str, work: &Path) -> Result<Self> {
        let (lists, cache, list) =
            (work.join("lists"), work.join("cache"), work.join("sources.list"));
        for folder in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&list, format!("deb [signed-by={KEYRING}] {address} {suite} main\n"))?;
        let nothing = Path::new("/dev/null");
        let folders = [
            ("Dir::Etc::SourceList", list.as_path()),
            ("Dir::Etc::SourceParts", nothing),
            ("Dir::Etc::Preferences", nothing),
            ("Dir::Etc::PreferencesParts", nothing),
            ("Dir::State::Lists", &lists),
            ("Dir::State::Status", nothing),
            ("Dir::Cache", &cache),
        ];
        let others = [
            // The folders are the caller's, who need not be root; apt's own user cannot enter them.
            "APT::Sandbox::User=",
            "APT::Architecture=amd64",
            // A list that cannot be read is an error and not a warning.
            "APT::Update::Error-Mode=any",
            "Acquire::Languages=none",
            // A copy of the archive that was made weeks ago is signed as well, and has kernels to test on.
            "Acquire::Check-Valid-Until=false",
            "Acquire::Retries=3",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
        ];
        let settings = folders
            .iter()
            .map(|(name, path)| format!("{name}={}", path.display()))
            .chain(others.map(str::to_owned))
            .flat_map(|setting| ["-o".to_owned(), setting])
            .collect();
        let apt = Self { sh, suite, settings };
        apt.get(&["update"]).with_context(|| format!("read the list of {suite} of {address}"))?;
        Ok(apt)
    }

    /// Names of the packages with an image, one a line.
    pub(super) fn names(&self) -> Result<String> {
        let settings = &self.settings;
        let beginning = PREFIX;
        Ok(cmd!(self.sh, "apt-cache {settings...} pkgnames {beginning}").quiet().read()?)
    }

    /// Fetches a package, with the others that make up the same kernel, and gives a root folder.
    pub(super) fn unpack(&self, name: &str, flavour: &str, work: &Path) -> Result<PathBuf> {
        let (debs, root) = (work.join("debs"), work.join("root"));
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(&root)?;
        let settings = &self.settings;
        let mut names = vec![name.to_owned()];
        let mut next = 0;
        while let Some(name) = names.get(next) {
            next += 1;
            let text = cmd!(self.sh, "apt-cache {settings...} show --no-all-versions {name}")
                .quiet()
                .read()
                .with_context(|| format!("{} has no package {name}", self.suite))?;
            for part in parts(&text, flavour) {
                if !names.contains(&part) {
                    names.push(part);
                }
            }
        }
        {
            let _inside = self.sh.push_dir(&debs);
            let words: Vec<_> =
                ["download"].into_iter().chain(names.iter().map(String::as_str)).collect();
            self.get(&words).with_context(|| format!("download {}", names.join(" ")))?;
        }
        let sh = self.sh;
        for deb in sh.read_dir(&debs)? {
            cmd!(sh, "dpkg --extract {deb} {root}").quiet().run()?;
        }
        let lib = root.join("lib");
        if !lib.exists() {
            std::os::unix::fs::symlink("usr/lib", lib)?;
        }
        Ok(root)
    }

    /// `apt-get`, with only its errors as the error.
    fn get(&self, words: &[&str]) -> Result<()> {
        let settings = &self.settings;
        let output = cmd!(self.sh, "apt-get {settings...} --quiet=2 {words...}")
            .quiet()
            .ignore_status()
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
        bail!("{}", if errors.is_empty() { said.trim().to_owned() } else { errors.join(", ") })
    }
}

/// Other packages of the same kernel that a package depends on.
fn parts(control: &str, flavour: &str) -> Vec<String> {
    control
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:"))
        .flat_map(|list| list.split(','))
        .filter_map(|relation| relation.split_ascii_whitespace().next())
        .filter(|name| name.starts_with("linux-") && name.ends_with(flavour))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sources: &str, main: &str, security: &str) {
        let wanted = Archives { main: main.to_owned(), security: security.to_owned() };
        assert_eq!(Archives::read(sources), Some(wanted));
    }

    #[test]
    fn the_archives_are_those_of_the_machine() {
        check(
            "deb http://a.test/debian bookworm main\ndeb http://b.test/debian-security/ bookworm-security main\n",
            "http://a.test/debian",
            "http://b.test/debian-security",
        );
        check(
            "Types: deb\n# http://old.test/debian\nURIs: https://a.test/x/debian/\nSuites: bookworm\n",
            "https://a.test/x/debian",
            "https://a.test/x/debian-security",
        );
        check(
            "deb http://a.test/debian-security bookworm-security main\n",
            "http://a.test/debian",
            "http://a.test/debian-security",
        );
        assert_eq!(Archives::read("deb http://a.test/ubuntu noble main\n"), None);
        assert_eq!(Archives::read(""), None);
    }

    #[test]
    fn a_kernel_is_made_of_several_packages() {
        let control = "Package: linux-image-7-cloud-amd64\n\
            Depends: dracut | initramfs-tools, linux-base (>= 4), linux-base-7-cloud-amd64 (= 7-1), linux-modules-7-cloud-amd64 (= 7-1)\n\
            Suggests: linux-doc-7-cloud-amd64\n";
        assert_eq!(
            parts(control, "-cloud-amd64"),
            ["linux-base-7-cloud-amd64", "linux-modules-7-cloud-amd64"]
        );
    }
}
