//! The real eBPF object in the kernel, attached to nothing: packets come from test runs alone.

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd as _, BorrowedFd},
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::Program,
    util::nr_cpus,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use traffic_ebpf::abi::{
    self, Count, Counters, LANES, PARTS, PORT_SLOTS, globals, maps, programs, skip,
};
use traffic_user::meter::ebpf::OBJECT;

use crate::bpf::{self, Input, Output};

/// The programs and maps of one load.
pub struct Loaded {
    ebpf: Ebpf,
    slots: u32,
    stripes: u32,
    counters: Mapping,
    ports: Box<[u16; PORT_SLOTS]>,
}

impl Loaded {
    /// Loads all six programs, with room for `slots` groups, none of them watched yet.
    ///
    /// # Panics
    ///
    /// When the kernel refuses a program or a map; the verifier's log is in the message.
    pub fn new(slots: u32, atomic: bool) -> Self {
        let cpus = nr_cpus().expect("how many CPUs there can be");
        let stripes = u32::try_from(cpus).expect("a number of CPUs") + 1;
        let (atomic, silent) = (u8::from(atomic), 0u8);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::COUNTERS, stripes * slots * PARTS)
            .map_max_entries(maps::GROUPS, slots)
            .map_max_entries("AYA_LOGS", 4096)
            .override_global(globals::SLOTS, &slots, true)
            .override_global(globals::ATOMIC, &atomic, true)
            .override_global(globals::LOG_LEVEL, &silent, true)
            .load(OBJECT)
            .expect("make the maps");
        for name in programs::ALL {
            match ebpf.program_mut(name) {
                Some(Program::SchedClassifier(program)) => program.load(),
                Some(Program::CgroupSkb(program)) => program.load(),
                _ => panic!("the object has no program {name}"),
            }
            .unwrap_or_else(|err| panic!("load {name}: {err}"));
        }
        let counters = stripes as usize * slots as usize * PARTS as usize * Count::SIZE;
        Self {
            counters: Mapping::new(map(&ebpf, maps::COUNTERS), counters),
            ports: Box::new([0; PORT_SLOTS]),
            ebpf,
            slots,
            stripes,
        }
    }

    /// Counts this port of one transport into `slot`; `None` counts it nowhere.
    pub fn watch(&mut self, udp: bool, port: u16, slot: Option<u16>) {
        self.watch_all([(udp, port, slot)]);
    }

    /// As [`watch`](Self::watch), for many ports at once.
    pub fn watch_all(&mut self, ports: impl IntoIterator<Item = (bool, u16, Option<u16>)>) {
        for (udp, port, slot) in ports {
            self.ports[abi::port_index(udp, port)] = slot.map_or(0, |slot| slot + 1);
        }
        let table = self.ebpf.map_mut(maps::PORT_SLOT).expect("the object has a port table");
        let mut table: Array<_, [u16; PORT_SLOTS]> = table.try_into().expect("an array");
        let ports: &[u16; PORT_SLOTS] = &self.ports;
        table.set(0, ports, 0).expect("write the port table");
    }

    /// A program by its name of [`programs`].
    pub fn program(&self, name: &str) -> BorrowedFd<'_> {
        match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => program.fd(),
            Some(Program::CgroupSkb(program)) => program.fd(),
            _ => panic!("the object has no program {name}"),
        }
        .expect("loaded by `new`")
        .as_fd()
    }

    /// Runs a program on one packet.
    pub fn run(&self, name: &str, input: Input<'_>) -> Output {
        bpf::test_run(self.program(name), input)
            .unwrap_or_else(|err| panic!("run {name} on {} bytes: {err}", input.packet.len()))
    }

    /// Instructions that the verifier looked at, where the kernel tells (5.16 and later).
    pub fn verified_instructions(&self, name: &str) -> Option<u32> {
        match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => program.info(),
            Some(Program::CgroupSkb(program)) => program.info(),
            _ => panic!("the object has no program {name}"),
        }
        .expect("information about a loaded program")
        .verified_instruction_count()
    }

    /// What one lane of one slot stands at, summed over the CPUs.
    pub fn counter(&self, slot: u32, lane: u8) -> Counters {
        (0..self.stripes).fold(Counters::default(), |sum, stripe| {
            let [input, output] = [false, true].map(|output| {
                let part = abi::part(lane, output);
                let at = abi::counter_index(stripe, self.slots, slot, part) as usize * 2;
                [0, 1].map(|word| self.counters.words()[at + word].load(Relaxed))
            });
            sum.plus(Counters {
                input_bytes: input[0],
                input_packets: input[1],
                output_bytes: output[0],
                output_packets: output[1],
            })
        })
    }

    /// All lanes of all slots, lanes of one slot together.
    pub fn counters(&self) -> Vec<Counters> {
        let lanes = 0..u8::try_from(LANES).expect("four");
        (0..self.slots)
            .flat_map(|slot| lanes.clone().map(move |lane| self.counter(slot, lane)))
            .collect()
    }

    /// Whether the stripe that belongs to user space is untouched.
    pub fn carried_over_is_zero(&self) -> bool {
        let from = abi::counter_index(self.stripes - 1, self.slots, 0, 0) as usize * 2;
        self.counters.words()[from..].iter().all(|word| word.load(Relaxed) == 0)
    }

    /// All of `SKIPPED`, summed over the CPUs: what the programs count, then what no program writes.
    pub fn skipped(&self) -> Vec<Counters> {
        let skipped: PerCpuArray<_, [u64; 4]> =
            map(&self.ebpf, maps::SKIPPED).try_into().expect("a per-CPU array");
        let sum = |reason| {
            let values = skipped.get(&reason, 0).expect("read SKIPPED");
            values.iter().fold(Counters::default(), |sum, &[a, b, c, d]| {
                sum.plus(Counters {
                    input_bytes: a,
                    input_packets: b,
                    output_bytes: c,
                    output_packets: d,
                })
            })
        };
        (0..2 * skip::REASONS).map(sum).collect()
    }

    /// Empties the table of fragments.
    pub fn forget_fragments(&mut self) {
        let fragments = self.ebpf.map_mut(maps::FRAGMENTS).expect("the object has FRAGMENTS");
        let mut fragments: HashMap<_, [u8; 40], u32> = fragments.try_into().expect("a hash table");
        let keys: Vec<_> = fragments.keys().map(|key| key.expect("a key of FRAGMENTS")).collect();
        for key in keys {
            fragments.remove(&key).expect("remove from FRAGMENTS");
        }
    }
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> &'a Map {
    ebpf.map(name).unwrap_or_else(|| panic!("the object has no map {name}"))
}

/// An array of the kernel in this process.
struct Mapping {
    start: NonNull<u8>,
    length: NonZeroUsize,
}

impl Mapping {
    fn new(map: &Map, bytes: usize) -> Self {
        let Map::Array(map) = map else {
            panic!("not an array: {map:?}");
        };
        let map: &MapData = map;
        let length = NonZeroUsize::new(bytes).expect("an array has entries");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start =
            unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) }
                .expect("map an array of the kernel");
        Self { start: start.cast(), length }
    }

    fn words(&self) -> &[AtomicU64] {
        let count = self.length.get() / size_of::<AtomicU64>();
        // SAFETY: the mapping lives as long as `self`, begins at a page, and its bytes are only ever
        // accessed as atomics, here and in the kernel.
        unsafe { slice::from_raw_parts(self.start.cast::<AtomicU64>().as_ptr(), count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows from it any more.
        if let Err(err) = unsafe { munmap(self.start.cast(), self.length.get()) } {
            eprintln!("left behind: a mapping of {} bytes: {err}", self.length);
        }
    }
}
