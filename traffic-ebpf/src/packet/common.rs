//! The commonest packets, in few steps.
//!
//! [`parse`](super::parse) answers for every packet there can be, and what it carries along for the
//! rare ones costs the others more than all the rest of the accounting. So whole datagrams of TCP and
//! UDP, behind one VLAN tag, IPv4 options or two extension headers at most, are looked at here first.
//! It is a shorter way to the same answer and never another answer: what is in any doubt is left to
//! `parse`.
//!
//! Each kind goes its own way to the very end, with everything that is known of it in the code and
//! not in registers. That is why the answer is handed to a [`Taker`]: a value that is returned would
//! join the ways again.

use core::hint::cold_path;

use super::{
    Amount, DESTINATION_OPTIONS, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ,
    ETHERTYPE_VLAN, HOP_BY_HOP, IPV4_LEAST, IPV6_HEADER, L4_LEAST, Link, Offload, ROUTING, TCP,
    TCP_LEAST, UDP, VLAN_TAG,
};
use crate::abi;

/// Two bytes of a packet: a number in network order, or two numbers.
pub type Pair = [u8; 2];

/// What must be there of a transport header.
type Transport = [Pair; L4_LEAST / 2];
/// An IPv4 header without options, and what must be there behind it.
type Ipv4 = [Pair; (IPV4_LEAST + L4_LEAST) / 2];
/// The same behind its ethertype.
type Tagged = [Pair; 1 + (IPV4_LEAST + L4_LEAST) / 2];
/// An IPv6 header, and what must be there behind it.
type Ipv6 = [Pair; (IPV6_HEADER + L4_LEAST) / 2];

/// Version 4, and a header of five words.
const WITHOUT_OPTIONS: u8 = 0x45;

/// The beginning of a packet that lies in one piece and is looked at where it is.
pub trait InPlace {
    /// `N` pairs from `offset`, or `None` when the piece ends before that.
    fn pairs<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]>;

    /// The same at an offset that depends on what the packet says.
    fn pairs_behind<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]>;

    /// A pair of this packet as one word, in the order in which the bytes lie.
    fn word(&self, pair: &Pair) -> u16;

    /// The number that a pair of this packet is.
    #[inline(always)]
    fn number(&self, pair: &Pair) -> usize {
        usize::from(u16::from_be(self.word(pair)))
    }

    /// Length of the whole packet from its first byte, as the kernel states it.
    fn whole_len(&self) -> usize;
}

impl InPlace for &[u8] {
    #[inline]
    fn pairs<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.get(offset..)?.as_chunks().0.first_chunk()
    }

    #[inline]
    fn pairs_behind<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.pairs(offset)
    }

    #[inline]
    fn word(&self, pair: &Pair) -> u16 {
        u16::from_ne_bytes(*pair)
    }

    #[inline]
    fn whole_len(&self) -> usize {
        self.len()
    }
}

/// A whole datagram of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'p> {
    /// See [`abi::lane`].
    pub lane: u8,
    /// Where its source port stands.
    pub source_port: &'p Pair,
    /// Where its destination port stands.
    pub destination_port: &'p Pair,
    /// How much it is.
    pub amount: Amount,
}

/// What the answer is given to. A trait, because a closure cannot be told to be inlined.
pub trait Taker {
    /// Called at most once.
    fn take(&self, datagram: Datagram<'_>);
}

/// Gives `taker` what [`parse`](super::parse) would answer, if the packet is like most. `None` if it
/// is not, and nothing was given then.
#[inline(always)]
pub fn common(pkt: &impl InPlace, link: Link, offload: Offload, taker: &impl Taker) -> Option<()> {
    // Not `in_use`: here the first of two comparisons decides for almost every packet.
    if offload.segments > 1 || offload.size != 0 {
        cold_path();
        // How many they are is to be worked out.
        if offload.segments == 0 {
            return None;
        }
        locate(pkt, link, Some(offload.segments), taker)
    } else {
        locate(pkt, link, None, taker)
    }
}

/// `segments` is `None` for what is one packet on the wire.
#[inline(always)]
fn locate(pkt: &impl InPlace, link: Link, segments: Option<u32>, taker: &impl Taker) -> Option<()> {
    match link {
        Link::Ethernet => {
            let [ethertype, ip @ ..]: &Tagged = pkt.pairs(ETHERNET_HEADER - 2)?;
            let ethertype = pkt.word(ethertype);
            let way = Way { pkt, l3: ETHERNET_HEADER, segments, taker };
            if ethertype == ETHERTYPE_IPV4.to_be() {
                return way.ipv4(ip);
            }
            if ethertype == ETHERTYPE_IPV6.to_be() {
                return way.ipv6();
            }
            cold_path();
            if ethertype != ETHERTYPE_VLAN.to_be() && ethertype != ETHERTYPE_QINQ.to_be() {
                return None;
            }
            let l3 = way.l3 + VLAN_TAG;
            let [ethertype, ip @ ..]: &Tagged = pkt.pairs(l3 - 2)?;
            let ethertype = pkt.word(ethertype);
            let way = Way { l3, ..way };
            if ethertype == ETHERTYPE_IPV4.to_be() {
                way.ipv4(ip)
            } else if ethertype == ETHERTYPE_IPV6.to_be() {
                way.ipv6()
            } else {
                None
            }
        }
        Link::Bare => {
            let ip: &Ipv4 = pkt.pairs(0)?;
            let way = Way { pkt, l3: 0, segments, taker };
            match ip[0][0] >> 4 {
                4 => way.ipv4(ip),
                6 => way.ipv6(),
                _ => None,
            }
        }
    }
}

/// What is known before the IP header is looked at.
struct Way<'p, P, T> {
    pkt: &'p P,
    l3: usize,
    segments: Option<u32>,
    taker: &'p T,
}

