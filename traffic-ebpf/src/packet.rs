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

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

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
        self.size != 0 || self.segments > 1
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentOf {
    id: u32,
    protocol: u8,
    ipv6: bool,
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
    match link {
        Link::Ethernet => ethernet(pkt, offload),
        Link::Bare => {
            let [first] = pkt.read(0).ok_or(Truncated)?;
            match first >> 4 {
                4 => ipv4(pkt, 0, offload),
                6 => ipv6(pkt, 0, offload),
                _ => Ok(skipped(skip::OTHER, pkt.len())),
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

#[inline(always)]
fn ethernet(pkt: &impl PacketReader, offload: Offload) -> Result<Parsed, Truncated> {
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
        ETHERTYPE_IPV4 => ipv4(pkt, l3, offload),
        ETHERTYPE_IPV6 => ipv6(pkt, l3, offload),
        _ => Ok(skipped(skip::OTHER, pkt.len().saturating_sub(l3))),
    }
}

#[inline(always)]
fn ipv4(pkt: &impl PacketReader, l3: usize, offload: Offload) -> Result<Parsed, Truncated> {
    let header: [u8; IPV4_LEAST] = pkt.read(l3).ok_or(Truncated)?;
    let present = pkt.len().saturating_sub(l3);
    // The header length comes from the packet, not from `size_of`: options move the ports.
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let length = if total == 0 || offload.in_use() {
        present
    } else {
        total
    };
    if header[0] >> 4 != 4 || header_len < IPV4_LEAST || length < header_len || length > present {
        return Ok(skipped(skip::MALFORMED, present));
    }
    let protocol = header[9];
    if protocol != TCP && protocol != UDP {
        return Ok(skipped(skip::OTHER, length));
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    // More-fragments flag and offset; the don't-fragment flag does not matter.
    let place = if fragment & 0x3fff == 0 {
        Place::Whole
    } else {
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let of = FragmentOf {
            id,
            protocol,
            ipv6: false,
            addresses: l3 + 12,
        };
        if fragment & 0x1fff == 0 {
            Place::First(of)
        } else {
            Place::Later(of)
        }
    };
    transport(
        pkt,
        protocol,
        Ip {
            l3,
            header_len,
            length,
            unseen: 0,
            ipv6: false,
            place,
        },
        offload,
    )
}

#[inline(always)]
fn ipv6(pkt: &impl PacketReader, l3: usize, offload: Offload) -> Result<Parsed, Truncated> {
    let [version, ..] = pkt.read::<1>(l3).ok_or(Truncated)?;
    let [high, low, mut next] = pkt.read(l3 + 4).ok_or(Truncated)?;
    // The addresses are not looked at, but they must be there.
    let [_] = pkt.read(l3 + IPV6_HEADER - 1).ok_or(Truncated)?;
    let present = pkt.len().saturating_sub(l3);
    let payload = usize::from(u16::from_be_bytes([high, low]));
    // A payload of 0 is a jumbo packet only where one can be; else it says what it says.
    let length = if offload.in_use() || (payload == 0 && next == HOP_BY_HOP) {
        present
    } else {
        IPV6_HEADER + payload
    };
    if version >> 4 != 6 || length < IPV6_HEADER || length > present {
        return Ok(skipped(skip::MALFORMED, present));
    }
    // Bytes of the skb that do not go over the wire.
    let unseen = if payload == 0 && next == HOP_BY_HOP && offload.in_use() {
        JUMBO_HEADER
    } else {
        0
    };

    let mut at = l3 + IPV6_HEADER;
    let mut place = Place::Whole;
    for _ in 0..=MAX_EXTENSIONS {
        let followed = matches!(
            next,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT
        );
        // What follows a later fragment's header is payload, whatever it looks like.
        if matches!(next, TCP | UDP) || followed && matches!(place, Place::Later(_)) {
            let ip = Ip {
                l3,
                header_len: at - l3,
                length,
                unseen,
                ipv6: true,
                place,
            };
            return transport(pkt, next, ip, offload);
        }
        if !followed {
            return Ok(skipped(skip::OTHER, length));
        }
        let header: [u8; 2] = pkt.read(at).ok_or(Truncated)?;
        let size = match next {
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            FRAGMENT => {
                let rest: [u8; 6] = pkt.read(at + 2).ok_or(Truncated)?;
                place = fragment6(l3, header[0], rest, place);
                8
            }
            _ => (usize::from(header[1]) + 1) * 8,
        };
        at += size;
        next = header[0];
    }
    Ok(skipped(skip::OTHER, length))
}

/// What an IPv6 fragment header says. `rest` are its last six bytes.
#[inline(always)]
fn fragment6(l3: usize, protocol: u8, rest: [u8; 6], before: Place) -> Place {
    let offset = u16::from_be_bytes([rest[0], rest[1]]);
    let id = u32::from_be_bytes([rest[2], rest[3], rest[4], rest[5]]);
    let of = FragmentOf {
        id,
        protocol,
        ipv6: true,
        addresses: l3 + 8,
    };
    match offset {
        // An atomic fragment is the whole datagram: nothing comes after it.
        _ if offset & 0xfff9 == 0 => before,
        _ if offset & 0xfff8 == 0 => Place::First(of),
        _ => Place::Later(of),
    }
}

/// What is known of a packet once its IP headers are read.
struct Ip {
    l3: usize,
    /// IP header with its options or extension headers.
    header_len: usize,
    /// Layer-3 bytes in the skb.
    length: usize,
    /// Bytes of those that never go over the wire.
    unseen: usize,
    ipv6: bool,
    place: Place,
}

#[inline(always)]
fn transport(
    pkt: &impl PacketReader,
    protocol: u8,
    ip: Ip,
    offload: Offload,
) -> Result<Parsed, Truncated> {
    let Ip {
        l3,
        header_len,
        length,
        unseen,
        ipv6,
        place,
    } = ip;
    let bytes = (length - unseen) as u64;
    // Cannot be in IPv4; in IPv6 the headers may be longer than the payload that they are part of.
    if length < header_len {
        return Ok(skipped(skip::MALFORMED, length));
    }
    if let Place::Later(_) = place {
        let amount = Amount { bytes, packets: 1 };
        let flow = Flow {
            lane: 0,
            source_port: 0,
            destination_port: 0,
            place,
            amount,
        };
        return Ok(Parsed::Flow(flow));
    }
    if length < header_len + L4_LEAST {
        return Ok(skipped(skip::MALFORMED, length));
    }
    let l4 = l3 + header_len;
    let [s0, s1, d0, d1, ..] = pkt.read::<L4_LEAST>(l4).ok_or(Truncated)?;
    let udp = protocol == UDP;

    let mut amount = Amount { bytes, packets: 1 };
    if offload.in_use() {
        let (least, l4_len) = if udp {
            (L4_LEAST, L4_LEAST)
        } else {
            let [offset] = pkt.read(l4 + 12).ok_or(Truncated)?;
            (TCP_LEAST, usize::from(offset >> 4) * 4)
        };
        // Segments cannot be told from a header that contradicts itself.
        if l4_len < least || length < header_len + l4_len {
            return Ok(skipped(skip::MALFORMED, length));
        }
        let headers = (header_len - unseen + l4_len) as u64;
        amount.packets = offload.count(bytes - headers);
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
    let FragmentOf {
        id,
        protocol,
        ipv6,
        addresses,
    } = of;
    let (source, destination) = if ipv6 {
        (
            pkt.read(addresses).ok_or(Truncated)?,
            pkt.read(addresses + 16).ok_or(Truncated)?,
        )
    } else {
        let [s0, s1, s2, s3, d0, d1, d2, d3] = pkt.read(addresses).ok_or(Truncated)?;
        let wide = |a, b, c, d| [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        (wide(s0, s1, s2, s3), wide(d0, d1, d2, d3))
    };
    let family = if ipv6 { 6 } else { 4 };
    Ok(FragmentKey {
        source,
        destination,
        id,
        protocol,
        family,
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
    Parsed::Skip {
        reason,
        amount: Amount {
            bytes: bytes as u64,
            packets: 1,
        },
    }
}

#[cfg(test)]
mod tests;
