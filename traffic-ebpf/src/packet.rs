//! From the bytes of one socket buffer to what it is charged to, and how much.
//!
//! A pure function over a [`PacketReader`]: the kernel side lends it an skb, tests and fuzzers lend
//! it a slice, and both get the same answer.
//!
//! # What a byte is
//!
//! Bytes are **layer-3 bytes as they go over the wire**, packets are **wire packets**. With
//! segmentation offload one skb stands for many wire packets, each with its own copy of the headers:
//!
//! ```text
//! segments = gso_segs, or ceil(payload / gso_size) when gso_segs is 0 and gso_size is not, else 1
//! bytes    = l3_length + (segments - 1) * (l3 header + l4 header)
//! packets  = segments
//! ```
//!
//! `l3_length` is what the IP header says, so Ethernet's padding of short frames is not counted. Where
//! it says 0 (BIG TCP) or the skb is to be segmented, it is the skb's own length from the IP header on.

use crate::abi::{self, FragmentKey, skip};

/// Headers between IPv6's own and the transport's that are followed; a packet with more is `other`.
pub const MAX_EXTENSIONS: usize = 8;

/// Bytes of the transport header that must be there. A legal UDP datagram, TCP segment or first
/// fragment carries at least these.
const L4_LEAST: usize = 8;
/// A whole TCP header without options.
const TCP_LEAST: usize = 20;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERNET_HEADER: usize = 14;
const VLAN_TAG: usize = 4;

const TCP: usize = 6;
const UDP: usize = 17;
const HOP_BY_HOP: usize = 0;
const ROUTING: usize = 43;
const FRAGMENT: usize = 44;
const AUTHENTICATION: usize = 51;
const NO_NEXT_HEADER: usize = 59;
const DESTINATION_OPTIONS: usize = 60;

const IPV4_LEAST: usize = 20;
const IPV6_HEADER: usize = 40;
/// Hop-by-hop header that carries nothing but the jumbo length. Linux puts it into BIG TCP skbs and
/// takes it out again when it cuts them up, so it never goes over the wire.
const JUMBO_HEADER: usize = 8;

/// Random access to the bytes of one packet.
pub trait PacketReader {
    /// Copies `N` bytes from `offset`, or returns `None` when the packet ends before that.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Length of the whole packet from its first byte, as the kernel states it.
    fn len(&self) -> usize;

    /// Whether there is nothing at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PacketReader for &[u8] {
    #[inline]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    #[inline]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// What the first byte of the packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header, then up to two VLAN tags.
    Ethernet,
    /// The IP header.
    Bare,
}

/// What the kernel says about the segments of one skb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `gso_segs`; may be 0 though there are several, on skbs from untrusted sources.
    pub segments: u32,
    /// `gso_size`: payload of each segment but the last.
    pub size: u32,
}

impl Offload {
    /// Whether the skb will be, or was, several packets on the wire.
    #[inline(always)]
    const fn in_use(self) -> bool {
        // One comparison: two are two ways for the verifier, from here to the end.
        self.size | self.segments >> 1 != 0
    }

    /// Wire packets of an skb with this payload, in bytes.
    #[inline(always)]
    const fn count(self, payload: u64) -> u64 {
        if self.segments != 0 {
            return self.segments as u64;
        }
        if self.size == 0 || payload == 0 {
            return 1;
        }
        payload.div_ceil(self.size as u64)
    }
}

/// How much one skb is on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Layer-3 bytes.
    pub bytes: u64,
    /// Wire packets.
    pub packets: u64,
}

/// Where in its datagram the packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not fragmented.
    Whole,
    /// First fragment: has the ports, and later ones will need them.
    First(FragmentOf),
    /// Later fragment: has no ports.
    Later(FragmentOf),
}

/// What the datagram of a fragment is recognised by, apart from the addresses.
///
/// Every field is as wide as a register: see [`Chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentOf {
    id: usize,
    protocol: usize,
    family: usize,
    addresses: usize,
}

/// A packet that belongs to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// See [`abi::lane`]. Without meaning in a later fragment: the first one's counts.
    pub lane: u8,
    /// Zero in a later fragment.
    pub source_port: u16,
    /// Zero in a later fragment.
    pub destination_port: u16,
    /// Where in its datagram.
    pub place: Place,
    /// How much it is.
    pub amount: Amount,
}

/// The answer for one skb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// TCP or UDP.
    Flow(Flow),
    /// Counted under a reason of [`skip`].
    Skip {
        /// [`skip::OTHER`] or [`skip::MALFORMED`].
        reason: u32,
        /// How much it is, as far as can be known.
        amount: Amount,
    },
}

