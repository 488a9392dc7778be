//! A service manager's side of `sd_notify(3)`: the socket, and a start as systemd does it.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{netns::NetNs, wait};

/// One message: its assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<(String, String)>);

impl Message {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Whether it says this.
    pub fn says(&self, name: &str) -> bool {
        self.get(name) == Some("1")
    }
}

/// Listens where a service reports.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: OsString,
    path: Option<PathBuf>,
    watchdog: Option<(Duration, bool)>,
}

impl Manager {
    /// At a path, as systemd itself does.
    ///
    /// # Panics
    ///
    /// When the socket cannot be made.
    pub fn at_path() -> Self {
        let path = env::temp_dir().join(unique());
        let socket = UnixDatagram::bind(&path).expect("a socket in the file system");
        Self { socket, address: path.clone().into(), path: Some(path), watchdog: None }
    }

    /// At an abstract name, as container managers do. Such names belong to a network namespace.
    ///
    /// # Panics
    ///
    /// When the socket cannot be made.
    pub fn at_name(ns: &NetNs) -> Self {
        let name = unique();
        let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
        let socket = ns.run(|| UnixDatagram::bind_addr(&address)).expect("an abstract socket");
        Self { socket, address: format!("@{name}").into(), path: None, watchdog: None }
    }

    /// Wants to hear of the service within this time, again and again.
    #[must_use]
    pub fn with_watchdog(mut self, time: Duration) -> Self {
        self.watchdog = Some((time, true));
        self
    }

    /// Wants to hear of another process within this time.
    #[must_use]
    pub fn with_watchdog_of_another(mut self, time: Duration) -> Self {
        self.watchdog = Some((time, false));
        self
    }

    /// The command, to be started as a service.
    pub fn service(&self, ns: &NetNs, command: &Command) -> Command {
        // The process is told its own id, which nobody knows before it is there.
        let own = "WATCHDOG_PID=$$; export WATCHDOG_PID; exec \"$@\"";
        let script = match self.watchdog {
            Some((_, true)) => own,
            _ => "exec \"$@\"",
        };
        let mut service = ns.command("sh");
        service.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => service.env(name, value),
                None => service.env_remove(name),
            };
        }
        service.env("NOTIFY_SOCKET", &self.address).stdin(Stdio::null());
        if let Some((time, own)) = self.watchdog {
            service.env("WATCHDOG_USEC", time.as_micros().to_string());
            if !own {
                service.env("WATCHDOG_PID", "1");
            }
        }
        service
    }

    /// The next message, or `None` when there is none in this time.
    ///
    /// # Panics
    ///
    /// When the socket breaks, or the message is none.
    pub fn hears_within(&self, time: Duration) -> Option<Message> {
        self.socket.set_read_timeout(Some(time)).expect("a deadline");
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                let text = std::str::from_utf8(&buffer[..length]).expect("a message is text");
                let assignment = |line: &str| {
                    let (name, value) = line.split_once('=').expect("a line is an assignment");
                    (name.to_owned(), value.to_owned())
                };
                Some(Message(text.lines().map(assignment).collect()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("receive a message: {error}"),
        }
    }

    /// The next message that is like this; those before it pass.
    ///
    /// # Panics
    ///
    /// With all that was heard, when none comes.
    #[track_caller]
    pub fn hears(&self, what: &str, like: impl Fn(&Message) -> bool) -> Message {
        let end = Instant::now() + wait::DEADLINE;
        let mut heard = Vec::new();
        while let Some(left) =
            end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            match self.hears_within(left) {
                Some(message) if like(&message) => return message,
                message => heard.extend(message),
            }
        }
        panic!("waited in vain for: {what}\nheard: {heard:?}");
    }

    /// All that was said until now.
    pub fn has_heard(&self) -> Vec<Message> {
        std::iter::from_fn(|| self.hears_within(Duration::from_millis(1))).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("traffic-notify-{}-{}", process::id(), NEXT.fetch_add(1, Relaxed))
}
