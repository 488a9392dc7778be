//! A cgroup of the test's own, for some of its threads.
//!
//! A socket belongs to the cgroup of the thread that made it, so a threaded cgroup is enough, and no
//! process has to be started and steered.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use nix::unistd::gettid;

use crate::need;

/// A folder in the cgroup2 hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A fresh one below this process's own.
    ///
    /// # Panics
    ///
    /// When it cannot be made: ask for `Cgroup2` with [`need!`](crate::need!) first.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = need::cgroup2().expect("cgroup2");
        let own = fs::read_to_string("/proc/self/cgroup").expect("read the own cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let n = NEXT.fetch_add(1, Relaxed);
        let path = root.join(own).join(format!("tt-{}-{n}", process::id()));
        fs::create_dir(&path).unwrap_or_else(|err| panic!("make {}: {err}", path.display()));
        let cgroup = Self { path };
        // Threads of one process may be in several cgroups only if they are of this kind.
        fs::write(cgroup.path.join("cgroup.type"), "threaded").expect("a cgroup for threads");
        cgroup
    }

    /// Removes it and makes another at the same place, as a service manager does at a restart. No thread may
    /// be in it.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn make_anew(&self) {
        fs::remove_dir(&self.path).expect("remove a cgroup");
        fs::create_dir(&self.path).expect("make a cgroup again");
        fs::write(self.path.join("cgroup.type"), "threaded").expect("a cgroup for threads");
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` on a thread in the cgroup. Threads that it starts are in it as well.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                fs::write(self.path.join("cgroup.threads"), gettid().to_string())
                    .expect("enter a cgroup");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    /// Only reports: a panic here while the test unwinds would hide the real failure.
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir(&self.path) {
            eprintln!("left behind: {}: {err}", self.path.display());
        }
    }
}
