//! What a proxy says: its inbounds with their users, and the payload that it has counted.
//!
//! Layer `payload`: what the proxy relays, in its own words for the two directions. Uplink is what the
//! user sends, so it enters the host as input; downlink leaves as output.

use std::{fmt, sync::Arc};

use super::{ident::Group, reading::Window};

/// One inbound of a proxy, as its config describes it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Its ports and transport; the group's name is the tag, where the tag can be a name.
    pub group: Group,
    /// Its tag, as the proxy writes it. Counters of an inbound without a tag do not exist.
    pub tag: Option<Arc<str>>,
    /// `vmess`, `vless`, `trojan`, ... as the config writes it.
    pub protocol: Arc<str>,
    /// Who may use it.
    pub users: Users,
}

/// The users of an inbound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Names under which the proxy counts, in the order of the config, each once.
    pub emails: Vec<Arc<str>>,
    /// How many more are configured without a name: the proxy does not count them.
    pub nameless: usize,
    /// The protocol has users that its config here does not name (`hysteria2`, a passwordless
    /// `socks`, `dokodemo-door`), or none at all.
    pub unknown: bool,
}

/// Which program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// V2Ray.
    V2ray,
    /// Xray.
    Xray,
}

impl Product {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V2ray => "v2ray",
            Self::Xray => "xray",
        }
    }
}

/// Whose counter it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A user, by email; socks and http users by their name.
    User(Arc<str>),
    /// An inbound, by tag.
    Inbound(Arc<str>),
    /// An outbound, by tag.
    Outbound(Arc<str>),
}

/// From the user's end or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// What the user sends.
    Uplink,
    /// What the user gets.
    Downlink,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Uplink, Self::Downlink];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
        }
    }
}

/// The name of one counter: `user>>>EMAIL>>>traffic>>>uplink` and its like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterName {
    /// Whose.
    pub subject: Subject,
    /// Which direction.
    pub way: Way,
}

impl CounterName {
    /// Understands a name of the StatsService. `None` for names of other kinds.
    ///
    /// Read from both ends, because an email may itself contain `>>>`.
    ///
    /// ```
    /// use traffic_user::accounting::proxy::{CounterName, Subject, Way};
    ///
    /// let name = CounterName::parse("user>>>a>>>b@x>>>traffic>>>downlink").unwrap();
    /// assert_eq!(name.subject, Subject::User("a>>>b@x".into()));
    /// assert_eq!(name.way, Way::Downlink);
    /// assert_eq!(CounterName::parse("user>>>a@x>>>online"), None);
    /// ```
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, way) = if let Some(rest) = name.strip_suffix(">>>traffic>>>uplink") {
            (rest, Way::Uplink)
        } else {
            (name.strip_suffix(">>>traffic>>>downlink")?, Way::Downlink)
        };
        let (kind, who) = rest.split_once(">>>")?;
        if who.is_empty() {
            return None;
        }
        let subject = match kind {
            "user" => Subject::User(who.into()),
            "inbound" => Subject::Inbound(who.into()),
            "outbound" => Subject::Outbound(who.into()),
            _ => return None,
        };
        Some(Self { subject, way })
    }
}

impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, who) = match &self.subject {
            Subject::User(who) => ("user", who),
            Subject::Inbound(who) => ("inbound", who),
            Subject::Outbound(who) => ("outbound", who),
        };
        write!(f, "{kind}>>>{who}>>>traffic>>>{}", self.way.name())
    }
}

/// Payload bytes in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Payload {
    /// What users sent.
    pub uplink: u64,
    /// What they got.
    pub downlink: u64,
}

impl Payload {
    /// Both added up; stops at the largest number instead of beginning again.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            uplink: self.uplink.saturating_add(other.uplink),
            downlink: self.downlink.saturating_add(other.downlink),
        }
    }

    /// One direction.
    pub const fn way(self, way: Way) -> u64 {
        match way {
            Way::Uplink => self.uplink,
            Way::Downlink => self.downlink,
        }
    }

    /// One direction, to be changed.
    pub const fn way_mut(&mut self, way: Way) -> &mut u64 {
        match way {
            Way::Uplink => &mut self.uplink,
            Way::Downlink => &mut self.downlink,
        }
    }

    /// Both directions.
    pub const fn total(self) -> u64 {
        self.uplink.saturating_add(self.downlink)
    }
}

impl std::iter::Sum for Payload {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Self::plus)
    }
}

/// All counters of a proxy at one time. Cumulative since each counter was made; never reset by
/// reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySnapshot {
    /// Who answered; `None` when that could not be told.
    pub product: Option<Product>,
    /// Number of the connection that it came over: polls over one connection were answered by one
    /// process. 0 is none that is known.
    pub connection: u64,
    /// Whole seconds since the proxy's start as it says itself; `None` when it did not.
    pub uptime: Option<u32>,
    /// When it was read, nanoseconds of Unix time: for people.
    pub window: Window,
    /// The same on a clock that nobody sets (since boot, without sleep), nanoseconds: for telling a
    /// restart.
    pub boot: Window,
    /// In the order of their names, each once. One that is missing was not made yet; that is not zero.
    /// A negative value is passed on as it came.
    pub counters: Vec<(CounterName, i64)>,
}

/// How it stands with a proxy's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiState {
    /// It answers.
    Ok,
    /// Nobody is there: refused, unreachable, a name without an address, a connection that broke.
    Down,
    /// No answer in time.
    Slow,
    /// It does not let us in.
    Denied,
    /// Something answers that is not understood, or far too much of it.
    Garbage,
    /// The proxy is there and does not count, or does not offer its counters.
    Disabled,
}

impl ApiState {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Down => "down",
            Self::Slow => "slow",
            Self::Denied => "denied",
            Self::Garbage => "garbage",
            Self::Disabled => "disabled",
        }
    }
}

/// How it stands with a proxy's API, since when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiHealth {
    /// How it stands.
    pub state: ApiState,
    /// When it was first seen in this state, nanoseconds of Unix time.
    pub since: i128,
    /// Why it is not [`ApiState::Ok`], as the last try told it; safe to print.
    pub reason: Option<String>,
    /// What helps.
    pub remedy: Option<String>,
}
