//! The operations of the tool that this replaces, under the names that its users know.
//!
//! Thin names over the same functions that the verbs use. Bytes are payload as the proxy counts it, since
//! each counter began: the proxy's start, or the last reset.

use std::{fmt, io, path::PathBuf};

use tokio::runtime::{Builder, Runtime};

use crate::{
    accounting::{
        ident::{Group, shown},
        proxy::{CounterName, Payload, Subject, Way},
    },
    daemon::{Before, Question, ask},
    meter::proxy::{Address, ProxyError, ProxyMeter},
    proxy_config::{self, ProxyConfigError},
    state::DEFAULT,
    view::sheet,
};

/// Why an operation could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The proxy's API did not say or do it.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The proxy's config cannot be used.
    #[error(transparent)]
    Config(#[from] ProxyConfigError),
    /// The daemon that reads this proxy did not do it.
    #[error("the daemon of this host did not reset it: {0}")]
    Daemon(String),
    /// No thread of execution could be made for asking.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The proxy has no counter of him or it: nothing was moved yet, or it does not count.
    #[error(
        "the proxy has no counter of {subject}\n  remedy: traffic makes one; `traffic doctor` shows whether the proxy counts"
    )]
    NoCounter {
        /// Whose, safe to print.
        subject: String,
    },
}

/// Asks a proxy's StatsService.
///
/// ```no_run
/// use traffic_user::{ExportFormat, StatsFactory, bytes_2_human_readable};
///
/// let mut factory = StatsFactory::new("127.0.0.1:10085")?;
/// let stats = factory.get_stats("alice@example.com")?;
/// println!("{}", bytes_2_human_readable(stats.total().try_into()?, 2)?);
/// println!("{}", stats.export_stats(ExportFormat::Json));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StatsFactory {
    meter: ProxyMeter,
    runtime: Runtime,
    state: PathBuf,
}

/// How [`Stats::export_stats`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One object.
    Json,
    /// A line of names and one of values. A name is no formula to a spreadsheet and has no line breaks.
    Csv,
    /// One value a line.
    Txt,
}

/// What the proxy counted for one user or inbound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    state: PathBuf,
    address: Address,
    subject: Subject,
    payload: Payload,
}

impl StatsFactory {
    /// `address` is `HOST:PORT`. Connects when it is first asked.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Address`] when it is no address.
    pub fn new(address: &str) -> Result<Self, StatsError> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(StatsError::Runtime)?;
        Ok(Self { meter: ProxyMeter::new(address.parse()?), runtime, state: DEFAULT.into() })
    }

    /// Looks for a daemon at another state folder than the usual one, `/var/lib/traffic`: see
    /// [`Stats::reset_stats`].
    #[must_use]
    pub fn with_state(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state = folder.into();
        self
    }

    /// Payload of a user, by email; of socks and http users by name. Resets nothing.
    ///
    /// # Errors
    ///
    /// [`StatsError::NoCounter`] when the proxy has none, and whatever the API says.
    pub fn get_stats(&mut self, email: &str) -> Result<Stats, StatsError> {
        self.get(Subject::User(email.into()))
    }

    /// What an inbound moved, by tag: with V2Ray the encrypted stream. Resets nothing.
    ///
    /// # Errors
    ///
    /// As [`get_stats`](Self::get_stats).
    pub fn get_inbound_stats(&mut self, tag: &str) -> Result<Stats, StatsError> {
        self.get(Subject::Inbound(tag.into()))
    }

    fn get(&mut self, subject: Subject) -> Result<Stats, StatsError> {
        let poll = self.runtime.block_on(self.meter.poll())?;
        let mut payload = None;
        for (name, value) in poll.counters.iter().filter(|(name, _)| name.subject == subject) {
            let sum: &mut Payload = payload.get_or_insert_default();
            *sum.way_mut(name.way) = u64::try_from(*value).unwrap_or(0);
        }
        let address = self.meter.address().clone();
        match payload {
            Some(payload) => Ok(Stats { state: self.state.clone(), address, subject, payload }),
            None => Err(StatsError::NoCounter { subject: Who(&subject).to_string() }),
        }
    }
}

impl Stats {
    /// What the user sent, payload bytes.
    pub const fn uplink(&self) -> u64 {
        self.payload.uplink
    }

    /// What the user got, payload bytes.
    pub const fn downlink(&self) -> u64 {
        self.payload.downlink
    }

    /// Both, payload bytes.
    pub const fn total(&self) -> u64 {
        self.payload.total()
    }

