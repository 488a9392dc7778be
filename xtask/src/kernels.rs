//! Kernels for the tests in qemu, from Debian's archive: fetched once, kept between clones, never
//! installed.
//!
//! ```text
//! <cache>/kernels/5.10/vmlinuz
//! <cache>/kernels/5.10/release        what `uname -r` will say
//! <cache>/kernels/5.10/modules/NN-name.ko   unpacked, in the order in which they must be loaded
//! ```
//!
//! apt does the work with sources, lists and caches of its own, so this machine's are not touched,
//! and with the archive's keys, so what is fetched is what Debian signed. No address is written here:
//! the machine's own sources say which archive it uses.

mod archive;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Shell, cmd};

use self::archive::{Apt, Archive, Archives, KEYRING};
use crate::{apt, missing::Missing, place};

/// Tells the tests where the kernels are.
pub(crate) const KERNELS: &str = "TRAFFIC_KERNELS";
/// How the packages of a kernel begin. Their names move with every fix.
const PREFIX: &str = "linux-image-";
/// How the names of those for virtual machines end.
const CLOUD: &str = "-cloud-amd64";
/// How the names of those end in which everything can be preempted.
const REAL_TIME: &str = "-rt-amd64";
/// So many builds of a kernel are tried in one suite: an archive that is being moved still lists
/// files that it has no more.
const TRIES: usize = 4;
/// Where the build keeps what a folder was made of: another list of modules makes another folder.
const RECIPE: &str = "recipe";

/// One kernel, and where Debian has it.
struct Kernel {
    /// Its folder, and what the tests call it.
    label: &'static str,
    /// What its version begins with; nothing for the newest there is.
    series: &'static str,
    /// How the names of its packages end.
    flavour: &'static str,
    /// In the order to try.
    suites: &'static [(Archive, &'static str)],
}

/// From the oldest that is supported to the newest there is, and one with `PREEMPT_RT`.
const ALL: [Kernel; 5] = [
    Kernel {
        label: "5.10",
        series: "5.10.",
        flavour: CLOUD,
        suites: &[(Archive::Security, "bullseye-security"), (Archive::Main, "bullseye")],
    },
    Kernel {
        label: "6.1",
        series: "6.1.",
        flavour: CLOUD,
        suites: &[(Archive::Main, "bookworm"), (Archive::Security, "bookworm-security")],
    },
    Kernel {
        label: "6.12",
        series: "6.12.",
        flavour: CLOUD,
        suites: &[(Archive::Main, "bookworm-backports"), (Archive::Main, "trixie")],
    },
    Kernel {
        label: "6.12-rt",
        series: "6.12.",
        flavour: REAL_TIME,
        suites: &[(Archive::Main, "bookworm-backports"), (Archive::Main, "trixie")],
    },
    Kernel { label: "newest", series: "", flavour: CLOUD, suites: &[(Archive::Main, "sid")] },
];

/// Modules that no test can do without.
const NEEDED: [&str; 5] = ["veth", "tun", "8021q", "sch_ingress", "cls_bpf"];
/// Modules that are taken if the kernel has them.
const WELCOME: [&str; 27] = [
    "act_bpf",
    "bonding",
    "bridge",
    "cls_u32",
    "dummy",
    "ifb",
    "ip6_tables",
    "ip6table_filter",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "ipvlan",
    "macvlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_counter",
    "nft_objref",
    "nft_redir",
    "sch_fq",
    "sch_htb",
    "vrf",
    "wireguard",
    "xt_REDIRECT",
    "xt_comment",
    "xt_multiport",
    "xt_tcpudp",
];

/// Makes sure that all kernels are there, and gives the folder that holds them. One that is there
/// already is used as it is, without the network.
///
/// # Errors
///
/// [`Missing`] when one is absent and may not be fetched; else names the kernel that could not be
/// fetched, and why. What was fetched before stays.
pub(crate) fn ensure(sh: &Shell, install: bool) -> Result<PathBuf> {
    let folder = place::cache()?.join("kernels");
    let absent: Vec<&Kernel> =
        ALL.iter().filter(|kernel| !is_complete(&folder.join(kernel.label))).collect();
    if absent.is_empty() {
        return Ok(folder);
    }
    let labels: Vec<_> = absent.iter().map(|kernel| kernel.label).collect();
    if !install {
        return Err(Missing {
            what: format!("kernels {} (to test on)", labels.join(", ")),
            cure: "run without --no-install, which downloads them from Debian".to_owned(),
        }
        .into());
    }
    if !Path::new(KEYRING).exists() {
        apt::install(sh, install, &["debian-archive-keyring"], "to verify the kernels to test on")?;
    }
    let archives = Archives::of_this_machine()?;
    for kernel in absent {
        fetch(sh, kernel, &archives, &folder)
            .with_context(|| format!("fetch kernel {}", kernel.label))?;
    }
    Ok(folder)
}

