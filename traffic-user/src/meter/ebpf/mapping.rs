//! Arrays of the kernel, mapped into this process: read without a system call.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::fault;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The values of an array map that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached by atomic loads
// only.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a map's values, for reading.
    pub(super) fn new(map: impl AsFd, bytes: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty map"))?;
        fault::refuse_at("map the counters")?;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing of ours.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start, len })
    }

    /// The words of the mapping. The kernel adds to them while we read.
    pub(super) fn words(&self) -> &[AtomicU64] {
        let count = self.len.get() / size_of::<AtomicU64>();
        // SAFETY: the mapping is page aligned, `count` words long, lives as long as `self`, and an
        // atomic word may be changed by others at any time.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), count) }
    }
}

/// Appends sums of `count` words from each of these places on. `None` when a place is outside.
///
/// The first two are added in one pass: with two processors that is all there is to do.
pub(super) fn sum(
    words: &[AtomicU64],
    places: impl Iterator<Item = usize>,
    count: usize,
    sums: &mut Vec<u64>,
) -> Option<()> {
    let load = |word: &AtomicU64| word.load(Relaxed);
    let mut stripes = places.map(|from| words.get(from..from + count));
    let begin = sums.len();
    match (stripes.next(), stripes.next()) {
        (None, _) => sums.resize(begin + count, 0),
        (Some(first), None) => sums.extend(first?.iter().map(load)),
        (Some(first), Some(second)) => {
            let both = first?.iter().zip(second?);
            sums.extend(both.map(|(first, second)| load(first).wrapping_add(load(second))));
        }
    }
    for stripe in stripes {
        for (sum, word) in sums.iter_mut().skip(begin).zip(stripe?) {
            *sum = sum.wrapping_add(load(word));
        }
    }
    Some(())
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}
