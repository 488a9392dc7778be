//! The loaded programs beside a model of them, which is the parser and two tables of the standard
//! library. Each packet goes to both, and then every counter must stand where the model says.

use std::{collections::HashMap, fmt::Display, process::Command, thread};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use traffic_ebpf::{
    abi::{Counters, FragmentKey, LANES, programs, skip},
    packet::{self, Amount, Link, Offload, Parsed, Place},
};
use traffic_tests::{
    bpf::{self, Input},
    corpus::{Side, WATCHED},
    loaded::Loaded,
    need,
};

/// A pair of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// tc, with an Ethernet header.
    Ethernet,
    /// tc, without a link header.
    Bare,
    /// `cgroup_skb`.
    Cgroup,
}

impl Hook {
    fn program(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Ethernet, Side::Input) => programs::ETHERNET_IN,
            (Self::Ethernet, Side::Output) => programs::ETHERNET_OUT,
            (Self::Bare, Side::Input) => programs::BARE_IN,
            (Self::Bare, Side::Output) => programs::BARE_OUT,
            (Self::Cgroup, Side::Input) => programs::CGROUP_IN,
            (Self::Cgroup, Side::Output) => programs::CGROUP_OUT,
        }
    }

    fn link(self) -> Link {
        match self {
            Self::Ethernet => Link::Ethernet,
            Self::Bare | Self::Cgroup => Link::Bare,
        }
    }

    /// "Go on as if I were not here": `TC_ACT_UNSPEC` at tc, allow at a cgroup.
    fn passes(self) -> i32 {
        match self {
            Self::Ethernet | Self::Bare => -1,
            Self::Cgroup => 1,
        }
    }
}

/// Where a packet is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// A slot and a lane of it.
    Slot(u16, u8),
    /// A reason of [`skip`].
    Skipped(u32),
}

/// Where, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Where.
    pub(super) to: To,
    /// How much.
    pub(super) amount: Amount,
}

/// Slots are handed out in the order of [`WATCHED`].
pub(super) fn slot_of_watched(port: u16) -> u16 {
    let slot = WATCHED.iter().position(|&(known, _)| known == port).expect("a watched port");
    u16::try_from(slot).expect("a slot")
}