/// The reader gave less than the headers need.
///
/// From a reader that sees the whole packet this means [`skip::MALFORMED`]; one that sees only the
/// linear part of an skb asks again with one that sees all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// Says what a packet is charged to, and how much.
///
/// # Errors
///
/// [`Truncated`] when a header that is needed cannot be read; see there for what it means.
///
/// # Examples
///
/// ```
/// use traffic_ebpf::packet::{Link, Offload, Parsed, parse};
///
/// let mut udp = [0u8; 28];
/// udp[0] = 0x45; // IPv4, header of 20 bytes
/// udp[3] = 28; // total length
/// udp[9] = 17; // UDP
/// udp[20..24].copy_from_slice(&[0, 53, 0x9c, 0x40]);
/// let Ok(Parsed::Flow(flow)) = parse(&&udp[..], Link::Bare, Offload::default()) else { panic!() };
/// assert_eq!((flow.source_port, flow.destination_port), (53, 40_000));
/// assert_eq!((flow.amount.bytes, flow.amount.packets), (28, 1));
/// ```
#[inline(always)]
pub fn parse(pkt: &impl PacketReader, link: Link, offload: Offload) -> Result<Parsed, Truncated> {
    // All ways meet in one place before anything is decided: each way that did not would be walked
    // to its end apart by the verifier.
    match locate(pkt, link)? {
        Located::Ip(ip) => finish(pkt, ip, offload),
        Located::Nothing { l3, reason } => Ok(skipped(reason, pkt.len().saturating_sub(l3))),
    }
}

#[inline(always)]
fn locate(pkt: &impl PacketReader, link: Link) -> Result<Located, Truncated> {
    match link {
        Link::Ethernet => ethernet(pkt),
        Link::Bare => {
            // Two bytes: the verifier learns nothing from a comparison that leaves room for one.
            let [first, _] = pkt.read(0).ok_or(Truncated)?;
            match first >> 4 {
                4 => ipv4(pkt, 0),
                6 => ipv6(pkt, 0),
                _ => Ok(Located::Nothing { l3: 0, reason: skip::OTHER }),
            }
        }
    }
}

/// The answer for a packet whose headers cannot be read even by a reader that sees all of it.
#[inline(always)]
pub fn truncated(pkt: &impl PacketReader, link: Link) -> Parsed {
    let l3 = match link {
        Link::Ethernet => ETHERNET_HEADER,
        Link::Bare => 0,
    };
    skipped(skip::MALFORMED, pkt.len().saturating_sub(l3))
}

/// What the headers up to the transport's say.
enum Located {
    Ip(Ip),
    /// No IP packet, or one that cannot be one.
    Nothing {
        l3: usize,
        reason: u32,
    },
}

/// What is known of a packet once its IP headers are read.
struct Ip {
    l3: usize,
    /// IP header with its options or extension headers.
    header_len: usize,
    /// Layer-3 bytes as the header states them; 0 where it does not.
    stated: usize,
    /// Protocol of what follows.
    next: usize,
    ipv6: bool,
    /// Begins with the header that only an skb to be segmented has.
    jumbo: bool,
    place: Place,
}

#[inline(always)]
fn ethernet(pkt: &impl PacketReader) -> Result<Located, Truncated> {
    let mut l3 = ETHERNET_HEADER;
    let mut ethertype = be16(pkt, l3 - 2)?;
    // At most two tags; one that the card took off is not in the packet at all.
    if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
        l3 += VLAN_TAG;
        ethertype = be16(pkt, l3 - 2)?;
        if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            l3 += VLAN_TAG;
            ethertype = be16(pkt, l3 - 2)?;
        }
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(pkt, l3),
        ETHERTYPE_IPV6 => ipv6(pkt, l3),
        _ => Ok(Located::Nothing { l3, reason: skip::OTHER }),
    }
}

#[inline(always)]
fn ipv4(pkt: &impl PacketReader, l3: usize) -> Result<Located, Truncated> {
    let header: [u8; IPV4_LEAST] = pkt.read(l3).ok_or(Truncated)?;
    // The header length comes from the packet, not from `size_of`: options move the ports.
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < IPV4_LEAST {
        return Ok(Located::Nothing { l3, reason: skip::MALFORMED });
    }
    let stated = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let next = usize::from(header[9]);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    // More-fragments flag and offset; the don't-fragment flag does not matter.
    let place = if fragment & 0x3fff == 0 {
        Place::Whole
    } else {
        let id = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let of = FragmentOf { id, protocol: next, family: 4, addresses: l3 + 12 };
        if fragment & 0x1fff == 0 { Place::First(of) } else { Place::Later(of) }
    };
    Ok(Located::Ip(Ip { l3, header_len, stated, next, ipv6: false, jumbo: false, place }))
}

