//! Values that cross the kernel boundary byte for byte, and the names they are found by.
//!
//! Nothing here has padding, and nothing here is an enum or a `bool`: a map value is bytes that some
//! other program wrote, perhaps an older one. The layouts are proven below, not hoped for.
//!
//! The pinned maps explain themselves: [`Meta`] states every dimension and [`Group`] what each slot
//! counts, so a newer or older program can read them without our database and without this version's
//! constants.

/// Changes whenever the meaning or the layout of a map changes.
pub const ABI_VERSION: u32 = 2;

/// First word of [`Meta`]; tells our pinned maps from those of others (`"traf"`, little endian).
pub const MAGIC: u32 = u32::from_le_bytes(*b"traf");

/// Kinds of traffic counted apart in a group: tcp/udp x IPv4/IPv6. See [`lane`].
pub const LANES: u32 = 4;

/// Names of the lanes, in the order of their index, as the outputs use them.
pub const LANE_NAMES: [&str; LANES as usize] = ["tcp4", "tcp6", "udp4", "udp6"];

/// Most groups that can be watched at once: a slot is stored as `slot + 1` in a `u16`.
pub const MAX_SLOTS: u32 = 65_535;

/// Entries of [`maps::PORT_SLOT`]'s one value: all TCP ports, then all UDP ports.
pub const PORT_SLOTS: usize = 2 * 65_536;

/// Index of a lane from what the packet is.
#[inline(always)]
pub const fn lane(udp: bool, ipv6: bool) -> u8 {
    ((udp as u8) << 1) | ipv6 as u8
}

/// Index into [`maps::PORT_SLOT`] for a port in host byte order.
#[inline(always)]
pub const fn port_index(udp: bool, port: u16) -> usize {
    ((udp as usize) << 16) | port as usize
}

/// Names of the maps, as in the object and under the pin folder.
pub mod maps {
    /// One value of [`PORT_SLOTS`](super::PORT_SLOTS) x `u16`: `slot + 1`, or 0 for not watched. The
    /// programs' own variable, so each load has another; [`GROUPS`] says all that is in it.
    pub const PORT_SLOT: &str = ".bss.ports";
    /// [`Counters`](super::Counters), indexed by [`counter_index`](super::counter_index).
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU [`Counters`](super::Counters), one for each reason in [`skip`](super::skip), and the same number
    /// again that no program writes: what was carried over from older maps.
    pub const SKIPPED: &str = "SKIPPED";
    /// [`FragmentKey`](super::FragmentKey) -> `slot + 1` (0: not watched) in the low 16 bits, lane above.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// One [`Meta`](super::Meta).
    pub const META: &str = "META";
    /// One [`Group`](super::Group) for each slot.
    pub const GROUPS: &str = "GROUPS";
    /// Those that hold state and are pinned. `FRAGMENTS` is among them so that a datagram whose
    /// fragments arrive around a restart is still charged to its group.
    pub const PINNED: [&str; 5] = [COUNTERS, SKIPPED, FRAGMENTS, META, GROUPS];
}

/// Names of the programs (at most 15 bytes: the kernel cuts the rest).
pub mod programs {
    /// tc, device with an Ethernet header, traffic that enters.
    pub const ETHERNET_IN: &str = "traffic_eth_in";
    /// tc, device with an Ethernet header, traffic that leaves.
    pub const ETHERNET_OUT: &str = "traffic_eth_out";
    /// tc, device without a link header (tun, WireGuard, PPP), traffic that enters.
    pub const BARE_IN: &str = "traffic_raw_in";
    /// tc, device without a link header, traffic that leaves.
    pub const BARE_OUT: &str = "traffic_raw_out";
    /// `cgroup_skb`, traffic that enters.
    pub const CGROUP_IN: &str = "traffic_cg_in";
    /// `cgroup_skb`, traffic that leaves.
    pub const CGROUP_OUT: &str = "traffic_cg_out";
    /// All of them.
    pub const ALL: [&str; 6] =
        [ETHERNET_IN, ETHERNET_OUT, BARE_IN, BARE_OUT, CGROUP_IN, CGROUP_OUT];
}

