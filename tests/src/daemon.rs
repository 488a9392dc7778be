//! The real `traffic`, started inside a namespace, and the documents that it writes.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{document::Document, netns::NetNs, wait};

/// The binary under test: `TRAFFIC_BIN`, or that of the workspace's release build.
///
/// # Panics
///
/// When there is none.
pub fn binary() -> PathBuf {
    let path = env::var_os("TRAFFIC_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/traffic"),
        PathBuf::from,
    );
    path.canonicalize().unwrap_or_else(|err| {
        panic!(
            "{}: {err} (`cargo xtask build` makes it; TRAFFIC_BIN names another)",
            path.display()
        )
    })
}

/// Folders of one installation: its state and its pins, in no other test's way.
#[derive(Debug)]
pub struct Site {
    /// `--state`.
    pub state: PathBuf,
    /// `--pins`.
    pub pins: PathBuf,
}

impl Site {
    /// Names that nothing else has; the folders are not made.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tt-{}-{}", process::id(), NEXT.fetch_add(1, Relaxed));
        Self { state: env::temp_dir().join(&name), pins: Path::new("/sys/fs/bpf").join(&name) }
    }

    /// `traffic` with these folders, in a namespace, to be started or changed further.
    pub fn traffic(&self, ns: &NetNs, args: &[&str]) -> Command {
        let mut command = ns.command(binary());
        command
            .arg("--state")
            .arg(&self.state)
            .arg("--pins")
            .arg(&self.pins)
            .args(args)
            .env_remove("TRAFFIC_LOG")
            .env_remove("TRAFFIC_FAULT")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `traffic` to its end.
    pub fn run(&self, ns: &NetNs, args: &[&str]) -> Answer {
        Answer::of(&mut self.traffic(ns, args))
    }

    /// Starts `traffic run --output json` and gives it these arguments as well. Ticks are close to one
    /// another unless `--interval` says otherwise.
    pub fn start(&self, ns: &NetNs, args: &[&str]) -> Daemon {
        let mut command = self.traffic(ns, &["run", "--output", "json"]);
        if !args.contains(&"--interval") {
            command.args(["--interval", "20ms"]);
        }
        command.args(args);
        Daemon::spawn(command)
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Site {
    /// Removes what a test left, and only reports what cannot be removed.
    fn drop(&mut self) {
        for folder in [&self.state, &self.pins] {
            remove(folder);
        }
    }
}

/// Removes a folder with all in it. bpffs knows no recursive removal of its own.
fn remove(folder: &Path) {
    if !folder.exists() {
        return;
    }
    if let Err(err) = fs::remove_dir_all(folder) {
        eprintln!("left behind: {}: {err}", folder.display());
    }
}

/// How a run of `traffic` ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it wrote as its result.
    pub stdout: String,
    /// What it wrote besides.
    pub stderr: String,
}

impl Answer {
    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// When it cannot be started, or does not end in time.
    pub fn of(command: &mut Command) -> Self {
        let mut running = Running::spawn(command);
        let stdout = read_all(running.0.stdout.take());
        let stderr = read_all(running.0.stderr.take());
        let status = running.wait();
        Self {
            code: status.code(),
            stdout: stdout.join().expect("read stdout"),
            stderr: stderr.join().expect("read stderr"),
        }
    }

    /// The one JSON document of its result.
    ///
    /// # Panics
    ///
    /// When it failed, or wrote something else.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|err| panic!("not JSON: {err}\n{}", self.stdout))
    }
}

