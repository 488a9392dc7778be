//! Rules that an earlier process left, read without changing anything.

use std::{collections::HashSet, sync::Arc};

use super::{
    Last, MeterError, Window, host, nanoseconds,
    rules::{CHAINS, Note, Ours},
    snapshot,
    tool::{self, Tool},
    totals,
};
use crate::accounting::{ident::Group, reading::Snapshot};

/// Our rules in the kernel, whoever put them in.
#[derive(Debug)]
pub struct Installed {
    tools: Vec<Tool>,
    persist: bool,
}

impl Installed {
    /// Finds them; `None` when there are none of this boot.
    ///
    /// # Errors
    ///
    /// [`MeterError::Denied`], [`MeterError::Tool`]; [`MeterError::ForeignRules`] when a chain of our
    /// name is not ours.
    pub fn open() -> Result<Option<Self>, MeterError> {
        // Without a program there can be rules, and none can be read.
        let tools = match tool::choose() {
            Err(MeterError::NoTool { .. }) => return Ok(None),
            tools => tools?,
        };
        let found = tools.iter().map(Tool::ours_if_any).collect::<Result<Vec<_>, _>>()?;
        Ok(note(&found).map(|note| Self { tools, persist: note.persist }))
    }

    /// Whether they were left to go on without a process. Without one that runs, the others are what a
    /// killed run left.
    pub const fn persist(&self) -> bool {
        self.persist
    }

    /// Reads their counters.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`MeterError::Tool`] when they are gone.
    pub fn read(&self) -> Result<Snapshot, MeterError> {
        let begin = nanoseconds();
        let found = self.tools.iter().map(Tool::ours).collect::<Result<Vec<_>, _>>()?;
        let window = Window { begin, end: nanoseconds() };
        let note = note(&found).ok_or_else(|| MeterError::Tool {
            doing: "read the iptables counters",
            tool: "iptables".to_owned(),
            said: "the rules are gone".to_owned(),
        })?;
        let gap = note.gap || found.iter().any(|ours| !is_whole(ours, note));
        let mut known: Vec<(Arc<Group>, String, bool)> = Vec::new();
        let mut texts = HashSet::new();
        for (text, watched) in texts_of(&found) {
            if texts.insert(text)
                && let Ok(group) = text.parse::<Group>()
            {
                known.push((Arc::new(group), text.clone(), watched));
            }
        }
        let sides: Vec<_> = self
            .tools
            .iter()
            .zip(&found)
            .map(|(tool, ours)| (tool.family, totals(&ours.carries, &Last::of(ours).values)))
            .collect();
        let known = known.iter().map(|(group, text, watched)| (group, text, *watched));
        Ok(snapshot(Note { gap, ..note }, window, known, &sides))
    }
}

/// Groups that have rules, then those that are only noted.
pub(super) fn texts_of(found: &[Ours]) -> impl Iterator<Item = (&String, bool)> {
    let counting = found.iter().flat_map(|ours| ours.counting.iter().map(|rule| &rule.0.group));
    let carried = found.iter().flat_map(|ours| ours.carries.iter().map(|carry| &carry.0));
    counting.map(|text| (text, true)).chain(carried.map(|text| (text, false)))
}

/// What the rules say, unless another boot put them there.
fn note(found: &[Ours]) -> Option<Note> {
    let note = found.iter().find_map(|ours| ours.note);
    note.filter(|note| note.boot == host::boot_id())
}

/// Whether every packet passes them, and all are of one epoch.
fn is_whole(ours: &Ours, note: Note) -> bool {
    ours.note.is_some_and(|own| own.epoch == note.epoch)
        && ours.jumps.iter().all(|jumps| jumps.as_slice() == [1])
        && CHAINS.iter().all(|chain| ours.chains.contains(chain))
}
