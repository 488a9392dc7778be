//! The maps, typed: which port counts where, and what was counted.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, PerCpuArray},
};
use traffic_ebpf::abi::{
    ABI_VERSION, Count, Counters, Group as Entry, LANES, MAGIC, Meta, PARTS, PORT_SLOTS, carry,
    counter_index, maps, skip, state,
};

use super::{
    mapping::{self, Mapping},
    slots::{Slot, Slots},
    sys,
};
use crate::{
    accounting::{
        ident::{Group, Groups},
        reading::{
            Coverage, Epoch, GroupReading, Lanes, Layer, Skipped, Snapshot, Traffic, Window,
        },
    },
    meter::error::{MeterError, cause},
};

/// Words of one [`Count`].
const WORDS: usize = Count::SIZE / size_of::<u64>();

/// The counters.
struct CounterMap {
    values: Values,
    /// Read without a system call. `None` where a kernel refuses it: then one look-up a value.
    mapped: Option<Mapping>,
}

/// What one value of the counters is.
enum Values {
    /// A part of a slot.
    Parts(Array<MapData, [u8; Count::SIZE]>),
    /// A lane with both directions: ABI 1, only read.
    Lanes(Array<MapData, [u8; Counters::SIZE]>),
}

/// The port table of programs that were loaded by us. Written whole: the kernel copies it in place, so
/// an entry that does not change never differs.
type PortTable = Box<Array<MapData, [u16; PORT_SLOTS]>>;

/// All maps of one set.
pub(super) struct Maps {
    meta_map: Array<MapData, [u8; Meta::SIZE]>,
    groups: Array<MapData, [u8; Entry::SIZE]>,
    skipped: PerCpuArray<MapData, [u8; Counters::SIZE]>,
    counters: CounterMap,
    /// `None` in a set that was opened for reading.
    table: Option<PortTable>,
    meta: Meta,
    slots: Slots,
    /// By slot: what does not belong to the group that is there now.
    baselines: Vec<Option<Box<[Counters; LANES as usize]>>>,
}

