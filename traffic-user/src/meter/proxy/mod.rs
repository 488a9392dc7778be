//! The proxy's meter: the StatsService of V2Ray and Xray.
//!
//! One client for all of them. It reads without resetting, always: an answer that is lost with a reset
//! loses traffic, and two readers that reset steal from one another. [`ProxyMeter::reset`] and
//! [`ProxyMeter::reset_matching`] are the only calls that reset, and nothing here calls them by itself.
//!
//! A proxy that is away, hangs or answers nonsense is a state, with the time since when, and never a
//! crash. To be independent of it, [`ProxyMeter::spawn`] reads on a thread of its own, whose latest
//! answer is always at hand.

mod address;
mod clock;
mod connection;
mod counters;
mod dial;
mod error;
mod online;
mod watch;
mod wire;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::timeout;

pub use address::Address;
pub use clock::boot_time;
pub use connection::Identity;
pub use error::ProxyError;
pub use online::OnlineUser;
pub use watch::{Latest, Watch};

use crate::accounting::{
    proxy::{ApiHealth, ApiState, CounterName, ProxySnapshot},
    reading::Window,
};
use connection::Connection;

/// How many connections were made.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// What a poll is given, all in all.
const DEADLINE: Duration = Duration::from_secs(2);
/// Largest answer that is read: some 700,000 counters.
const LARGEST: usize = 64 << 20;

/// A client of one proxy's API. Connects when it is first asked, and again when a connection is lost.
///
/// ```no_run
/// # async fn example() -> Result<(), traffic_user::meter::proxy::ProxyError> {
/// use traffic_user::meter::proxy::ProxyMeter;
///
/// let mut meter = ProxyMeter::new("127.0.0.1:10085".parse()?);
/// for (name, bytes) in meter.poll().await?.counters {
///     println!("{:?}: {bytes}", name);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ProxyMeter {
    address: Address,
    deadline: Duration,
    limit: usize,
    connection: Option<Connection>,
    /// Number of the connection, or of the last one: no two of this process have the same.
    number: u64,
    /// Who answered last; survives the connection.
    identity: Option<Identity>,
    /// What the proxy said last over this connection.
    uptime: Option<u32>,
    health: Option<ApiHealth>,
}

/// What [`ProxyMeter::reset`] did.
#[derive(Debug)]
#[must_use]
pub struct Resets {
    /// The counters that are zero now, with what each was: payload bytes.
    pub done: Vec<(CounterName, i64)>,
    /// Names that the proxy has no counter for.
    pub absent: Vec<CounterName>,
    /// What kept it from going on. The counters after those in `done` and `absent` are as they were,
    /// except that the one at which it failed may have been reset without us knowing.
    pub failed: Option<ProxyError>,
}

impl ProxyMeter {
    /// A client that has not connected yet: 2 s for each poll, answers of at most 64 MiB.
    pub const fn new(address: Address) -> Self {
        Self {
            address,
            deadline: DEADLINE,
            limit: LARGEST,
            connection: None,
            number: 0,
            identity: None,
            uptime: None,
            health: None,
        }
    }

    /// Another deadline. It is for a whole poll, connecting included.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where it connects to.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// How it stands, after the last poll; `None` before the first.
    pub const fn health(&self) -> Option<&ApiHealth> {
        self.health.as_ref()
    }

