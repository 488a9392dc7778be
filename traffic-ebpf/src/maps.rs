//! The maps and the globals that user space sets before loading. Layouts: [`traffic_ebpf::abi`].

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray},
};
use traffic_ebpf::abi::{Count, Counters, FragmentKey, Group, Meta, PORT_SLOTS, skip};

/// Which slot a port counts into. A variable and not a map that is asked: its address is a part of
/// the program, which saves a sixth of all that a common packet costs.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.ports")]
pub static PORT_SLOT: Shared<[u16; PORT_SLOTS]> = Shared(UnsafeCell::new([0; PORT_SLOTS]));

/// A variable that user space writes.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: programs only read it, each entry with one load.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Where it is.
    #[inline(always)]
    pub const fn get(&self) -> *const T {
        self.0.get()
    }
}

/// User space sets the number of entries: stripes x slots x parts.
#[map]
pub static COUNTERS: Array<Count> = Array::with_max_entries(1, BPF_F_MMAPABLE);

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