impl Maps {
    /// Takes the maps of a loaded object. A fresh set is given `fresh` as its description; one that
    /// was pinned before keeps its own.
    pub(super) fn take(ebpf: &mut Ebpf, fresh: Meta) -> Result<Self, MeterError> {
        let mut take = |name: &'static str| {
            ebpf.take_map(name).ok_or(MeterError::Map {
                doing: "find",
                map: name,
                cause: "the object has no such map".into(),
            })
        };
        let table = Array::try_from(take(maps::PORT_SLOT)?).map_err(|error| MeterError::Map {
            doing: "open",
            map: maps::PORT_SLOT,
            cause: cause(error),
        })?;
        let counters = data(take(maps::COUNTERS)?, maps::COUNTERS)?;
        let skipped = take(maps::SKIPPED)?;
        let groups = take(maps::GROUPS)?;
        let mut meta_map = array(take(maps::META)?, maps::META)?;
        let mut meta = read_meta(&meta_map)?;
        if meta.magic != MAGIC {
            meta = fresh;
            write(&mut meta_map, 0, meta.to_bytes(), maps::META)?;
        }
        let mut taken =
            Self::open(meta_map, meta, groups, skipped, counters, Some(Box::new(table)))?;
        // The table is these programs' own and still empty. What the set watched before is watched
        // before any of them sees a packet.
        if taken.used() > 0 {
            let table = taken.slots.port_table();
            taken.write_table(table)?;
        }
        Ok(taken)
    }

    /// What a pinned set says of itself; `None` when it is not ours.
    pub(super) fn described(folder: &Path) -> Option<Meta> {
        let map = MapData::from_pin(folder.join(maps::META)).ok()?;
        let meta = read_meta(&array(Map::Array(map), maps::META).ok()?).ok()?;
        (meta.magic == MAGIC).then_some(meta)
    }

    /// Whether a start pinned this set and was ended before it described it: nothing has counted into it.
    pub(super) fn is_begun(folder: &Path) -> bool {
        let Ok(map) = MapData::from_pin(folder.join(maps::META)) else { return false };
        // Somebody else's may be empty as well.
        let named = map.info().is_ok_and(|info| info.name_as_str() == Some(maps::META));
        let meta = array::<{ Meta::SIZE }>(Map::Array(map), maps::META).ok();
        let value = meta.and_then(|meta| meta.get(&0, 0).ok());
        named && value.is_some_and(|value| value.iter().all(|byte| *byte == 0))
    }

    /// Opens a pinned set to read it. Changes nothing.
    pub(super) fn pinned(folder: &Path) -> Result<Self, MeterError> {
        let open = |name: &'static str| {
            let path = folder.join(name);
            if path.try_exists().is_ok_and(|there| !there) {
                let reason = format!("are not whole: {name} is missing");
                return Err(MeterError::OtherPins { path: folder.into(), reason });
            }
            MapData::from_pin(path).map_err(|error| MeterError::Map {
                doing: "open",
                map: name,
                cause: cause(error),
            })
        };
        let foreign = |reason: String| MeterError::Foreign { path: folder.into(), reason };
        let meta_map = array(Map::Array(open(maps::META)?), maps::META)
            .map_err(|_| foreign("META has another shape".into()))?;
        let meta = read_meta(&meta_map)?;
        if meta.magic != MAGIC {
            return Err(foreign("META does not begin with our mark".into()));
        }
        if meta.lanes != LANES
            || ![Count::SIZE, Counters::SIZE].contains(&(meta.counter_size as usize))
            || meta.group_size as usize != Entry::SIZE
        {
            return Err(foreign(format!(
                "the layout of ABI {} is not known to this version (ABI {ABI_VERSION}); use the traffic that pinned it",
                meta.abi
            )));
        }
        let skipped = Map::PerCpuArray(open(maps::SKIPPED)?);
        let groups = Map::Array(open(maps::GROUPS)?);
        Self::open(meta_map, meta, groups, skipped, open(maps::COUNTERS)?, None)
    }

    fn open(
        meta_map: Array<MapData, [u8; Meta::SIZE]>,
        meta: Meta,
        groups: Map,
        skipped: Map,
        counters: MapData,
        table: Option<PortTable>,
    ) -> Result<Self, MeterError> {
        let groups = array(groups, maps::GROUPS)?;
        let skipped = PerCpuArray::try_from(skipped).map_err(|error| MeterError::Map {
            doing: "open",
            map: maps::SKIPPED,
            cause: cause(error),
        })?;
        let bytes = meta.stripes as usize * meta.slots as usize * LANES as usize * Counters::SIZE;
        let mapped = Mapping::new(counters.fd(), bytes)
            .inspect_err(|error| tracing::debug!(%error, "the counters cannot be mapped"))
            .ok();
        let counters = Map::Array(counters);
        let values = if meta.counter_size as usize == Count::SIZE {
            Values::Parts(array(counters, maps::COUNTERS)?)
        } else {
            Values::Lanes(array(counters, maps::COUNTERS)?)
        };
        let counters = CounterMap { values, mapped };
        let mut opened = Self {
            meta_map,
            groups,
            skipped,
            counters,
            table,
            meta,
            slots: Slots::new(Vec::new(), meta.slots),
            baselines: Vec::new(),
        };
        opened.read_groups()?;
        Ok(opened)
    }

    fn read_groups(&mut self) -> Result<(), MeterError> {
        let mut used = Vec::new();
        self.baselines.clear();
        for index in 0..self.meta.slots_used.min(self.meta.slots) {
            let entry = self.entry(index)?;
            let group: Option<Group> = entry.text().and_then(|text| text.parse().ok());
            let group = group.ok_or_else(|| MeterError::Map {
                doing: "understand",
                map: maps::GROUPS,
                cause: format!("slot {index} does not say what it counts").into(),
            })?;
            used.push(Slot { group: Arc::new(group), watched: entry.state == state::ACTIVE });
            let zero = entry.baseline == [Counters::default(); LANES as usize];
            self.baselines.push((!zero).then(|| Box::new(entry.baseline)));
        }
        self.slots = Slots::new(used, self.meta.slots);
        Ok(())
    }

    /// What the set says of itself.
    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether these groups can be watched without making room.
    pub(super) fn fits(&self, groups: &Groups) -> bool {
        // Taking a retired slot is for when there is no other way; larger maps are one.
        self.slots.clone().watch(groups).is_ok_and(|change| change.reused.is_empty())
    }

    /// Slots handed out so far.
    pub(super) fn used(&self) -> usize {
        self.slots.used().len()
    }

    /// Groups that are watched now.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.slots.used().iter().filter(|slot| slot.watched).map(|slot| &slot.group)
    }

    /// Changes what the set says of itself.
    pub(super) fn set_meta(&mut self, change: impl FnOnce(&mut Meta)) -> Result<(), MeterError> {
        change(&mut self.meta);
        write(&mut self.meta_map, 0, self.meta.to_bytes(), maps::META)
    }

    /// Watches these groups and no others. Groups that stay do not miss a packet; one that is new
    /// counts from the moment this returns.
    pub(super) fn watch(&mut self, groups: &Groups) -> Result<(), MeterError> {
        let mut next = self.slots.clone();
        let change = next
            .watch(groups)
            .map_err(|_| MeterError::Full { wanted: groups.len(), slots: self.meta.slots })?;
        let table = next.port_table();
        let mut reused = Vec::new();
        if !change.reused.is_empty() {
            // No program may add to such a slot while its baseline is read.
            let mut parted = table.clone();
            for entry in &mut parted {
                if change.reused.contains(&usize::from(entry.wrapping_sub(1))) {
                    *entry = 0;
                }
            }
            self.write_table(parted)?;
            sys::wait_for_running_programs();
            let lanes = self.sums()?;
            for &slot in &change.reused {
                reused.push((slot, counters_of(&lanes, slot)));
            }
        }
        self.baselines.resize(next.used().len(), None);
        for (slot, baseline) in reused {
            self.baselines[slot] = Some(Box::new(baseline));
        }
        for &slot in &change.touched {
            let Slot { group, watched } = &next.used()[slot];
            let baseline = self.baselines[slot].as_deref().copied().unwrap_or_default();
            let mut entry =
                Entry::active(&group.to_string(), baseline).ok_or_else(|| MeterError::Map {
                    doing: "describe a group in",
                    map: maps::GROUPS,
                    cause: format!("`{group}` is too long").into(),
                })?;
            entry.state = if *watched { state::ACTIVE } else { state::RETIRED };
            let index = u32::try_from(slot).unwrap_or(u32::MAX);
            write(&mut self.groups, index, entry.to_bytes(), maps::GROUPS)?;
        }
        let used = u32::try_from(next.used().len()).unwrap_or(u32::MAX);
        if used != self.meta.slots_used {
            self.set_meta(|meta| meta.slots_used = used)?;
        }
        self.write_table(table)?;
        self.slots = next;
        Ok(())
    }

    fn write_table(&mut self, table: Box<[u16]>) -> Result<(), MeterError> {
        let Some(map) = &mut self.table else {
            return Err(write_error(maps::PORT_SLOT, "it was opened for reading"));
        };
        let value: Box<[u16; PORT_SLOTS]> = table
            .try_into()
            .map_err(|_| write_error(maps::PORT_SLOT, "the table has another size"))?;
        map.set(0, value, 0).map_err(|error| MeterError::Map {
            doing: "write",
            map: maps::PORT_SLOT,
            cause: cause(error),
        })
    }

    /// Sums over all stripes as words: all slots of a part, then those of the next, as in the map.
    pub(super) fn sums(&self) -> Result<Vec<u64>, MeterError> {
        let mut sums = Vec::new();
        self.sum_into(&mut sums)?;
        Ok(sums)
    }

    /// [`sums`](Self::sums) into a buffer that is used again.
    pub(super) fn sum_into(&self, sums: &mut Vec<u64>) -> Result<(), MeterError> {
        let Meta { slots, slots_used, carry, .. } = self.meta;
        let (parts, words) = match self.counters.values {
            Values::Parts(_) => (PARTS, WORDS),
            Values::Lanes(_) => (LANES, 2 * WORDS),
        };
        let count = slots_used as usize * words;
        sums.clear();
        sums.reserve(count * parts as usize);
        // The last stripe is all zero unless something was carried over.
        let stripes = match carry {
            carry::DONE => self.meta.stripes,
            _ => self.meta.stripes.saturating_sub(1),
        };
        for part in 0..parts {
            let firsts = (0..stripes).map(|stripe| (stripe * parts + part) * slots);
            if let Some(mapping) = &self.counters.mapped {
                let places = firsts.map(|first| first as usize * words);
                mapping::sum(mapping.words(), places, count, sums).ok_or_else(|| {
                    write_error(maps::COUNTERS, "it is smaller than its description says")
                })?;
                continue;
            }
            let begin = sums.len();
            sums.resize(begin + count, 0);
            for first in firsts {
                let sums = &mut sums[begin..];
                match &self.counters.values {
                    Values::Parts(map) => look_up(map, first, sums)?,
                    Values::Lanes(map) => look_up(map, first, sums)?,
                }
            }
        }
        if matches!(self.counters.values, Values::Lanes(_)) {
            *sums = parts_of(sums, count);
        }
        Ok(())
    }

    /// One reason's packets, over all CPUs and with what was carried over.
    fn skipped(&self, reason: u32) -> Result<Traffic, MeterError> {
        let mut sum = Counters::default();
        for index in [reason, self.meta.reasons + reason] {
            let values = self.skipped.get(&index, 0).map_err(|error| MeterError::Map {
                doing: "read",
                map: maps::SKIPPED,
                cause: cause(error),
            })?;
            sum = values.iter().map(Counters::from_bytes).fold(sum, Counters::plus);
        }
        Ok(traffic(sum))
    }

    /// All counters, once.
    pub(super) fn snapshot(
        &self,
        meter: &'static str,
        coverage: Coverage,
    ) -> Result<Snapshot, MeterError> {
        let begin = now();
        let sums = self.sums()?;
        let skipped = Skipped {
            unwatched: self.skipped(skip::UNWATCHED)?,
            fragment: self.skipped(skip::FRAGMENT)?,
            other: self.skipped(skip::OTHER)?,
            malformed: self.skipped(skip::MALFORMED)?,
            loopback: self.skipped(skip::LOOPBACK)?,
        };
        let window = Window { begin, end: now() };
        let groups = self
            .slots
            .used()
            .iter()
            .enumerate()
            .zip(&self.baselines)
            .map(|((n, slot), baseline)| GroupReading {
                group: Arc::clone(&slot.group),
                lanes: lanes(counters_of(&sums, n), baseline.as_deref()),
                watched: slot.watched,
            })
            .collect();
        Ok(Snapshot {
            meter,
            layer: Layer::L3,
            epoch: Epoch(self.meta.epoch),
            since: i64::try_from(self.meta.since).ok(),
            window,
            coverage,
            groups,
            skipped: Some(skipped),
        })
    }

    /// Takes over the groups and ports of `older`, slot for slot, but not its numbers.
    pub(super) fn inherit(&mut self, older: &Self) -> Result<(), MeterError> {
        for (index, slot) in (0..older.meta.slots_used).zip(older.slots.used()) {
            let entry = older.entry(index)?;
            write(&mut self.groups, index, entry.to_bytes(), maps::GROUPS)?;
            debug_assert_eq!(entry.state == state::ACTIVE, slot.watched);
        }
        self.set_meta(|meta| meta.slots_used = older.meta.slots_used)?;
        self.read_groups()?;
        let table = self.slots.port_table();
        self.write_table(table)
    }

    /// Adds the numbers of `older`, which no program changes any more, to the last stripe.
    ///
    /// Writes them as they are, so that doing it again after a crash changes nothing.
    pub(super) fn carry_over(&mut self, older: &Self) -> Result<(), MeterError> {
        let sums = older.sums()?;
        let Meta { stripes, slots, .. } = self.meta;
        let Values::Parts(map) = &mut self.counters.values else {
            return Err(write_error(maps::COUNTERS, "it is an older one"));
        };
        for part in 0..PARTS {
            for slot in 0..older.meta.slots_used {
                let words = part_of(&sums, part as usize, slot as usize);
                let mut value = [0; Count::SIZE];
                for (bytes, word) in value.chunks_exact_mut(size_of::<u64>()).zip(words) {
                    bytes.copy_from_slice(&word.to_ne_bytes());
                }
                write(map, counter_index(stripes - 1, slots, slot, part), value, maps::COUNTERS)?;
            }
        }
        for reason in 0..self.meta.reasons.min(older.meta.reasons) {
            let Traffic { input_bytes, input_packets, output_bytes, output_packets } =
                older.skipped(reason)?;
            let sum = Counters { input_bytes, input_packets, output_bytes, output_packets };
            let cpus = aya::util::nr_cpus().unwrap_or(1);
            let mut values = vec![[0; Counters::SIZE]; cpus];
            if let Some(first) = values.first_mut() {
                *first = sum.to_bytes();
            }
            let values = aya::maps::PerCpuValues::try_from(values)
                .map_err(|_| write_error(maps::SKIPPED, "the number of CPUs changed"))?;
            self.skipped.set(self.meta.reasons + reason, values, 0).map_err(|error| {
                MeterError::Map { doing: "write", map: maps::SKIPPED, cause: cause(error) }
            })?;
        }
        self.set_meta(|meta| meta.carry = carry::DONE)
    }

    fn entry(&self, index: u32) -> Result<Entry, MeterError> {
        let bytes = self.groups.get(&index, 0).map_err(|error| MeterError::Map {
            doing: "read",
            map: maps::GROUPS,
            cause: cause(error),
        })?;
        Ok(Entry::from_bytes(&bytes))
    }
}

