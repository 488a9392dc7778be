//! The control socket: verbs ask a daemon that runs.
//!
//! One question a connection, one line of JSON each way. The loop owns all state and answers between
//! two ticks; a client that is slow, silent or many never keeps it waiting.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream as Blocking},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::timeout,
};

use crate::accounting::{
    proxy::{CounterName, Payload},
    reading::Traffic,
    report::Dump,
};

/// Name of the socket in the state folder.
const SOCKET: &str = "control.sock";
/// Most bytes of a question.
const QUESTION: u64 = 64 << 10;
/// A client must ask within this time, and take its answer within as much again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a verb waits for an answer. A tick may be under way.
const ANSWER: Duration = Duration::from_secs(10);
/// Clients at one time; more wait.
const CLIENTS: usize = 16;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub(crate) enum Question {
    /// The merged report as it stands.
    Stats,
    /// What the kernel's meter has read of each group: [`Read`].
    Groups,
    /// Whether what is counted is booked.
    Ledger,
    /// A new zero for one subject or all.
    Reset(Whose),
    /// The same for one user of the proxy whose API this is, if it is the one that is read. Answered with
    /// [`Before`], or `null` where it is another.
    Zero {
        /// By email.
        user: String,
        /// As [`Address`](crate::meter::proxy::Address) writes it.
        api: String,
    },
}

/// What the counters of a user were when they were set to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// Payload bytes.
    pub(crate) uplink: u64,
    /// Payload bytes.
    pub(crate) downlink: u64,
}

impl Before {
    /// From what each of them was.
    pub(super) fn of(counters: &[(CounterName, i64)]) -> Self {
        let mut before = Payload::default();
        for (name, value) in counters {
            *before.way_mut(name.way) = u64::try_from(*value).unwrap_or(0);
        }
        Self { uplink: before.uplink, downlink: before.downlink }
    }
}

/// What the kernel's meter read last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Read {
    /// Its name.
    pub(crate) meter: String,
    /// In the order of the readings.
    pub(crate) groups: Vec<ReadGroup>,
}

/// One of its groups, since the epoch began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadGroup {
    /// Ports, transport and name, as `--ports` takes them.
    pub(crate) group: String,
    /// Its key in the outputs.
    pub(crate) key: String,
    /// Whether it is counted now.
    pub(crate) watched: bool,
    /// Bytes and packets that entered, then those that left.
    pub(crate) traffic: [u64; 4],
}

impl Read {
    /// From a report of the counters.
    pub(crate) fn of(report: &Dump) -> Self {
        let groups = report.keys().into_iter().zip(report.snapshot.groups.iter());
        let groups = groups.map(|(key, reading)| {
            let Traffic { input_bytes, input_packets, output_bytes, output_packets } =
                reading.lanes.total();
            ReadGroup {
                group: reading.group.to_string(),
                key,
                watched: reading.watched,
                traffic: [input_bytes, input_packets, output_bytes, output_packets],
            }
        });
        Self { meter: report.snapshot.meter.to_owned(), groups: groups.collect() }
    }
}

impl ReadGroup {
    /// What it has counted.
    pub(crate) fn traffic(&self) -> Traffic {
        let [input_bytes, input_packets, output_bytes, output_packets] = self.traffic;
        Traffic { input_bytes, input_packets, output_bytes, output_packets }
    }
}

/// Whose numbers begin anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Whose {
    /// One user, by email.
    User(String),
    /// The group that has this port.
    Port(u16),
    /// Everybody's.
    All,
}

/// The answer on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(String),
    Failed(String),
}

/// A question that waits for its answer.
pub(super) struct Asked {
    pub(super) question: Question,
    answer: oneshot::Sender<Answer>,
}

impl Asked {
    /// Sends the answer; a client that went away does not matter.
    pub(super) fn answer(self, answer: Result<String>) {
        let answer = match answer {
            Ok(text) => Answer::Done(text),
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        drop(self.answer.send(answer));
    }
}

/// The listening end. Removes the socket when it is dropped.
pub(super) struct Control {
    path: PathBuf,
    asked: mpsc::Receiver<Asked>,
    accepting: AbortHandle,
}

impl Control {
    /// Listens in the state folder, whose lock the caller holds: a socket that is there belongs to
    /// nobody any more.
    pub(super) fn listen(folder: &Path) -> Result<Self> {
        let path = folder.join(SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        // The folder keeps others out; this says the same of the socket itself.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))
            .with_context(|| format!("cannot protect {}", path.display()))?;
        let (sender, asked) = mpsc::channel(CLIENTS);
        let accepting = tokio::spawn(accept(listener, sender)).abort_handle();
        Ok(Self { path, asked, accepting })
    }

    /// Listens anew where the socket is gone, because its folder was away or somebody removed it: nobody
    /// would find the old one. What fails is tried again when this is called the next time.
    pub(super) fn keep(control: &mut Option<Self>, folder: &Path) {
        if control.as_ref().is_some_and(|control| control.path.exists()) {
            return;
        }
        // The old one first: it removes what it finds at its path.
        drop(control.take());
        match Self::listen(folder) {
            Ok(anew) => *control = Some(anew),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(error, "verbs cannot ask this daemon");
            }
        }
    }

    /// The next question. Never ends by itself.
    pub(super) async fn next(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            // The task that accepts has ended: nobody can ask any more.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket stays");
        }
    }
}

async fn accept(listener: UnixListener, sender: mpsc::Sender<Asked>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, sender).await {
                        tracing::debug!(%error, "a client of the control socket");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those of other clients come back.
                tracing::debug!(%error, "cannot accept at the control socket");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, sender: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(read.take(QUESTION));
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Err(error) => Answer::Failed(format!("the question is not understood: {error}")),
        Ok(question) => {
            let (answer, answered) = oneshot::channel();
            let asked = Asked { question, answer };
            match sender.send(asked).await {
                Err(_) => Answer::Failed("the daemon is ending".to_owned()),
                Ok(()) => answered
                    .await
                    .unwrap_or_else(|_| Answer::Failed("the daemon is ending".to_owned())),
            }
        }
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    timeout(PATIENCE, write.write_all(text.as_bytes())).await?
}

/// Asks the daemon whose state folder this is. `None` when none runs.
///
/// # Errors
///
/// When the socket cannot be used, the daemon is silent, or says no.
pub(crate) fn ask(folder: &Path, question: &Question) -> Result<Option<String>> {
    let path = folder.join(SOCKET);
    let what = || format!("cannot ask the daemon at {}", path.display());
    let mut stream = match Blocking::connect(&path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(what),
    };
    stream.set_read_timeout(Some(ANSWER)).with_context(what)?;
    stream.set_write_timeout(Some(PATIENCE)).with_context(what)?;
    let mut text = serde_json::to_string(question)?;
    text.push('\n');
    // A daemon that ends at this moment is not a reader of ours that has seen enough.
    stream.write_all(text.as_bytes()).map_err(not_a_reader).with_context(what)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(what)?;
    match serde_json::from_str(&line).with_context(what)? {
        Answer::Done(text) => Ok(Some(text)),
        Answer::Failed(why) => bail!("the daemon at {} says: {why}", path.display()),
    }
}

/// A broken pipe, said otherwise: of one at stdout no word is lost.
fn not_a_reader(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::ErrorKind::ConnectionAborted.into(),
        _ => error,
    }
}
