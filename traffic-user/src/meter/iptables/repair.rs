//! Rules that vanished, or whose counters were set back: noticed, said and put back.

use crate::accounting::reading::Direction;

use super::{
    Family, IptablesMeter, Known, Last, MeterError, Totals,
    base::Made,
    counting,
    rules::{self, CHAINS, Carry, Counting, NOTE, Note, Ours, Wanted},
    seconds,
};
use crate::meter::host;

/// What is wrong with the rules of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// For people.
    pub(super) said: Vec<String>,
    /// Whether counters went, or counted wrongly: they are then of a new epoch.
    pub(super) ends_epoch: bool,
    /// Whether packets may have passed ours by.
    pub(super) gap: bool,
    /// By direction, whether all counters were set back, also those that are above their former value
    /// again.
    reset: [bool; 2],
}

impl Damage {
    fn lost(&mut self, what: String) {
        self.said.push(what);
        self.ends_epoch = true;
        self.gap = true;
    }
}

/// Compares what is there with what was left there.
pub(super) fn damage(
    family: Family,
    ours: &Ours,
    note: Note,
    wanted: &[Counting],
    last: &Last,
) -> Damage {
    let mut damage = Damage::default();
    let family = family.name();
    for chain in CHAINS.iter().filter(|chain| !ours.chains.contains(chain)) {
        damage.lost(format!("{family}: the chain {chain} was gone"));
    }
    for direction in Direction::ALL {
        let (hook, chain) = (rules::hook(direction), rules::chain(direction));
        let jumped = ours.jumped[direction as usize];
        match ours.jumps[direction as usize].as_slice() {
            [] => damage.lost(format!("{family}: the jump from {hook} to {chain} was gone")),
            [_, _, ..] => damage.lost(format!("{family}: {hook} jumped to {chain} twice")),
            [1] => {}
            [_] => {
                damage.said.push(format!("{family}: rules were put before the jump to {chain}"));
                damage.gap = true;
            }
        }
        damage.reset[direction as usize] = jumped < last.jumped[direction as usize];
    }
    let there = Last::of(ours);
    let gone = wanted.iter().filter(|rule| !there.values.contains_key(*rule)).count();
    if gone > 0 {
        let all = wanted.len();
        damage.lost(format!("{family}: {gone} of {all} rules that count were gone"));
    }
    let mut set_back = 0;
    for direction in Direction::ALL {
        let own = wanted.iter().filter(|rule| rule.direction == direction);
        let count = own.filter(|rule| fell(&there, last, rule)).count();
        // A jump that is gone, or was put in anew, says nothing of the rules behind it.
        damage.reset[direction as usize] &= count > 0;
        set_back += count;
    }
    if last.canary && ours.note.is_some() && !ours.canary {
        damage.reset = [true, true];
        damage.lost(format!("{family}: the counters were set back"));
    } else if set_back > 0 {
        damage.lost(format!("{family}: the counters of {set_back} rules were set back"));
    }
    match ours.note {
        Some(found) if found.epoch != note.epoch => {
            damage.lost(format!("{family}: the rules were of another start"));
        }
        None if ours.chains.contains(&NOTE) => {
            damage.said.push(format!("{family}: the rules of {NOTE} were gone"));
        }
        Some(_) | None => {}
    }
    damage
}

/// Whether a counter is below what it was.
fn fell(there: &Last, last: &Last, rule: &Counting) -> bool {
    let values = there.values.get(rule).zip(last.values.get(rule));
    values.is_some_and(|(now, before)| now.0 < before.0 || now.1 < before.1)
}

/// What to add in a new epoch: rules that outlived the former one begin at what was last seen of them, and
/// what is in no reading comes on top.
fn carries(
    ours: &Ours,
    wanted: &[Counting],
    last: &Last,
    reset: [bool; 2],
    mut unread: Totals,
) -> Vec<(String, Carry)> {
    let there = Last::of(ours);
    let mut carries: Vec<(String, Carry)> = Vec::new();
    for rule in wanted {
        // The rules of a group stand one behind the other.
        if carries.last().is_none_or(|(group, _)| *group != rule.group) {
            let unread = unread.remove(&rule.group).unwrap_or_default();
            carries.push((rule.group.clone(), unread));
        }
        let reset = reset[rule.direction as usize];
        if reset || !there.values.contains_key(rule) || fell(&there, last, rule) {
            continue;
        }
        let before = last.values.get(rule).copied().unwrap_or_default();
        let less = (-i128::from(before.0), -i128::from(before.1));
        if let Some((_, carry)) = carries.last_mut() {
            carry.add(rule.tcp, rule.direction, less);
        }
    }
    let mut others: Vec<_> = unread.into_iter().collect();
    others.sort_by(|(a, _), (b, _)| a.cmp(b));
    carries.extend(others);
    carries.retain(|(_, carry)| *carry != Carry::default());
    carries
}

impl IptablesMeter {
    /// Puts back what is gone. Nothing of ours is changed in memory before the rules are right, so that
    /// a repair that fails is tried again at the next look. Gives whether there was anything to do.
    pub(super) fn repair(&mut self, found: &[Ours]) -> Result<bool, MeterError> {
        let wanted = counting(&self.known);
        let damages: Vec<Damage> = self
            .sides
            .iter()
            .zip(found)
            .map(|(side, ours)| damage(side.tool.family, ours, self.note, &wanted, &side.last))
            .collect();
        if damages.iter().all(|damage| damage.said.is_empty()) {
            return Ok(false);
        }
        let ends = damages.iter().any(|damage| damage.ends_epoch);
        let gap = self.note.gap || damages.iter().any(|damage| damage.gap);
        let note = if ends {
            Note { epoch: host::random(), since: seconds(), gap, ..self.note }
        } else {
            Note { gap, ..self.note }
        };
        let sides = self.sides.iter().zip(found).zip(&damages);
        let next: Vec<_> = sides
            .map(|((side, ours), damage)| {
                if ends {
                    carries(ours, &wanted, &side.last, damage.reset, side.unread())
                } else {
                    side.carries.clone()
                }
            })
            .collect();
        for ((side, ours), carries) in self.sides.iter_mut().zip(found).zip(&next) {
            let now = Made::now(&side.tool);
            // Where nothing of ours was left, what is there is of those who made it since.
            side.made = if ours.is_empty() { now } else { side.made.or(now) };
            let (note, carries) = (side.note(note), carries.clone());
            let wanted = Wanted { note, carries, counting: wanted.clone() };
            side.tool.change(&ours.change(&wanted))?;
        }
        if ends {
            let has = |known: &Known| next.iter().flatten().any(|(group, _)| *group == known.text);
            self.known.retain(|known| known.watched || has(known));
        }
        for (side, carries) in self.sides.iter_mut().zip(next) {
            side.carries = carries;
            if ends {
                // No reading is of this epoch.
                side.given = Some(Totals::new());
            }
        }
        self.note = note;
        for said in damages.into_iter().flat_map(|damage| damage.said) {
            self.losses.push(said);
        }
        Ok(true)
    }
}
