//! Which group counts in which slot. Pure: the maps are written by [`maps`](super::maps).
//!
//! Slots are handed out in ascending order, once per epoch. A group that is no longer watched keeps
//! its slot and its numbers, and gets the same slot when it comes back. Only when no slot is left
//! that was never used does a new group take that of a retired one, from a recorded baseline.

use std::{collections::HashMap, sync::Arc};

use traffic_ebpf::abi::{PORT_SLOTS, port_index};

use crate::accounting::ident::{Group, Groups};

/// One slot that has been handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) group: Arc<Group>,
    pub(super) watched: bool,
}

/// What has to be written to the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Slots whose group began, changed its name, came back or ended.
    pub(super) touched: Vec<usize>,
    /// Those among them that a new group takes from a retired one: their baseline must be recorded.
    pub(super) reused: Vec<usize>,
}

/// The new groups do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All slots that were ever handed out, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    used: Vec<Slot>,
    capacity: usize,
}

impl Slots {
    /// As found in the maps, or empty.
    pub(super) fn new(used: Vec<Slot>, capacity: u32) -> Self {
        Self { used, capacity: capacity as usize }
    }

    pub(super) fn used(&self) -> &[Slot] {
        &self.used
    }

    /// Watches these groups and no others.
    pub(super) fn watch(&mut self, wanted: &Groups) -> Result<Change, Full> {
        if wanted.len() > self.capacity {
            return Err(Full);
        }
        let mut change = Change::default();
        let mut at: HashMap<(Vec<_>, _), usize> = HashMap::new();
        for (n, slot) in self.used.iter().enumerate() {
            at.insert((slot.group.ranges().to_vec(), slot.group.transport()), n);
        }
        let mut keep = vec![false; self.used.len()];
        let mut fresh = Vec::new();
        for group in wanted.iter() {
            match at.get(&(group.ranges().to_vec(), group.transport())) {
                Some(&n) => {
                    keep[n] = true;
                    let slot = Slot { group: Arc::new(group.clone()), watched: true };
                    if self.used[n] != slot {
                        self.used[n] = slot;
                        change.touched.push(n);
                    }
                }
                None => fresh.push(Slot { group: Arc::new(group.clone()), watched: true }),
            }
        }
        // Those that retire now have numbers that were perhaps not read yet: they are taken last.
        let (mut retired, mut retiring) = (Vec::new(), Vec::new());
        for (n, slot) in self.used.iter_mut().enumerate() {
            if keep[n] {
                continue;
            }
            if slot.watched {
                slot.watched = false;
                change.touched.push(n);
                retiring.push(n);
            } else {
                retired.push(n);
            }
        }
        let mut retired = retired.into_iter().chain(retiring);
        for slot in fresh {
            if self.used.len() < self.capacity {
                change.touched.push(self.used.len());
                self.used.push(slot);
            } else if let Some(n) = retired.next() {
                self.used[n] = slot;
                change.touched.push(n);
                change.reused.push(n);
            } else {
                return Err(Full);
            }
        }
        change.touched.sort_unstable();
        change.touched.dedup();
        Ok(change)
    }

    /// The table that leads each watched port to its slot, plus one.
    pub(super) fn port_table(&self) -> Box<[u16]> {
        let mut table = vec![0u16; PORT_SLOTS].into_boxed_slice();
        for (slot, value) in self.used.iter().zip(1..=u16::MAX).filter(|(slot, _)| slot.watched) {
            let transport = slot.group.transport();
            for port in slot.group.ports() {
                if transport.tcp() {
                    table[port_index(false, port)] = value;
                }
                if transport.udp() {
                    table[port_index(true, port)] = value;
                }
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(text: &str) -> Groups {
        Groups::parse(text, 65_535).unwrap()
    }

    #[track_caller]
    fn check(slots: &Slots, want: &[(&str, bool)]) {
        let found: Vec<_> =
            slots.used().iter().map(|slot| (slot.group.to_string(), slot.watched)).collect();
        let want: Vec<_> = want.iter().map(|(text, on)| ((*text).to_owned(), *on)).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn a_group_that_stays_keeps_its_slot_and_one_that_comes_back_finds_it() {
        let mut slots = Slots::new(Vec::new(), 4);
        slots.watch(&groups("80,443")).unwrap();
        let change = slots.watch(&groups("443,8443")).unwrap();
        check(&slots, &[("80", false), ("443", true), ("8443", true)]);
        assert_eq!(change, Change { touched: vec![0, 2], reused: vec![] });
        let change = slots.watch(&groups("80=web,443,8443")).unwrap();
        check(&slots, &[("80=web", true), ("443", true), ("8443", true)]);
        assert_eq!(change, Change { touched: vec![0], reused: vec![] });
    }

    #[test]
    fn a_retired_slot_is_taken_only_when_none_is_free() {
        let mut slots = Slots::new(Vec::new(), 3);
        slots.watch(&groups("1,2")).unwrap();
        slots.watch(&groups("2,3")).unwrap();
        check(&slots, &[("1", false), ("2", true), ("3", true)]);
        let change = slots.watch(&groups("2,3,4")).unwrap();
        check(&slots, &[("4", true), ("2", true), ("3", true)]);
        assert_eq!(change, Change { touched: vec![0], reused: vec![0] });
        assert_eq!(slots.clone().watch(&groups("2,3,4,5")), Err(Full));
    }

    #[test]
    fn a_slot_that_retires_now_is_taken_after_those_that_had_retired() {
        let mut slots = Slots::new(Vec::new(), 3);
        slots.watch(&groups("1,2,3")).unwrap();
        slots.watch(&groups("1,2")).unwrap();
        let change = slots.watch(&groups("2,4")).unwrap();
        check(&slots, &[("1", false), ("2", true), ("4", true)]);
        assert_eq!(change, Change { touched: vec![0, 2], reused: vec![2] });
    }

    #[test]
    fn the_table_leads_both_transports_to_the_slot() {
        let mut slots = Slots::new(Vec::new(), 8);
        slots.watch(&groups("443,53/udp,80/tcp,20000-50000/udp")).unwrap();
        let table = slots.port_table();
        let at = |udp, port| table[port_index(udp, port)];
        assert_eq!([at(false, 443), at(true, 443)], [1, 1]);
        assert_eq!([at(false, 53), at(true, 53)], [0, 2]);
        assert_eq!([at(false, 80), at(true, 80)], [3, 0]);
        assert_eq!([at(true, 19_999), at(true, 20_000), at(true, 50_000)], [0, 4, 4]);
        assert_eq!(table.iter().filter(|slot| **slot != 0).count(), 2 + 1 + 1 + 30_001);
    }
}