/// A folder gets its name when all is in it; the recipe tells one of an older list of modules.
fn is_complete(folder: &Path) -> bool {
    fs::read_to_string(folder.join(RECIPE)).is_ok_and(|text| text == recipe())
}

fn recipe() -> String {
    let modules: Vec<_> = modules().collect();
    format!("{}\n", modules.join(" "))
}

fn modules() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().chain(WELCOME)
}

/// A folder that goes away again unless it is kept.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fetches one kernel into `folder`, which sees it whole or not at all.
fn fetch(sh: &Shell, kernel: &Kernel, archives: &Archives, folder: &Path) -> Result<()> {
    let scratch = Scratch(folder.join(format!(".{}-{}", kernel.label, process::id())));
    let work = &scratch.0;
    fs::create_dir_all(work).with_context(|| format!("create {}", work.display()))?;

    let root = download(sh, kernel, archives, work)?;
    let release = release(&root)?;
    let done = work.join("done");
    fs::create_dir_all(done.join("modules"))?;
    let images = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(&release).join("vmlinuz"),
    ];
    let image =
        images.iter().find(|path| path.is_file()).context("the packages hold no vmlinuz")?;
    fs::copy(image, done.join("vmlinuz"))?;
    collect_modules(sh, &root, &release, &done.join("modules"))?;
    fs::write(done.join("release"), format!("{release}\n"))?;
    fs::write(done.join(RECIPE), recipe())?;

    let place = folder.join(kernel.label);
    if place.exists() {
        fs::rename(&place, work.join("older"))
            .with_context(|| format!("move {} away", place.display()))?;
    }
    match fs::rename(&done, &place) {
        Ok(()) => Ok(()),
        // Another one was faster.
        Err(_) if is_complete(&place) => Ok(()),
        Err(err) => {
            Err(err).with_context(|| format!("rename {} to {}", done.display(), place.display()))
        }
    }
}

/// Gives a root folder with the files of the newest build of a kernel that can be fetched.
fn download(sh: &Shell, kernel: &Kernel, archives: &Archives, work: &Path) -> Result<PathBuf> {
    let mut failures = Vec::new();
    for (archive, suite) in kernel.suites {
        let address = archives.of(*archive);
        let apt = match Apt::new(sh, address, suite, &work.join(suite)) {
            Ok(apt) => apt,
            Err(err) => {
                failures.push(format!("{err:#}"));
                continue;
            }
        };
        let names = builds(&apt.names()?, kernel.series, kernel.flavour);
        if names.is_empty() {
            let (series, flavour) = (kernel.series, kernel.flavour);
            failures.push(format!("{suite} of {address} has no {PREFIX}{series}*{flavour}"));
        }
        for name in names.iter().take(TRIES) {
            eprintln!("fetching kernel {}: {name} of {suite} from {address}", kernel.label);
            match apt.unpack(name, kernel.flavour, &work.join(name)) {
                Ok(root) => return Ok(root),
                Err(err) => failures.push(format!("{err:#}")),
            }
        }
    }
    bail!("{}", failures.join("; "))
}

/// Packages with an image of that series and flavour among `names`, the newest build first.
fn builds(names: &str, series: &str, flavour: &str) -> Vec<String> {
    let mut builds: Vec<(Vec<u64>, String)> = names
        .split_ascii_whitespace()
        .filter_map(|name| {
            let version = name.strip_prefix(PREFIX)?.strip_suffix(flavour)?;
            // Packages without a version only depend on others.
            let complete = version.starts_with(series) && version.matches('.').count() >= 2;
            complete.then(|| (numbers(version), name.to_owned()))
        })
        .collect();
    builds.sort_unstable();
    builds.into_iter().rev().map(|(_, name)| name).collect()
}

