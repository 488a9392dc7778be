//! One skb to one counter.

use core::{
    arch::asm,
    hint::{assert_unchecked, cold_path},
};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_smp_processor_id, bpf_sk_fullsock, bpf_skb_load_bytes},
};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use traffic_ebpf::{
    abi::{self, skip},
    packet::{
        self, Amount, Datagram, Flow, InPlace, Link, Offload, PacketReader, Pair, Parsed, Place,
        Taker, parse,
    },
};

use crate::maps::{self, COUNTERS, FRAGMENTS, PORT_SLOT, SKIPPED};

/// Index of the loopback device, the same in every network namespace.
const LOOPBACK: u32 = 1;

/// `pkt_type` of what this host sent to a group, or to all, and the kernel hands back to it.
const PACKET_LOOPBACK: u32 = 5;

/// A socket that is given whole packets, by protocol and not by port.
const SOCK_RAW: u32 = 3;
/// What may be a protocol in the place of a port.
const MOST_PROTOCOL: u32 = 255;

/// In the place of a port: the one that the packet says. No socket has it.
const OF_THE_PACKET: u16 = 0;

/// Seen from this host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Input,
    Output,
}

/// Counts one skb. Decides nothing about it.
#[inline(always)]
pub fn account(ctx: &impl EbpfContext, link: Link, direction: Direction) {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // It has no link header. On a device where others have one it is hardly ever like most: its source would
    // have to read as an ethertype and the beginning of a header. See `account_any`.
    if link == Link::Bare && is_handed_back(skb, direction) {
        return handed_back(skb, direction);
    }
    account_for(ctx, link, direction, OF_THE_PACKET);
}

/// Whether this host sent it: it was counted when it left, and no device has received it.
#[inline(always)]
fn is_handed_back(skb: *const __sk_buff, direction: Direction) -> bool {
    // SAFETY: the kernel gave the context.
    direction == Direction::Input && unsafe { (*skb).pkt_type } == PACKET_LOOPBACK
}

/// Traffic of the host with itself: nobody's.
#[inline(always)]
fn handed_back(skb: *const __sk_buff, direction: Direction) {
    cold_path();
    let amount = Amount { bytes: skb_len(skb) as u64, packets: 1 };
    skipped(skip::LOOPBACK, amount, direction);
}

/// Counts one skb to `port` of this host.
#[inline(always)]
fn account_for(ctx: &impl EbpfContext, link: Link, direction: Direction, port: u16) {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // Behind a read-only global that is 0 unless asked for, so that the verifier removes it.
    if level_enabled(Level::Debug) {
        log(skb, link == Link::Bare);
    }
    if account_common(skb, link, direction, port).is_none() {
        account_any(skb, link == Link::Bare, direction == Direction::Output, port);
    }
}

/// Logs what a packet is. A function of its own: what is logged lies on the stack.
#[inline(never)]
fn log(skb: *const __sk_buff, bare: bool) {
    let link = if bare { Link::Bare } else { Link::Ethernet };
    if let Ok(Parsed::Flow(flow)) = parse(&Whole(skb), link, offload(skb)) {
        debug!(
            skb,
            "lane {} ports {} -> {}: {} bytes, {} packets",
            flow.lane,
            flow.source_port,
            flow.destination_port,
            flow.amount.bytes,
            flow.amount.packets
        );
    }
}

/// Counts an skb that is like most. `None` if it is not, and nothing was counted then.
#[inline(always)]
fn account_common(
    skb: *const __sk_buff,
    link: Link,
    direction: Direction,
    port: u16,
) -> Option<()> {
    let linear = Linear::of(skb);
    packet::common(&linear, link, offload(skb), &Counting { linear: &linear, direction, port })
}

/// What is done with a common packet.
struct Counting<'a> {
    linear: &'a Linear,
    direction: Direction,
    port: u16,
}

