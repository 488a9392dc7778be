//! Any bytes, any offload values, both links: an answer, and never one of more bytes than there are; and the
//! short way of the common packets, wherever the piece that it looks at ends, gives no other answer.
#![no_main]

use std::cell::Cell;

use libfuzzer_sys::fuzz_target;
use traffic_ebpf::packet::{
    Amount, Datagram, InPlace, Link, Offload, Pair, Parsed, Place, Taker, common, fragment_key,
    parse, truncated,
};

/// A packet of which the first bytes lie in one piece.
struct Begin<'p> {
    piece: &'p [u8],
    whole: usize,
}

impl InPlace for Begin<'_> {
    fn pairs<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.piece.get(offset..)?.as_chunks().0.first_chunk()
    }

    fn pairs_behind<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.pairs(offset)
    }

    fn word(&self, pair: &Pair) -> u16 {
        u16::from_ne_bytes(*pair)
    }

    fn whole_len(&self) -> usize {
        self.whole
    }
}

/// Lane, ports and amount.
type Answer = (u8, u16, u16, Amount);

#[derive(Default)]
struct Taken(Cell<Option<Answer>>);

impl Taker for Taken {
    fn take(&self, datagram: Datagram<'_>) {
        let Datagram { lane, source_port, destination_port, amount } = datagram;
        let [source, destination] =
            [source_port, destination_port].map(|pair| u16::from_be_bytes(*pair));
        let before = self.0.replace(Some((lane, source, destination, amount)));
        assert!(before.is_none(), "given twice");
    }
}

fuzz_target!(|input: (u16, u16, u16, &[u8])| {
    let (segments, size, cut, packet) = input;
    for link in [Link::Ethernet, Link::Bare] {
        for offload in
            [Offload::default(), Offload { segments: segments.into(), size: size.into() }]
        {
            let parsed = parse(&packet, link, offload).unwrap_or_else(|_| truncated(&packet, link));
            for end in [usize::from(cut).min(packet.len()), packet.len()] {
                let taken = Taken::default();
                let begin = Begin { piece: &packet[..end], whole: packet.len() };
                let found = common(&begin, link, offload, &taken);
                assert_eq!(found.is_some(), taken.0.get().is_some(), "said and given");
                if let Some((lane, source_port, destination_port, amount)) = taken.0.get() {
                    let Parsed::Flow(flow) = parsed else {
                        panic!("{parsed:?}, and the short way counts {:?}", taken.0.get());
                    };
                    assert!(matches!(flow.place, Place::Whole));
                    assert_eq!(
                        (flow.lane, flow.source_port, flow.destination_port, flow.amount),
                        (lane, source_port, destination_port, amount)
                    );
                }
            }
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
