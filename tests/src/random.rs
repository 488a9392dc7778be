//! Random packets that are nearly right: bytes drawn evenly are no packet at all once in a thousand
//! million, so headers are built in any order and then damaged.
//!
//! The tests of the parser include this file as their own module, and the bytecode tests give the
//! same packets to the loaded programs.

use proptest::{
    collection::vec as several,
    prelude::{Strategy, any, prop_oneof},
    strategy::Just,
};
use traffic_ebpf::packet::{Link, Offload};

/// A packet, and what the kernel would say beside it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// What the first byte belongs to.
    pub link: Link,
    /// What the kernel says of the segments.
    pub offload: Offload,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// Packets of at most about 700 bytes, half of them damaged.
pub fn packet() -> impl Strategy<Value = Packet> {
    let ip = prop_oneof![v4().boxed(), v6().boxed()];
    (link(), offload(), ip, damage()).prop_map(|((link, mut bytes), offload, ip, damage)| {
        let (version, ip) = ip;
        if let [.., high, low] = bytes.as_mut_slice() {
            [*high, *low] = if version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        }
        bytes.extend(ip);
        damage.apply(&mut bytes);
        Packet { link, offload, bytes }
    })
}

/// An Ethernet header with up to three tags, whose last type is not set yet, or nothing.
fn link() -> impl Strategy<Value = (Link, Vec<u8>)> {
    let tags = prop_oneof![
        4 => Just(0usize),
        2 => Just(1),
        1 => Just(2),
        1 => Just(3),
    ];
    let ethernet = (tags, any::<bool>(), any::<[u8; 12]>()).prop_map(|(tags, provider, start)| {
        let mut bytes = start.to_vec();
        for tag in 0..tags {
            let kind = if tag == 0 && provider { [0x88, 0xa8] } else { [0x81, 0x00] };
            bytes.extend(kind);
            bytes.extend([0, 100]);
        }
        bytes.extend([0, 0]);
        (Link::Ethernet, bytes)
    });
    prop_oneof![2 => ethernet.boxed(), 1 => Just((Link::Bare, vec![])).boxed()]
}

fn offload() -> impl Strategy<Value = Offload> {
    let segments = prop_oneof![3 => Just(0u32), 1 => Just(1), 3 => 2u32..60, 1 => 0u32..=65_535];
    let size = prop_oneof![2 => Just(0u32), 2 => 1u32..1500, 1 => 0u32..=65_535];
    prop_oneof![
        2 => Just(Offload::default()),
        1 => (segments, size).prop_map(|(segments, size)| Offload { segments, size }),
    ]
}

/// Mostly right, sometimes 0, sometimes a little or much beside it.
fn length_error() -> impl Strategy<Value = Option<isize>> {
    prop_oneof![
        8 => Just(Some(0)),
        1 => Just(None),
        1 => (-60isize..60).prop_map(Some),
        1 => (-3000isize..60_000).prop_map(Some),
    ]
}

fn stated(length: usize, error: Option<isize>) -> [u8; 2] {
    let length = error.map_or(0, |error| length.saturating_add_signed(error));
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn v4() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let words = prop_oneof![4 => Just(5u8), 1 => 0u8..=15];
    let fragment = prop_oneof![
        4 => Just(0u16),
        1 => Just(0x4000),
        2 => Just(0x2000),
        1 => (0u16..4).prop_map(|offset| 0x2000 | offset),
        1 => any::<u16>(),
    ];
    let protocol = prop_oneof![4 => Just(6u8), 4 => Just(17u8), 1 => any::<u8>()];
    (words, fragment, protocol, length_error(), any::<u8>(), any::<[u8; 8]>()).prop_flat_map(
        |(words, fragment, protocol, error, id, addresses)| {
            (transport(protocol), any::<[u8; 40]>()).prop_map(move |(rest, options)| {
                // Few datagrams, so that fragments meet.
                let addresses = addresses.map(|byte| byte & 1);
                let options = &options[..usize::from(words).saturating_sub(5) * 4];
                let mut bytes = vec![0x40 | words, 0];
                bytes.extend(stated(20 + options.len() + rest.len(), error));
                bytes.extend([0, id & 1]);
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([64, protocol, 0, 0]);
                bytes.extend(addresses);
                bytes.extend(options);
                bytes.extend(rest);
                (4, bytes)
            })
        },
    )
}

