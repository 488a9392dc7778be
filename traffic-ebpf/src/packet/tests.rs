//! The parser against answers written by hand, and against laws that hold for any bytes.

use proptest::prelude::*;

use super::*;

#[expect(unreachable_pub, reason = "a file of package `traffic-tests`")]
#[path = "../../../tests/src/corpus.rs"]
mod corpus;
#[expect(unreachable_pub, reason = "a file of package `traffic-tests`")]
#[path = "../../../tests/src/random.rs"]
mod random;

use corpus::{Case, Charge, Position, Side};

/// As the header holds them.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The answer of the programs: a packet that cannot be read even as a whole is malformed.
fn answer(packet: &[u8], link: Link, offload: Offload) -> Parsed {
    parse(&packet, link, offload).unwrap_or_else(|Truncated| truncated(&packet, link))
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// What a case says, in the words of its file; ports are compared where it has any.
#[derive(Debug, PartialEq)]
struct Outcome {
    flow: Option<(u8, u16, u16)>,
    place: Option<Position>,
    reason: Option<u32>,
    amount: Amount,
}

impl From<Parsed> for Outcome {
    fn from(parsed: Parsed) -> Self {
        match parsed {
            Parsed::Skip { reason, amount } => {
                Self { flow: None, place: None, reason: Some(reason), amount }
            }
            Parsed::Flow(flow) => {
                let ports = (flow.lane, flow.source_port, flow.destination_port);
                let (flow_of, place) = match flow.place {
                    Place::Whole => (Some(ports), Position::Whole),
                    Place::First(_) => (Some(ports), Position::First),
                    Place::Later(_) => (None, Position::Later),
                };
                Self { flow: flow_of, place: Some(place), reason: None, amount: flow.amount }
            }
        }
    }
}

impl From<&Case> for Outcome {
    fn from(case: &Case) -> Self {
        // Whether a port is watched, and whether a fragment's first was seen, is not the parser's
        // business: to it these are packets that belong to a port.
        let reason = match case.charge {
            Charge::Skipped(reason @ (skip::OTHER | skip::MALFORMED)) => Some(reason),
            Charge::Skipped(_) | Charge::Port(_) => None,
        };
        Self {
            flow: case.flow,
            place: reason.is_none().then_some(case.position),
            reason,
            amount: Amount { bytes: case.bytes, packets: case.packets },
        }
    }
}

#[track_caller]
fn check(case: &Case) {
    let got = Outcome::from(answer(&case.packet, case.link, case.offload));
    assert_eq!(got, Outcome::from(case), "{}: {}", case.name, case.why);
}

#[test]
fn every_packet_of_the_corpus_has_the_answer_that_its_file_asks_for() {
    let cases = corpus::all();
    assert!(cases.len() >= 150, "the corpus has lost files: {}", cases.len());
    for case in &cases {
        check(case);
    }
}

/// The files must not contradict themselves: what a parser is judged by is judged here.
#[test]
fn every_file_of_the_corpus_charges_the_port_of_its_own_side() {
    for case in corpus::all() {
        let Some((lane, source, destination)) = case.flow else {
            assert!(matches!(case.charge, Charge::Skipped(_)), "{}", case.name);
            continue;
        };
        let port = match case.side {
            Side::Input => destination,
            Side::Output => source,
        };
        let watched = corpus::WATCHED
            .iter()
            .any(|&(known, udp_too)| known == port && (udp_too || lane & 2 == 0));
        let want = if watched { Charge::Port(port) } else { Charge::Skipped(skip::UNWATCHED) };
        assert_eq!(case.charge, want, "{}", case.name);
    }
}

#[test]
fn no_corpus_packet_is_counted_to_a_port_when_it_is_cut() {
    for case in corpus::all() {
        // A segmented buffer is as long as it is; any other says its own length.
        let whole_from = match case.headers {
            Some(headers) => case.l3 + headers,
            None => case.l3 + length(case.bytes),
        };
        let says_its_length = case.headers.is_some()
            || !["v4-total-zero", "v6-jumbogram"].contains(&case.name.as_str());
        let step = if case.packet.len() > 4096 { 97 } else { 1 };
        for cut in (0..case.packet.len()).rev().step_by(step).chain(0..200.min(case.packet.len())) {
            match answer(&case.packet[..cut], case.link, case.offload) {
                Parsed::Flow(flow) => {
                    assert!(cut >= whole_from || !says_its_length, "{} cut at {cut}", case.name);
                    assert!(
                        flow.amount.packets <= case.packets.max(1),
                        "{} cut at {cut}",
                        case.name
                    );
                    assert!(flow.amount.bytes <= case.bytes, "{} cut at {cut}", case.name);
                }
                Parsed::Skip { amount, .. } => {
                    assert!(length(amount.bytes) <= cut, "{} cut at {cut}", case.name);
                    assert_eq!(amount.packets, 1, "{} cut at {cut}", case.name);
                }
            }
        }
    }
}

/// IPv4 and UDP or TCP, `payload` bytes behind the headers.
fn plain(protocol: u8, payload: usize) -> Vec<u8> {
    let headers = if protocol == UDP { 28 } else { 40 };
    let mut bytes = vec![0; headers + payload];
    bytes[0] = 0x45;
    let total = u16::try_from(headers + payload).unwrap();
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[9] = protocol;
    bytes[32 % headers] = 5 << 4;
    bytes
}

#[track_caller]
fn check_segments(protocol: u8, payload: usize, segments: u32, size: u32, want: (u64, u64)) {
    let offload = Offload { segments, size };
    let Parsed::Flow(flow) = answer(&plain(protocol, payload), Link::Bare, offload) else {
        panic!("not a flow");
    };
    assert_eq!((flow.amount.bytes, flow.amount.packets), want);
}

#[test]
fn segments_are_what_the_kernel_says_or_else_follow_from_their_size() {
    check_segments(TCP, 3000, 0, 0, (3040, 1));
    check_segments(TCP, 3000, 1, 0, (3040, 1));
    check_segments(TCP, 3000, 3, 1000, (3120, 3));
    check_segments(TCP, 3000, 0, 1000, (3120, 3));
    check_segments(TCP, 3001, 0, 1000, (3161, 4));
    check_segments(TCP, 2999, 0, 1000, (3119, 3));
    check_segments(TCP, 0, 0, 1000, (40, 1));
    // What the kernel says counts, even where the size says something else.
    check_segments(TCP, 3000, 2, 1000, (3080, 2));
    check_segments(UDP, 3000, 0, 1000, (3084, 3));
    check_segments(UDP, 0, 0, 1000, (28, 1));
    check_segments(UDP, 65_000, 65_535, 1, (65_028 + 65_534 * 28, 65_535));
}

#[test]
fn fragments_of_one_datagram_have_one_key_and_others_have_others() {
    let key = |name: &str, direction| {
        let case = corpus::named(name);
        let packet = case.packet.as_slice();
        match answer(packet, case.link, case.offload) {
            Parsed::Flow(Flow { place: Place::First(of) | Place::Later(of), .. }) => {
                fragment_key(&packet, of, direction)
            }
            other => panic!("{name} is no fragment: {other:?}"),
        }
    };
    let alike = [
        ["v4-fragment-first", "v4-fragment-last"],
        ["bare-v4-fragment-first", "bare-v4-fragment-later"],
        ["v6-fragment-first", "v6-fragment-middle"],
        ["v6-fragment-first-behind-options", "v6-fragment-later-of-options"],
        ["bare-v6-fragment-first", "bare-v6-fragment-later"],
    ];
    for (at, [first, later]) in alike.into_iter().enumerate() {
        assert!(key(first, 0).is_ok());
        assert_eq!(key(first, 0), key(later, 0), "{first}");
        assert_ne!(key(first, 0), key(later, 1), "{first}: the other direction");
        for [other, _] in &alike[at + 1..] {
            assert_ne!(key(first, 0), key(other, 0), "{first}, {other}");
        }
    }
    let first = key("v4-fragment-first", 1).unwrap();
    assert_eq!((first.id, first.protocol, first.family, first.direction), (0x1234, UDP, 4, 1));
    assert_eq!(first.source, [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(first.destination[..4], [198, 51, 100, 1]);
}

#[test]
fn a_reader_of_a_part_answers_as_one_of_the_whole_or_asks_for_more() {
    /// Like the linear part of an skb: knows the length of all, has the bytes of some.
    struct Part<'a>(&'a [u8], usize);
    impl PacketReader for Part<'_> {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            (&self.0[..self.1]).read(offset)
        }
        fn len(&self) -> usize {
            self.0.len()
        }
    }
    for case in corpus::all() {
        let whole = parse(&case.packet.as_slice(), case.link, case.offload);
        for part in 0..case.packet.len().min(200) {
            let got = parse(&Part(&case.packet, part), case.link, case.offload);
            assert!(got == whole || got == Err(Truncated), "{} with {part} bytes", case.name);
        }
    }
}

