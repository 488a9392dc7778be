//! What this machine has, and what Debian offers, for compiling eBPF. Looks, changes nothing.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;
use xshell::{Shell, cmd};

use super::{
    has_rustup,
    linker::{self, LLVMS, Linker},
    llvm_installed,
};
use crate::{apt, place};

/// Compilers of Debian with what goes with them, the better ones first: the `-web` packages follow
/// the releases, the others stay at what Debian was released with.
const SETS: [[&str; 3]; 2] =
    [["rustc-web", "cargo-web", "rust-web-src"], ["rustc", "cargo", "rust-src"]];

/// How a compiler is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// A toolchain of rustup.
    Rustup(String),
    /// One outside rustup, in the `bin` folder under this one.
    System(PathBuf),
}

/// A Rust compiler of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiler {
    pub(super) via: Via,
    /// Major and minor number.
    pub(super) version: (u32, u32),
    pub(super) nightly: bool,
    pub(super) llvm: u32,
    /// Its library source is there, so that `core` can be built for the BPF target.
    pub(super) source: bool,
    /// A cargo lies beside it.
    pub(super) cargo: bool,
}

/// What apt would install.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offers {
    /// Compiler, cargo and library source that belong together, with the compiler's version.
    pub(super) compilers: Vec<([&'static str; 3], (u32, u32))>,
    /// The LLVMs that bpf-linker can be built with.
    pub(super) llvm: BTreeSet<u32>,
}

/// All that the choice depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// rustup is there, and so aya-build will call `rustup run`.
    pub(super) rustup: bool,
    /// The toolchain of rustup that runs this build.
    pub(super) active: Option<String>,
    pub(super) compilers: Vec<Compiler>,
    pub(super) linkers: Vec<Linker>,
    /// LLVMs whose headers and library are installed.
    pub(super) llvm: BTreeSet<u32>,
    /// Debian's package tools are there.
    pub(super) debian: bool,
    /// `None` when nobody asked yet.
    pub(super) offers: Option<Offers>,
}

/// Looks at this machine; `offers` is handed through.
pub(super) fn gather(sh: &Shell, offers: Option<Offers>) -> Result<Facts> {
    let rustup = has_rustup();
    let mut places = Vec::new();
    if rustup {
        let list = cmd!(sh, "rustup toolchain list -v").quiet().ignore_stderr().read()?;
        places.extend(parse_toolchains(&list).map(|(name, path)| {
            let rustc = path.join("bin/rustc");
            (Some(name.to_owned()), rustc)
        }));
    } else {
        places.extend(place::on_path("rustc").map(|rustc| (None, rustc)));
    }
    places.push((None, PathBuf::from("/usr/bin/rustc")));

    // One compiler may have several names: links, aliases, rustup's proxies.
    let mut seen = BTreeSet::new();
    let mut compilers = Vec::new();
    for (name, rustc) in places {
        let Some((compiler, sysroot)) = look_at(sh, name, &rustc) else {
            continue;
        };
        if seen.insert(sysroot) {
            compilers.push(compiler);
        }
    }
    Ok(Facts {
        rustup,
        active: env::var("RUSTUP_TOOLCHAIN").ok(),
        compilers,
        linkers: linker::find(sh)?,
        llvm: llvm_installed(),
        debian: apt::present(),
        offers,
    })
}

/// Asks apt's lists.
pub(super) fn offers(sh: &Shell) -> Offers {
    if !apt::present() {
        return Offers::default();
    }
    let version = |package: &str| apt::candidate(sh, package).and_then(|text| parse_version(&text));
    Offers {
        compilers: SETS
            .into_iter()
            .filter(|set| set.iter().all(|package| version(package).is_some()))
            .filter_map(|set| version(set[0]).map(|number| (set, number)))
            .collect(),
        llvm: LLVMS
            .into_iter()
            .filter(|llvm| apt::candidate(sh, &format!("llvm-{llvm}-dev")).is_some())
            .collect(),
    }
}