/// Names of the read-only globals that user space sets before loading.
pub mod globals {
    /// `u32`: slots in each stripe of `COUNTERS`.
    pub const SLOTS: &str = "SLOTS";
    /// `u8`: 1 where the hook can be interrupted on its own CPU, so that adds must be atomic.
    pub const ATOMIC: &str = "ATOMIC";
    /// `u8`: aya-log's own; 0 is silent, and then the verifier removes the code; 4 logs each packet.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Why a packet is in no slot. Each is counted apart, so none is lost silently.
pub mod skip {
    /// TCP or UDP, but nobody asked for its port.
    pub const UNWATCHED: u32 = 0;
    /// A later fragment whose first one was not seen (or was pushed out of the table).
    pub const FRAGMENT: u32 = 1;
    /// ICMP, ARP, another protocol, or more headers in a row than are followed.
    pub const OTHER: u32 = 2;
    /// Ends before its ports, or contradicts itself.
    pub const MALFORMED: u32 = 3;
    /// Traffic of the host with itself: over the loopback, at the cgroup hook; what it sends to a group, or to
    /// all, and is handed back, at every hook.
    pub const LOOPBACK: u32 = 4;
    /// How many reasons there are.
    pub const REASONS: u32 = 5;
    /// Their names in the outputs, in the order of their number.
    pub const NAMES: [&str; REASONS as usize] =
        ["unwatched", "fragment", "other", "malformed", "loopback"];
}

/// What was counted for one lane of one slot, or for one reason, since the epoch began. Never
/// decreases.
///
/// Bytes are layer-3 bytes as they go over the wire, packets are wire packets: see
/// [`packet`](crate::packet).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that entered this host on the group's ports.
    pub input_bytes: u64,
    /// Wire packets that entered.
    pub input_packets: u64,
    /// Bytes that left from the group's ports.
    pub output_bytes: u64,
    /// Wire packets that left.
    pub output_packets: u64,
}

impl Counters {
    /// Size in the map.
    pub const SIZE: usize = size_of::<Self>();

    /// The four values from a map's bytes, in the byte order of this machine.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            input_bytes: u64_at(bytes, 0),
            input_packets: u64_at(bytes, 8),
            output_bytes: u64_at(bytes, 16),
            output_packets: u64_at(bytes, 24),
        }
    }

    /// The map's bytes, in the byte order of this machine.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.input_bytes, self.input_packets, self.output_bytes, self.output_packets];
        for (n, word) in words.iter().enumerate() {
            put(&mut bytes, 8 * n, &word.to_ne_bytes());
        }
        bytes
    }

    /// Both added up; wraps as the kernel's counters do (after 584 years at 1 GB/s).
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            input_bytes: self.input_bytes.wrapping_add(other.input_bytes),
            input_packets: self.input_packets.wrapping_add(other.input_packets),
            output_bytes: self.output_bytes.wrapping_add(other.output_bytes),
            output_packets: self.output_packets.wrapping_add(other.output_packets),
        }
    }

    /// What was counted since `earlier`, a reading of the same counter.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            input_bytes: self.input_bytes.wrapping_sub(earlier.input_bytes),
            input_packets: self.input_packets.wrapping_sub(earlier.input_packets),
            output_bytes: self.output_bytes.wrapping_sub(earlier.output_bytes),
            output_packets: self.output_packets.wrapping_sub(earlier.output_packets),
        }
    }
}

/// What one CPU has counted for one [`part`] of one slot since the epoch began: a value of `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Layer-3 bytes as they go over the wire.
    pub bytes: u64,
    /// Wire packets.
    pub packets: u64,
}

impl Count {
    /// Size in the map.
    pub const SIZE: usize = size_of::<Self>();
}

/// What is counted apart in a slot: each lane in each direction.
pub const PARTS: u32 = 2 * LANES;

/// Number of a part.
#[inline(always)]
pub const fn part(lane: u8, output: bool) -> u32 {
    2 * lane as u32 + output as u32
}

/// Index of one part of one slot in one stripe of `COUNTERS`.
///
/// Stripe `n` belongs to CPU `n`; the stripe after the last CPU is written by user space alone and
/// holds what was carried over from older maps, so a sum over all stripes is always the total. Within
/// a stripe part follows part and not slot, because traffic is mostly of one kind, and what enters is
/// counted at another time than what leaves: spread over many ports it then touches an eighth of the
/// memory.
///
/// In ABI 1 a value was a whole [`Counters`], one for each lane.
#[inline(always)]
pub const fn counter_index(stripe: u32, slots: u32, slot: u32, part: u32) -> u32 {
    (stripe * PARTS + part) * slots + slot
}

/// Identifies the datagram that a fragment belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address; an IPv4 address takes the first four bytes.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Protocol (IPv4), or the fragment header's next header (IPv6).
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// 0 input, 1 output: the group is chosen by another port in each.
    pub direction: u8,
    /// Zero.
    pub reserved: u8,
}

