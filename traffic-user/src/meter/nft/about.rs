//! What our table says about itself: its epoch, and which counters are whose.
//!
//! It is written as comments into a chain that no packet comes to, so that the next start, and
//! `traffic dump` without a daemon, understand the table without any file. A comment has 128 bytes at
//! most, so one text is cut in pieces.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use crate::{
    accounting::ident::{Group, Groups},
    meter::host,
};

/// Begins the first piece, with the version of what follows.
const HEAD: &str = "traffic-1";
/// Bytes of a comment that are used.
const PIECE: usize = 120;

/// What the table says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) epoch: u64,
    /// When it began, seconds of Unix time.
    pub(super) since: i64,
    /// The boot in which it was made: a table that was saved and loaded again is another.
    pub(super) boot: u64,
    /// Whether it was made to go on without a daemon.
    pub(super) persist: bool,
    /// Whether something may have been missed since the epoch began.
    pub(super) gap: bool,
    /// In the order in which they were first watched.
    pub(super) entries: Vec<Entry>,
}

/// A group and the number in the names of its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) group: Arc<Group>,
    pub(super) watched: bool,
}

impl About {
    /// Whether it was made since the host was started.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.boot == host::boot_id()
    }

    /// Whether its counters go on without a process: the next start takes them over.
    pub(super) fn goes_on(&self) -> bool {
        self.persist && self.is_of_this_boot()
    }

    /// The same with these groups watched and no others. Those that are no longer watched stay, with
    /// their numbers, until the epoch ends.
    pub(super) fn watching(&self, groups: &Groups) -> Self {
        let key = |group: &Group| (group.ranges().to_vec(), group.transport());
        let mut wanted: HashMap<_, &Group> =
            groups.iter().map(|group| (key(group), group)).collect();
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match wanted.remove(&key(&entry.group)) {
                // It may have another name now.
                Some(group) => *entry = entry.of(group),
                None => entry.watched = false,
            }
        }
        let known: HashSet<_> = self.entries.iter().map(|entry| key(&entry.group)).collect();
        let fresh = groups.iter().filter(|group| !known.contains(&key(group)));
        let first = entries.iter().map(|entry| entry.id).max().unwrap_or(0).saturating_add(1);
        let fresh = (first..).zip(fresh).map(|(id, group)| Entry {
            id,
            group: Arc::new(group.clone()),
            watched: true,
        });
        entries.extend(fresh);
        Self { entries, ..self.clone() }
    }

    /// The comments, in order.
    pub(super) fn comments(&self) -> Vec<String> {
        let mut text = String::new();
        for Entry { id, group, watched } in &self.entries {
            let sign = if *watched { '+' } else { '-' };
            let _ = write!(text, "{id}{sign}");
            encode(&group.to_string(), &mut text);
            text.push(';');
        }
        let flags = [self.persist, self.gap].map(u8::from);
        let head = format!(
            "{HEAD} {:016x} {} {:016x} {} {} {}",
            self.epoch,
            self.since,
            self.boot,
            flags[0],
            flags[1],
            text.len()
        );
        // All of it is ASCII.
        let pieces =
            text.as_bytes().chunks(PIECE).map(|piece| String::from_utf8_lossy(piece).into());
        std::iter::once(head).chain(pieces).collect()
    }

    /// Understands comments; `None` when they are not ours, or not all of them are there.
    pub(super) fn from_comments<'a>(comments: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut comments = comments.into_iter();
        let mut head = comments.next()?.split(' ');
        if head.next()? != HEAD {
            return None;
        }
        let epoch = u64::from_str_radix(head.next()?, 16).ok()?;
        let since = head.next()?.parse().ok()?;
        let boot = u64::from_str_radix(head.next()?, 16).ok()?;
        let persist = head.next()? == "1";
        let gap = head.next()? == "1";
        let length: usize = head.next()?.parse().ok()?;
        let text: String = comments.collect();
        if text.len() != length {
            return None;
        }
        let entries = text.split_terminator(';').map(entry).collect::<Option<Vec<_>>>()?;
        let ids: HashSet<u32> = entries.iter().map(|entry| entry.id).collect();
        let all = ids.len() == entries.len();
        all.then_some(Self { epoch, since, boot, persist, gap, entries })
    }

    /// Groups that are watched.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.watched)
    }
}