    /// Who answered last, even if nobody does now.
    pub const fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Reads all counters and the proxy's uptime. Resets nothing.
    ///
    /// # Errors
    ///
    /// [`ProxyError`]; [`health`](Self::health) then says since when it is so.
    pub async fn poll(&mut self) -> Result<ProxySnapshot, ProxyError> {
        let outcome = match timeout(self.deadline, self.read()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.late()),
        };
        if outcome.is_err() {
            self.connection = None;
        }
        self.record(outcome.as_ref().err());
        outcome
    }

    /// Reads, a second time if a connection from an earlier poll turns out to be dead.
    async fn read(&mut self) -> Result<ProxySnapshot, ProxyError> {
        let reused = self.connection.is_some();
        match self.read_once().await {
            Err(error) if reused && error.is_of_connection() => {
                self.connection = None;
                self.read_once().await
            }
            outcome => outcome,
        }
    }

    async fn read_once(&mut self) -> Result<ProxySnapshot, ProxyError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                self.uptime = None;
                self.number = CONNECTIONS.fetch_add(1, Relaxed) + 1;
                none.insert(Connection::open(&self.address, self.limit).await?)
            }
        };
        let begin = clock::now();
        let (uptime, counters) =
            tokio::try_join!(connection.uptime(), connection.counters("", false))?;
        let end = clock::now();
        if uptime < self.uptime {
            // It was started again. Another program may answer, where something in front of it held the connection.
            connection.recognise().await?;
        }
        self.uptime = uptime;
        let identity = connection.identity();
        self.identity = Some(identity);
        Ok(ProxySnapshot {
            product: identity.product,
            connection: self.number,
            uptime,
            window: Window { begin: begin.unix, end: end.unix },
            boot: Window { begin: begin.boot, end: end.boot },
            counters,
        })
    }

    /// Who is connected from where, by email; `None` where the proxy does not tell. Resets nothing.
    ///
    /// # Errors
    ///
    /// [`ProxyError`].
    pub async fn online_users(&mut self) -> Result<Option<Vec<OnlineUser>>, ProxyError> {
        let ask = async {
            let connection = Connection::open(&self.address, self.limit).await?;
            connection.online().await
        };
        match timeout(self.deadline, ask).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.late()),
        }
    }

    /// Sets to zero each counter whose name contains the pattern (empty: all), and gives what they were.
    ///
    /// # Errors
    ///
    /// [`ProxyError`]. Whether the counters were reset is then not known, if it is
    /// [`ProxyError::Late`], [`ProxyError::Silent`] or [`ProxyError::Broken`]; otherwise they were not.
    pub async fn reset_matching(
        &mut self,
        pattern: &str,
    ) -> Result<Vec<(CounterName, i64)>, ProxyError> {
        let reset = async {
            let connection = Connection::open(&self.address, self.limit).await?;
            connection.counters(pattern, true).await
        };
        match timeout(self.deadline, reset).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.late()),
        }
    }

    /// Sets these counters to zero, one after the other, and gives what they were. Each has the deadline
    /// for itself.
    ///
    /// Names with bytes that are not UTF-8 cannot be named here and are absent.
    pub async fn reset(&mut self, names: &[CounterName]) -> Resets {
        let mut resets = Resets { done: Vec::new(), absent: Vec::new(), failed: None };
        let opening = Connection::open(&self.address, self.limit);
        let connection = match timeout(self.deadline, opening).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Resets { failed: Some(error), ..resets },
            Err(_) => return Resets { failed: Some(self.late()), ..resets },
        };
        for name in names {
            match timeout(self.deadline, connection.reset(name)).await {
                Ok(Ok(Some(value))) => resets.done.push((name.clone(), value)),
                Ok(Ok(None)) => resets.absent.push(name.clone()),
                Ok(Err(error)) => {
                    resets.failed = Some(error);
                    break;
                }
                Err(_) => {
                    resets.failed = Some(self.late());
                    break;
                }
            }
        }
        resets
    }

    fn late(&self) -> ProxyError {
        ProxyError::Late { address: self.address.to_string(), deadline: self.deadline }
    }

    /// Notes how a poll ended. Logs when that changed.
    fn record(&mut self, error: Option<&ProxyError>) {
        let state = error.map_or(ApiState::Ok, ProxyError::state);
        let known = self.health.as_ref().filter(|health| health.state == state);
        let since = known.map_or_else(|| clock::now().unix, |health| health.since);
        let reason = error.map(ProxyError::reason);
        let remedy = error.and_then(ProxyError::remedy);
        if known.is_none() {
            let address = &self.address;
            match &reason {
                None => tracing::info!(%address, state = state.name(), "the proxy's API answers"),
                Some(reason) => tracing::warn!(
                    %address,
                    state = state.name(),
                    reason,
                    remedy = remedy.as_deref().unwrap_or_default(),
                    "the proxy's API does not answer: the kernel goes on counting, users are not told apart"
                ),
            }
        }
        self.health = Some(ApiHealth { state, since, reason, remedy });
    }
}