fn data(map: Map, name: &'static str) -> Result<MapData, MeterError> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(write_error(name, "it is no array")),
    }
}

fn array<const N: usize>(
    map: Map,
    name: &'static str,
) -> Result<Array<MapData, [u8; N]>, MeterError> {
    Array::try_from(map).map_err(|error| MeterError::Map {
        doing: "open",
        map: name,
        cause: cause(error),
    })
}

fn read_meta(map: &Array<MapData, [u8; Meta::SIZE]>) -> Result<Meta, MeterError> {
    let bytes = map.get(&0, 0).map_err(|error| MeterError::Map {
        doing: "read",
        map: maps::META,
        cause: cause(error),
    })?;
    Ok(Meta::from_bytes(&bytes))
}

fn write<const N: usize>(
    map: &mut Array<MapData, [u8; N]>,
    index: u32,
    value: [u8; N],
    name: &'static str,
) -> Result<(), MeterError> {
    map.set(index, value, 0).map_err(|error| MeterError::Map {
        doing: "write",
        map: name,
        cause: cause(error),
    })
}

fn write_error(map: &'static str, reason: &str) -> MeterError {
    MeterError::Map { doing: "write", map, cause: reason.into() }
}

/// Adds the values from an index on, one call each.
fn look_up<const SIZE: usize>(
    map: &Array<MapData, [u8; SIZE]>,
    first: u32,
    sums: &mut [u64],
) -> Result<(), MeterError> {
    for (index, words) in (first..).zip(sums.chunks_exact_mut(SIZE / size_of::<u64>())) {
        let value = map.get(&index, 0).map_err(|error| MeterError::Map {
            doing: "read",
            map: maps::COUNTERS,
            cause: cause(error),
        })?;
        for (sum, bytes) in words.iter_mut().zip(value.as_chunks().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*bytes));
        }
    }
    Ok(())
}