impl Entry {
    fn of(&self, group: &Group) -> Self {
        let group =
            if *self.group == *group { Arc::clone(&self.group) } else { Arc::new(group.clone()) };
        Self { id: self.id, group, watched: true }
    }
}

fn entry(text: &str) -> Option<Entry> {
    let end = text.find(['+', '-'])?;
    let (id, rest) = text.split_at_checked(end)?;
    let (sign, group) = rest.split_at_checked(1)?;
    let group = decode(group)?.parse().ok()?;
    Some(Entry { id: id.parse().ok()?, group: Arc::new(group), watched: sign == "+" })
}

/// Writes what a comment may not carry, and what separates, as `%XX`.
fn encode(from: &str, to: &mut String) {
    for byte in from.bytes() {
        if byte.is_ascii_alphanumeric() || b"+-/=._@:".contains(&byte) {
            to.push(char::from(byte));
        } else {
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        if *first == b'%' {
            let (digits, others) = others.split_first_chunk::<2>()?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = others;
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::accounting::ident::{PortRange, Transport};

    fn about(groups: &str) -> About {
        let empty =
            About { epoch: 7, since: -5, boot: 9, persist: true, gap: false, entries: Vec::new() };
        if groups.is_empty() { empty } else { empty.watching(&Groups::parse(groups, 100).unwrap()) }
    }

    fn read(comments: &[String]) -> Option<About> {
        About::from_comments(comments.iter().map(String::as_str))
    }

    #[test]
    fn a_table_says_whose_counters_are_whose() {
        let about = about("443/tcp,20000-50000/udp=hop; \"x\"\\");
        let want = [
            "traffic-1 0000000000000007 -5 0000000000000009 1 0 48",
            "1+443/tcp;2+20000-50000/udp=hop%3B%20%22x%22%5C;",
        ];
        assert_eq!(about.comments(), want);
        assert_eq!(read(&about.comments()), Some(about));
    }

    #[test]
    fn a_group_that_goes_keeps_its_number_and_gets_it_again_when_it_comes_back() {
        let before = about("80,443,8443");
        let less = before.watching(&Groups::parse("443=web,9000", 10).unwrap());
        let ids: Vec<_> = less
            .entries
            .iter()
            .map(|entry| (entry.id, entry.group.to_string(), entry.watched))
            .collect();
        let want = [
            (1, "80".to_owned(), false),
            (2, "443=web".to_owned(), true),
            (3, "8443".to_owned(), false),
            (4, "9000".to_owned(), true),
        ];
        assert_eq!(ids, want);
        let again = less.watching(&Groups::parse("80,443,8443", 10).unwrap());
        assert_eq!(again.watched().map(|entry| entry.id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_piece_that_is_missing_or_changed_makes_the_whole_unreadable() {
        let many: Vec<_> = (1000..1100).map(|port| port.to_string()).collect();
        let comments = about(&many.join(",")).comments();
        assert!(comments.len() > 3 && comments.iter().all(|comment| comment.len() <= PIECE));
        for gone in 0..comments.len() {
            let mut less = comments.clone();
            less.remove(gone);
            assert_eq!(read(&less), None, "without piece {gone}");
        }
        for strange in ["", "traffic-1", "traffic-2 0 0 0 0 0 0", "traffic-1 0 0 0 0 0 9", "x y z"]
        {
            assert_eq!(About::from_comments([strange]), None, "{strange}");
        }
        for entries in ["1+443;1+80;", "443;", "+443;", "1+%4;", "1+%ff;", "1+0;"] {
            let head = format!("traffic-1 0 0 0 0 0 {}", entries.len());
            assert_eq!(About::from_comments([&head[..], entries]), None, "{entries}");
        }
    }

    proptest! {
        #[test]
        fn any_name_of_a_group_comes_back(name in " ?[^,\\p{Cc}]{1,60} ?", first in 1u16..60000, more in 0u16..5000) {
            let range = PortRange::new(first, first.saturating_add(more)).unwrap();
            let Ok(group) = Group::new(vec![range], Transport::Tcp, Some(name)) else { return Ok(()) };
            let groups = Groups::new(vec![group], 1).unwrap();
            let about = about("").watching(&groups);
            prop_assert_eq!(read(&about.comments()), Some(about));
        }

        #[test]
        fn no_text_is_too_strange(texts in proptest::collection::vec(".{0,40}", 0..5)) {
            let _ = read(&texts);
        }
    }
}
