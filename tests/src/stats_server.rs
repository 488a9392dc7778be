//! A proxy's API that does what a test tells it: the StatsService of V2Ray 4, V2Ray 5 or Xray with counters
//! that can be changed at any time, and everything that can be wrong with one.
//!
//! It speaks frames and not through a gRPC library, because a library would not let it be wrong. Each of
//! its behaviours that a real proxy has as well is compared with the real one in `it/api.rs`.
//!
//! The library's operations against it:
//!
//! ```
//! use traffic_tests::stats_server::{Kind, StatsServer};
//! use traffic_user::{ExportFormat, StatsError, StatsFactory, bytes_2_human_readable};
//!
//! let proxy = StatsServer::new(Kind::V2ray4);
//! proxy.user("alice@example.com", 1000, 1_500_000);
//! proxy.inbound("vmess-in", 1100, 1_500_100);
//!
//! let mut factory = StatsFactory::new(&proxy.address().to_string())?;
//! let mut stats = factory.get_stats("alice@example.com")?;
//! assert_eq!((stats.uplink(), stats.downlink()), (1000, 1_500_000));
//! assert_eq!(bytes_2_human_readable(stats.total().try_into()?, 2)?, "1.43 MB");
//! assert_eq!(
//!     stats.export_stats(ExportFormat::Csv),
//!     "email,uplink,downlink,total\n\"alice@example.com\",1000,1500000,1501000\n"
//! );
//! assert_eq!(factory.get_inbound_stats("vmess-in")?.downlink(), 1_500_100);
//!
//! // What was moved until the reset is told by it.
//! proxy.user("alice@example.com", 0, 100_000);
//! assert_eq!(stats.reset_stats()?.downlink, 1_600_000);
//! assert_eq!(factory.get_stats("alice@example.com")?.total(), 0);
//! assert!(matches!(factory.get_stats("bob@example.com"), Err(StatsError::NoCounter { .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod serve;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::netns::NetNs;

/// Whose API it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// V2Ray up to 4: passes over `patterns` and `regexp`.
    V2ray4,
    /// V2Ray 5: knows them.
    V2ray5,
    /// Xray, from before it told who is connected.
    OldXray,
    /// Xray that tells who is connected, and from where on a second question.
    Xray,
    /// Xray that tells it all at once.
    NewXray,
}

/// What it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers as a proxy does.
    #[default]
    Answer,
    /// Takes connections and says nothing.
    Silent,
    /// Speaks HTTP/2 and never answers a question.
    Hang,
    /// Lets nobody in.
    Deny,
    /// Offers no StatsService.
    NoService,
    /// Offers it, but keeps no statistics.
    NoStats,
    /// Closes each connection at once, as a proxy does that just starts.
    Close,
    /// Says what is no protocol.
    Noise,
    /// Speaks HTTP/1.
    Http1,
    /// Speaks TLS.
    Tls,
    /// Speaks HTTP/2 without gRPC: there is no such page.
    Web,
    /// Answers with bytes that are not the message.
    Nonsense,
    /// Answers with a message of so many bytes.
    Huge(usize),
    /// Closes the connection in the middle of an answer.
    BreakOff,
}

/// One question that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `v2ray` or `xray`: under whose name the service was called.
    pub service: String,
    /// `QueryStats` and its like.
    pub call: String,
    /// The pattern, or the name.
    pub about: String,
    /// Whether counters were to be reset.
    pub reset: bool,
}

/// How long the program runs already.
#[derive(Clone, Copy, Debug)]
enum Uptime {
    Since(Instant),
    Stands(u32),
}

/// What it says at the moment.
#[derive(Debug)]
struct State {
    kind: Kind,
    behaviour: Behaviour,
    counters: BTreeMap<Vec<u8>, i64>,
    online: BTreeMap<Vec<u8>, BTreeMap<String, i64>>,
    uptime: Uptime,
    questions: Vec<Question>,
    connections: usize,
    open: usize,
}