/// States every dimension of the maps beside it, and whose life their numbers tell.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`ABI_VERSION`] of the program that made the maps.
    pub abi: u32,
    /// Random, non-zero; a new one whenever counting begins again from zero.
    pub epoch: u64,
    /// First eight bytes of the kernel's boot id.
    pub boot: u64,
    /// When the epoch began, seconds of Unix time.
    pub since: u64,
    /// Slots in each stripe of `COUNTERS`, entries of `GROUPS`.
    pub slots: u32,
    /// Stripes: one for each possible CPU, and one for what was carried over.
    pub stripes: u32,
    /// Lanes of a slot.
    pub lanes: u32,
    /// Size of one value of `COUNTERS`: a [`Count`], in ABI 1 a [`Counters`].
    pub counter_size: u32,
    /// Slots handed out so far; they are handed out in ascending order.
    pub slots_used: u32,
    /// Reasons in the first half of `SKIPPED`.
    pub reasons: u32,
    /// The hook that counts: see [`hook`].
    pub hook: u32,
    /// Size of one [`Group`].
    pub group_size: u32,
    /// The network namespace that is counted: its inode in the lower half; in the upper one the lower half
    /// of its cookie, or 0 where the kernel or an older version knew none.
    pub netns: u64,
    /// Whether numbers of older maps are still to be added: see [`carry`].
    pub carry: u32,
    /// 1 when some packets of this epoch are known not to have been seen.
    pub gap: u32,
}

/// Values of [`Meta::carry`].
pub mod carry {
    /// Nothing was carried over: the last stripe is zero.
    pub const NONE: u32 = 0;
    /// These maps take over from others, whose numbers are not in them yet.
    pub const PENDING: u32 = 1;
    /// The last stripe holds what older maps had counted.
    pub const DONE: u32 = 2;
}

impl Meta {
    /// Size in the map.
    pub const SIZE: usize = size_of::<Self>();

    /// The map's bytes, in the byte order of this machine.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (at, word) in [(0, self.magic), (4, self.abi)] {
            put(&mut bytes, at, &word.to_ne_bytes());
        }
        for (at, word) in [(8, self.epoch), (16, self.boot), (24, self.since), (64, self.netns)] {
            put(&mut bytes, at, &word.to_ne_bytes());
        }
        let dimensions = [
            self.slots,
            self.stripes,
            self.lanes,
            self.counter_size,
            self.slots_used,
            self.reasons,
            self.hook,
            self.group_size,
        ];
        for (n, word) in dimensions.iter().enumerate() {
            put(&mut bytes, 32 + 4 * n, &word.to_ne_bytes());
        }
        put(&mut bytes, 72, &self.carry.to_ne_bytes());
        put(&mut bytes, 76, &self.gap.to_ne_bytes());
        bytes
    }

    /// From a map's bytes. Says nothing about whether they are ours: look at `magic`.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            magic: u32_at(bytes, 0),
            abi: u32_at(bytes, 4),
            epoch: u64_at(bytes, 8),
            boot: u64_at(bytes, 16),
            since: u64_at(bytes, 24),
            slots: u32_at(bytes, 32),
            stripes: u32_at(bytes, 36),
            lanes: u32_at(bytes, 40),
            counter_size: u32_at(bytes, 44),
            slots_used: u32_at(bytes, 48),
            reasons: u32_at(bytes, 52),
            hook: u32_at(bytes, 56),
            group_size: u32_at(bytes, 60),
            netns: u64_at(bytes, 64),
            carry: u32_at(bytes, 72),
            gap: u32_at(bytes, 76),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// Values of [`Meta::hook`].
pub mod hook {
    /// tcx links.
    pub const TCX: u32 = 1;
    /// clsact and direct-action filters.
    pub const TC: u32 = 2;
    /// `cgroup_skb`.
    pub const CGROUP: u32 = 3;
}

/// Longest description of a group that [`Group`] holds, in bytes.
pub const GROUP_TEXT: usize = 248;

/// What one slot counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// 0 never used, 1 counting, 2 no longer watched (its numbers stay).
    pub state: u16,
    /// Bytes of `text` in use.
    pub text_len: u16,
    /// Zero.
    pub reserved: u32,
    /// The group as `--ports` writes it: `443,8443/tcp=web`, UTF-8.
    pub text: [u8; GROUP_TEXT],
    /// What the slot's counters stood at when this group got it: not this group's.
    pub baseline: [Counters; LANES as usize],
}

impl Default for Group {
    fn default() -> Self {
        Self {
            state: state::FREE,
            text_len: 0,
            reserved: 0,
            text: [0; GROUP_TEXT],
            baseline: [Counters::default(); LANES as usize],
        }
    }
}

impl Group {
    /// Size in the map.
    pub const SIZE: usize = size_of::<Self>();
    const BASELINE: usize = 8 + GROUP_TEXT;

    /// An active group. `None` when the text is longer than [`GROUP_TEXT`].
    pub fn active(text: &str, baseline: [Counters; LANES as usize]) -> Option<Self> {
        let mut group = Self { state: state::ACTIVE, baseline, ..Self::default() };
        group.text.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        group.text_len = u16::try_from(text.len()).ok()?;
        Some(group)
    }

