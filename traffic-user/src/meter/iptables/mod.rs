//! The meter `iptables`: rules that count and never decide.
//!
//! Two chains of our own, jumped to at the head of INPUT and OUTPUT, in the table `filter` of both
//! families. A third one, to which nothing jumps, says which epoch the counters are of. Every packet
//! passes every rule, so this is the last resort. Bytes are those of socket buffers
//! ([`Layer::L3Skb`]). Rules of others are never touched.

mod adopt;
mod base;
mod clean;
mod foreign;
mod installed;
mod parse;
mod repair;
mod rules;
mod tool;

use std::{
    collections::{HashMap, HashSet},
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

pub use clean::{clean, clean_port};
pub(super) use clean::{clean_left, is_anything_here};
pub use foreign::{ForeignRule, ForeignRules, foreign, remove_foreign};
pub use installed::Installed;
pub use rules::Family;
pub use tool::Backend;

use super::{error::MeterError, host, kernel::Before};
use crate::accounting::{
    ident::{Group, Groups},
    reading::{Coverage, Epoch, GroupReading, Lane, Lanes, Layer, Snapshot, Window},
};
use base::Made;
use rules::{Carry, Counting, Note, Ours, Wanted};
use tool::Tool;

/// As the outputs write it.
const NAME: &str = "iptables";

/// From so many ports on it is said that every packet passes all of them.
const MANY_PORTS: usize = 100;

/// Bytes and packets of each rule that counts.
type Values = HashMap<Counting, (u64, u64)>;

/// What each group has in one family.
type Totals = HashMap<String, Carry>;

/// Rules that count, put in by this process or taken over from an earlier one.
#[derive(Debug)]
pub struct IptablesMeter {
    sides: Vec<Side>,
    note: Note,
    known: Vec<Known>,
    losses: Vec<String>,
    /// Whether this start put them in.
    made: bool,
    /// Whether they go when this value does.
    leaves: bool,
}

/// One family.
#[derive(Debug)]
struct Side {
    tool: Tool,
    /// What to add to the counters, by group.
    carries: Vec<(String, Carry)>,
    last: Last,
    /// What the last reading said; `None` when that was the last look.
    given: Option<Totals>,
    /// Whether the note there says that it was seen with its count.
    proven: bool,
    /// What came with our rules, and goes with them.
    made: Made,
}

impl Side {
    fn note(&self, note: Note) -> Note {
        Note { canary: self.proven, made: self.made, ..note }
    }

    /// What each group had at the last look.
    fn totals(&self) -> Totals {
        totals(&self.carries, &self.last.values)
    }

    /// What was counted until the last look and is in no reading.
    fn unread(&self) -> Totals {
        let Some(given) = &self.given else { return Totals::new() };
        let mut unread = self.totals();
        for (group, total) in &mut unread {
            *total = total.above(given.get(group).copied().unwrap_or_default());
        }
        unread.retain(|_, total| *total != Carry::default());
        unread
    }
}

/// What was there at the last look, to notice what is gone or was set back.
#[derive(Clone, Debug, Default)]
struct Last {
    values: Values,
    jumped: [u64; 2],
    canary: bool,
}

/// A group of this epoch.
#[derive(Clone, Debug)]
struct Known {
    group: Arc<Group>,
    text: String,
    watched: bool,
}

impl Known {
    fn new(group: Group) -> Self {
        Self { text: group.to_string(), group: Arc::new(group), watched: true }
    }
}

impl IptablesMeter {
    /// Puts the rules in for these groups. With `persist` they stay when the process ends. Rules of this boot,
    /// left so or by a run that was killed, are taken over with their epoch.
    ///
    /// Where the rules were damaged since they were booked, what is left of them begins another epoch with
    /// what it has counted after that.
    ///
    /// # Errors
    ///
    /// [`MeterError::NoTool`], [`MeterError::Denied`], [`MeterError::Unsupported`],
    /// [`MeterError::Locked`], [`MeterError::Tool`]; [`MeterError::ForeignRules`] when a chain of our
    /// name is not ours; [`MeterError::OtherRules`] when rules are there that shall go on and `persist`
    /// was not asked for. The rules are then as they were.
    pub fn start(groups: &Groups, persist: bool, before: Before<'_>) -> Result<Self, MeterError> {
        let tools = tool::choose()?;
        let found = tools.iter().map(Tool::ours).collect::<Result<Vec<_>, _>>()?;
        let note = found.iter().find_map(|ours| ours.note);
        let left = note.filter(|note| note.boot == host::boot_id());
        say_if_many(groups, 0);
        match left {
            Some(note) if note.persist && !persist => Err(MeterError::OtherRules {
                what: "the iptables chains TRAFFIC_IN and TRAFFIC_OUT".into(),
                reason: "go on counting; run with --persist to take them over".into(),
            }),
            // Left to go on, or by a run that was killed: nobody has booked all that they counted.
            Some(note) => {
                let note = Note { persist, ..note };
                let mut meter = Self::adopt(tools, &found, note, groups, before.booked)?;
                meter.leaves = !persist;
                Ok(meter)
            }
            None => {
                let lost = note.is_none() && found.iter().any(|ours| !ours.counting.is_empty());
                Self::fresh(tools, &found, groups, persist, (lost, before.gap))
            }
        }
    }

    /// Puts all in at once. What was there goes in the same change; `lost` when nothing says any more what
    /// that was, `gap` when something was missed in another way.
    fn fresh(
        tools: Vec<Tool>,
        found: &[Ours],
        groups: &Groups,
        persist: bool,
        (lost, gap): (bool, bool),
    ) -> Result<Self, MeterError> {
        let note = Note {
            epoch: host::random(),
            since: seconds(),
            boot: host::boot_id(),
            persist,
            gap: gap || lost,
            canary: false,
            made: Made::default(),
        };
        let side = |tool| Side {
            made: Made::now(&tool),
            tool,
            carries: Vec::new(),
            last: Last::default(),
            given: None,
            proven: false,
        };
        let mut meter = Self {
            sides: tools.into_iter().map(side).collect(),
            note,
            known: groups.iter().cloned().map(Known::new).collect(),
            losses: lost
                .then(|| format!("the rules of {} were gone", rules::NOTE))
                .into_iter()
                .collect(),
            made: true,
            leaves: false,
        };
        for at in 0..meter.sides.len() {
            let counting = counting(&meter.known);
            let side = &meter.sides[at];
            let wanted = Wanted { note: side.note(note), carries: Vec::new(), counting };
            let mut lines = found.get(at).map(Ours::removal).unwrap_or_default();
            lines.extend(Ours::default().change(&wanted));
            if let Err(error) = side.tool.change(&lines) {
                for side in meter.sides.iter().take(at) {
                    clean::take_off(&side.tool);
                }
                return Err(error);
            }
        }
        // From here on they go with the value.
        meter.leaves = !persist;
        Ok(meter)
    }

    /// Counts these groups and no others. Groups that stay do not miss a packet; one that gets another name,
    /// which stands in its rules, may miss those of the moment of the change.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); the rules are then as they were.
    pub fn watch(&mut self, groups: &Groups) -> Result<(), MeterError> {
        for side in &mut self.sides {
            // What is seen here is in no reading.
            side.given = side.given.take().or_else(|| Some(side.totals()));
        }
        let (found, _) = self.look()?;
        let before = self.known.iter().filter(|known| known.watched).map(|k| ports(&k.group)).sum();
        say_if_many(groups, before);
        let mut known = self.known.clone();
        let mut carries: Vec<_> = self.sides.iter().map(|side| side.carries.clone()).collect();
        let renamed = renamed(&known, groups);
        for known in &mut known {
            if let Some(group) = renamed.get(&known.text) {
                *known = Known::new((*group).clone());
            }
        }
        let texts: HashSet<String> = groups.iter().map(ToString::to_string).collect();
        let going: HashSet<String> = known
            .iter()
            .filter(|known| known.watched && !texts.contains(&known.text))
            .map(|known| known.text.clone())
            .collect();
        for known in known.iter_mut().filter(|known| going.contains(&known.text)) {
            known.watched = false;
        }
        for (side, carries) in self.sides.iter().zip(&mut carries) {
            // Their numbers stand still from now on, and go on from here if they come back.
            let totals = side.totals();
            carries.retain(|(text, _)| !going.contains(text));
            let kept = known.iter().filter(|known| going.contains(&known.text));
            let of = |text: &str| totals.get(text).copied().unwrap_or_default();
            carries.extend(kept.map(|known| (known.text.clone(), of(&known.text))));
            carries.retain(|(text, _)| !renamed.contains_key(text));
            carries.extend(renamed.iter().map(|(text, group)| (group.to_string(), of(text))));
        }
        for group in groups.iter() {
            let text = group.to_string();
            match known.iter_mut().find(|known| known.text == text) {
                Some(known) => known.watched = true,
                None => known.push(Known::new(group.clone())),
            }
        }
        let former = renamed.into_iter().map(|(text, group)| (group.to_string(), text)).collect();
        self.apply(&found, known, carries, &former)
    }

    /// Makes the rules those of `known`, in all families or in none. `former` are the names that groups had
    /// before.
    fn apply(
        &mut self,
        found: &[Ours],
        known: Vec<Known>,
        carries: Vec<Vec<(String, Carry)>>,
        former: &HashMap<String, String>,
    ) -> Result<(), MeterError> {
        let (note, old, new) = (self.note, counting(&self.known), counting(&known));
        let sides = self.sides.iter().zip(found).zip(&carries);
        let changes: Vec<Vec<String>> = sides
            .map(|((side, ours), carries)| {
                let (note, carries) = (side.note(note), carries.clone());
                ours.change(&Wanted { note, carries, counting: new.clone() })
            })
            .collect();
        // What is changed in one family and taken back because of the other would miss packets meanwhile.
        for (side, change) in self.sides.iter().zip(&changes).skip(1) {
            side.tool.rehearse(change)?;
        }
        for (at, change) in changes.iter().enumerate() {
            let Err(error) = self.sides[at].tool.change(change) else { continue };
            for (side, carries) in self.sides.iter_mut().zip(&carries).take(at) {
                // What a rule that comes back had counted is in its carry.
                let back = |(text, carry): &(String, Carry)| {
                    (former.get(text).unwrap_or(text).clone(), *carry)
                };
                let (note, carries) = (side.note(note), carries.iter().map(back).collect());
                let wanted = Wanted { note, carries, counting: old.clone() };
                side.carries.clone_from(&wanted.carries);
                let kept: HashSet<&Counting> = new.iter().collect();
                side.last.values.retain(|rule, _| kept.contains(rule));
                side.last.canary = false;
                let back =
                    side.tool.ours().and_then(|ours| side.tool.change(&ours.change(&wanted)));
                if let Err(error) = back {
                    // They are missed at the next look, and put back then.
                    tracing::warn!(%error, "the former rules are not back yet");
                }
            }
            return Err(error);
        }
        let new: HashSet<&Counting> = new.iter().collect();
        for (side, carries) in self.sides.iter_mut().zip(carries) {
            side.last.values.retain(|rule, _| new.contains(rule));
            side.last.canary &= side.carries == carries;
            side.carries = carries;
        }
        self.known = known;
        Ok(())
    }

    /// Groups that are watched now.
    pub fn watched(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.known.iter().filter(|known| known.watched).map(|known| &known.group)
    }

    /// Reads all counters and resets nothing. Rules that are gone are put back; the counters are then of
    /// a new epoch, in which those that were not gone go on.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start). Nothing is lost with a reading that failed.
    pub fn read(&mut self) -> Result<Snapshot, MeterError> {
        let (found, window) = self.look()?;
        if self.note.persist {
            self.prove(&found);
        }
        for side in &mut self.sides {
            side.given = None;
        }
        let sides: Vec<_> =
            self.sides.iter().map(|side| (side.tool.family, side.totals())).collect();
        let known = self.known.iter().map(|known| (&known.group, &known.text, known.watched));
        Ok(snapshot(self.note, window, known, &sides))
    }

    /// What is there, after what was gone has been put back.
    fn look(&mut self) -> Result<(Vec<Ours>, Window), MeterError> {
        let begin = nanoseconds();
        let found = self.list()?;
        let found = if self.repair(&found)? { self.list()? } else { found };
        for (side, ours) in self.sides.iter_mut().zip(&found) {
            side.last = Last::of(ours);
        }
        Ok((found, Window { begin, end: nanoseconds() }))
    }

    /// What is there. Both versions of IP are listed at once: each takes a process, and with many rules a
    /// part of a second.
    fn list(&self) -> Result<Vec<Ours>, MeterError> {
        thread::scope(|scope| {
            let lists: Vec<_> =
                self.sides.iter().map(|side| scope.spawn(|| side.tool.ours())).collect();
            let joined = lists.into_iter().map(|list| list.join());
            joined.map(|list| list.unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// Says in the notes whether their counts were seen, so that the next start can tell if one is gone.
    fn prove(&mut self, found: &[Ours]) {
        let (note, counting) = (self.note, counting(&self.known));
        for (side, ours) in self.sides.iter_mut().zip(found) {
            if side.proven == side.last.canary {
                continue;
            }
            let note = Note { canary: side.last.canary, ..side.note(note) };
            let wanted = Wanted { note, carries: side.carries.clone(), counting: counting.clone() };
            match side.tool.change(&ours.change(&wanted)) {
                Ok(()) => side.proven = note.canary,
                // Nothing is wrong with what is counted, and the next reading tries again.
                Err(error) => tracing::debug!(%error, "the note of the rules is not written"),
            }
        }
    }

    /// What was gone and put back since this was last asked, for people.
    pub fn losses(&mut self) -> Vec<String> {
        std::mem::take(&mut self.losses)
    }

    /// Where the rules are.
    pub fn backend(&self) -> Backend {
        self.sides.first().map_or(Backend::Legacy, |side| side.tool.backend)
    }

    /// Takes off what this start put in, because it cannot go on. What an earlier one left to count goes
    /// on.
    pub fn give_up(mut self) {
        self.leaves = self.made;
    }
}

impl Drop for IptablesMeter {
    fn drop(&mut self) {
        if self.leaves {
            for side in &self.sides {
                clean::take_off(&side.tool);
            }
        }
    }
}

impl Last {
    fn of(ours: &Ours) -> Self {
        let mut values = Values::with_capacity(ours.counting.len());
        for (rule, bytes, packets) in &ours.counting {
            // Of two alike the first is the one that stays.
            values.entry(rule.clone()).or_insert((*bytes, *packets));
        }
        Self { values, jumped: ours.jumped, canary: ours.canary }
    }
}

/// Groups that are known under another name, by what they are known as.
fn renamed<'a>(known: &[Known], groups: &'a Groups) -> HashMap<String, &'a Group> {
    let texts: HashSet<&str> = known.iter().map(|known| known.text.as_str()).collect();
    let key = |group: &Group| (group.ranges().to_vec(), group.transport());
    let by_ports: HashMap<_, &Known> =
        known.iter().map(|known| (key(&known.group), known)).collect();
    let former = |group: &'a Group| {
        let known = by_ports.get(&key(group))?;
        (!texts.contains(group.to_string().as_str())).then(|| (known.text.clone(), group))
    };
    groups.iter().filter_map(former).collect()
}

/// All rules that these groups need in one family.
fn counting(known: &[Known]) -> Vec<Counting> {
    let watched = known.iter().filter(|known| known.watched);
    watched.flat_map(|known| Counting::of(&known.group)).collect()
}

/// What each group has in one family: its rules' counters and what is to be added to them.
fn totals(carries: &[(String, Carry)], values: &Values) -> Totals {
    let mut totals: Totals = carries.iter().cloned().collect();
    for (rule, (bytes, packets)) in values {
        let value = (i128::from(*bytes), i128::from(*packets));
        totals.entry(rule.group.clone()).or_default().add(rule.tcp, rule.direction, value);
    }
    totals
}

/// The readings of all groups, as one.
fn snapshot<'a>(
    note: Note,
    window: Window,
    known: impl Iterator<Item = (&'a Arc<Group>, &'a String, bool)>,
    sides: &[(Family, Totals)],
) -> Snapshot {
    let groups = known.map(|(group, text, watched)| {
        let mut lanes = Lanes::default();
        for (family, totals) in sides {
            let carry = totals.get(text).copied().unwrap_or_default();
            let (tcp, udp) = match family {
                Family::V4 => (Lane::Tcp4, Lane::Udp4),
                Family::V6 => (Lane::Tcp6, Lane::Udp6),
            };
            *lanes.lane_mut(tcp) = carry.traffic(true);
            *lanes.lane_mut(udp) = carry.traffic(false);
        }
        GroupReading { group: Arc::clone(group), lanes, watched }
    });
    Snapshot {
        meter: NAME,
        layer: Layer::L3Skb,
        epoch: Epoch(note.epoch),
        since: Some(note.since),
        window,
        coverage: if note.gap { Coverage::Gap } else { Coverage::Complete },
        groups: groups.collect(),
        skipped: None,
    }
}

/// Whether rules can be set here: sets such rules and takes them off in one change, so that they are
/// never there.
///
/// # Errors
///
/// Why not, in words.
pub fn try_here() -> Result<(), String> {
    let trial = |tool: &Tool| {
        let lines = [
            ":TRAFFIC_TRY - [0:0]",
            "-A TRAFFIC_TRY -p tcp -m tcp --dport 1 -m comment --comment try",
            "-A TRAFFIC_TRY -p udp -m multiport --sports 1,2:3 -m comment --comment try",
            "-F TRAFFIC_TRY",
            "-X TRAFFIC_TRY",
        ];
        if !tool.has_tables(Some("filter")) {
            // To try would make a table, which stays until the network namespace ends.
            return tool.could_have_tables();
        }
        let made = Made::now(tool);
        let tried = tool.change(&lines.map(str::to_owned));
        base::remove(tool, made, tool.ours().map_or([false; 2], |ours| ours.spare));
        tried.map_err(|error| error.to_string())
    };
    let tools = tool::choose().map_err(|error| error.to_string())?;
    tools.iter().try_for_each(trial)
}

/// How many entries the rules of a group have.
fn ports(group: &Group) -> usize {
    group.ranges().len()
}

/// Says what many rules cost, once.
fn say_if_many(groups: &Groups, before: usize) {
    let now: usize = groups.iter().map(ports).sum();
    if now > MANY_PORTS && before <= MANY_PORTS {
        tracing::warn!(
            ports = now,
            "every packet passes the iptables rules of all ports: with so many, use nft or eBPF"
        );
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn seconds() -> i64 {
    i64::try_from(now().as_secs()).unwrap_or(i64::MAX)
}

fn nanoseconds() -> i128 {
    i128::try_from(now().as_nanos()).unwrap_or(i128::MAX)
}
