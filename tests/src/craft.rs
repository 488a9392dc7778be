//! Packets made by hand, with all lengths and checksums right, for devices that take them raw.

use std::net::{IpAddr, SocketAddr};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// A UDP packet from its IP header on.
///
/// # Panics
///
/// When the addresses are of two families, or the payload does not fit.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(short(8 + payload.len()).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    let sum = checksum(&[&pseudo(from, to, UDP, segment.len()), &segment]);
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(from.ip(), to.ip(), UDP, &segment)
}

/// A TCP packet from its IP header on, without options. With `partial` the checksum covers the
/// pseudo header alone, as for a buffer whose segments are cut and summed later.
///
/// # Panics
///
/// When the addresses are of two families, or the payload does not fit.
pub fn tcp(from: SocketAddr, to: SocketAddr, payload: &[u8], partial: bool) -> Vec<u8> {
    const ACK_PUSH: u8 = 0x18;
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([5 << 4, ACK_PUSH]);
    segment.extend(0xffff_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(payload);
    let pseudo = pseudo(from, to, TCP, segment.len());
    let sum = if partial { !checksum(&[&pseudo]) } else { checksum(&[&pseudo, &segment]) };
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(from.ip(), to.ip(), TCP, &segment)
}

/// One fragment of an IPv4 UDP datagram: `bytes` of what follows the IP header, from `offset` on.
///
/// # Panics
///
/// When the offset is no multiple of 8.
pub fn fragment(whole: &[u8], offset: usize, bytes: usize, id: u16) -> Vec<u8> {
    assert_eq!(offset % 8, 0, "offsets of fragments");
    let (header, rest) = whole.split_at(20);
    let more = offset + bytes < rest.len();
    let mut packet = header.to_vec();
    packet.extend(&rest[offset..offset + bytes]);
    packet[2..4].copy_from_slice(&short(20 + bytes).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let place = short(offset / 8) | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&place.to_be_bytes());
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An Ethernet frame around an IP packet.
pub fn ethernet(from: [u8; 6], to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = match packet.first().map(|byte| byte >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&to[..], &from, &kind, packet].concat()
}

fn ip(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(short(20 + segment.len()).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(short(segment.len()).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    packet.extend(segment);
    packet
}

fn pseudo(from: SocketAddr, to: SocketAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend(short(length).to_be_bytes());
    bytes
}

fn short(length: usize) -> u16 {
    u16::try_from(length).expect("a length of an IP packet")
}

/// The Internet checksum over all parts, each of an even length but the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum += u32::from(u16::from_be_bytes(word));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = u16::try_from(sum).unwrap_or(u16::MAX);
    // A sum of 0 would mean that there is none.
    if sum == 0xffff { 0xffff } else { !sum }
}
