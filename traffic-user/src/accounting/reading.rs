//! What a meter says at one time.

use std::sync::Arc;

use super::ident::Group;

/// One life of a counter, from zero. Two readings may be subtracted only inside one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// What a byte includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// From the IP header on, as it goes over the wire: every segment with its own headers.
    L3,
    /// Socket buffers as the kernel holds them: a segmented one counts one header.
    L3Skb,
    /// L3 plus the link header of each frame.
    Wire,
    /// What the proxy relays.
    Payload,
}

impl Layer {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L3 => "l3",
            Self::L3Skb => "l3-skb",
            Self::Wire => "wire",
            Self::Payload => "payload",
        }
    }
}

/// Whether all that passed in an interval was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coverage {
    /// All of it.
    #[default]
    Complete,
    /// Derived from something else.
    Estimated,
    /// Some of it was not seen; how much is not known.
    Gap,
}

impl Coverage {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Estimated => "estimated",
            Self::Gap => "gap",
        }
    }
}

/// Bytes and packets in both directions, seen from the server. Layer and epoch are the snapshot's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// Bytes that entered on the group's port.
    pub input_bytes: u64,
    /// Packets that entered.
    pub input_packets: u64,
    /// Bytes that left from it.
    pub output_bytes: u64,
    /// Packets that left.
    pub output_packets: u64,
}

impl Traffic {
    /// Both added up; stops at the largest number instead of beginning again.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            input_bytes: self.input_bytes.saturating_add(other.input_bytes),
            input_packets: self.input_packets.saturating_add(other.input_packets),
            output_bytes: self.output_bytes.saturating_add(other.output_bytes),
            output_packets: self.output_packets.saturating_add(other.output_packets),
        }
    }

    /// What is above the other; stops at zero.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            input_bytes: self.input_bytes.saturating_sub(other.input_bytes),
            input_packets: self.input_packets.saturating_sub(other.input_packets),
            output_bytes: self.output_bytes.saturating_sub(other.output_bytes),
            output_packets: self.output_packets.saturating_sub(other.output_packets),
        }
    }

    /// Adds bytes and packets of one direction; stops at the largest number.
    pub const fn add(&mut self, direction: Direction, bytes: u64, packets: u64) {
        let (sum_bytes, sum_packets) = match direction {
            Direction::Input => (&mut self.input_bytes, &mut self.input_packets),
            Direction::Output => (&mut self.output_bytes, &mut self.output_packets),
        };
        *sum_bytes = sum_bytes.saturating_add(bytes);
        *sum_packets = sum_packets.saturating_add(packets);
    }

    /// Bytes and packets of one direction.
    pub const fn way(self, direction: Direction) -> (u64, u64) {
        match direction {
            Direction::Input => (self.input_bytes, self.input_packets),
            Direction::Output => (self.output_bytes, self.output_packets),
        }
    }

    /// Both directions' bytes.
    pub const fn bytes(self) -> u64 {
        self.input_bytes.saturating_add(self.output_bytes)
    }

    /// Both directions' packets.
    pub const fn packets(self) -> u64 {
        self.input_packets.saturating_add(self.output_packets)
    }
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Self::plus)
    }
}

/// Where a packet goes, seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It enters on the group's port.
    Input,
    /// It leaves from it.
    Output,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Input, Self::Output];
}

/// What is counted apart in a group: a transport over a version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl Lane {
    /// In the order of the outputs.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
        }
    }

    /// Whether it is TCP; else it is UDP.
    pub const fn tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Whether it is IPv4; else it is IPv6.
    pub const fn ipv4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }
}

/// The four lanes of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lanes {
    /// TCP over IPv4.
    pub tcp4: Traffic,
    /// TCP over IPv6.
    pub tcp6: Traffic,
    /// UDP over IPv4.
    pub udp4: Traffic,
    /// UDP over IPv6.
    pub udp6: Traffic,
}

impl Lanes {
    /// One of them.
    pub const fn lane(&self, lane: Lane) -> &Traffic {
        match lane {
            Lane::Tcp4 => &self.tcp4,
            Lane::Tcp6 => &self.tcp6,
            Lane::Udp4 => &self.udp4,
            Lane::Udp6 => &self.udp6,
        }
    }

