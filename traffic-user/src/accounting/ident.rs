//! Names of what is counted: ports, port groups, transports, lanes.

use std::{fmt, str::FromStr, sync::Arc};

/// Most bytes that a group's ports, transport and name may take when written as one text.
///
/// The kernel side keeps the text beside the counters, so that they explain themselves.
pub const GROUP_TEXT_LIMIT: usize = 248;

/// Where the programs stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// tcx links (kernel 6.6 and later).
    Tcx,
    /// A clsact qdisc with direct-action filters.
    Tc,
    /// `cgroup_skb` at a cgroup2 folder.
    Cgroup,
}

impl Hook {
    /// In the order in which `auto` tries them.
    pub const ALL: [Self; 3] = [Self::Tcx, Self::Tc, Self::Cgroup];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Tc => "tc",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Who counts the kernel's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeterKind {
    /// Our eBPF programs, at a hook.
    Ebpf(Hook),
    /// Rules of nftables.
    Nft,
    /// Rules of iptables.
    Iptables,
}

impl MeterKind {
    /// In the order in which `auto` tries them.
    pub const ALL: [Self; 5] = [
        Self::Ebpf(Hook::Tcx),
        Self::Ebpf(Hook::Tc),
        Self::Ebpf(Hook::Cgroup),
        Self::Nft,
        Self::Iptables,
    ];

    /// As the outputs and options write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf(hook) => hook.name(),
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }

    /// Whether it stands on devices: the others see what sockets send and get, on any device.
    pub const fn on_devices(self) -> bool {
        matches!(self, Self::Ebpf(Hook::Tcx | Hook::Tc))
    }
}

/// Which of the two transports a group counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
    /// Both.
    Both,
}

impl Transport {
    /// Whether TCP is among them.
    pub const fn tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Both)
    }

    /// Whether UDP is among them.
    pub const fn udp(self) -> bool {
        matches!(self, Self::Udp | Self::Both)
    }

    /// `tcp`, `udp` or `tcp+udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "tcp+udp",
        }
    }

    /// What a key ends with where another group has the same ports.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Tcp => "/tcp",
            Self::Udp => "/udp",
            Self::Both => "",
        }
    }

    const fn shared_with(self, other: Self) -> Option<&'static str> {
        if self.tcp() && other.tcp() {
            Some("tcp")
        } else if self.udp() && other.udp() {
            Some("udp")
        } else {
            None
        }
    }
}

/// Ports from `first` to `last`, both included. Never contains port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` for port 0 and for a range the wrong way round.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// First port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Every port in it.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether a port is in it.
    pub const fn has(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// What is counted as one: one or more ports of one or both transports, under one name.
///
/// As text, `443`, `8443/tcp`, `20000-50000/udp=hop`, `443+8443=web`: ports and ranges joined by
/// `+`, then the transport (both when absent), then a name.
///
/// ```
/// use traffic_user::accounting::ident::{Group, Transport};
///
/// let group: Group = "20000-50000/udp=hop".parse()?;
/// assert_eq!(group.transport(), Transport::Udp);
/// assert_eq!(group.name(), Some("hop"));
/// assert_eq!(group.ports_text(), "20000-50000");
/// assert_eq!(group.to_string(), "20000-50000/udp=hop");
/// # Ok::<(), traffic_user::accounting::ident::GroupError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    ranges: Vec<PortRange>,
    transport: Transport,
    name: Option<String>,
}

/// Why a text is no group, or a list of them cannot be counted together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No text between two commas, or none at all.
    #[error("an empty entry: write a port such as 443, or a range such as 20000-50000")]
    Empty,
    /// Not a number, or out of range.
    #[error("`{0}` is not a port: ports are 1 to 65535")]
    Port(String),
    /// Nothing on one side of the `-` of a range, or of a `+`.
    #[error("`{0}` is not whole: write ports on both sides of its `-` or `+`")]
    Half(String),
    /// The first port is above the last.
    #[error("`{0}` is the wrong way round: write the smaller port first")]
    Backwards(String),
    /// Something else than tcp or udp behind the slash.
    #[error("`{0}` is no transport: write /tcp, /udp, or neither for both")]
    Transport(String),
    /// Nothing behind the equals sign, or characters that outputs cannot carry.
    #[error(
        "`{0}` is no name: use letters, digits and punctuation, without commas or control characters"
    )]
    Name(String),
    /// Longer than the kernel side can keep.
    #[error(
        "`{0}…` is too long: ports, transport and name take at most {GROUP_TEXT_LIMIT} bytes together"
    )]
    TooLong(String),
    /// A port in two groups of one transport.
    #[error(
        "`{first}` and `{second}` both count {transport} port {port}: a port can be in one group only"
    )]
    Overlap {
        /// One of them, as text.
        first: String,
        /// The other.
        second: String,
        /// Transport that both count.
        transport: &'static str,
        /// The first port that both count.
        port: u16,
    },
    /// Two groups of one name.
    #[error("the name `{0}` is used twice: give each group its own")]
    NameTwice(String),
    /// More groups than slots.
    #[error(
        "{found} groups are too many: at most {limit} can be watched at once (join ports with + or a range)"
    )]
    TooMany {
        /// How many were asked for.
        found: usize,
        /// How many there can be.
        limit: usize,
    },
}