fn v6() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let kind = prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), Just(44),];
    let header = (kind, 0u8..3, prop_oneof![Just(0u16), Just(1), 0u16..40, any::<u16>()], 0u8..2);
    let protocol = prop_oneof![4 => Just(6u8), 4 => Just(17u8), 1 => Just(58u8), 1 => any::<u8>()];
    let headers = prop_oneof![2 => Just(vec![]), 2 => several(header.clone(), 1..3), 1 => several(header, 3..11)];
    (headers, protocol, length_error(), any::<[u8; 2]>()).prop_flat_map(
        |(headers, protocol, error, addresses)| {
            transport(protocol).prop_map(move |rest| {
                let kinds: Vec<u8> =
                    headers.iter().map(|header| header.0).chain([protocol]).collect();
                let mut chain = Vec::new();
                for (&(kind, long, fragment, id), next) in headers.iter().zip(&kinds[1..]) {
                    chain.push(*next);
                    match kind {
                        44 => {
                            chain.push(0);
                            chain.extend(fragment.to_be_bytes());
                            chain.extend([0, 0, 0, id]);
                        }
                        51 => {
                            chain.push(long + 1);
                            chain.resize(chain.len() + usize::from(long + 3) * 4 - 2, 0x11);
                        }
                        _ => {
                            chain.push(long);
                            chain.resize(chain.len() + usize::from(long + 1) * 8 - 2, 0);
                        }
                    }
                }
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend(stated(chain.len() + rest.len(), error));
                bytes.extend([kinds[0], 64]);
                for address in addresses {
                    bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    bytes.push(address & 1);
                }
                bytes.extend(chain);
                bytes.extend(rest);
                (6, bytes)
            })
        },
    )
}

/// A TCP or UDP header, by the protocol, and up to 300 bytes.
fn transport(protocol: u8) -> impl Strategy<Value = Vec<u8>> {
    let port =
        prop_oneof![Just(443u16), Just(53), Just(8443), Just(1), Just(65_535), any::<u16>(),];
    let words = prop_oneof![3 => Just(5u8), 1 => Just(8u8), 1 => 0u8..=15];
    (port.clone(), port, words, 0usize..300).prop_map(
        move |(source, destination, words, payload)| {
            let mut bytes = Vec::new();
            bytes.extend(source.to_be_bytes());
            bytes.extend(destination.to_be_bytes());
            if protocol == 6 {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, words << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.resize(bytes.len() + usize::from(words).saturating_sub(5) * 4, 1);
            } else {
                bytes.extend(stated(8 + payload, Some(0)));
                bytes.extend([0, 0]);
            }
            bytes.resize(bytes.len() + payload, 0xa5);
            bytes
        },
    )
}

/// What happens to a packet after it is built.
#[derive(Clone, Debug)]
struct Damage {
    changed: Vec<(u16, u8)>,
    cut: Option<u16>,
    more: u8,
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        // Padding, as Ethernet adds it.
        bytes.resize(bytes.len() + usize::from(self.more), 0);
        let headers = bytes.len().min(120);
        for &(at, to) in &self.changed {
            if let Some(byte) = bytes[..headers].get_mut(usize::from(at) % headers.max(1)) {
                *byte = to;
            }
        }
        if let Some(cut) = self.cut {
            bytes.truncate(usize::from(cut) % (bytes.len() + 1));
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let changed = prop_oneof![
        3 => Just(vec![]),
        1 => several((any::<u16>(), any::<u8>()), 1..4),
    ];
    let cut = prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)];
    let more = prop_oneof![3 => Just(0u8), 1 => 0u8..20];
    (changed, cut, more).prop_map(|(changed, cut, more)| Damage { changed, cut, more })
}