    /// Sets both counters to zero at the proxy, and gives what they were at that moment, so that nothing
    /// moved in between is lost.
    ///
    /// A daemon of ours that reads the same API (named by the same address) does it for a user: what was
    /// moved until then is booked, a new period begins in its report, and the ledger has an event and all that
    /// it had. Without one, for an inbound, or where its socket may not be used, the proxy is asked directly:
    /// the ledger, if there is one, keeps all that it has, and a daemon that runs takes it for another reader's
    /// reset. What was moved between its last poll and this one is not known to it then.
    ///
    /// # Errors
    ///
    /// Whatever daemon and API say; whether they were reset is not known when the answer did not come.
    pub fn reset_stats(&mut self) -> Result<Payload, StatsError> {
        if let Some(before) = self.reset_by_daemon()? {
            self.payload = Payload::default();
            return Ok(before);
        }
        let names = Way::ALL.map(|way| CounterName { subject: self.subject.clone(), way });
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(StatsError::Runtime)?;
        let mut meter = ProxyMeter::new(self.address.clone());
        let resets = runtime.block_on(meter.reset(&names));
        let mut before = Payload::default();
        for (name, value) in resets.done {
            *before.way_mut(name.way) = u64::try_from(value).unwrap_or(0);
        }
        if let Some(error) = resets.failed {
            return Err(error.into());
        }
        self.payload = Payload::default();
        Ok(before)
    }

    /// `None` where no daemon does it.
    fn reset_by_daemon(&self) -> Result<Option<Payload>, StatsError> {
        let Subject::User(user) = &self.subject else { return Ok(None) };
        let (user, api) = (user.as_ref().to_owned(), self.address.to_string());
        let said = match ask(&self.state, &Question::Zero { user, api }) {
            Ok(Some(said)) => said,
            Ok(None) => return Ok(None),
            Err(error) if is_denied(&error) => return Ok(None),
            Err(error) => return Err(StatsError::Daemon(format!("{error:#}"))),
        };
        let before: Option<Before> =
            serde_json::from_str(&said).map_err(|error| StatsError::Daemon(error.to_string()))?;
        Ok(before.map(|Before { uplink, downlink }| Payload { uplink, downlink }))
    }

    /// The numbers as a text in a format.
    pub fn export_stats(&self, format: ExportFormat) -> String {
        let Payload { uplink, downlink } = self.payload;
        let total = self.total();
        let (kind, name) = kind_and_name(&self.subject);
        match format {
            ExportFormat::Json => serde_json::json!({
                kind: name, "uplink": uplink, "downlink": downlink, "total": total,
            })
            .to_string(),
            ExportFormat::Csv => {
                let numbers = [uplink, downlink, total].map(sheet::number);
                let line = sheet::line(std::iter::once(sheet::text(name)).chain(numbers));
                format!("{kind},uplink,downlink,total\n{line}")
            }
            ExportFormat::Txt => format!(
                "{}\nuplink: {uplink}\ndownlink: {downlink}\ntotal: {total}\n",
                Who(&self.subject)
            ),
        }
    }
}

fn is_denied(error: &anyhow::Error) -> bool {
    let denied = |cause: &io::Error| cause.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref::<io::Error>().is_some_and(denied)
}

fn kind_and_name(subject: &Subject) -> (&'static str, &str) {
    match subject {
        Subject::User(name) => ("email", name),
        Subject::Inbound(name) => ("tag", name),
        Subject::Outbound(name) => ("outbound", name),
    }
}

/// A subject for people.
struct Who<'a>(&'a Subject);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::User(name) => write!(f, "user {}", shown(name)),
            Subject::Inbound(name) => write!(f, "inbound {}", shown(name)),
            Subject::Outbound(name) => write!(f, "outbound {}", shown(name)),
        }
    }
}

/// The ports of every inbound of a proxy's config, in its order: what the proxy's users connect to.
///
/// Without paths the usual places are looked through; no config there gives no ports.
///
/// # Errors
///
/// When the config cannot be used: where and why.
pub fn all_port(config: &[PathBuf]) -> Result<Vec<Group>, StatsError> {
    let found = if config.is_empty() { proxy_config::find() } else { Some(config.to_vec()) };
    let Some(files) = found else {
        return Ok(Vec::new());
    };
    let config = proxy_config::load(&files)?;
    Ok(config.inbounds.into_iter().map(|inbound| inbound.group).collect())
}