impl Taker for Counting<'_> {
    #[inline(always)]
    fn take(&self, datagram: Datagram<'_>) {
        let port = match (self.port, self.direction) {
            (OF_THE_PACKET, Direction::Input) => self.linear.number(datagram.destination_port),
            (OF_THE_PACKET, Direction::Output) => self.linear.number(datagram.source_port),
            (port, _) => usize::from(port),
        };
        let slot = slot_in_table(datagram.lane & 2 != 0, port);
        count(slot, datagram.lane, datagram.amount, self.direction);
    }
}

/// Counts any skb. A function of its own, so that what it needs costs the common ones nothing.
#[inline(never)]
fn account_any(skb: *const __sk_buff, bare: bool, output: bool, port: u16) {
    let link = if bare { Link::Bare } else { Link::Ethernet };
    let direction = if output { Direction::Output } else { Direction::Input };
    // Where its ethertype would be stands a part of an address of this host, and behind it another.
    if !bare && is_handed_back(skb, direction) {
        return handed_back(skb, direction);
    }
    let linear = Linear::of(skb);
    let offload = offload(skb);
    match parse(&linear, link, offload) {
        Ok(parsed) => charge(&linear, parsed, direction, port),
        // Rare: the headers lie outside the linear part, or the packet ends before them.
        Err(packet::Truncated) => {
            let whole = Whole(skb);
            let parsed =
                parse(&whole, link, offload).unwrap_or_else(|_| packet::truncated(&whole, link));
            charge(&whole, parsed, direction, port);
        }
    }
}

/// Counts one skb at a cgroup, where traffic of the host with itself passes as well.
#[inline(always)]
pub fn account_socket(ctx: &impl EbpfContext, direction: Direction) {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the kernel gave the context.
    let ifindex = unsafe { (*skb).ifindex };
    if ifindex == LOOPBACK || is_handed_back(skb, direction) {
        return handed_back(skb, direction);
    }
    let port = port_of_socket(skb);
    // A NAT rule has written another port into what leaves, but not yet into what enters.
    let port = match (direction, port) {
        // Each raw socket is given a copy of what is for a port, which another socket has.
        (Direction::Input, RAW_TCP | RAW_UDP) => return cold_path(),
        (Direction::Input, _) | (Direction::Output, RAW_TCP | RAW_UDP | RAW) => OF_THE_PACKET,
        (Direction::Output, port) => port as u16,
    };
    account_for(ctx, Link::Bare, direction, port);
}

/// In the place of a port: what raw sockets have. No port is as large.
const RAW: u32 = 1 << 16;
const RAW_TCP: u32 = RAW | 6;
const RAW_UDP: u32 = RAW | 17;

/// The port that the socket has which sends or gets it; 0 without one; [`RAW`] and more for a raw one.
#[inline(always)]
fn port_of_socket(skb: *const __sk_buff) -> u32 {
    // SAFETY: the kernel gave the context; reading the pointer gives a socket or null.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return OF_THE_PACKET.into();
    }
    // SAFETY: the kernel keeps the socket of an skb while it is looked at. Host byte order.
    let port = unsafe { (*socket).src_port };
    // Raw sockets, and the one with which the kernel answers for nobody (resets), have their protocol there.
    if port <= MOST_PROTOCOL && is_raw(socket) {
        cold_path();
        return match port {
            6 => RAW_TCP,
            17 => RAW_UDP,
            _ => RAW,
        };
    }
    port
}

#[inline(always)]
fn is_raw(socket: *mut bpf_sock) -> bool {
    // SAFETY: as above; the helper gives the same socket or null.
    let whole = unsafe { bpf_sk_fullsock(socket) };
    // SAFETY: it is not null.
    !whole.is_null() && unsafe { (*whole).type_ } == SOCK_RAW
}

