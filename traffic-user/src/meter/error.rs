//! Why a meter cannot count, and what to do about it.

use std::{io, path::PathBuf};

/// Why a meter could not start, change or read.
///
/// The text says what was tried and with which object; [`MeterError::remedy`] says what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeterError {
    /// This binary was compiled without the eBPF object.
    #[error("this binary has no eBPF programs inside")]
    Stub,

    /// A capability is missing.
    #[error("cannot {doing}: {capability} is missing")]
    Denied {
        /// What was tried.
        doing: &'static str,
        /// Which capability, or several.
        capability: String,
    },

    /// This kernel charges maps and programs to a limit that is too low.
    #[error("cannot {doing}: RLIMIT_MEMLOCK allows {limit} bytes of locked memory")]
    LockedMemory {
        /// What was tried.
        doing: &'static str,
        /// The limit.
        limit: u64,
    },

    /// The kernel or its settings rule this out.
    #[error("{feature} does not work here: {reason}")]
    Unsupported {
        /// Which hook or feature.
        feature: &'static str,
        /// What the kernel said.
        reason: String,
    },

    /// The kernel refused a program.
    #[error("the kernel refused to load the program {name}")]
    Load {
        /// Which program.
        name: &'static str,
        /// Its answer, with the verifier's words.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The object or its maps could not be made.
    #[error("cannot create the eBPF maps")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A map could not be read or written.
    #[error("cannot {doing} the map {map}")]
    Map {
        /// What was tried.
        doing: &'static str,
        /// Which map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A program could not be attached.
    #[error("cannot attach to {target} ({hook})")]
    Attach {
        /// Device or cgroup, safe to print.
        target: String,
        /// Which hook.
        hook: &'static str,
        /// The kernel's answer.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },

    /// An ingress qdisc stands where the clsact qdisc would be, and has no side for what leaves.
    #[error("{device} has an ingress qdisc of another program, in the place of clsact")]
    QdiscInTheWay {
        /// Name of the device, safe to print.
        device: String,
    },

    /// The device's frames are of a kind that the programs do not understand.
    #[error("the device {device} has a link type that is not understood (ARPHRD {arphrd})")]
    LinkType {
        /// Name of the device, safe to print.
        device: String,
        /// Its type, as in `/sys/class/net/DEVICE/type`.
        arphrd: u16,
    },

    /// A name or pattern that matches no device.
    #[error("no device matches `{pattern}` (there are: {present})")]
    NoDevice {
        /// What was asked for.
        pattern: String,
        /// What there is.
        present: String,
    },

    /// bpffs is not there and cannot be mounted.
    #[error("{} is not on a BPF file system, and none can be mounted at {}", .path.display(), .mount.display())]
    NoBpffs {
        /// Where the pins should be.
        path: PathBuf,
        /// Where it was tried to mount one.
        mount: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },

    /// Something at the place of our pins or of a lock that is not ours.
    #[error("{} is not ours: {reason}", .path.display())]
    Foreign {
        /// What was found.
        path: PathBuf,
        /// Why it cannot be ours.
        reason: String,
    },

    /// The pins count another network namespace, or another hook.
    #[error("the maps pinned at {} {reason}", .path.display())]
    OtherPins {
        /// The pin folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },

    /// Another daemon counts here, or in the network namespace whose pins these are.
    #[error("another traffic daemon{} runs already: it holds {}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .lock.display())]
    Busy {
        /// Its process, when it could be read.
        pid: Option<i32>,
        /// The lock that it holds.
        lock: PathBuf,
    },

    /// No cgroup2 file system, or not the given path in it.
    #[error("no cgroup2 at {path}")]
    NoCgroup {
        /// What was looked at.
        path: String,
    },

    /// More groups than slots are left.
    #[error("{wanted} groups do not fit in {slots} slots")]
    Full {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        slots: u32,
    },

    /// A file or folder.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },

    /// None of the tools that set rules is installed.
    #[error("the meter {meter} needs {tools}, and none is installed")]
    NoTool {
        /// `nft` or `iptables`.
        meter: &'static str,
        /// What was looked for.
        tools: &'static str,
    },

    /// A tool that sets or lists rules did not do it.
    #[error("cannot {doing}: {tool} says: {said}")]
    Tool {
        /// What was tried.
        doing: &'static str,
        /// Its path.
        tool: String,
        /// Its own words, safe to print, or that it hung.
        said: String,
    },

    /// Another process held the lock of the rules for too long.
    #[error("cannot {doing}: another process has held the lock of {tool} for {seconds} s")]
    Locked {
        /// What was tried.
        doing: &'static str,
        /// Whose lock.
        tool: String,
        /// How long was waited.
        seconds: u64,
    },

    /// A chain or table of our name that somebody else made or changed.
    #[error("{what} has our name and is not ours: {reason}")]
    ForeignRules {
        /// Table or chain, with its family and back end.
        what: String,
        /// What in it is not ours.
        reason: String,
    },

    /// Rules of ours that count for somebody else.
    #[error("the rules in {what} {reason}")]
    OtherRules {
        /// Table or chains.
        what: String,
        /// What they do.
        reason: String,
    },

    /// A question to the kernel about devices, routes or rules failed.
    #[error("cannot {doing} over netlink")]
    Netlink {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl MeterError {
    /// What helps, as a sentence for a person; `None` where the text says it all.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Stub => {
                "build it with `cargo xtask build`, which finds or installs the eBPF tool chain; or let rules count, with --meter nft or iptables"
            }
            Self::Denied { .. } => {
                "run it as root, or give it the capability (systemd: AmbientCapabilities=)"
            }
            Self::LockedMemory { .. } => {
                "`ulimit -l unlimited` before it (systemd: LimitMEMLOCK=infinity), or give it CAP_SYS_RESOURCE"
            }
            Self::Unsupported { .. } => {
                "`traffic doctor` shows which hooks work here; --meter chooses another"
            }
            Self::Load { .. } | Self::Object(_) | Self::Map { .. } => {
                "`traffic doctor` shows what this kernel can do; please report this with its output"
            }
            Self::Attach { .. } => {
                "`traffic doctor` shows which hooks work here; --meter chooses another"
            }
            Self::QdiscInTheWay { .. } => {
                "--meter cgroup or nft counts beside it; or let that program use clsact, whose ingress side takes the same filters"
            }
            Self::LinkType { .. } => "leave the device out of --iface, or use --meter cgroup",
            Self::NoDevice { .. } => {
                "`ip link` lists the devices; quote a glob so that the shell leaves it alone"
            }
            Self::NoBpffs { mount, .. } => {
                return Some(format!(
                    "mount it with `mount -t bpf bpf {}`, choose another folder with --pins, or run without --persist",
                    mount.display()
                ));
            }
            Self::Foreign { .. } => {
                "move it away, or choose another folder (--pins for pins, --state for the ledger)"
            }
            Self::OtherPins { reason, .. } if reason.starts_with("cannot be") => {
                "choose another folder with --pins"
            }
            Self::OtherPins { .. } => {
                "`traffic clean` takes them off, or choose another folder with --pins"
            }
            Self::Busy { .. } => {
                "stop that one first; if it runs with --persist, `traffic dump` reads its numbers without disturbing it"
            }
            Self::NoCgroup { .. } => "mount cgroup2 or name a folder in it with --cgroup",
            Self::Full { .. } => {
                "a restart makes room; with --persist it carries all counters over"
            }
            Self::NoTool { .. } => {
                "install nftables or iptables with the system's package manager, or choose another --meter"
            }
            Self::Tool { .. } => {
                "`traffic doctor` shows which meters work here; the rules are as they were before"
            }
            Self::Locked { .. } => {
                "see who holds it (`fuser -v /run/xtables.lock`) and try again; the rules are as they were"
            }
            Self::ForeignRules { .. } => {
                "look at it, and rename or remove it by hand: what is not ours is never touched"
            }
            Self::OtherRules { .. } => "`traffic clean` takes them off",
            Self::File { .. } | Self::Netlink { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// Boxes any error as a cause.
pub(crate) fn cause<E>(error: E) -> Box<dyn std::error::Error + Send + Sync>
where
    E: std::error::Error + Send + Sync + 'static,
{
    Box::new(error)
}

/// An error with all its causes, in one line. A cause that the text has already is not said again.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}