#[inline(always)]
fn ipv6(pkt: &impl PacketReader, l3: usize) -> Result<Located, Truncated> {
    let [version, _] = pkt.read(l3).ok_or(Truncated)?;
    let [high, low, next] = pkt.read(l3 + 4).ok_or(Truncated)?;
    let next = usize::from(next);
    // The addresses are not looked at, but they must be there.
    let [_] = pkt.read(l3 + IPV6_HEADER - 1).ok_or(Truncated)?;
    if version >> 4 != 6 {
        return Ok(Located::Nothing { l3, reason: skip::MALFORMED });
    }
    let payload = usize::from(u16::from_be_bytes([high, low]));
    // A payload of 0 is a jumbo packet only where one can be; else it says what it says.
    let jumbo = payload == 0 && next == HOP_BY_HOP;
    let stated = if jumbo { 0 } else { IPV6_HEADER + payload };

    let mut chain = Chain { header_len: IPV6_HEADER, next, followed: 0 };
    chain.walk(pkt, l3)?;
    let mut place = Place::Whole;
    if chain.next == FRAGMENT {
        let (protocol, found) = fragment6(pkt, l3, l3 + chain.header_len)?;
        place = found;
        chain = Chain {
            header_len: chain.header_len + 8,
            next: protocol,
            followed: chain.followed + 1,
        };
        // What follows a later fragment's header is payload, whatever it looks like.
        if !matches!(place, Place::Later(_)) {
            chain.walk(pkt, l3)?;
        }
    }
    let Chain { header_len, mut next, followed } = chain;
    if followed > MAX_EXTENSIONS {
        next = NO_NEXT_HEADER;
    }
    Ok(Located::Ip(Ip { l3, header_len, stated, next, ipv6: true, jumbo, place }))
}

/// A walk along the extension headers of IPv6.
struct Chain {
    /// Bytes from the IP header on to where the walk stands.
    header_len: usize,
    /// Protocol of what stands there. As wide as a register, like all that is carried past a
    /// possible error: a narrower one is cut to size before it is known to be there, and the
    /// verifier refuses to touch what was never set.
    next: usize,
    /// Extension headers on the way.
    followed: usize,
}

impl Chain {
    /// Goes on to the first header that is a fragment's or no extension, or past as many as are
    /// followed.
    ///
    /// Every step is the same few instructions whatever the header is, and the masks give each
    /// result one range: what the verifier has seen once it does not walk again.
    #[inline(always)]
    fn walk(&mut self, pkt: &impl PacketReader, l3: usize) -> Result<(), Truncated> {
        for _ in 0..MAX_EXTENSIONS + 1 {
            let how = EXTENSION[self.next & 0xff];
            if how == 0 {
                break;
            }
            let header: [u8; 2] = pkt.read(l3 + self.header_len).ok_or(Truncated)?;
            let size = 8 + usize::from(header[1]) * usize::from(how & UNIT);
            // Neither mask ever cuts anything off: nine of the longest headers end before.
            self.header_len = (self.header_len + size) & 0x7ffc;
            self.followed = (self.followed + usize::from(how >> COUNT_SHIFT)) & 0x1f;
            self.next = usize::from(header[0]);
        }
        Ok(())
    }
}

/// What the IPv6 fragment header at `at` says: what follows it, and where the packet stands.
#[inline(always)]
fn fragment6(pkt: &impl PacketReader, l3: usize, at: usize) -> Result<(usize, Place), Truncated> {
    let [protocol, _, o0, o1, i0, i1, i2, i3] = pkt.read(at).ok_or(Truncated)?;
    let protocol = usize::from(protocol);
    let offset = u16::from_be_bytes([o0, o1]);
    let id =
        usize::from(u16::from_be_bytes([i0, i1])) << 16 | usize::from(u16::from_be_bytes([i2, i3]));
    let of = FragmentOf { id, protocol, family: 6, addresses: l3 + 8 };
    let place = match offset {
        // An atomic fragment is the whole datagram: nothing comes after it.
        _ if offset & 0xfff9 == 0 => Place::Whole,
        _ if offset & 0xfff8 == 0 => Place::First(of),
        _ => Place::Later(of),
    };
    Ok((protocol, place))
}

/// Bits of [`EXTENSION`]: bytes that one unit of the length field stands for. More bits than any unit
/// needs, so that the verifier takes every product for possible.
const UNIT: u16 = 0x0fff;
/// Above these bits stands how many headers it counts for: one.
const COUNT_SHIFT: u32 = 12;
const ONE: u16 = 1 << COUNT_SHIFT;

