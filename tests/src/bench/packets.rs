//! The packets that are measured, byte by byte.

/// The port that is hit, on both sides of every packet, so that programs for both directions find it.
pub const HIT: u16 = 29_999;
/// A port that is not watched when only [`HIT`] is.
const OTHER: u16 = 7;
/// Bytes behind the transport header.
const PAYLOAD: usize = 64;
/// Bytes of it in each of the segments of one that is cut in eight.
const SEGMENT: u32 = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packet {
    /// The commonest.
    Tcp4,
    /// UDP over IPv4.
    Udp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv6.
    Udp6,
    /// TCP over IPv4 with options in the IP header.
    Options4,
    /// TCP over IPv6 behind hop-by-hop and destination options.
    Extensions6,
    /// TCP over IPv4 behind a VLAN tag.
    Vlan,
    /// TCP over IPv4, eight segments in one skb.
    Segments,
    /// TCP over IPv4 to a port that is not watched.
    Unwatched,
    /// ICMP over IPv4.
    Icmp,
    /// ARP.
    Arp,
    /// UDP over IPv4, first fragment.
    FirstFragment,
    /// UDP over IPv4, later fragment of the same datagram.
    LaterFragment,
}

impl Packet {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 13] = [
        Self::Tcp4,
        Self::Udp4,
        Self::Tcp6,
        Self::Udp6,
        Self::Options4,
        Self::Extensions6,
        Self::Vlan,
        Self::Segments,
        Self::Unwatched,
        Self::Icmp,
        Self::Arp,
        Self::FirstFragment,
        Self::LaterFragment,
    ];

    /// For people and for the JSON report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "TCP/IPv4",
            Self::Udp4 => "UDP/IPv4",
            Self::Tcp6 => "TCP/IPv6",
            Self::Udp6 => "UDP/IPv6",
            Self::Options4 => "TCP/IPv4 with IP options",
            Self::Extensions6 => "TCP/IPv6 behind two extension headers",
            Self::Vlan => "TCP/IPv4 in a VLAN",
            Self::Segments => "TCP/IPv4, GSO of 8",
            Self::Unwatched => "TCP/IPv4, not watched",
            Self::Icmp => "ICMP",
            Self::Arp => "ARP",
            Self::FirstFragment => "UDP/IPv4, first fragment",
            Self::LaterFragment => "UDP/IPv4, later fragment",
        }
    }

    /// Whether it is added to a watched group without looking into the table of fragments.
    pub const fn is_counted_whole(self) -> bool {
        match self {
            Self::Tcp4
            | Self::Udp4
            | Self::Tcp6
            | Self::Udp6
            | Self::Options4
            | Self::Extensions6
            | Self::Vlan
            | Self::Segments => true,
            Self::Unwatched
            | Self::Icmp
            | Self::Arp
            | Self::FirstFragment
            | Self::LaterFragment => false,
        }
    }

    /// Whether it can be seen without its link header.
    pub const fn has_ip(self) -> bool {
        !matches!(self, Self::Arp | Self::Vlan)
    }

    /// `gso_segs` and `gso_size` of its skb.
    pub const fn gso(self) -> (u32, u32) {
        match self {
            Self::Segments => (8, SEGMENT),
            _ => (0, 0),
        }
    }

    /// With an Ethernet header, or, with `bare`, from the IP header on.
    pub fn bytes(self, bare: bool) -> Vec<u8> {
        let (ethertype, body) = match self {
            Self::Tcp4 | Self::Segments => (0x0800, ipv4(TCP, 0, &[], &tcp(HIT))),
            Self::Udp4 => (0x0800, ipv4(UDP, 0, &[], &udp(HIT))),
            Self::Tcp6 => (0x86dd, ipv6(TCP, &[], &tcp(HIT))),
            Self::Udp6 => (0x86dd, ipv6(UDP, &[], &udp(HIT))),
            // Router alert, then the end of the list.
            Self::Options4 => (0x0800, ipv4(TCP, 0, &[148, 4, 0, 0, 0, 0, 0, 0], &tcp(HIT))),
            Self::Extensions6 => (0x86dd, ipv6(TCP, &[0, 60], &tcp(HIT))),
            Self::Vlan => {
                let mut tagged = vec![0, 42, 0x08, 0x00];
                tagged.extend(ipv4(TCP, 0, &[], &tcp(HIT)));
                (0x8100, tagged)
            }
            Self::Unwatched => (0x0800, ipv4(TCP, 0, &[], &tcp(OTHER))),
            Self::Icmp => (0x0800, ipv4(1, 0, &[], &[8; 16 + PAYLOAD])),
            Self::Arp => (0x0806, vec![0; 46]),
            Self::FirstFragment => (0x0800, ipv4(UDP, 0x2000, &[], &udp(HIT))),
            Self::LaterFragment => (0x0800, ipv4(UDP, 9, &[], &[0xa5; 8 + PAYLOAD])),
        };
        if bare { body } else { ethernet(ethertype, &body) }
    }
}