    /// The group as `--ports` writes it; `None` when the bytes are no text.
    pub fn text(&self) -> Option<&str> {
        core::str::from_utf8(self.text.get(..usize::from(self.text_len))?).ok()
    }

    /// The map's bytes, in the byte order of this machine.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put(&mut bytes, 0, &self.state.to_ne_bytes());
        put(&mut bytes, 2, &self.text_len.to_ne_bytes());
        put(&mut bytes, 8, &self.text);
        for (n, counters) in self.baseline.iter().enumerate() {
            put(&mut bytes, Self::BASELINE + n * Counters::SIZE, &counters.to_bytes());
        }
        bytes
    }

    /// From a map's bytes.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [s0, s1, l0, l1, ..] = *bytes;
        let mut group = Self {
            state: u16::from_ne_bytes([s0, s1]),
            text_len: u16::from_ne_bytes([l0, l1]),
            ..Self::default()
        };
        if let Some(text) = bytes.get(8..8 + GROUP_TEXT) {
            group.text.copy_from_slice(text);
        }
        for (n, counters) in group.baseline.iter_mut().enumerate() {
            let at = Self::BASELINE + n * Counters::SIZE;
            if let Some(value) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
                *counters = Counters::from_bytes(value);
            }
        }
        group
    }
}

/// Values of [`Group::state`].
pub mod state {
    /// Never used in this epoch.
    pub const FREE: u16 = 0;
    /// A group is counted here.
    pub const ACTIVE: u16 = 1;
    /// The group is no longer watched; its numbers stay until the slot is needed.
    pub const RETIRED: u16 = 2;
}

const _: () = {
    assert!(size_of::<Counters>() == 32 && align_of::<Counters>() == 8);
    assert!(size_of::<FragmentKey>() == 40 && align_of::<FragmentKey>() == 4);
    assert!(size_of::<Meta>() == 80 && align_of::<Meta>() == 8);
    assert!(size_of::<Group>() == 384 && align_of::<Group>() == 8);
    assert!(PORT_SLOTS * size_of::<u16>() == 256 * 1024);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_in_the_order_of_their_names() {
        let names = [(false, false), (false, true), (true, false), (true, true)]
            .map(|(udp, ipv6)| LANE_NAMES[usize::from(lane(udp, ipv6))]);
        assert_eq!(names, LANE_NAMES);
    }

    #[test]
    fn every_port_of_both_transports_has_an_index_of_its_own() {
        assert_eq!(port_index(false, 0), 0);
        assert_eq!(port_index(false, 65_535), 65_535);
        assert_eq!(port_index(true, 0), 65_536);
        assert_eq!(port_index(true, 65_535), PORT_SLOTS - 1);
    }

    #[test]
    fn counters_are_read_in_the_order_of_their_fields() {
        let mut bytes = [0; 32];
        for (value, word) in (1u64..).zip(bytes.chunks_exact_mut(8)) {
            word.copy_from_slice(&value.to_ne_bytes());
        }
        let counters = Counters::from_bytes(&bytes);
        let want =
            Counters { input_bytes: 1, input_packets: 2, output_bytes: 3, output_packets: 4 };
        assert_eq!(counters, want);
        assert_eq!(counters.plus(want).minus(want), want);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let meta = Meta {
            magic: MAGIC,
            abi: 2,
            epoch: 3,
            boot: 4,
            since: 5,
            slots: 6,
            stripes: 7,
            lanes: 8,
            counter_size: 9,
            slots_used: 10,
            reasons: 11,
            hook: 12,
            group_size: 13,
            netns: 14,
            carry: 15,
            gap: 16,
        };
        assert_eq!(Meta::from_bytes(&meta.to_bytes()), meta);
        let counters =
            Counters { input_bytes: 1, input_packets: 2, output_bytes: 3, output_packets: 4 };
        let group = Group::active("443/tcp=web", [counters; 4]).unwrap();
        assert_eq!(Group::from_bytes(&group.to_bytes()), group);
        assert_eq!(group.text(), Some("443/tcp=web"));
        assert_eq!(Group::active(&"x".repeat(GROUP_TEXT + 1), [counters; 4]), None);
    }

    #[test]
    fn program_names_fit_what_the_kernel_keeps() {
        assert!(programs::ALL.iter().all(|name| name.len() <= 15));
    }

    #[test]
    fn stripes_do_not_overlap() {
        assert_eq!(counter_index(0, 10, 9, PARTS - 1) + 1, counter_index(1, 10, 0, 0));
        assert_eq!((part(0, false), part(3, true)), (0, PARTS - 1));
    }
}
