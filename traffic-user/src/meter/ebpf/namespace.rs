//! Which network namespace something of ours belongs to.
//!
//! The number of a namespace (its inode) is given to another one as soon as it is free. Its cookie is never
//! given again before the next boot, and is asked for where the kernel (5.14 and later) has one.

use super::sys;
use crate::meter::{error::MeterError, lock};

/// This thread's namespace: the inode in the lower half; in the upper one the lower half of its cookie, or 0
/// where the kernel has none.
pub(super) fn this() -> Result<u64, MeterError> {
    Ok(join(lock::netns()?, cookie().unwrap_or(0)))
}

/// The cookie of this thread's namespace, as text that is never that of another one.
pub(super) fn cookie() -> Option<u64> {
    sys::netns_cookie()
        .inspect_err(|error| tracing::debug!(%error, "network namespaces have no cookies"))
        .ok()
}

/// The inode of a namespace.
pub(super) fn inode(netns: u64) -> u64 {
    netns & 0xffff_ffff
}

/// Whether both are the same. Of one that was written without a cookie only the inode is known.
pub(super) fn are_one(a: u64, b: u64) -> bool {
    let (cookie_a, cookie_b) = (a >> 32, b >> 32);
    inode(a) == inode(b) && (cookie_a == cookie_b || cookie_a == 0 || cookie_b == 0)
}

fn join(inode: u64, cookie: u64) -> u64 {
    (inode & 0xffff_ffff) | (cookie << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_with_the_number_of_one_that_is_gone_is_another() {
        let (old, new) = (join(4_026_532_000, 7), join(4_026_532_000, 8));
        assert!(are_one(old, old) && !are_one(old, new));
        assert!(!are_one(old, join(4_026_532_001, 7)));
        // Written by a version that knew the inode only.
        assert!(are_one(old, 4_026_532_000) && are_one(4_026_532_000, old));
        assert_eq!(inode(old), 4_026_532_000);
    }

    #[test]
    fn threads_of_one_namespace_agree() {
        let there = std::thread::spawn(|| this().ok()).join().unwrap();
        assert_eq!(this().ok(), there);
    }
}