impl Group {
    /// A group of these ranges, sorted, with touching and overlapping ones joined.
    ///
    /// # Errors
    ///
    /// [`GroupError::Empty`] without a range, [`GroupError::Name`] and [`GroupError::TooLong`].
    pub fn new(
        mut ranges: Vec<PortRange>,
        transport: Transport,
        name: Option<String>,
    ) -> Result<Self, GroupError> {
        if ranges.is_empty() {
            return Err(GroupError::Empty);
        }
        if let Some(name) = &name
            && (name.is_empty() || name.contains(',') || name.chars().any(is_unseen))
        {
            return Err(GroupError::Name(name.escape_debug().to_string()));
        }
        ranges.sort_unstable();
        let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        let group = Self { ranges: joined, transport, name };
        let text = group.to_string();
        if text.len() > GROUP_TEXT_LIMIT {
            return Err(GroupError::TooLong(text.chars().take(40).collect()));
        }
        Ok(group)
    }

    /// One port.
    pub fn single(port: u16, transport: Transport) -> Option<Self> {
        let range = PortRange::new(port, port)?;
        Some(Self { ranges: vec![range], transport, name: None })
    }

    /// The ranges, sorted and apart from one another.
    pub fn ranges(&self) -> &[PortRange] {
        &self.ranges
    }

    /// Every port.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ranges.iter().flat_map(|range| range.ports())
    }

    /// Which transports are counted.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The name given to it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The ports as the outputs write them: `443`, `443,8443`, `20000-50000`.
    pub fn ports_text(&self) -> String {
        self.join(",")
    }

    /// Whether all that another group counts is counted by this one.
    pub fn covers(&self, other: &Self) -> bool {
        let counts = match (self.transport, other.transport) {
            (Transport::Both, _) => true,
            (own, theirs) => own == theirs,
        };
        let holds = |range: &PortRange| {
            self.ranges.iter().any(|own| own.first() <= range.first() && range.last() <= own.last())
        };
        counts && other.ranges.iter().all(holds)
    }

    /// Whether both count the same ports of the same transports; names do not matter.
    pub fn same_ports(&self, other: &Self) -> bool {
        self.ranges == other.ranges && self.transport == other.transport
    }

    /// Whether this port is one of its own.
    pub fn has(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| range.has(port))
    }

    /// The group without one of its ports, under the same name; `None` when nothing is left.
    ///
    /// ```
    /// # use traffic_user::accounting::ident::Group;
    /// let group: Group = "1-9/udp=games".parse()?;
    /// assert_eq!(group.without(5).map(|rest| rest.to_string()).as_deref(), Some("1-4+6-9/udp=games"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn without(&self, port: u16) -> Option<Self> {
        let ranges = self.ranges.iter().flat_map(|range| {
            if !range.has(port) {
                return [Some(*range), None];
            }
            let below = port.checked_sub(1).and_then(|end| PortRange::new(range.first, end));
            let above = port.checked_add(1).and_then(|begin| PortRange::new(begin, range.last));
            [below, above]
        });
        Self::new(ranges.flatten().collect(), self.transport, self.name.clone()).ok()
    }

    /// The same ports without a name.
    #[must_use]
    pub fn unnamed(&self) -> Self {
        Self { name: None, ..self.clone() }
    }

    fn join(&self, separator: &str) -> String {
        self.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.join("+"), self.transport.suffix())?;
        match &self.name {
            Some(name) => write!(f, "={name}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Group {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        // A name is taken as it stands: the proxy's tags may begin or end with blanks.
        let (what, name) = match text.split_once('=') {
            Some((what, name)) => (what.trim(), Some(name.to_owned())),
            None => (text.trim(), None),
        };
        let (ports, transport) = match what.split_once('/') {
            None => (what, Transport::Both),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some((_, other)) => return Err(GroupError::Transport(shown(other))),
        };
        if ports.is_empty() {
            return Err(GroupError::Empty);
        }
        if ports.split(['+', '-']).any(str::is_empty) {
            return Err(GroupError::Half(shown(ports)));
        }
        let ranges = ports.split('+').map(range).collect::<Result<Vec<_>, _>>()?;
        Self::new(ranges, transport, name)
    }
}

fn range(text: &str) -> Result<PortRange, GroupError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    PortRange::new(first, last).ok_or_else(|| GroupError::Backwards(shown(text)))
}

fn port(text: &str) -> Result<u16, GroupError> {
    // Digits only: `parse` would accept a sign as well.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(GroupError::Port(shown(text))),
    }
}

/// What changes how text around it is shown and is not seen itself: control characters, and those that turn
/// the direction of writing.
fn is_unseen(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control()
}

/// Longest piece of foreign text that is shown: longer than almost every name.
const MOST_SHOWN: usize = 80;

