//! Any bytes, any offload values, both links: an answer, and never one of more bytes than there are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traffic_ebpf::packet::{Link, Offload, Parsed, Place, fragment_key, parse, truncated};

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (segments, size, packet) = input;
    for link in [Link::Ethernet, Link::Bare] {
        for offload in [
            Offload::default(),
            Offload {
                segments: segments.into(),
                size: size.into(),
            },
        ] {
            let parsed = parse(&packet, link, offload).unwrap_or_else(|_| truncated(&packet, link));
            let amount = match parsed {
                Parsed::Flow(flow) => {
                    if let Place::First(of) | Place::Later(of) = flow.place {
                        assert!(fragment_key(&packet, of, 0).is_ok());
                    }
                    flow.amount
                }
                Parsed::Skip { amount, .. } => amount,
            };
            assert!(amount.packets >= 1);
            assert!(amount.bytes <= amount.packets * packet.len() as u64);
        }
    }
});