/// Runs `test` in a fresh network namespace that has a device besides loopback, whose index it gets.
/// Namespace and device end with the thread that made them.
pub(super) fn on_a_device(test: impl FnOnce(u32) + Send) {
    let ip = need::tool("ip").expect("needed by the caller");
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            let pair = ["link", "add", "name", "here", "type", "veth", "peer", "name", "there"];
            let made = Command::new(ip).args(pair).status().expect("run ip");
            assert!(made.success(), "make a device: {made}");
            test(if_nametoindex("here").expect("the device has an index"));
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// The loaded programs and the model of them.
pub(super) struct Kernel {
    loaded: Loaded,
    device: u32,
    fragments: HashMap<FragmentKey, (Option<u16>, u8)>,
    counters: Vec<Counters>,
    skipped: Vec<Counters>,
    frame: Vec<u8>,
}

impl Kernel {
    /// Watches the ports of [`WATCHED`]. Packets come from `device`.
    pub(super) fn new(atomic: bool, device: u32) -> Self {
        let slots = u32::try_from(WATCHED.len()).expect("a few");
        let mut loaded = Loaded::new(slots, atomic);
        for (port, udp_too) in WATCHED {
            loaded.watch(false, port, Some(slot_of_watched(port)));
            loaded.watch(true, port, udp_too.then(|| slot_of_watched(port)));
        }
        Self {
            counters: vec![Counters::default(); WATCHED.len() * LANES as usize],
            skipped: vec![Counters::default(); 2 * skip::REASONS as usize],
            loaded,
            device,
            fragments: HashMap::new(),
            frame: Vec::new(),
        }
    }

    /// Sends one packet through the program of `hook`, and checks what it returns and every counter.
    /// `None` when a test run does not take it: see [`bpf::is_taken`].
    #[track_caller]
    pub(super) fn check(
        &mut self,
        hook: Hook,
        side: Side,
        packet: &[u8],
        offload: Offload,
        what: &dyn Display,
    ) -> Option<Answer> {
        self.frame.clear();
        if hook == Hook::Cgroup {
            if packet.is_empty() {
                return None;
            }
            // Not the type of IP, with which newer kernels refuse an IP header that is cut.
            self.frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        }
        self.frame.extend(packet);
        if !bpf::is_taken(&self.frame) {
            return None;
        }

        let answer = self.answer(hook.link(), side, packet, offload);
        let counters = match answer.to {
            To::Slot(slot, lane) => {
                &mut self.counters[usize::from(slot) * LANES as usize + usize::from(lane)]
            }
            To::Skipped(reason) => &mut self.skipped[reason as usize],
        };
        let Amount { bytes, packets } = answer.amount;
        *counters = counters.plus(match side {
            Side::Input => {
                Counters { input_bytes: bytes, input_packets: packets, ..Counters::default() }
            }
            Side::Output => {
                Counters { output_bytes: bytes, output_packets: packets, ..Counters::default() }
            }
        });

        let input = Input {
            packet: &self.frame,
            gso_segs: offload.segments,
            gso_size: offload.size,
            ifindex: self.device,
            ..Input::default()
        };
        let program = hook.program(side);
        let output = self.loaded.run(program, input);
        assert_eq!(output.retval, hook.passes(), "{program} decides the fate of {what}");
        assert_eq!(self.loaded.skipped(), self.skipped, "{program}, skipped: {what}");
        assert_eq!(self.loaded.counters(), self.counters, "{program}, counted: {what}");
        Some(answer)
    }

    /// What the programs are to do, in terms of the parser.
    fn answer(&mut self, link: Link, side: Side, packet: &[u8], offload: Offload) -> Answer {
        let parsed = packet::parse(&packet, link, offload)
            .unwrap_or_else(|packet::Truncated| packet::truncated(&packet, link));
        let flow = match parsed {
            Parsed::Flow(flow) => flow,
            Parsed::Skip { reason, amount } => {
                return Answer { to: To::Skipped(reason), amount };
            }
        };
        let (port, direction) = match side {
            Side::Input => (flow.destination_port, 0),
            Side::Output => (flow.source_port, 1),
        };
        let udp = flow.lane & 2 != 0;
        let slot = WATCHED
            .iter()
            .any(|&(known, udp_too)| known == port && (udp_too || !udp))
            .then(|| slot_of_watched(port));
        let key =
            |of| packet::fragment_key(&packet, of, direction).expect("a fragment has addresses");
        let found = match flow.place {
            Place::Whole => Some((slot, flow.lane)),
            Place::First(of) => {
                self.fragments.insert(key(of), (slot, flow.lane));
                Some((slot, flow.lane))
            }
            Place::Later(of) => self.fragments.get(&key(of)).copied(),
        };
        let to = match found {
            None => To::Skipped(skip::FRAGMENT),
            Some((None, _)) => To::Skipped(skip::UNWATCHED),
            Some((Some(slot), lane)) => To::Slot(slot, lane),
        };
        Answer { to, amount: flow.amount }
    }

    /// As if no fragment had ever come.
    pub(super) fn forget_fragments(&mut self) {
        if !self.fragments.is_empty() {
            self.fragments.clear();
            self.loaded.forget_fragments();
        }
    }

    /// What holds after any number of packets.
    pub(super) fn end(self) {
        assert!(self.loaded.carried_over_is_zero(), "a program wrote to user space's stripe");
        let packets = |counters: &[Counters]| -> u64 {
            counters.iter().map(|counters| counters.input_packets + counters.output_packets).sum()
        };
        assert!(packets(&self.counters) > 0 && packets(&self.skipped) > 0, "nothing was tested");
    }
}
