//! One real proxy while it runs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use serde_json::Value;

use crate::{need, netns::NetNs, sockets, wait};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Debian's `v2ray`.
    V2ray,
    /// `xray`, which nobody has to have: no package of Debian's brings it.
    Xray,
}

impl Program {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V2ray => "v2ray",
            Self::Xray => "xray",
        }
    }

    /// Where it is installed.
    pub fn find(self) -> Option<PathBuf> {
        need::tool(self.name())
    }

    /// Sets all counters to zero by the tool that comes with the program: a reader that is not ours.
    ///
    /// # Panics
    ///
    /// When the API refuses it.
    pub(super) fn reset(self, ns: &NetNs, api: SocketAddr) {
        let server = format!("--server={api}");
        match self {
            Self::V2ray => {
                let all = r#"pattern: "" reset: true"#;
                ns.sh(&["v2ctl", "api", &server, "StatsService.QueryStats", all])
            }
            Self::Xray => ns.sh(&["xray", "api", "statsquery", &server, "--reset"]),
        };
    }

    fn command(self, ns: &NetNs, config: &Path) -> Command {
        let program = self.find().unwrap_or_else(|| panic!("no program `{}`", self.name()));
        let mut command = ns.command(program);
        match self {
            Self::V2ray => command.arg("-config").arg(config),
            Self::Xray => command.arg("run").arg("-config").arg(config),
        };
        command
    }
}

/// A socket that a proxy is to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Door {
    pub(super) udp: bool,
    pub(super) port: u16,
}

/// A proxy that does not outlive its test.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    what: String,
    messages: Arc<Mutex<String>>,
}

impl Process {
    /// Starts the program in a namespace with this config, written to `file`, and waits until all of
    /// its doors are open.
    #[track_caller]
    pub(super) fn start(
        program: Program,
        ns: &NetNs,
        file: &Path,
        config: &Value,
        doors: &[Door],
    ) -> Self {
        fs::write(file, config.to_string()).expect("write a config");
        let mut child = program
            .command(ns, file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("start {}: {err}", program.name()));
        let messages = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take(), &messages);
        keep(child.stderr.take(), &messages);
        let what = format!("{} with {}", program.name(), file.display());
        let mut process = Self { child, what, messages };
        let end = Instant::now() + wait::DEADLINE;
        while !doors.iter().all(|door| sockets::takes(ns, door.udp, door.port)) {
            let ended = process.child.try_wait().expect("look after a child");
            assert!(
                ended.is_none() && Instant::now() < end,
                "waited in vain for {doors:?} of {} ({ended:?})",
                process.messages()
            );
            thread::yield_now();
        }
        process
    }

    /// Who it is, and what it has said until now.
    pub(super) fn messages(&self) -> String {
        let said = self.messages.lock().expect("nobody panics with it");
        format!("{}, which said:\n{said}", self.what)
    }

    /// Kills it as `kill -9` does, and waits for its end.
    pub(super) fn kill(&mut self) {
        // One that has ended already is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Collects the lines of a pipe until its end.
fn keep(pipe: Option<impl Read + Send + 'static>, messages: &Arc<Mutex<String>>) {
    let lines = BufReader::new(pipe.expect("a pipe was asked for")).lines();
    let messages = Arc::clone(messages);
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let mut text = messages.lock().expect("nobody panics with it");
            text.push_str(&line);
            text.push('\n');
        }
    });
}