/// An Ethernet header before `body`.
fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(body);
    frame
}

/// `flags` are the flags and the offset of the fragment.
fn ipv4(protocol: u8, flags: u16, options: &[u8], body: &[u8]) -> Vec<u8> {
    let words = 5 + low_byte(options.len() / 4);
    let total = low_half(20 + options.len() + body.len());
    let mut packet = vec![0x40 | words, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(flags.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// `extensions` are the numbers of headers of 8 bytes between IPv6's and the transport's.
fn ipv6(protocol: u8, extensions: &[u8], body: &[u8]) -> Vec<u8> {
    let payload = low_half(extensions.len() * 8 + body.len());
    let mut next = extensions.iter().copied().chain([protocol]);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(payload.to_be_bytes());
    packet.extend([next.next().unwrap_or(protocol), 64]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for following in next {
        // Padding of four bytes fills the eight.
        packet.extend([following, 0, 1, 4, 0, 0, 0, 0]);
    }
    packet.extend(body);
    packet
}

fn tcp(port: u16) -> Vec<u8> {
    let mut segment = [port.to_be_bytes(), port.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.resize(20 + PAYLOAD, 0xa5);
    segment
}

/// Without a checksum, which IPv4 allows: so a port can be changed without more.
fn udp(port: u16) -> Vec<u8> {
    let mut datagram = [port.to_be_bytes(), port.to_be_bytes()].concat();
    datagram.extend(low_half(8 + PAYLOAD).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + PAYLOAD, 0xa5);
    datagram
}

fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !low_half(sum as usize)
}

fn low_byte(number: usize) -> u8 {
    u8::try_from(number & 0xff).unwrap_or(0)
}

fn low_half(number: usize) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use traffic_ebpf::packet::{Link, Offload, Parsed, Place, parse};

    use super::*;

    #[test]
    fn packets_are_what_their_names_say() {
        for packet in Packet::ALL {
            for bare in [false, true] {
                if bare && !packet.has_ip() {
                    continue;
                }
                let bytes = packet.bytes(bare);
                let link = if bare { Link::Bare } else { Link::Ethernet };
                let (segments, size) = packet.gso();
                let parsed = parse(&bytes.as_slice(), link, Offload { segments, size });
                let name = packet.name();
                match parsed.expect(name) {
                    Parsed::Skip { .. } => {
                        assert!(matches!(packet, Packet::Icmp | Packet::Arp), "{name}");
                    }
                    Parsed::Flow(flow) => {
                        let hit = matches!(flow.place, Place::Whole | Place::First(_));
                        let port = if packet == Packet::Unwatched { OTHER } else { HIT };
                        let wanted = if hit { (port, port) } else { (0, 0) };
                        let ports = (flow.source_port, flow.destination_port);
                        assert_eq!(ports, wanted, "{name}");
                        let whole = matches!(flow.place, Place::Whole) && port == HIT;
                        assert_eq!(packet.is_counted_whole(), whole, "{name}");
                        let packets = if packet == Packet::Segments { 8 } else { 1 };
                        assert_eq!(flow.amount.packets, packets, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernel_would_accept_the_header_checksum() {
        let packet = Packet::Udp4.bytes(true);
        assert_eq!(checksum(&packet[..20]), 0);
    }
}