/// All numbers in a text, so that 5.10 comes after 5.9.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn release(root: &Path) -> Result<String> {
    let folder = root.join("lib/modules");
    let entries = fs::read_dir(&folder).context("the packages hold no modules")?;
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    match (names.pop(), names.pop()) {
        (Some(release), None) => Ok(release),
        _ => bail!("the packages hold modules of more than one kernel"),
    }
}

/// Unpacks the wanted modules and those that they need, numbered in the order to load them in.
fn collect_modules(sh: &Shell, root: &Path, release: &str, to: &Path) -> Result<()> {
    let [depmod, modprobe] = ["depmod", "modprobe"].map(|name| {
        place::program(name).with_context(|| format!("no program {name} (Debian package kmod)"))
    });
    let (depmod, modprobe) = (depmod?, modprobe?);
    // A package that holds only modules has no table of what is built in, and depmod says so.
    cmd!(sh, "{depmod} --basedir {root} {release}")
        .quiet()
        .ignore_stderr()
        .run()
        .context("order the modules")?;
    let mut ordered: Vec<PathBuf> = Vec::new();
    for name in modules() {
        // `--config`: what this machine does with a module of that name is of no interest.
        let shown = cmd!(
            sh,
            "{modprobe} --config /dev/null --dirname {root} --set-version {release} --show-depends {name}"
        )
        .quiet()
        .ignore_stderr()
        .read();
        match shown {
            Ok(shown) => {
                for file in files_to_load(&shown) {
                    if !ordered.contains(&file) {
                        ordered.push(file);
                    }
                }
            }
            Err(_) if NEEDED.contains(&name) => bail!("kernel {release} has no module {name}"),
            Err(_) => {}
        }
    }
    for (number, file) in ordered.iter().enumerate() {
        let packed = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = packed.split_once(".ko").map_or(packed, |(name, _)| name);
        let bytes = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => cmd!(sh, "xz --decompress --stdout {file}").quiet().output()?.stdout,
            Some("zst") => {
                cmd!(sh, "zstd --decompress --quiet --stdout {file}").quiet().output()?.stdout
            }
            _ => fs::read(file)?,
        };
        ensure!(bytes.starts_with(b"\x7fELF"), "{} is no module", file.display());
        fs::write(to.join(format!("{number:02}-{name}.ko")), bytes)?;
    }
    Ok(())
}

/// The files in what `modprobe --show-depends` prints; what is built in needs none.
fn files_to_load(shown: &str) -> impl Iterator<Item = PathBuf> {
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_ascii_whitespace().next())
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_build_of_a_series_comes_first() {
        let names = "linux-image-5.10.0-9-cloud-amd64\nlinux-image-5.10.0-46-cloud-amd64\n\
            linux-image-5.10.0-46-cloud-amd64-dbg\nlinux-image-5.10.0-46-amd64\n\
            linux-image-6.1.0-0.deb11.52-cloud-amd64\nlinux-image-6.1-cloud-amd64\nlinux-image-cloud-amd64\n\
            linux-image-5.10.0-46-rt-amd64\nlinux-image-5.10.0-46-rt-amd64-dbg\nlinux-image-rt-amd64\n";
        assert_eq!(
            builds(names, "5.10.", CLOUD),
            ["linux-image-5.10.0-46-cloud-amd64", "linux-image-5.10.0-9-cloud-amd64"]
        );
        assert_eq!(builds(names, "5.10.", REAL_TIME), ["linux-image-5.10.0-46-rt-amd64"]);
        assert_eq!(builds(names, "", CLOUD)[0], "linux-image-6.1.0-0.deb11.52-cloud-amd64");
        assert_eq!(builds(names, "6.12.", CLOUD), Vec::<String>::new());
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        let shown = "insmod /r/lib/modules/6/llc.ko.xz \nbuiltin stp\ninsmod /r/lib/modules/6/bridge.ko.xz a=1\n";
        let files: Vec<_> = files_to_load(shown).collect();
        assert_eq!(
            files,
            ["/r/lib/modules/6/llc.ko.xz", "/r/lib/modules/6/bridge.ko.xz"].map(PathBuf::from)
        );
    }
}