/// Sums of ABI 1 in the order of this one: it has both directions of a slot side by side. `lane` is how
/// many words a lane has.
fn parts_of(sums: &[u64], lane: usize) -> Vec<u64> {
    let mut parts = Vec::with_capacity(sums.len());
    for lane in sums.chunks(lane.max(1)) {
        for direction in [0, WORDS] {
            let of_slot = |slot: &[u64]| [slot[direction], slot[direction + 1]];
            parts.extend(lane.chunks_exact(2 * WORDS).flat_map(of_slot));
        }
    }
    parts
}

/// One part of a slot in sums, which have all slots of a part one after the other: bytes and packets.
fn part_of(sums: &[u64], part: usize, slot: usize) -> [u64; WORDS] {
    let at = part * (sums.len() / PARTS as usize) + slot * WORDS;
    sums.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// The lanes of a slot in sums.
fn counters_of(sums: &[u64], slot: usize) -> [Counters; LANES as usize] {
    std::array::from_fn(|lane| {
        let [input_bytes, input_packets] = part_of(sums, 2 * lane, slot);
        let [output_bytes, output_packets] = part_of(sums, 2 * lane + 1, slot);
        Counters { input_bytes, input_packets, output_bytes, output_packets }
    })
}

fn lanes(
    counters: [Counters; LANES as usize],
    baseline: Option<&[Counters; LANES as usize]>,
) -> Lanes {
    let lane =
        |n: usize| traffic(baseline.map_or(counters[n], |baseline| counters[n].minus(baseline[n])));
    Lanes { tcp4: lane(0), tcp6: lane(1), udp4: lane(2), udp6: lane(3) }
}

fn traffic(counters: Counters) -> Traffic {
    let Counters { input_bytes, input_packets, output_bytes, output_packets } = counters;
    Traffic { input_bytes, input_packets, output_bytes, output_packets }
}

/// Nanoseconds of Unix time.
fn now() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX))
}
