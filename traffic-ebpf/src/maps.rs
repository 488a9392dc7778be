//! The maps and the globals that user space sets before loading. Layouts: [`traffic_ebpf::abi`].

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray},
};
use traffic_ebpf::abi::{Counters, FragmentKey, Group, Meta, PORT_SLOTS, skip};

/// Which slot a port counts into. One value, because an array map rounds each value up to 8 bytes.
#[map]
pub static PORT_SLOT: Array<[u16; PORT_SLOTS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// User space sets the number of entries: stripes x slots x lanes.
#[map]
pub static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static SKIPPED: PerCpuArray<Counters> = PerCpuArray::with_max_entries(2 * skip::REASONS, 0);

/// Evicts the oldest when full: a flood of fragments costs attribution, never memory.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(8192, 0);

/// For user space only: no program reads it.
#[map]
pub static META: Array<Meta> = Array::with_max_entries(1, 0);

/// For user space only: no program reads it.
#[map]
pub static GROUPS: Array<Group> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static SLOTS: u32 = 1;
#[unsafe(no_mangle)]
static ATOMIC: u8 = 0;

/// Slots in each stripe of [`COUNTERS`].
#[inline(always)]
pub fn slots() -> u32 {
    // SAFETY: a static of this program. Volatile, so that the compiler does not use the value it
    // was written with: user space sets another one before loading.
    unsafe { core::ptr::read_volatile(&raw const SLOTS) }
}

/// Whether this hook can be interrupted on its own CPU by itself.
#[inline(always)]
pub fn atomic() -> bool {
    // SAFETY: as in `slots`.
    unsafe { core::ptr::read_volatile(&raw const ATOMIC) != 0 }
}
