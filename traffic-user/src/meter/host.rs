//! Facts of this host, and the choice of a meter from them. Facts only tell; [`choose`] decides.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::accounting::ident::MeterKind;

/// Capabilities that eBPF counting needs, by the bit in `/proc/self/status`.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF"), (38, "CAP_PERFMON")];
/// Stands for CAP_BPF and CAP_PERFMON, and is all that kernels before 5.8 know.
const CAP_SYS_ADMIN: u32 = 21;

/// What is missing of the capabilities that counting in the kernel needs. Empty when nothing is.
pub fn missing_capabilities() -> Vec<&'static str> {
    let effective = procfs::process::Process::myself()
        .and_then(|me| me.status())
        .map_or(0, |status| status.capeff);
    let mut missing = missing(effective);
    // There a capability holds for the namespace, and the kernel asks for that of the host.
    if missing.is_empty() && !is_first_user_namespace() {
        missing.push("CAP_BPF of the host's user namespace");
    }
    missing
}

/// Whether users here are those of the host. Where nothing says otherwise, they are.
fn is_first_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| maps_all_users(&map))
}

fn maps_all_users(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    CAPABILITIES
        .into_iter()
        .filter(|(bit, name)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| name)
        .collect()
}

/// Where cgroup2 is mounted; on hosts with both versions that is not `/sys/fs/cgroup` itself.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    cgroup2_in(&mounts).map(PathBuf::from)
}

/// Whether a folder is in cgroup2, and not only below the place where that is mounted.
pub(super) fn is_in_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn cgroup2_in(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then_some(path)
    })
}

/// The kernel's release, as `uname -r` says it.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// First eight bytes of the boot id; another one after each boot.
pub fn boot_id() -> u64 {
    first_eight("/proc/sys/kernel/random/boot_id")
}

/// A number that no other epoch has.
pub(super) fn random() -> u64 {
    first_eight("/proc/sys/kernel/random/uuid") | 1
}

fn first_eight(path: impl AsRef<Path>) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// Meters that do not work, or the hooks of one, each with the reason.
pub type Reasons<K = MeterKind> = Vec<(K, String)>;

/// What trying one said.
pub type Trial<K = MeterKind> = (K, Result<(), String>);

/// The best that works, and why better ones are not used.
///
/// # Errors
///
/// All reasons, when none works.
pub fn choose<K: Copy>(trials: &[Trial<K>]) -> Result<(K, Reasons<K>), Reasons<K>> {
    let mut reasons = Vec::new();
    for (kind, result) in trials {
        match result {
            Ok(()) => return Ok((*kind, reasons)),
            Err(reason) => reasons.push((*kind, reason.clone())),
        }
    }
    Err(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_the_host_are_known_by_their_map() {
        assert!(maps_all_users("         0          0 4294967295\n"));
        for own in ["         0       1000          1\n", "", "0 0 65536\n0 100000 65536\n"] {
            assert!(!maps_all_users(own), "{own:?}");
        }
    }

    #[test]
    fn sys_admin_stands_for_the_newer_capabilities() {
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(1 << 12), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(1 << 12 | 1 << 21), Vec::<&str>::new());
        assert_eq!(missing(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
    }

    #[test]
    fn cgroup2_is_found_where_it_is() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2_in(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_in("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn the_first_that_works_is_chosen_and_the_others_say_why_not() {
        let no = |reason: &str| Err(reason.to_owned());
        let [tcx, tc, .., nft, _] = MeterKind::ALL;
        let trials = [(tcx, no("old")), (tc, Ok(())), (nft, Ok(()))];
        assert_eq!(choose(&trials), Ok((tc, vec![(tcx, "old".to_owned())])));
        assert_eq!(choose(&[(nft, no("a"))]), Err(vec![(nft, "a".to_owned())]));
    }
}