/// The running server. It ends with the value.
#[derive(Debug)]
pub struct StatsServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Changed when all connections are to be cut; gone when the server is to end.
    cut: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatsServer {
    /// One on a free port of 127.0.0.1, that answers, without counters.
    pub fn new(kind: Kind) -> Self {
        Self::at(kind, (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// One inside a namespace.
    pub fn inside(ns: &NetNs, kind: Kind, address: SocketAddr) -> Self {
        ns.run(|| Self::at(kind, address))
    }

    /// One at an address; port 0 takes a free one.
    ///
    /// # Panics
    ///
    /// When the address is taken.
    pub fn at(kind: Kind, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a place for the fake API");
        let address = listener.local_addr().expect("the fake API's own address");
        let state = Arc::new(Mutex::new(State {
            kind,
            behaviour: Behaviour::default(),
            counters: BTreeMap::new(),
            online: BTreeMap::new(),
            uptime: Uptime::Since(Instant::now()),
            questions: Vec::new(),
            connections: 0,
            open: 0,
        }));
        let (cut, cuts) = watch::channel(());
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || serve::serve(listener, &shared, cuts));
        Self { address, state, cut: Some(cut), thread: Some(thread) }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this from now on. Connections that are open stay so.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// Sets a counter, and makes it if need be.
    pub fn set(&self, name: impl Into<Vec<u8>>, value: i64) {
        self.state().counters.insert(name.into(), value);
    }

    /// Adds to a counter, and makes it if need be.
    pub fn add(&self, name: impl Into<Vec<u8>>, bytes: i64) {
        *self.state().counters.entry(name.into()).or_default() += bytes;
    }

    /// A user has sent and got so much more.
    pub fn user(&self, email: &str, uplink: i64, downlink: i64) {
        self.add(format!("user>>>{email}>>>traffic>>>uplink"), uplink);
        self.add(format!("user>>>{email}>>>traffic>>>downlink"), downlink);
    }

    /// An inbound has relayed so much more.
    pub fn inbound(&self, tag: &str, uplink: i64, downlink: i64) {
        self.add(format!("inbound>>>{tag}>>>traffic>>>uplink"), uplink);
        self.add(format!("inbound>>>{tag}>>>traffic>>>downlink"), downlink);
    }

    /// A user is connected from these addresses, each last seen at a second of Unix time.
    pub fn connect(&self, email: &str, addresses: &[(&str, i64)]) {
        let addresses = addresses.iter().map(|(ip, seen)| ((*ip).to_owned(), *seen)).collect();
        self.state().online.insert(email.into(), addresses);
    }

    /// Lets the uptime stand still at so many seconds.
    pub fn uptime(&self, seconds: u32) {
        self.state().uptime = Uptime::Stands(seconds);
    }

    /// Lets the program have been started so long ago, so that its age tells it from one that begins.
    ///
    /// # Panics
    ///
    /// Where the clock does not go back that far.
    pub fn began(&self, ago: Duration) {
        let begin = Instant::now().checked_sub(ago).expect("a time before this one");
        self.state().uptime = Uptime::Since(begin);
    }

    /// Starts the program again: no counters, no uptime, no connection of before.
    ///
    /// # Panics
    ///
    /// When the server died.
    pub fn restart(&self) {
        let mut state = self.state();
        state.counters.clear();
        state.online.clear();
        state.uptime = Uptime::Since(Instant::now());
        drop(state);
        self.cut();
    }

    /// Starts as another program.
    ///
    /// # Panics
    ///
    /// When the server died.
    pub fn become_another(&self, kind: Kind) {
        self.answer_as(kind);
        self.restart();
    }

    /// Answers as another program, over connections that stay open, as if something were in between.
    pub fn answer_as(&self, kind: Kind) {
        self.state().kind = kind;
    }

    /// Cuts all connections.
    ///
    /// # Panics
    ///
    /// When the server died.
    pub fn cut(&self) {
        self.cut.as_ref().and_then(|cut| cut.send(()).ok()).expect("the fake API runs");
    }

    /// Somebody else reads with a reset.
    pub fn foreign_reset(&self) {
        self.state().counters.values_mut().for_each(|value| *value = 0);
    }

    /// A counter as it stands.
    pub fn value(&self, name: &str) -> Option<i64> {
        self.state().counters.get(name.as_bytes()).copied()
    }

    /// All that was asked so far.
    pub fn questions(&self) -> Vec<Question> {
        self.state().questions.clone()
    }

    /// How many connections it was asked for so far.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// How many of them are open.
    pub fn open(&self) -> usize {
        self.state().open
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for StatsServer {
    fn drop(&mut self) {
        self.cut = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the fake API died");
        }
    }
}

/// A test that failed elsewhere leaves the lock poisoned; what is behind it is still good.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