fn read_all(pipe: Option<impl std::io::Read + Send + 'static>) -> JoinHandle<String> {
    let mut pipe = pipe.expect("a pipe was asked for");
    thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).expect("read a pipe");
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// A child that does not outlive its test.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// One that was started.
    pub fn of(child: Child) -> Self {
        Self(child)
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    fn spawn(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self(child.expect("start traffic"))
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    ///
    /// Never: it is a child of ours.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("look after a child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait::until("the end of traffic", || self.ended())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// `traffic run` while it runs.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
    documents: Arc<Mutex<Vec<Document>>>,
    stdout: JoinHandle<()>,
    stderr: JoinHandle<()>,
    messages: Arc<Mutex<String>>,
}

/// How a daemon ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Its last document.
    pub last: Option<Document>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Daemon {
    /// Starts a command that writes one JSON document a line.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Self {
        let mut running = Running::spawn(&mut command);
        let documents = Arc::new(Mutex::new(Vec::new()));
        let messages = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(running.0.stdout.take().expect("a pipe was asked for"));
        let found = Arc::clone(&documents);
        let stdout = thread::spawn(move || {
            for line in lines.lines() {
                let line = line.expect("read a line");
                let document = Document::parse(&line);
                found.lock().expect("nobody panics with it").push(document);
            }
        });
        let lines = BufReader::new(running.0.stderr.take().expect("a pipe was asked for"));
        let text = Arc::clone(&messages);
        let stderr = thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut text = text.lock().expect("nobody panics with it");
                text.push_str(&line);
                text.push('\n');
            }
        });
        Self { running, documents, stdout, stderr, messages }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    /// What it has written to stderr until now.
    ///
    /// # Panics
    ///
    /// Never.
    pub fn messages(&self) -> String {
        self.messages.lock().expect("nobody panics with it").clone()
    }

    /// Waits until it has said this on stderr: a pipe of its own, which may be read after a document that
    /// was written later.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn says(&self, piece: &str) {
        let what = format!("`{piece}` on stderr");
        wait::until(&what, || self.messages().contains(piece).then_some(()));
    }

    /// Looks at its newest document until there is what is looked for.
    ///
    /// # Panics
    ///
    /// When it ends first, or nothing is found in time.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, look: impl Fn(&Document) -> Option<T>) -> T {
        let mut seen = None;
        let end = Instant::now() + wait::DEADLINE;
        loop {
            let newest = self.documents.lock().expect("nobody panics with it").last().cloned();
            if let Some(document) = newest {
                if let Some(found) = look(&document) {
                    return found;
                }
                seen = Some(document);
            }
            let ended = self.running.ended();
            if ended.is_some() {
                // All that it said shall be in the message below.
                wait::until("the end of its messages", || self.stderr.is_finished().then_some(()));
            }
            assert!(
                ended.is_none() && Instant::now() < end,
                "waited in vain for: {what} ({ended:?})\nlast document: {}\n{}",
                seen.map(|document| document.0.to_string()).unwrap_or_default(),
                self.messages()
            );
            thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Waits until it counts on exactly these devices.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn counts_on(&mut self, devices: &[&str]) {
        self.wait_for(&format!("counting on {devices:?}"), |document| {
            (document.devices() == devices).then_some(())
        });
    }

    /// A document whose numbers were read after this call.
    ///
    /// # Panics
    ///
    /// When none comes.
    #[track_caller]
    pub fn fresh(&mut self) -> Document {
        let count = || self.documents.lock().expect("nobody panics with it").len();
        let enough = count() + 2;
        // On a busy machine more than one may be on its way that was read before.
        let now = Timestamp::now();
        let documents = Arc::clone(&self.documents);
        self.wait_for("a fresh document", move |document| {
            let count = documents.lock().expect("nobody panics with it").len();
            (count >= enough && document.begins() >= now).then(|| document.clone())
        })
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("send a signal to traffic");
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it goes on.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let status = self.running.wait();
        self.stdout.join().expect("read the documents");
        let last = self.documents.lock().expect("nobody panics with it").last().cloned();
        self.stderr.join().expect("read the messages");
        let stderr = self.messages.lock().expect("nobody panics with it").clone();
        Ended { code: status.code(), last, stderr }
    }

    /// Asks it to stop, and gives its last document.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    #[track_caller]
    pub fn stop(self) -> Document {
        self.stop_by(Signal::SIGTERM)
    }

    /// Stops it by this signal, and gives its last document.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    #[track_caller]
    pub fn stop_by(self, signal: Signal) -> Document {
        self.signal(signal);
        let ended = self.end();
        assert_eq!(ended.code, Some(0), "after {signal}: {}", ended.stderr);
        ended.last.expect("a document before the end")
    }

    /// Kills it: it can do nothing about it.
    ///
    /// # Panics
    ///
    /// When it is gone already.
    #[track_caller]
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.end().code, None, "it ended before it was killed");
    }
}