/// How the length of an extension header is read, by its protocol number; 0 is none that is followed
/// like the others. A table and not a `match`: a header of any kind is then one way through the
/// program, where eight in a row would be thousands.
static EXTENSION: [u16; 256] = {
    let mut table = [0; 256];
    table[HOP_BY_HOP] = ONE | 8;
    table[ROUTING] = ONE | 8;
    table[DESTINATION_OPTIONS] = ONE | 8;
    table[AUTHENTICATION] = ONE | 4;
    table
};

/// How long the packet is on the wire, and which ports it has.
#[inline(always)]
fn finish(pkt: &impl PacketReader, ip: Ip, offload: Offload) -> Result<Parsed, Truncated> {
    let Ip { l3, header_len, stated, next, ipv6, jumbo, place } = ip;
    let present = pkt.len().saturating_sub(l3);
    let length = if stated == 0 || offload.in_use() { present } else { stated };
    if length > present || (!ipv6 && length < header_len) {
        return Ok(skipped(skip::MALFORMED, present));
    }
    // The extension headers of IPv6 are a part of the payload, and may claim more than there is.
    if length < header_len {
        return Ok(skipped(skip::MALFORMED, length));
    }
    // Bytes of the skb that do not go over the wire.
    let unseen = if jumbo && offload.in_use() { JUMBO_HEADER } else { 0 };
    let bytes = (length - unseen) as u64;
    let carries_ports = matches!(next, TCP | UDP);
    if let Place::Later(_) = place {
        // In IPv6 the transport may still be hidden behind what the first fragment holds.
        if !carries_ports && !(ipv6 && (next == FRAGMENT || EXTENSION[next & 0xff] != 0)) {
            return Ok(skipped(skip::OTHER, length));
        }
        let amount = Amount { bytes, packets: 1 };
        let flow = Flow { lane: 0, source_port: 0, destination_port: 0, place, amount };
        return Ok(Parsed::Flow(flow));
    }
    if !carries_ports {
        return Ok(skipped(skip::OTHER, length));
    }
    if length < header_len + L4_LEAST {
        return Ok(skipped(skip::MALFORMED, length));
    }
    let l4 = l3 + header_len;
    let [s0, s1, d0, d1, ..] = pkt.read::<L4_LEAST>(l4).ok_or(Truncated)?;
    let udp = next == UDP;

    let mut amount = Amount { bytes, packets: 1 };
    if offload.in_use() {
        let (least, l4_len) = if udp {
            (L4_LEAST, L4_LEAST)
        } else {
            let [offset] = pkt.read(l4 + 12).ok_or(Truncated)?;
            (TCP_LEAST, usize::from(offset >> 4) * 4)
        };
        // Each segment repeats the header, so it must be known how long it is.
        if l4_len < least || length < header_len + l4_len {
            return Ok(skipped(skip::MALFORMED, length));
        }
        let headers = (header_len - unseen + l4_len) as u64;
        amount.packets = offload.count(bytes.saturating_sub(headers));
        amount.bytes = bytes + (amount.packets - 1) * headers;
    }
    Ok(Parsed::Flow(Flow {
        lane: abi::lane(udp, ipv6),
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
        place,
        amount,
    }))
}

/// Identifies the datagram of a fragment. `direction` as in [`FragmentKey`].
#[inline(always)]
pub fn fragment_key(
    pkt: &impl PacketReader,
    of: FragmentOf,
    direction: u8,
) -> Result<FragmentKey, Truncated> {
    let FragmentOf { id, protocol, family, addresses } = of;
    let (source, destination) = if family == 6 {
        (pkt.read(addresses).ok_or(Truncated)?, pkt.read(addresses + 16).ok_or(Truncated)?)
    } else {
        let [s0, s1, s2, s3, d0, d1, d2, d3] = pkt.read(addresses).ok_or(Truncated)?;
        let wide = |a, b, c, d| [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        (wide(s0, s1, s2, s3), wide(d0, d1, d2, d3))
    };
    let [i0, i1, i2, i3, ..] = id.to_le_bytes();
    Ok(FragmentKey {
        source,
        destination,
        id: u32::from_le_bytes([i0, i1, i2, i3]),
        protocol: protocol.to_le_bytes()[0],
        family: family.to_le_bytes()[0],
        direction,
        reserved: 0,
    })
}

#[inline(always)]
fn be16(pkt: &impl PacketReader, offset: usize) -> Result<u16, Truncated> {
    pkt.read(offset).map(u16::from_be_bytes).ok_or(Truncated)
}

#[inline(always)]
fn skipped(reason: u32, bytes: usize) -> Parsed {
    Parsed::Skip { reason, amount: Amount { bytes: bytes as u64, packets: 1 } }
}

mod common;

pub use common::{Datagram, InPlace, Pair, Taker, common};

#[cfg(test)]
mod tests;