/// What the IP headers say.
#[derive(Clone, Copy)]
struct Ip<'p> {
    ipv6: bool,
    /// With options or extension headers.
    header_len: usize,
    /// Layer-3 bytes as the header states them; 0 where it does not.
    stated: usize,
    transport: &'p Transport,
}

impl<'p, P: InPlace, T: Taker> Way<'p, P, T> {
    #[inline(always)]
    fn ipv4(&self, ip: &'p Ipv4) -> Option<()> {
        // More-fragments flag and offset.
        if self.pkt.word(&ip[3]) & 0x3fff_u16.to_be() != 0 {
            cold_path();
            return None;
        }
        let (stated, next) = (self.pkt.number(&ip[1]), usize::from(ip[4][1]));
        let first = ip[0][0];
        if first == WITHOUT_OPTIONS {
            let transport = ip.last_chunk()?;
            let ip = Ip { ipv6: false, header_len: IPV4_LEAST, stated, transport };
            return self.transport(next, ip);
        }
        cold_path();
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < IPV4_LEAST {
            return None;
        }
        let transport = self.pkt.pairs_behind(self.l3 + header_len)?;
        self.transport(next, Ip { ipv6: false, header_len, stated, transport })
    }

    #[inline(always)]
    fn ipv6(&self) -> Option<()> {
        let ip: &Ipv6 = self.pkt.pairs(self.l3)?;
        let payload = self.pkt.number(&ip[2]);
        // Without a length it may be a jumbo packet.
        if ip[0][0] >> 4 != 6 || payload == 0 {
            return None;
        }
        let stated = IPV6_HEADER + payload;
        let next = usize::from(ip[3][0]);
        let behind: &Transport = ip.last_chunk()?;
        let ip = Ip { ipv6: true, header_len: IPV6_HEADER, stated, transport: behind };
        if next == TCP {
            return self.tcp(ip);
        }
        if next == UDP {
            return self.udp(ip);
        }
        cold_path();
        if next != HOP_BY_HOP && next != DESTINATION_OPTIONS && next != ROUTING {
            return None;
        }
        let (next, ip) = self.behind_extension(ip)?;
        if next == TCP || next == UDP {
            return self.transport(next, ip);
        }
        // Hop-by-hop options come first, where there are any.
        if next != DESTINATION_OPTIONS && next != ROUTING {
            return None;
        }
        let (next, ip) = self.behind_extension(ip)?;
        self.transport(next, ip)
    }

    /// What comes behind the extension header that stands where a transport header could.
    #[inline(always)]
    fn behind_extension(&self, ip: Ip<'p>) -> Option<(usize, Ip<'p>)> {
        let [[next, length], ..] = *ip.transport;
        let header_len = ip.header_len + 8 + usize::from(length) * 8;
        let transport = self.pkt.pairs_behind(self.l3 + header_len)?;
        Some((usize::from(next), Ip { header_len, transport, ..ip }))
    }

    #[inline(always)]
    fn transport(&self, next: usize, ip: Ip<'p>) -> Option<()> {
        match next {
            TCP => self.tcp(ip),
            UDP => self.udp(ip),
            _ => None,
        }
    }

    #[inline(always)]
    fn tcp(&self, ip: Ip<'p>) -> Option<()> {
        let amount = match self.segments {
            None => self.one(ip)?,
            Some(segments) => {
                let [[offset, _]] = *self.pkt.pairs_behind(self.l3 + ip.header_len + 12)?;
                let l4_len = usize::from(offset >> 4) * 4;
                if l4_len < TCP_LEAST {
                    return None;
                }
                self.several(ip, segments, l4_len)?
            }
        };
        self.found(false, ip, amount)
    }

    #[inline(always)]
    fn udp(&self, ip: Ip<'p>) -> Option<()> {
        let amount = match self.segments {
            None => self.one(ip)?,
            Some(segments) => self.several(ip, segments, L4_LEAST)?,
        };
        self.found(true, ip, amount)
    }

    /// The amount of one packet.
    #[inline(always)]
    fn one(&self, ip: Ip<'p>) -> Option<Amount> {
        // The least that it may state and the most, in one comparison: what is too little is a very
        // large number here. As much as the least was seen, so the packet is not shorter than that.
        let least = ip.header_len + L4_LEAST;
        if ip.stated.wrapping_sub(least) > self.pkt.whole_len().wrapping_sub(self.l3 + least) {
            cold_path();
            return None;
        }
        Some(Amount { bytes: ip.stated as u64, packets: 1 })
    }

    /// The amount of so many segments.
    #[inline(always)]
    fn several(&self, ip: Ip<'p>, segments: u32, l4_len: usize) -> Option<Amount> {
        let present = self.pkt.whole_len().wrapping_sub(self.l3);
        let headers = ip.header_len + l4_len;
        if present < headers {
            return None;
        }
        let packets = u64::from(segments);
        Some(Amount { bytes: present as u64 + (packets - 1) * headers as u64, packets })
    }

    #[inline(always)]
    fn found(&self, udp: bool, ip: Ip<'p>, amount: Amount) -> Option<()> {
        let [source_port, destination_port, ..] = ip.transport;
        let lane = abi::lane(udp, ip.ipv6);
        self.taker.take(Datagram { lane, source_port, destination_port, amount });
        Some(())
    }
}