    /// One of them, to be changed.
    pub const fn lane_mut(&mut self, lane: Lane) -> &mut Traffic {
        match lane {
            Lane::Tcp4 => &mut self.tcp4,
            Lane::Tcp6 => &mut self.tcp6,
            Lane::Udp4 => &mut self.udp4,
            Lane::Udp6 => &mut self.udp6,
        }
    }

    /// What is above the others, lane by lane; stops at zero.
    #[must_use]
    pub const fn less(&self, other: &Self) -> Self {
        Self {
            tcp4: self.tcp4.less(other.tcp4),
            tcp6: self.tcp6.less(other.tcp6),
            udp4: self.udp4.less(other.udp4),
            udp6: self.udp6.less(other.udp6),
        }
    }

    /// Whether any number is below what it was.
    pub fn fell_below(&self, before: &Self) -> bool {
        before.less(self) != Self::default()
    }

    /// All lanes together.
    pub fn total(&self) -> Traffic {
        self.each().into_iter().map(|(_, traffic)| traffic).sum()
    }

    /// Each with its name, in the order of the outputs.
    pub const fn each(&self) -> [(&'static str, Traffic); 4] {
        let [a, b, c, d] = Lane::ALL;
        [(a.name(), self.tcp4), (b.name(), self.tcp6), (c.name(), self.udp4), (d.name(), self.udp6)]
    }
}

/// One group's counters since the epoch began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReading {
    /// Which group.
    pub group: Arc<Group>,
    /// Its lanes, cumulative.
    pub lanes: Lanes,
    /// Whether it is still watched; numbers of one that is not stand still.
    pub watched: bool,
}

/// What was seen at the hook and belongs to no group, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// TCP and UDP on ports nobody asked for.
    pub unwatched: Traffic,
    /// Later fragments whose first was not seen.
    pub fragment: Traffic,
    /// ICMP, ARP and other protocols.
    pub other: Traffic,
    /// Truncated or contradictory.
    pub malformed: Traffic,
    /// The host with itself.
    pub loopback: Traffic,
}

impl Skipped {
    /// Each with its name, in the order of the outputs.
    pub const fn each(&self) -> [(&'static str, Traffic); 5] {
        [
            ("unwatched", self.unwatched),
            ("fragment", self.fragment),
            ("other", self.other),
            ("malformed", self.malformed),
            ("loopback", self.loopback),
        ]
    }
}

/// The time between which all values of a snapshot were read, nanoseconds of Unix time.
///
/// The counters go on while they are read, so a snapshot is a window and not an instant. `end` is
/// taken last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Before the first value was read.
    pub begin: i128,
    /// After the last one.
    pub end: i128,
}

/// All readings of one meter at one time.
///
/// `skipped` is `None` where the meter cannot tell: nothing was measured, which is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Name of the meter: `tcx`, `tc`, `cgroup`, `nft`, `iptables`.
    pub meter: &'static str,
    /// What its bytes include.
    pub layer: Layer,
    /// Life of these counters.
    pub epoch: Epoch,
    /// When it began, seconds of Unix time; `None` when the meter does not know.
    pub since: Option<i64>,
    /// When it was read.
    pub window: Window,
    /// Whether all was counted since the epoch began.
    pub coverage: Coverage,
    /// One for each group, in the order they were first watched. Shared, because a snapshot is kept in
    /// several places until the next one.
    pub groups: Arc<[GroupReading]>,
    /// What was in no group.
    pub skipped: Option<Skipped>,
}

impl Snapshot {
    /// All groups together.
    pub fn total(&self) -> Traffic {
        self.groups.iter().map(|reading| reading.lanes.total()).sum()
    }

    /// Without the groups that are not in a later reading of these counters, or began again before it.
    #[must_use]
    pub fn without_fallen(&self, later: &Self) -> Self {
        let goes_on = |reading: &&GroupReading| {
            let now = later.groups.iter().find(|now| now.group == reading.group);
            now.is_some_and(|now| !now.lanes.fell_below(&reading.lanes))
        };
        Self { groups: self.groups.iter().filter(goes_on).cloned().collect(), ..self.clone() }
    }
}
