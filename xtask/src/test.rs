//! `cargo xtask test`: every check of the project, one after the other.
//!
//! A check that fails does not stop the others; the tests that need root come last, so that their
//! output ends the run.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use xshell::{PushEnv, Shell, cmd};

use crate::{apt, build, kernels, missing::Missing, place, root, tidy};

/// Set where nothing may be skipped.
pub(crate) const EVERYTHING: &str = "TRAFFIC_TEST_ALL";
/// Tells the tests where the release binary is.
pub(crate) const BINARY: &str = "TRAFFIC_BIN";

/// A program that the tests start.
struct Tool {
    program: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

/// All programs that the tests and the measurements start.
const TOOLS: &[Tool] = &[
    // Where rustup is, it brings these two, see `COMPONENTS`.
    tool("rustfmt", "rustfmt-web", "the format of the code"),
    tool("cargo-clippy", "rust-web-clippy", "lints"),
    tool("ip", "iproute2", "namespaces and their devices, tc"),
    tool("ethtool", "ethtool", "offloads on and off"),
    tool("iperf3", "iperf3", "bulk transfers"),
    tool("nft", "nftables", "REDIRECT in front of a port; measured beside ours"),
    tool("iptables", "iptables", "measured beside ours"),
    tool("v2ray", "v2ray", "the real proxy"),
    tool("qemu-system-x86_64", "qemu-system-x86", "other kernels"),
    tool("systemd-analyze", "systemd", "the unit file; nothing is started"),
    tool("depmod", "kmod", "the order of their modules"),
    tool("xz", "xz-utils", "unpacking their modules"),
    tool("zstd", "zstd", "unpacking their modules"),
];

/// What of [`TOOLS`] is rustup's, and the component that has it: rustup puts a program of that name in its
/// place, which only says that the component is missing.
const COMPONENTS: [(&str, &str); 2] = [("rustfmt", "rustfmt"), ("cargo-clippy", "clippy")];

/// Runs all checks; `args` go to the tests that need root.
///
/// # Errors
///
/// Names all that failed, after the last one has run.
pub(crate) fn test(sh: &Shell, install: bool, args: &[String]) -> Result<()> {
    prepare(sh, install)?;
    let mut checks = Checks::default();
    let mut kernels = None;
    if install {
        // An archive that cannot be reached fails the tests that boot its kernels, and no others.
        checks.check("kernels to test on", || {
            kernels = Some(kernels::ensure(sh, install)?);
            Ok(())
        });
    } else {
        kernels = Some(kernels::ensure(sh, install)?);
    }
    let built = build::release(sh, install)?;

    checks.check("format", || Ok(cmd!(sh, "cargo fmt --all --check").run()?));
    checks.check("clippy", || {
        Ok(cmd!(sh, "cargo clippy --workspace --all-targets -- --deny warnings").run()?)
    });
    checks.check("tidy", tidy::tidy);
    checks.check("unit and documentation tests", || {
        Ok(cmd!(sh, "cargo test --no-fail-fast --workspace --exclude traffic-tests").run()?)
    });
    checks.check("tests that need root", || {
        let _kernels = kernels.as_ref().map(|folder| sh.push_env(kernels::KERNELS, folder));
        let _env = built.ebpf.enter(sh)?;
        let _runner = as_root(sh)?;
        let _binary = sh.push_env(BINARY, &built.binary);
        Ok(cmd!(sh, "cargo test --no-fail-fast --release --package traffic-tests -- {args...}")
            .run()?)
    });
    checks.verdict()
}

/// Installs what the tests start and mounts what they look into.
pub(crate) fn prepare(sh: &Shell, install: bool) -> Result<()> {
    let is_missing = |tool: &&Tool| place::program(tool.program).is_none();
    let wanted: Vec<_> = TOOLS.iter().filter(is_missing).collect();
    let packages: Vec<_> = wanted.iter().map(|tool| tool.package).collect();
    let why: Vec<_> = wanted.iter().map(|tool| format!("{}: {}", tool.package, tool.why)).collect();
    apt::install(sh, install, &packages, &why.join("; "))?;
    if place::program("rustup").is_some() {
        complete_rustup(sh, install)?;
    }
    mount_bpffs(sh)
}

/// Adds the components that the checks need and that a minimal toolchain does not have.
fn complete_rustup(sh: &Shell, install: bool) -> Result<()> {
    for (program, component) in COMPONENTS {
        let works = cmd!(sh, "{program} --version").quiet().ignore_stdout().ignore_stderr().run();
        if works.is_ok() {
            continue;
        }
        if !install {
            return Err(Missing {
                what: format!("rustup component {component}"),
                cure: format!("rustup component add {component}"),
            }
            .into());
        }
        eprintln!("installing rustup component {component}");
        cmd!(sh, "rustup component add {component}")
            .quiet()
            .run()
            .with_context(|| format!("install rustup component {component}"))?;
    }
    Ok(())
}

/// Pinned maps and links live there; many containers and minimal systems do not mount it.
fn mount_bpffs(sh: &Shell) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    eprintln!("mounting bpffs on /sys/fs/bpf (the tests pin maps and links there)");
    root::command(sh, &["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])?.quiet().run()?;
    Ok(())
}

/// Makes cargo start what it built with root's rights, while it still builds as the user.
pub(crate) fn as_root(sh: &Shell) -> Result<Option<PushEnv<'_>>> {
    let [wrapper] = root::prefix()? else {
        return Ok(None);
    };
    let verbose = cmd!(sh, "rustc -vV").quiet().read()?;
    let host = verbose
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    let variable = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"));
    Ok(Some(sh.push_env(variable, format!("{wrapper} -E"))))
}

/// What ran, how long it took, what failed.
#[derive(Default)]
struct Checks {
    failed: Vec<&'static str>,
    times: Vec<(&'static str, Duration)>,
}

impl Checks {
    fn check(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) {
        let begin = Instant::now();
        eprintln!("== {name}");
        if let Err(err) = run() {
            eprintln!("== {name} failed: {err:#}");
            self.failed.push(name);
        }
        self.times.push((name, begin.elapsed()));
    }

    fn verdict(self) -> Result<()> {
        let times: Vec<_> = self
            .times
            .iter()
            .map(|(name, time)| format!("{name} {:.0} s", time.as_secs_f64()))
            .collect();
        eprintln!("== {}", times.join(", "));
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", self.failed.join(", "))
    }
}
