//! The kernel's chains in a table `filter` of `iptables-nft`. It makes that table, and the chains INPUT and
//! OUTPUT in it, with the first rule that anybody puts there; nothing of it may stay behind when that was
//! ours. The tables of the older back end are the kernel's own and cannot be taken away.

use super::{
    rules::{Family, hook},
    tool::{Backend, Tool},
};
use crate::{accounting::reading::Direction, meter::nft};

/// What was not there before our rules, and came with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// The table.
    pub(super) table: bool,
    /// INPUT and OUTPUT.
    pub(super) hooks: [bool; 2],
}

impl Made {
    /// What rules would bring along that are put in now.
    pub(super) fn now(tool: &Tool) -> Self {
        if tool.backend == Backend::Legacy {
            return Self::default();
        }
        let ipv6 = tool.family == Family::V6;
        // Where that cannot be told, it was there: what is not ours must not go.
        let absent = |chain| nft::has_filter(ipv6, chain).is_ok_and(|there| !there);
        Self { table: absent(None), hooks: Direction::ALL.map(|way| absent(Some(hook(way)))) }
    }

    /// The same, with what another change would bring along.
    pub(super) fn or(self, other: Self) -> Self {
        let [input, output] = self.hooks;
        let [more_input, more_output] = other.hooks;
        Self {
            table: self.table || other.table,
            hooks: [input || more_input, output || more_output],
        }
    }

    /// Letters for the note; none for nothing.
    pub(super) fn text(self) -> String {
        let [input, output] = self.hooks;
        let letters = [(self.table, 't'), (input, 'i'), (output, 'o')];
        letters.into_iter().filter(|(made, _)| *made).map(|(_, letter)| letter).collect()
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let known = text.chars().all(|letter| "tio".contains(letter));
        let has = |letter| text.contains(letter);
        known.then(|| Self { table: has('t'), hooks: [has('i'), has('o')] })
    }
}

/// The chains that go with ours: they came with them, and are `spare` because nobody else put anything there.
pub(super) fn going(made: Made, spare: [bool; 2]) -> impl Iterator<Item = &'static str> {
    let goes = move |way: &Direction| made.hooks[*way as usize] && spare[*way as usize];
    Direction::ALL.into_iter().filter(goes).map(hook)
}

/// Takes them away, once ours are off, and the table if nothing else is in it. The kernel takes away nothing
/// that somebody put a rule or a chain into meanwhile.
pub(super) fn remove(tool: &Tool, made: Made, spare: [bool; 2]) {
    let table = made.table.then_some(None);
    for chain in going(made, spare).map(Some).chain(table) {
        if let Err(error) = nft::remove_filter(tool.family == Family::V6, chain) {
            tracing::debug!(%error, chain, "an empty chain or table stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_read_as_it_was_written() {
        let every = |bits: u8| {
            let [table, input, output] = [1, 2, 4].map(|bit| bits & bit != 0);
            Made { table, hooks: [input, output] }
        };
        for made in (0..8).map(every) {
            assert_eq!(Made::read(&made.text()), Some(made));
        }
        assert_eq!(every(7).text(), "tio");
        assert_eq!(Made::read("tix"), None);
    }
}