/// What the way of the common packets gives for a packet of which only a part lies in one piece.
fn common_of(packet: &[u8], part: usize, link: Link, offload: Offload) -> Option<Flow> {
    struct Part<'a>(&'a [u8], usize);
    impl InPlace for Part<'_> {
        fn pairs<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
            self.0[..self.1].get(offset..)?.as_chunks().0.first_chunk()
        }
        fn pairs_behind<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
            self.pairs(offset)
        }
        fn word(&self, pair: &Pair) -> u16 {
            u16::from_ne_bytes(*pair)
        }
        fn whole_len(&self) -> usize {
            self.0.len()
        }
    }
    struct Taken<'a>(&'a Part<'a>, std::cell::Cell<Option<Flow>>);
    impl Taker for Taken<'_> {
        fn take(&self, datagram: Datagram<'_>) {
            let port = |pair| u16::try_from(self.0.number(pair)).unwrap();
            let flow = Flow {
                lane: datagram.lane,
                source_port: port(datagram.source_port),
                destination_port: port(datagram.destination_port),
                place: Place::Whole,
                amount: datagram.amount,
            };
            assert_eq!(self.1.replace(Some(flow)), None, "taken twice");
        }
    }
    let part = Part(packet, part);
    let taken = Taken(&part, std::cell::Cell::new(None));
    let found = common(&part, link, offload, &taken);
    let flow = taken.1.take();
    assert_eq!(found.is_some(), flow.is_some(), "says the contrary of what it did");
    flow
}

