//! The loaded programs against the parser and the corpus: the same bytes must give the same answer.
//!
//! Packets go through `BPF_PROG_TEST_RUN`, which makes skbs of one page that lie in one piece. Larger
//! ones, and those whose headers are in fragments of the skb, are for the network tier.

mod kernel;

use std::{cell::RefCell, io};

use proptest::{
    collection::vec,
    prelude::Strategy as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use traffic_ebpf::{
    abi::{Counters, LANES, programs, skip},
    packet::{Amount, Link, Offload},
};
use traffic_tests::{
    bpf::{self, Input},
    corpus::{self, Case, Charge, Side, WATCHED},
    loaded::Loaded,
    need, random,
};

use kernel::{Answer, Hook, Kernel, To, on_a_device};

/// The verifier may look at so many instructions of one program, and no more: a change that makes
/// the programs much harder to verify shall be noticed here, not on an older kernel. The kernel's
/// own limit is a million.
const MOST_VERIFIED: u32 = 60_000;

/// What a test run does not take: more than a page, or less than an IP header.
const NOT_TAKEN: [&str; 10] = [
    "bare-empty",
    "bare-one-byte",
    "ethernet-only",
    "v4-big-tcp",
    "v4-gso-largest",
    "v4-header-cut",
    "v6-big-tcp-plain",
    "v6-big-tcp",
    "v6-header-cut",
    "v6-jumbogram",
];

const SIDES: [Side; 2] = [Side::Input, Side::Output];

/// What a case says of itself.
fn wanted(case: &Case) -> Answer {
    let to = match case.charge {
        Charge::Skipped(reason) => To::Skipped(reason),
        Charge::Port(port) => {
            To::Slot(kernel::slot_of_watched(port), case.flow.expect("has ports").0)
        }
    };
    Answer { to, amount: Amount { bytes: case.bytes, packets: case.packets } }
}

fn hook_of(case: &Case) -> Hook {
    match case.link {
        Link::Ethernet => Hook::Ethernet,
        Link::Bare => Hook::Bare,
    }
}

/// The IP packet inside a case; `None` when there is none.
fn inside(case: &Case) -> Option<&[u8]> {
    let ip = case.packet.get(case.l3..)?;
    let kind = case.l3.checked_sub(2).map(|at| &case.packet[at..at + 2]);
    matches!(kind, None | Some([0x08, 0x00] | [0x86, 0xdd])).then_some(ip)
}

#[test]
fn the_loaded_programs_count_what_the_corpus_asks_for() {
    need!(Bpf, Object, Netns, Tool("ip"));
    on_a_device(|device| {
        for atomic in [false, true] {
            let mut kernel = Kernel::new(atomic, device);
            let mut not_taken = Vec::new();
            for case in corpus::all() {
                let name = format!("{}: {}", case.name, case.why);
                for side in SIDES {
                    kernel.forget_fragments();
                    let got = kernel.check(hook_of(&case), side, &case.packet, case.offload, &name);
                    if side == case.side {
                        match got {
                            Some(got) => assert_eq!(got, wanted(&case), "{name}"),
                            None => not_taken.push(case.name.clone()),
                        }
                    }
                    let Some(ip) = inside(&case) else { continue };
                    kernel.forget_fragments();
                    let got = kernel.check(Hook::Cgroup, side, ip, case.offload, &name);
                    // A wrong version contradicts nothing where there is no type.
                    if side == case.side && !case.name.contains("version") {
                        assert!(
                            got.is_none_or(|got| got == wanted(&case)),
                            "{name}, at a cgroup: {got:?}"
                        );
                    }
                }
            }
            assert_eq!(not_taken, NOT_TAKEN);
            kernel.end();
        }
    });
}

#[test]
fn the_loaded_programs_count_cut_packets_as_the_parser_does() {
    need!(Bpf, Object, Netns, Tool("ip"));
    on_a_device(|device| {
        for atomic in [false, true] {
            let mut kernel = Kernel::new(atomic, device);
            for case in corpus::all() {
                let headers = case.packet.len().min(case.l3 + 130);
                for cut in 0..headers {
                    // The second load differs in how it adds, not in what.
                    if atomic && cut % 7 != 0 {
                        continue;
                    }
                    let name = format!("{} cut at {cut}", case.name);
                    kernel.check(
                        hook_of(&case),
                        case.side,
                        &case.packet[..cut],
                        case.offload,
                        &name,
                    );
                    if inside(&case).is_some() && cut > case.l3 {
                        let ip = &case.packet[case.l3..cut];
                        kernel.check(Hook::Cgroup, case.side, ip, case.offload, &name);
                    }
                }
            }
            kernel.end();
        }
    });
}

#[test]
fn the_loaded_programs_count_random_packets_as_the_parser_does() {
    need!(Bpf, Object, Netns, Tool("ip"));
    on_a_device(|device| {
        let kernel = RefCell::new(Kernel::new(false, device));
        let packets = vec((random::packet(), 0..4u8), 1..6).prop_map(|packets| {
            let side = |bits: u8| SIDES[usize::from(bits & 1)];
            packets
                .into_iter()
                .map(|(packet, bits)| (packet, side(bits), bits > 1))
                .collect::<Vec<_>>()
        });
        // Always the same packets: a failure here is found again by the next run.
        let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        TestRunner::new_with_rng(config, rng)
            .run(&packets, |packets| {
                let mut kernel = kernel.borrow_mut();
                kernel.forget_fragments();
                for (packet, side, cgroup) in packets {
                    let hook = match (packet.link, cgroup) {
                        (Link::Ethernet, _) => Hook::Ethernet,
                        (Link::Bare, false) => Hook::Bare,
                        (Link::Bare, true) => Hook::Cgroup,
                    };
                    kernel.check(hook, side, &packet.bytes, packet.offload, &"random");
                }
                Ok(())
            })
            .unwrap_or_else(|err| panic!("{err}"));
        kernel.into_inner().end();
    });
}

#[test]
fn fragments_are_charged_where_their_first_one_was() {
    need!(Bpf, Object, Netns, Tool("ip"));
    on_a_device(|device| {
        let mut kernel = Kernel::new(false, device);
        let mut charge = |name: &str, side| {
            let case = corpus::named(name);
            kernel
                .check(hook_of(&case), side, &case.packet, case.offload, &name)
                .expect("long enough")
                .to
        };
        let (udp4, udp6) =
            (To::Slot(kernel::slot_of_watched(53), 2), To::Slot(kernel::slot_of_watched(53), 3));
        let (orphan, unwatched) = (To::Skipped(skip::FRAGMENT), To::Skipped(skip::UNWATCHED));

        // Before the first one nothing is known; after it, all that follow are its group's, in any
        // order and however often.
        assert_eq!(charge("v4-fragment-last", Side::Input), orphan);
        assert_eq!(charge("v4-fragment-first", Side::Input), udp4);
        assert_eq!(charge("v4-fragment-last", Side::Input), udp4);
        assert_eq!(charge("v4-fragment-middle", Side::Input), udp4);
        assert_eq!(charge("v4-fragment-last", Side::Input), udp4);
        // The other direction, and the other datagrams, know nothing of it.
        assert_eq!(charge("v4-fragment-middle", Side::Output), orphan);
        assert_eq!(charge("v4-fragment-false-ports", Side::Input), orphan);
        assert_eq!(charge("bare-v4-fragment-later", Side::Input), orphan);
        assert_eq!(charge("v6-fragment-middle", Side::Input), orphan);
        // Output: port 40000 is nobody's, and so are the fragments, with a reason of their own.
        assert_eq!(charge("v4-fragment-first", Side::Output), unwatched);
        assert_eq!(charge("v4-fragment-middle", Side::Output), unwatched);
        assert_eq!(charge("v4-fragment-middle", Side::Input), udp4);

        assert_eq!(charge("v6-fragment-first", Side::Input), udp6);
        assert_eq!(charge("v6-fragment-middle", Side::Input), udp6);
        assert_eq!(charge("v6-fragment-last", Side::Input), udp6);
        assert_eq!(charge("v6-fragment-later-of-options", Side::Input), orphan);
        assert_eq!(charge("v6-fragment-first-behind-options", Side::Input), udp6);
        assert_eq!(charge("v6-fragment-later-of-options", Side::Input), udp6);
        // Nothing follows an atomic fragment, and nothing is remembered of it.
        assert_eq!(
            charge("v6-fragment-atomic", Side::Input),
            To::Slot(kernel::slot_of_watched(443), 1)
        );

        assert_eq!(charge("bare-v4-fragment-first", Side::Input), udp4);
        assert_eq!(charge("bare-v4-fragment-later", Side::Input), udp4);
        assert_eq!(charge("bare-v6-fragment-first", Side::Input), udp6);
        assert_eq!(charge("bare-v6-fragment-later", Side::Input), udp6);
        kernel.end();
    });
}

#[test]
fn every_lane_has_counters_of_its_own_in_both_directions() {
    need!(Bpf, Object);
    let mut loaded = Loaded::new(2, false);
    for udp in [false, true] {
        loaded.watch(udp, 443, Some(1));
        loaded.watch(udp, 40_000, Some(1));
        loaded.watch(udp, 53, Some(1));
    }
    let lanes = [("v4-tcp", 40), ("v6-tcp", 60), ("v4-udp", 32), ("v6-udp", 52)];
    let mut want = vec![Counters::default(); 2 * LANES as usize];
    for (lane, (name, bytes)) in lanes.into_iter().enumerate() {
        let packet = corpus::named(name).packet;
        let input = Input { packet: &packet, ..Input::default() };
        let (times_in, times_out) = (1 + lane as u64, 11 + lane as u64);
        for _ in 0..times_in {
            loaded.run(programs::ETHERNET_IN, input);
        }
        for _ in 0..times_out {
            loaded.run(programs::ETHERNET_OUT, input);
        }
        want[LANES as usize + lane] = Counters {
            input_bytes: times_in * bytes,
            input_packets: times_in,
            output_bytes: times_out * bytes,
            output_packets: times_out,
        };
        assert_eq!(loaded.counters(), want, "after {name}");
    }
}

#[test]
fn every_one_of_65_535_watched_ports_has_its_own_slot() {
    need!(Bpf, Object);
    let mut loaded = Loaded::new(65_535, false);
    for port in 1..=u16::MAX {
        // Not in the order of the ports, so that a slot is not a port by accident.
        let slot = port.wrapping_mul(257).wrapping_sub(1);
        if slot != u16::MAX {
            loaded.watch(false, port, Some(slot));
            loaded.watch(true, port, Some(slot));
        }
    }
    let (mut tcp, mut udp) = (corpus::named("v4-tcp").packet, corpus::named("v6-udp").packet);
    for port in 1..=u16::MAX {
        tcp[36..38].copy_from_slice(&port.to_be_bytes());
        udp[54..56].copy_from_slice(&port.to_be_bytes());
        loaded.run(programs::ETHERNET_IN, Input { packet: &tcp, ..Input::default() });
        loaded.run(programs::ETHERNET_OUT, Input { packet: &udp, ..Input::default() });
    }
    let input = Counters { input_bytes: 40, input_packets: 1, ..Counters::default() };
    let output = Counters { output_bytes: 52, output_packets: 1, ..Counters::default() };
    let none = Counters::default();
    for (slot, lanes) in loaded.counters().chunks(LANES as usize).enumerate() {
        assert_eq!(lanes, [input, none, none, output], "slot {slot}");
    }
    assert!(loaded.skipped().iter().all(|counters| *counters == none));
    assert!(loaded.carried_over_is_zero());
}

#[test]
fn traffic_of_the_host_with_itself_is_skipped_at_a_cgroup_only() {
    need!(Bpf, Object);
    let mut loaded = Loaded::new(1, false);
    loaded.watch(false, 443, Some(0));
    let packet = corpus::named("v4-tcp").packet;
    // Without a device a test run's packet comes from loopback.
    let input = Input { packet: &packet, ..Input::default() };
    assert_eq!(loaded.run(programs::CGROUP_IN, input).retval, 1);
    assert_eq!(loaded.run(programs::CGROUP_OUT, input).retval, 1);
    let one = Counters { input_bytes: 40, input_packets: 1, output_bytes: 40, output_packets: 1 };
    assert_eq!(loaded.skipped()[skip::LOOPBACK as usize], one);
    assert_eq!(loaded.counter(0, 0), Counters::default());
    // At tc it counts: somebody has named the device.
    loaded.run(programs::ETHERNET_IN, input);
    assert_eq!(loaded.counter(0, 0).input_packets, 1);
}

#[test]
fn headers_outside_the_linear_part_are_counted_by_the_slow_path() {
    need!(Bpf, Object);
    let mut loaded = Loaded::new(1, false);
    for udp in [false, true] {
        loaded.watch(udp, 443, Some(0));
    }
    // Ethernet in the linear part, the rest in a fragment of the skb.
    let Case { packet, offload, bytes, packets, .. } = corpus::named("v4-gso");
    let Offload { segments: gso_segs, size: gso_size } = offload;
    let input = Input { packet: &packet, gso_segs, gso_size, linear: 14, ..Input::default() };
    match bpf::test_run(loaded.program(programs::ETHERNET_IN), input) {
        Ok(_) => {
            let counters = loaded.counter(0, 0);
            assert_eq!((counters.input_bytes, counters.input_packets), (bytes, packets));
        }
        // Before 6.19 a test run makes all linear. That it is this and nothing else that was refused, the
        // same without it shows; such buffers come from a device then, in
        // `headers_outside_the_linear_part_of_a_buffer_are_counted_like_others`.
        Err(err) if err.kind() == io::ErrorKind::InvalidInput => {
            let whole = Input { linear: 0, ..input };
            bpf::test_run(loaded.program(programs::ETHERNET_IN), whole)
                .expect("a test run of the same packet in one piece");
            let counters = loaded.counter(0, 0);
            assert_eq!((counters.input_bytes, counters.input_packets), (bytes, packets));
            eprintln!("skipped: a test run of this kernel makes every buffer linear");
        }
        Err(err) => panic!("{err}"),
    }
}

#[test]
fn the_verifier_has_little_to_do() {
    need!(Bpf, Object);
    let loaded = Loaded::new(1, true);
    for name in programs::ALL {
        match loaded.verified_instructions(name) {
            Some(count) => {
                eprintln!("{name}: {count} instructions verified");
                assert!(count <= MOST_VERIFIED, "{name}: {count} instructions verified");
            }
            None => {
                eprintln!("{name}: this kernel does not tell how many instructions it verified");
            }
        }
    }
}

#[test]
fn every_watched_port_of_the_corpus_is_charged_by_some_packet() {
    for (port, _) in WATCHED {
        assert!(corpus::all().iter().any(|case| case.charge == Charge::Port(port)), "port {port}");
    }
}
