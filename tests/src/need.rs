//! What a test needs beyond a user's rights and a Rust tool chain, and what happens without it.
//!
//! A laptop may skip, and the reason is printed. A run that promised everything may not: where
//! `TRAFFIC_TEST_ALL` is set, as in CI, a missing need is a failure, so that a green run can never be
//! one that tested nothing. Each need is tried, never guessed from a version number.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, thread};

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
    unistd::geteuid,
};

use crate::{bpf, vm};

/// One thing that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// The right to load a BPF program.
    Bpf,
    /// The compiled eBPF programs inside `traffic-user`; a build without the tool chain has a stub.
    Object,
    /// The right to make a network namespace.
    Netns,
    /// `/dev/net/tun`.
    Tun,
    /// A mounted cgroup2 hierarchy.
    Cgroup2,
    /// A kernel for a virtual machine, by its label.
    Kernel(&'static str),
    /// A program found in `PATH` or in the administrator's folders.
    Tool(&'static str),
}

impl Need {
    /// Why the need is not met, or `None` when it is.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!geteuid().is_root()).then(|| "not root".to_owned()),
            Self::Bpf => bpf::Program::empty()
                .err()
                .map(|err| format!("no BPF program can be loaded ({err})")),
            Self::Object => traffic_user::meter::ebpf::OBJECT.is_empty().then(|| {
                "traffic-user was built with the stub of the eBPF object (`cargo xtask test` \
                 builds the real one)"
                    .to_owned()
            }),
            Self::Netns => {
                new_netns().err().map(|err| format!("no network namespace can be made ({err})"))
            }
            Self::Tun => open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .err()
                .map(|err| format!("/dev/net/tun cannot be opened ({err})")),
            Self::Cgroup2 => {
                cgroup2().is_none().then(|| "no cgroup2 hierarchy is mounted".to_owned())
            }
            Self::Kernel(label) => vm::Kernel::find(label).err(),
            Self::Tool(name) => {
                tool(name).is_none().then(|| format!("no program `{name}` is installed"))
            }
        }
    }
}

/// Tries it on a thread of its own, whose namespace ends with it.
fn new_netns() -> nix::Result<()> {
    thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap_or(Err(nix::Error::EIO))
}

/// Where cgroup2 is mounted (`/sys/fs/cgroup`, or `…/unified` where both versions are).
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let folder = words.next()?;
        (words.next() == Some("cgroup2")).then(|| PathBuf::from(folder))
    })
}

/// The full path of an installed program. Administrators' folders are searched as well: a user's
/// `PATH` often lacks them.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// True when the test must return at once, because something is missing and this run may skip.
///
/// # Panics
///
/// When something is missing and `TRAFFIC_TEST_ALL` is set: this run promised to test everything.
#[track_caller]
pub fn skip(needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return false;
    }
    let missing = missing.join("; ");
    assert!(
        env::var_os("TRAFFIC_TEST_ALL").is_none(),
        "this run promised every test (TRAFFIC_TEST_ALL), but: {missing}"
    );
    eprintln!("skipped: {missing}");
    true
}

/// Whether a program is there that nobody has to have. Its absence is said, and is no failure even where
/// `TRAFFIC_TEST_ALL` is set: a package that brings it does not exist everywhere.
pub fn optional(name: &str) -> bool {
    let found = tool(name).is_some();
    if !found {
        eprintln!("skipped: no program `{name}` is installed, and none has to be");
    }
    found
}

/// Leaves the test when something is missing: `need!(Root, Netns, Tool("iperf3"));`. See [`skip`].
#[macro_export]
macro_rules! need {
    ($($need:ident $(($what:expr))?),+ $(,)?) => {
        if $crate::need::skip(&[$($crate::need::Need::$need $(($what))?),+]) {
            return;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_program_is_found_and_another_is_not() {
        assert!(tool("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(tool("no-such-program-3f1c"), None);
        assert_eq!(Need::Tool("sh").missing(), None);
        let reason = Need::Tool("no-such-program-3f1c").missing();
        assert!(reason.is_some_and(|text| text.contains("no-such-program-3f1c")));
    }
}