#[test]
fn the_way_of_the_common_packets_leads_to_the_answer_of_the_long_one() {
    let mut common = 0;
    for case in corpus::all() {
        let answer = parse(&case.packet.as_slice(), case.link, case.offload);
        for part in 0..=case.packet.len().min(300) {
            let got = common_of(&case.packet, part, case.link, case.offload);
            assert!(
                got.is_none() || got.map(Parsed::Flow).map(Ok) == Some(answer),
                "{} with {part} bytes: {got:?}, not {answer:?}",
                case.name
            );
        }
        common += usize::from(
            common_of(&case.packet, case.packet.len(), case.link, case.offload).is_some(),
        );
    }
    assert!(common >= 60, "only {common} packets of the corpus are common");
}

#[test]
fn packets_that_must_be_cheap_go_the_way_of_the_common_ones() {
    let cheap = [
        "v4-tcp",
        "v4-udp",
        "v4-options",
        "v4-vlan",
        "v4-gso",
        "v4-gso-udp",
        "v4-port-unwatched",
        "v6-tcp",
        "v6-udp",
        "v6-hop-by-hop",
        "v6-destination-options",
        "bare-v4-tcp",
        "bare-v4-gso",
        "bare-v6-udp",
    ];
    for name in cheap {
        let case = corpus::all().into_iter().find(|case| case.name == name);
        let case = case.unwrap_or_else(|| panic!("no file {name}"));
        let found = common_of(&case.packet, case.packet.len(), case.link, case.offload);
        assert!(found.is_some(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_common_way_never_gives_another_answer(packet in random::packet(), cut: prop::sample::Index) {
        let random::Packet { link, offload, bytes } = packet;
        let answer = parse(&bytes.as_slice(), link, offload);
        for part in [bytes.len(), cut.index(bytes.len() + 1)] {
            if let Some(flow) = common_of(&bytes, part, link, offload) {
                prop_assert_eq!(Ok(Parsed::Flow(flow)), answer);
            }
        }
    }

    #[test]
    fn any_bytes_have_an_answer(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        ethernet: bool,
        segments: u32,
        size: u32,
    ) {
        let link = if ethernet { Link::Ethernet } else { Link::Bare };
        let _ = answer(&bytes, link, Offload { segments, size });
    }

    #[test]
    fn any_packet_has_an_answer_that_keeps_to_the_formula(packet in random::packet()) {
        let random::Packet { link, offload, bytes } = packet;
        match answer(&bytes, link, offload) {
            Parsed::Skip { reason, amount } => {
                prop_assert!(reason == skip::OTHER || reason == skip::MALFORMED);
                prop_assert!(length(amount.bytes) <= bytes.len());
                prop_assert_eq!(amount.packets, 1);
            }
            Parsed::Flow(flow) => {
                let Amount { bytes: counted, packets } = flow.amount;
                prop_assert!(packets >= 1);
                prop_assert!(flow.lane < 4);
                // What is more than the buffer holds are headers: 28 bytes at least for each
                // further packet, and all headers of the buffer at most.
                let more = counted.saturating_sub(bytes.len() as u64);
                prop_assert!(more <= (packets - 1) * bytes.len() as u64);
                if packets > 1 {
                    prop_assert!(counted >= packets * 28);
                    if offload.segments == 0 {
                        prop_assert!((packets - 1) * u64::from(offload.size) < bytes.len() as u64);
                    } else {
                        prop_assert_eq!(packets, u64::from(offload.segments));
                    }
                }
            }
        }
    }

    #[test]
    fn a_packet_that_is_cut_never_has_more_bytes_than_are_there(
        packet in random::packet(),
        cut: prop::sample::Index,
    ) {
        let cut = cut.index(packet.bytes.len() + 1);
        let part = &packet.bytes[..cut];
        let amount = match answer(part, packet.link, Offload::default()) {
            Parsed::Flow(flow) => flow.amount,
            Parsed::Skip { amount, .. } => amount,
        };
        prop_assert!(length(amount.bytes) <= cut);
        prop_assert_eq!(amount.packets, 1);
    }

    #[test]
    fn bytes_and_packets_follow_from_payload_and_segments(
        udp: bool,
        payload in 0usize..60_000,
        segments in 0u32..200,
        size in 0u32..2000,
    ) {
        let protocol = if udp { UDP } else { TCP };
        let headers = if udp { 28 } else { 40 };
        let Parsed::Flow(flow) = answer(&plain(protocol, payload), Link::Bare, Offload { segments, size })
        else {
            panic!("not a flow");
        };
        // By cutting, not by dividing.
        let mut wire = Vec::new();
        if segments > 0 {
            wire.resize(segments as usize, 0);
        } else {
            let mut left = payload;
            while size > 0 && left > size as usize {
                wire.push(size as usize);
                left -= size as usize;
            }
            wire.push(left);
        }
        prop_assert_eq!(flow.amount.packets, wire.len() as u64);
        prop_assert_eq!(flow.amount.bytes, (payload + headers * wire.len()) as u64);
    }

    #[test]
    fn padding_behind_a_packet_changes_nothing(packet in random::packet(), more in 1usize..60) {
        let random::Packet { link, bytes, .. } = packet;
        let offload = Offload::default();
        let before = answer(&bytes, link, offload);
        // A length of 0 means the buffer's own; behind at most 22 bytes of link header.
        if let Parsed::Flow(flow) = before
            && length(flow.amount.bytes) + 22 < bytes.len()
        {
            let mut padded = bytes;
            padded.resize(padded.len() + more, 0xff);
            prop_assert_eq!(answer(&padded, link, offload), before);
        }
    }
}