/// A piece of foreign text, safe to print, and short: a name that is shown can be typed back, unless it ends in
/// an ellipsis.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}…", escaped(&text[..end])),
        None => escaped(text),
    }
}

/// Foreign text, safe to print: what a terminal would take for orders, or would not show at all, is written
/// out. Quotes and backslashes stay what they are.
pub fn escaped(text: &str) -> String {
    const KEPT: [char; 3] = ['\\', '"', '\''];
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for piece in text.split_inclusive(KEPT) {
        let plain = piece.strip_suffix(KEPT).unwrap_or(piece);
        safe.extend(plain.escape_debug());
        safe.push_str(&piece[plain.len()..]);
    }
    safe
}

/// Groups that can be counted together: no port in two of them, no name twice.
///
/// Copies share them: they are wanted in several places at once, and may be thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Arc<[Group]>);

impl Groups {
    /// Checks that the groups do not get in one another's way.
    ///
    /// # Errors
    ///
    /// [`GroupError::Overlap`], [`GroupError::NameTwice`], [`GroupError::TooMany`] (above `limit`).
    pub fn new(groups: Vec<Group>, limit: usize) -> Result<Self, GroupError> {
        if groups.len() > limit {
            return Err(GroupError::TooMany { found: groups.len(), limit });
        }
        let mut names: Vec<&str> = groups.iter().filter_map(Group::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(GroupError::NameTwice(twice[0].to_owned()));
        }
        // Per transport, sorted by first port: an overlap is then between neighbours.
        for (transport, counts) in
            [("tcp", Transport::tcp as fn(Transport) -> bool), ("udp", Transport::udp)]
        {
            let mut ranges: Vec<(PortRange, &Group)> = groups
                .iter()
                .filter(|group| counts(group.transport))
                .flat_map(|group| group.ranges.iter().map(move |range| (*range, group)))
                .collect();
            ranges.sort_unstable_by_key(|(range, _)| *range);
            for pair in ranges.windows(2) {
                let ((a, first), (b, second)) = (pair[0], pair[1]);
                if a.overlaps(b) {
                    debug_assert!(first.transport.shared_with(second.transport).is_some());
                    return Err(GroupError::Overlap {
                        first: first.to_string(),
                        second: second.to_string(),
                        transport,
                        port: b.first,
                    });
                }
            }
        }
        Ok(Self(groups.into()))
    }

    /// Reads `443,8443/tcp,20000-50000/udp=hop`.
    ///
    /// # Errors
    ///
    /// The first [`GroupError`] of any entry, or of all together.
    pub fn parse(text: &str, limit: usize) -> Result<Self, GroupError> {
        let entries = text.split(',');
        let count = entries.clone().count();
        if count > limit {
            return Err(GroupError::TooMany { found: count, limit });
        }
        Self::new(entries.map(|entry| entry.trim().parse()).collect::<Result<_, _>>()?, limit)
    }

    /// These and, from `more`, every group that is not counted yet.
    ///
    /// A group of `more` is taken with the transports in which none of these has any of its ports; what is
    /// counted already stays where it is, and no group is torn.
    #[must_use]
    pub fn extended_by(&self, more: &[Group]) -> Self {
        let mut groups = self.0.to_vec();
        for group in more {
            let counted = |transport: fn(Transport) -> bool| {
                groups.iter().any(|known| {
                    transport(known.transport)
                        && known.ranges.iter().any(|a| group.ranges.iter().any(|b| a.overlaps(*b)))
                })
            };
            let tcp = group.transport.tcp() && !counted(Transport::tcp);
            let udp = group.transport.udp() && !counted(Transport::udp);
            let transport = match (tcp, udp) {
                (true, true) => Transport::Both,
                (true, false) => Transport::Tcp,
                (false, true) => Transport::Udp,
                (false, false) => continue,
            };
            groups.push(Group { transport, ..group.clone() });
        }
        Self(groups.into())
    }

    /// The key of each group in the outputs: its ports, and its transport as well where another
    /// group has the same ports (`443/tcp` beside `443/udp`).
    pub fn key(&self, group: &Group) -> String {
        key(group, self.0.iter())
    }

    /// Groups of which nobody asks whether they get in one another's way.
    pub fn unchecked(groups: Vec<Group>) -> Self {
        Self(groups.into())
    }

    /// Whether any of these counts a port and transport of `group`.
    pub fn meets(&self, group: &Group) -> bool {
        self.0.iter().any(|other| {
            other.transport.shared_with(group.transport).is_some()
                && other.ranges.iter().any(|a| group.ranges.iter().any(|b| a.overlaps(*b)))
        })
    }

    /// In the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, Group> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The key of `group` among `all`: see [`Groups::key`].
fn key<'a>(group: &Group, all: impl IntoIterator<Item = &'a Group>) -> String {
    let ports = group.ports_text();
    let twin = all
        .into_iter()
        .any(|other| other.ranges == group.ranges && other.transport != group.transport);
    if twin { format!("{ports}{}", group.transport.suffix()) } else { ports }
}

#[cfg(test)]
mod tests;