#[inline(always)]
fn charge(pkt: &impl PacketReader, parsed: Parsed, direction: Direction, port: u16) {
    let flow = match parsed {
        Parsed::Flow(flow) => flow,
        Parsed::Skip { reason, amount } => return skipped(reason, amount, direction),
    };
    let (slot_and_one, lane) = match flow.place {
        Place::Whole => (slot_of(&flow, direction, port), flow.lane),
        Place::First(of) => {
            let slot = slot_of(&flow, direction, port);
            if let Ok(key) = packet::fragment_key(pkt, of, direction as u8) {
                let value = u32::from(slot) | u32::from(flow.lane) << 16;
                // A full table evicts its oldest entry, so this fails only without memory; then
                // the later fragments are counted as what they are, fragments without a first.
                let _ = FRAGMENTS.insert(&key, &value, 0);
            }
            (slot, flow.lane)
        }
        Place::Later(of) => {
            let first = packet::fragment_key(pkt, of, direction as u8)
                .ok()
                // SAFETY: the value is a `u32` that this program writes whole.
                .and_then(|key| unsafe { FRAGMENTS.get(&key) }.copied());
            match first {
                Some(value) => (value as u16, (value >> 16) as u8),
                None => return skipped(skip::FRAGMENT, flow.amount, direction),
            }
        }
    };
    count(slot_and_one, lane, flow.amount, direction);
}

/// Adds to the slot, or to what nobody asked for.
#[inline(always)]
fn count(slot_and_one: u16, lane: u8, amount: Amount, direction: Direction) {
    if slot_and_one == 0 {
        cold_path();
        return skipped(skip::UNWATCHED, amount, direction);
    }
    // SAFETY: the helper takes nothing and only reads the number of this CPU.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slot = u32::from(slot_and_one) - 1;
    let part = abi::part(lane & 3, direction == Direction::Output);
    if let Some(count) = COUNTERS.get_ptr_mut(abi::counter_index(cpu, maps::slots(), slot, part)) {
        // SAFETY: a map gave `count`, so it points at a live, aligned value.
        let (bytes, packets) = unsafe { (&raw mut (*count).bytes, &raw mut (*count).packets) };
        add(bytes, packets, amount);
    }
}

/// `slot + 1` of the port that this host uses in the flow, or 0.
#[inline(always)]
fn slot_of(flow: &Flow, direction: Direction, port: u16) -> u16 {
    let port = match (port, direction) {
        (OF_THE_PACKET, Direction::Input) => flow.destination_port,
        (OF_THE_PACKET, Direction::Output) => flow.source_port,
        (port, _) => port,
    };
    slot_in_table(flow.lane & 2 != 0, usize::from(port))
}

/// What the table has for a port, which is below 65,536.
#[inline(always)]
fn slot_in_table(udp: bool, port: usize) -> u16 {
    let table = PORT_SLOT.get().cast::<u16>();
    // SAFETY: the index is below `PORT_SLOTS` by construction, and the verifier checks it.
    let entry = unsafe { table.add(usize::from(udp) << 16 | port) };
    // SAFETY: as above. Volatile, because user space changes entries while we read, and no program
    // ever does, from which the compiler would conclude that all are zero.
    unsafe { entry.read_volatile() }
}

#[inline(always)]
fn skipped(reason: u32, amount: Amount, direction: Direction) {
    if let Some(counters) = SKIPPED.get_ptr_mut(reason) {
        // SAFETY: a map gave `counters`, so it points at a live, aligned value.
        let (bytes, packets) = unsafe {
            match direction {
                Direction::Input => {
                    (&raw mut (*counters).input_bytes, &raw mut (*counters).input_packets)
                }
                Direction::Output => {
                    (&raw mut (*counters).output_bytes, &raw mut (*counters).output_packets)
                }
            }
        };
        add(bytes, packets, amount);
    }
}

