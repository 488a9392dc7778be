//! Rules that an earlier process left to count: gone on with.

use std::{collections::HashSet, sync::Arc};

use super::{
    Family, IptablesMeter, Known, Last, MeterError, NAME, Side, Totals, Values, installed,
    rules::{Counting, Note, Ours},
    tool::Tool,
};
use crate::accounting::{
    ident::{Group, Groups},
    reading::{Direction, Lane, Snapshot},
};

impl IptablesMeter {
    /// Goes on with rules that are there, as if this process had read them last when they were booked.
    /// What is missing of them is a loss, and so is what they counted when somebody set their counters
    /// back.
    pub(super) fn adopt(
        tools: Vec<Tool>,
        found: &[Ours],
        note: Note,
        groups: &Groups,
        booked: Option<&Snapshot>,
    ) -> Result<Self, MeterError> {
        let mut known: Vec<Known> = Vec::new();
        let mut texts = HashSet::new();
        for (text, watched) in installed::texts_of(found) {
            if texts.insert(text.as_str())
                && let Ok(group) = text.parse::<Group>()
            {
                known.push(Known { group: Arc::new(group), text: text.clone(), watched });
            }
        }
        let booked = booked.filter(|last| last.meter == NAME && last.epoch.0 == note.epoch);
        let mut meter = Self {
            sides: tools
                .into_iter()
                .zip(found)
                .map(|(tool, ours)| side(tool, ours, booked))
                .collect(),
            note,
            known,
            losses: Vec::new(),
            made: false,
            leaves: false,
        };
        meter.watch(groups)?;
        Ok(meter)
    }
}

fn side(tool: Tool, ours: &Ours, booked: Option<&Snapshot>) -> Side {
    let proven = ours.note.is_some_and(|note| note.canary);
    let mut last = Last { canary: proven, ..Last::of(ours) };
    // Of counters that were all set back nothing before that can be told.
    let given =
        booked.filter(|_| ours.canary || !proven).map(|booked| totals_in(booked, tool.family));
    if let Some(given) = &given {
        last.values = values_when(given, ours, last.values);
    }
    let made = ours.made();
    Side { carries: ours.carries.clone(), last, given, proven, made, tool }
}

/// What a snapshot says of each group in one family.
fn totals_in(snapshot: &Snapshot, family: Family) -> Totals {
    let (tcp, udp) = match family {
        Family::V4 => (Lane::Tcp4, Lane::Udp4),
        Family::V6 => (Lane::Tcp6, Lane::Udp6),
    };
    let mut totals = Totals::new();
    for reading in snapshot.groups.iter() {
        let total = totals.entry(reading.group.to_string()).or_default();
        for (is_tcp, lane) in [(true, tcp), (false, udp)] {
            for direction in Direction::ALL {
                let (bytes, packets) = reading.lanes.lane(lane).way(direction);
                total.add(is_tcp, direction, (bytes.into(), packets.into()));
            }
        }
    }
    totals
}

/// What each rule said when its group had this. A group of so many ports that it has several rules does not
/// tell them apart: for those it is what they say `now`.
fn values_when(given: &Totals, ours: &Ours, now: Values) -> Values {
    let carried: Totals = ours.carries.iter().cloned().collect();
    let of = |totals: &Totals, rule: &Counting| {
        let total = totals.get(&rule.group).copied().unwrap_or_default();
        total.at(rule.tcp, rule.direction)
    };
    let before = |rule: &Counting| {
        let alone = rule.group.parse().is_ok_and(|group: Group| group.ranges() == rule.ranges);
        let (given, carried) = (of(given, rule), of(&carried, rule));
        let bytes = u64::try_from(given.0 - carried.0).ok();
        let packets = u64::try_from(given.1 - carried.1).ok();
        bytes.zip(packets).filter(|_| alone)
    };
    let then = |(rule, value): (Counting, _)| {
        let before = before(&rule).unwrap_or(value);
        (rule, before)
    };
    now.into_iter().map(then).collect()
}
