//! A network namespace as a value.
//!
//! It has no name and no file: it lives as long as something is in it or holds it open, so that even
//! a test that is killed leaves nothing behind.

use std::{
    fs::File,
    io::Write as _,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    process::{self, Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{SigHandler, Signal, signal},
};

use crate::need;

/// A setting that is 1 when a namespace has no IPv6.
const NO_IPV6: &str = "net/ipv6/conf/all/disable_ipv6";

/// One network namespace with its loopback up.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// A fresh one.
    ///
    /// # Panics
    ///
    /// When it cannot be made: ask for `Netns` with [`need!`](crate::need!) first.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            // No process is ever in it, and no device of it is there before this line.
            File::open("/proc/thread-self/ns/net").expect("open the network namespace")
        });
        let file = file.join().expect("the thread that makes a namespace");
        let ns = Self { file };
        // Nothing here may send by itself: each packet of a test is one that the test knows of.
        ns.set("net/ipv6/conf/all/accept_ra", "0");
        ns.set("net/ipv6/conf/default/accept_ra", "0");
        ns.ip("link set lo up");
        ns
    }

    /// Runs `f` in the namespace on a thread of its own: no thread of the test runner ever changes
    /// namespace, so there is nothing to restore and nothing to get wrong.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Another handle of the same namespace, for a thread that outlives a borrow.
    ///
    /// # Panics
    ///
    /// Without a free file descriptor.
    #[must_use]
    pub fn again(&self) -> Self {
        let file = self.file.try_clone().expect("another descriptor");
        Self { file }
    }

    /// A path that means this namespace to any process, for as long as the value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Number of the namespace, as locks and pinned maps state it.
    ///
    /// # Panics
    ///
    /// Never: the file is open.
    pub fn inode(&self) -> u64 {
        nix::sys::stat::fstat(&self.file).expect("state of an open file").st_ino
    }

    /// A program that starts in the namespace. `/sys` stays the host's, and so does bpffs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.try_clone().expect("another descriptor");
        let enter = move || {
            // Whoever runs the tests may have it ignored, as `nohup` does.
            // SAFETY: no handler is set.
            unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program in the namespace and gives what it wrote.
    ///
    /// # Panics
    ///
    /// With all that it wrote, when it fails.
    pub fn sh(&self, words: &[&str]) -> String {
        self.feed(words, "")
    }

    /// Commands of `ip`, one a line.
    ///
    /// # Panics
    ///
    /// When one fails; those after it are not run.
    pub fn ip(&self, lines: &str) {
        self.feed(&["ip", "-batch", "-"], lines);
    }

    /// Rules for `nft -f`.
    ///
    /// # Panics
    ///
    /// When they are refused.
    pub fn nft(&self, rules: &str) {
        self.feed(&["nft", "-f", "-"], rules);
    }

    fn feed(&self, words: &[&str], input: &str) -> String {
        let program = need::tool(words[0]).unwrap_or_else(|| panic!("no program {}", words[0]));
        let mut child = self
            .command(program)
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("start {words:?}: {err}"));
        let mut stdin = child.stdin.take().expect("a pipe was asked for");
        // A program that does not read what it is given fails by its exit code.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("wait for a child");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{words:?} with `{input}`: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Writes a setting of the namespace, by its path below `/proc/sys`.
    ///
    /// # Panics
    ///
    /// When there is none, or it does not take the value.
    pub fn set(&self, setting: &str, value: &str) {
        self.run(|| {
            std::fs::write(format!("/proc/sys/{setting}"), value)
                .unwrap_or_else(|err| panic!("set {setting} to {value}: {err}"));
        });
    }

    /// No IPv6, which sends reports of its own: every packet that passes is one that the test sends.
    #[must_use]
    pub fn without_ipv6(self) -> Self {
        self.set(NO_IPV6, "1");
        self
    }

    /// Whether it has IPv6.
    ///
    /// # Panics
    ///
    /// Without `/proc`.
    pub fn has_ipv6(&self) -> bool {
        let value = self.run(|| std::fs::read_to_string(format!("/proc/sys/{NO_IPV6}")));
        value.expect("read a setting").trim() == "0"
    }

    /// Packets forwarded between the devices of the namespace, IPv4 and IPv6.
    pub fn forward(&self) {
        self.set("net/ipv4/ip_forward", "1");
        self.set("net/ipv6/conf/all/forwarding", "1");
    }
}

impl Clone for NetNs {
    /// Another handle of the same namespace.
    fn clone(&self) -> Self {
        Self { file: self.file.try_clone().expect("another descriptor") }
    }
}

impl Default for NetNs {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need;

    #[test]
    fn two_namespaces_are_two_and_each_has_its_loopback_up() {
        need!(Root, Netns, Tool("ip"));
        let (a, b) = (NetNs::new(), NetNs::new());
        assert_ne!(a.inode(), b.inode());
        let inside = a.run(traffic_user::meter::netns);
        assert_eq!(inside.ok(), Some(a.inode()));
        assert!(a.sh(&["ip", "-o", "link"]).contains("LOOPBACK,UP"));
    }
}