/// Both are words of one live map value.
#[inline(always)]
fn add(bytes: *mut u64, packets: *mut u64, amount: Amount) {
    if maps::atomic() {
        cold_path();
        increase(bytes, amount.bytes);
        increase(packets, amount.packets);
    } else {
        // SAFETY: a live map value that belongs to this CPU, and user space chose this branch because
        // nothing interrupts the hook on its own CPU.
        unsafe { *bytes += amount.bytes };
        // SAFETY: as above.
        unsafe { *packets += amount.packets };
    }
}

/// The one place that knows that BPF has no `AtomicU64::fetch_add`.
#[inline(always)]
fn increase(counter: *mut u64, by: u64) {
    // SAFETY: `add` passes pointers into a live map value.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, by,
        );
    }
}

#[inline(always)]
fn skb_len(skb: *const __sk_buff) -> usize {
    // SAFETY: the kernel gave the context.
    unsafe { (*skb).len as usize }
}

#[inline(always)]
fn offload(skb: *const __sk_buff) -> Offload {
    // SAFETY: the kernel gave the context.
    let (segments, size) = unsafe { ((*skb).gso_segs, (*skb).gso_size) };
    Offload { segments, size }
}

/// The linear part of an skb, read directly.
struct Linear {
    skb: *const __sk_buff,
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(skb: *const __sk_buff) -> Self {
        // SAFETY: the kernel gave the context.
        let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        Self { skb, start, end }
    }

    #[inline(always)]
    fn pairs_at<const N: usize>(&self, from: usize) -> Option<&[Pair; N]> {
        if from + N * size_of::<Pair>() > self.end {
            return None;
        }
        let pairs = from as *const [Pair; N];
        // SAFETY: no packet lies at address 0; without this each way would ask.
        unsafe { assert_unchecked(!pairs.is_null()) };
        // SAFETY: the first line, and the verifier, keep all of it inside the linear part, which
        // stays as it is while the program runs.
        Some(unsafe { &*pairs })
    }
}

impl PacketReader for Linear {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let from = self.start + offset;
        if from + N > self.end {
            return None;
        }
        // SAFETY: the line above, and the verifier, keep `from..from + N` inside the linear part.
        Some(unsafe { *(from as *const [u8; N]) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        skb_len(self.skb)
    }
}

impl InPlace for Linear {
    #[inline(always)]
    fn pairs<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.pairs_at(self.start + offset)
    }

    #[inline(always)]
    fn pairs_behind<const N: usize>(&self, offset: usize) -> Option<&[Pair; N]> {
        self.pairs_at(displaced(self.start, offset))
    }

    #[inline(always)]
    fn word(&self, pair: &Pair) -> u16 {
        // SAFETY: two bytes that can be read. Headers lie at even addresses wherever a processor
        // cares, and only the choice of the instruction depends on it: one load and not two.
        unsafe { *pair.as_ptr().cast::<u16>() }
    }

    #[inline(always)]
    fn whole_len(&self) -> usize {
        skb_len(self.skb)
    }
}

/// The sum, hidden from the compiler. It would compute another pointer from what it knows already,
/// and the verifier would not know that one as checked.
#[inline(always)]
fn displaced(mut address: usize, offset: usize) -> usize {
    // SAFETY: an addition of two registers.
    unsafe {
        asm!(
            "{0} += {1}",
            inout(reg) address,
            in(reg) offset,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    address
}

/// A buffer on the stack whose words can be written whole.
#[repr(align(8))]
struct Aligned<const N: usize>([u8; N]);

/// All of an skb, read by a helper that costs as much as the rest of the accounting together.
struct Whole(*const __sk_buff);

impl PacketReader for Whole {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // Aligned, so that it is cleared by a few stores and not by a loop.
        let mut bytes = Aligned([0u8; N]);
        // SAFETY: the helper writes at most `N` bytes to `bytes`.
        let result = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset as u32, bytes.0.as_mut_ptr().cast(), N as u32)
        };
        (result == 0).then_some(bytes.0)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        skb_len(self.0)
    }
}