/// `None` when there is no compiler, or it is broken.
fn look_at(sh: &Shell, name: Option<String>, rustc: &Path) -> Option<(Compiler, PathBuf)> {
    if !rustc.exists() {
        return None;
    }
    let sysroot = cmd!(sh, "{rustc} --print sysroot").quiet().ignore_stderr().read().ok()?;
    let sysroot = Path::new(sysroot.trim()).canonicalize().ok()?;
    let verbose = cmd!(sh, "{rustc} -vV").quiet().ignore_stderr().read().ok()?;
    let about = parse_verbose(&verbose)?;
    let compiler = Compiler {
        via: name.map_or_else(|| Via::System(sysroot.clone()), Via::Rustup),
        version: about.version,
        nightly: about.nightly,
        llvm: about.llvm,
        source: sysroot.join("lib/rustlib/src/rust/library/core").exists(),
        cargo: sysroot.join("bin/cargo").exists(),
    };
    Some((compiler, sysroot))
}

/// `NAME (active, default) PATH`, or a tab before the path in older releases.
fn parse_toolchains(list: &str) -> impl Iterator<Item = (&str, PathBuf)> {
    list.lines().filter_map(|line| {
        let name = line.split_whitespace().next()?;
        let path = line.get(line.find(" /").or_else(|| line.find("\t/"))? + 1..)?;
        Some((name, PathBuf::from(path.trim_end())))
    })
}

struct About {
    version: (u32, u32),
    nightly: bool,
    llvm: u32,
}

fn parse_verbose(text: &str) -> Option<About> {
    let value = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = value("release:")?;
    Some(About {
        version: parse_version(release)?,
        // What rustc itself goes by: a development build of one's own counts as well.
        nightly: release.contains("-nightly") || release.contains("-dev"),
        llvm: value("LLVM version:")?.split('.').next()?.parse().ok()?,
    })
}

/// The first two numbers of `1.96.0`, or of Debian's `1:1.96.0+dfsg1-1`.
pub(super) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let text = text.split_once(':').map_or(text, |(_epoch, rest)| rest);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_read_from_old_and_new_rustups() {
        let new =
            "stable-x86_64-unknown-linux-gnu (active, default) /opt/a b/stable\nlinked /usr\n";
        let old = "stable-x86_64-unknown-linux-gnu (default)\t/opt/a b/stable\nlinked\t/usr\n";
        for list in [new, old] {
            let found: Vec<_> = parse_toolchains(list).collect();
            assert_eq!(
                found,
                [
                    ("stable-x86_64-unknown-linux-gnu", PathBuf::from("/opt/a b/stable")),
                    ("linked", PathBuf::from("/usr")),
                ]
            );
        }
        assert_eq!(parse_toolchains("no installed toolchains\n").count(), 0);
    }

    #[test]
    fn a_compiler_tells_its_version_channel_and_llvm() {
        let check = |release, want_version, want_nightly| {
            let text =
                format!("rustc x\nbinary: rustc\nrelease: {release}\nLLVM version: 22.1.8\n");
            let about = parse_verbose(&text).expect("complete");
            assert_eq!(
                (about.version, about.nightly, about.llvm),
                (want_version, want_nightly, 22)
            );
        };
        check("1.96.0", (1, 96), false);
        check("1.97.0-nightly", (1, 97), true);
        check("1.97.0-beta.3", (1, 97), false);
        check("1.98.0-dev", (1, 98), true);
        assert!(parse_verbose("rustc 1.96.0\nrelease: 1.96.0\n").is_none(), "no LLVM, no use");
    }

    #[test]
    fn versions_of_debian_are_read_too() {
        assert_eq!(parse_version("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(parse_version("1:22.1.8-1"), Some((22, 1)));
        assert_eq!(parse_version("(none)"), None);
    }
}
