//! What a service manager is told (`sd_notify(3)`): that counting began, how it stands, and that the
//! loop goes round.
//!
//! Written by ourselves because it is little, and because the library for it knows no abstract sockets.
//! Child processes do not see the variables: `run.rs` starts them with an environment of their own.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Devices that are named in a status; it is one line.
const NAMED: usize = 8;
/// Longest status. A message is one datagram.
const LONGEST: usize = 500;

/// Whether a service manager started us and wants to hear of us.
pub(crate) fn is_watched() -> bool {
    address().is_some()
}

fn address() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// The service manager; without one, nobody.
#[derive(Debug)]
pub(super) struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    ready: bool,
    status: String,
    /// Said behind the status until the next reload.
    note: Option<String>,
}

impl Notify {
    /// Whoever the environment names.
    pub(super) fn from_environment() -> Self {
        let variable = |name| env::var(name).ok();
        let to = address().and_then(|name| {
            open(&name)
                .inspect_err(|error| {
                    tracing::warn!(%error, "NOTIFY_SOCKET cannot be used: the service manager hears nothing");
                })
                .ok()
        });
        let (time, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        let watchdog = watchdog(time.as_deref(), pid.as_deref(), std::process::id());
        let watchdog = watchdog.filter(|_| to.is_some());
        Self { to, watchdog, ready: false, status: String::new(), note: None }
    }

    /// Whether it ends us when it does not hear that the loop goes round.
    pub(super) const fn is_on_guard(&self) -> bool {
        self.watchdog.is_some()
    }

    /// When to say that the loop goes round: three times in the time that is allowed, so that one may
    /// come late.
    pub(super) fn rounds(&self) -> Interval {
        let period = self.watchdog.map_or(Duration::MAX, |time| time / 3).min(LONG);
        let period = period.max(Duration::from_millis(1));
        let mut rounds = interval_at(Instant::now(), period);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        rounds
    }

    /// The loop goes round.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How things stand; the first time, that counting began. Says nothing twice.
    pub(super) fn standing(&mut self, standing: &str) {
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        let status = one_line(&format!("{standing}{note}"));
        if !self.ready {
            self.ready = true;
            self.send(&format!("READY=1\nSTATUS={status}"));
        } else if status != self.status {
            self.send(&format!("STATUS={status}"));
        }
        self.status = status;
    }

    /// A reload begins. It ends with the next [`standing`](Self::standing).
    pub(super) fn reloading(&mut self) {
        self.ready = false;
        self.note = None;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// What came of the reload, where there is something to know.
    pub(super) fn note(&mut self, note: Option<String>) {
        self.note = note;
    }

    /// The end begins.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    fn send(&self, message: &str) {
        let Some((socket, to)) = &self.to else {
            return;
        };
        // Without waiting: a service manager that does not read must not hold the counting up.
        if let Err(error) = socket.send_to_addr(message.as_bytes(), to) {
            tracing::debug!(%error, "the service manager does not hear us");
        }
    }
}

/// An interval that never matters.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// A path, or `@` and a name of the abstract kind.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let to = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

/// The time that may pass, if it is us who are watched.
fn watchdog(microseconds: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|time| *time > 0)?;
    Some(Duration::from_micros(microseconds))
}

/// How counting stands, in a line.
pub(super) fn counting<'a>(
    meter: &str,
    groups: usize,
    devices: impl Iterator<Item = &'a str>,
) -> String {
    let devices: Vec<_> = devices.collect();
    let more = devices.len().saturating_sub(NAMED);
    let named = devices[..devices.len() - more].join(", ");
    let groups = if groups == 1 { "1 group".to_owned() } else { format!("{groups} groups") };
    match (devices.len(), more) {
        (0, _) => format!("counting {groups} at {meter}"),
        (_, 0) => format!("counting {groups} at {meter} on {named}"),
        _ => format!("counting {groups} at {meter} on {named} and {more} more"),
    }
}

/// A line break would end the status and begin another message.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split(char::is_control).map(str::trim).collect();
    words.join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_is_watched_is_on_guard() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        for (time, pid) in [
            (Some("1000000"), Some("8")),
            (Some("1000000"), Some("x")),
            (Some("0"), None),
            (Some("soon"), None),
            (None, Some("7")),
        ] {
            assert_eq!(watchdog(time, pid, 7), None, "{time:?} {pid:?}");
        }
    }

    #[test]
    fn a_status_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line("a\nREADY=1\n  line 2: b\u{1b}[2J"), "a READY=1 line 2: b [2J");
        assert_eq!(one_line(&"ä".repeat(1000)).chars().count(), LONGEST);
    }

    #[test]
    fn a_status_tells_what_is_counted() {
        let of = |devices: &[&str]| counting("tcx", devices.len(), devices.iter().copied());
        assert_eq!(of(&[]), "counting 0 groups at tcx");
        assert_eq!(of(&["eth0"]), "counting 1 group at tcx on eth0");
        let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        assert_eq!(of(&many), "counting 10 groups at tcx on a, b, c, d, e, f, g, h and 2 more");
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        assert!(open(OsStr::new("notify")).is_err());
        assert!(open(OsStr::new("vsock:2:1")).is_err());
        assert!(open(OsStr::new("@name")).is_ok());
    }
}
