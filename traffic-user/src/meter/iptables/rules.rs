//! Our rules: what a group needs, what is there, and the lines that make the one of the other. Pure.

use std::{collections::HashSet, fmt::Write as _};

use crate::accounting::{
    ident::{Group, PortRange},
    reading::{Direction, Traffic},
};

use super::{
    base::Made,
    parse::{Rule, Table, number, quoted},
};

/// Counts what enters.
pub(super) const IN: &str = "TRAFFIC_IN";
/// Counts what leaves.
pub(super) const OUT: &str = "TRAFFIC_OUT";
/// Is never jumped to: its rules are notes.
pub(super) const NOTE: &str = "TRAFFIC_NOTE";
/// All of ours.
pub(super) const CHAINS: [&str; 3] = [IN, OUT, NOTE];
/// Marks the two rules that jump to our chains.
const MARK: &str = "traffic";

/// Most entries of one `multiport` rule; a range takes two.
const MULTIPORT: usize = 15;

/// What belongs to one direction.
pub(super) const fn chain(direction: Direction) -> &'static str {
    match direction {
        Direction::Input => IN,
        Direction::Output => OUT,
    }
}

/// The kernel's chain at whose head ours is jumped to.
pub(super) const fn hook(direction: Direction) -> &'static str {
    match direction {
        Direction::Input => "INPUT",
        Direction::Output => "OUTPUT",
    }
}

/// One rule that counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Counting {
    /// In which of our chains.
    pub(super) direction: Direction,
    /// TCP, else UDP.
    pub(super) tcp: bool,
    /// Sorted and apart from one another.
    pub(super) ranges: Vec<PortRange>,
    /// The group, as text.
    pub(super) group: String,
}

impl Counting {
    /// All rules that a group needs in one family.
    pub(super) fn of(group: &Group) -> Vec<Self> {
        let text = group.to_string();
        let transports = [(true, group.transport().tcp()), (false, group.transport().udp())];
        let mut rules = Vec::new();
        for direction in Direction::ALL {
            for (tcp, _) in transports.iter().filter(|(_, wanted)| *wanted) {
                for ranges in shared_out(group.ranges()) {
                    rules.push(Self { direction, tcp: *tcp, ranges, group: text.clone() });
                }
            }
        }
        rules
    }

    /// What stands behind `-A`.
    fn line(&self) -> String {
        let transport = if self.tcp { "tcp" } else { "udp" };
        let end = match self.direction {
            Direction::Input => 'd',
            Direction::Output => 's',
        };
        let text = |range: &PortRange| match (range.first(), range.last()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}:{last}"),
        };
        let ports: Vec<String> = self.ranges.iter().map(text).collect();
        let what = match ports.as_slice() {
            [one] => format!("-m {transport} --{end}port {one}"),
            several => format!("-m multiport --{end}ports {}", several.join(",")),
        };
        let chain = chain(self.direction);
        let comment = quoted(&self.group);
        format!("{chain} -p {transport} {what} -m comment --comment {comment}")
    }

    /// Reads a rule of one of our chains. `None` when it is not of our making.
    fn read(rule: &Rule, direction: Direction) -> Option<Self> {
        let mut tcp = None;
        let mut ranges = None;
        let mut group = None;
        let mut words = rule.words.iter().map(String::as_str);
        let (one, many) = match direction {
            Direction::Input => ("--dport", "--dports"),
            Direction::Output => ("--sport", "--sports"),
        };
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word {
                "-p" => tcp = Some(transport(value)?),
                "-m" if matches!(value, "tcp" | "udp" | "multiport" | "comment") => {}
                "--comment" => group = Some(value.to_owned()),
                word if (word == one || word == many) && ranges.is_none() => {
                    ranges = Some(value.split(',').map(range).collect::<Option<Vec<_>>>()?);
                }
                _ => return None,
            }
        }
        let group = group?;
        group.parse::<Group>().ok()?;
        Some(Self { direction, tcp: tcp?, ranges: ranges?, group })
    }
}

/// Whether it is TCP; else it is UDP.
pub(super) fn transport(word: &str) -> Option<bool> {
    match word {
        "tcp" | "6" => Some(true),
        "udp" | "17" => Some(false),
        _ => None,
    }
}

/// `443`, `1:9`, `:9`, `9:`.
pub(super) fn range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let first: u16 = if first.is_empty() { 1 } else { number(first)? };
    let last = if last.is_empty() { u16::MAX } else { number(last)? };
    PortRange::new(first, last)
}

/// Ranges by rule: as many as one `multiport` holds.
fn shared_out(ranges: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut rules: Vec<Vec<PortRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let takes = if range.first() == range.last() { 1 } else { 2 };
        match rules.last_mut() {
            Some(rule) if takes <= room => rule.push(*range),
            _ => {
                rules.push(vec![*range]);
                room = MULTIPORT;
            }
        }
        room -= takes;
    }
    rules
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What our rules say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Life of the counters.
    pub(super) epoch: u64,
    /// When it began, seconds of Unix time.
    pub(super) since: i64,
    /// The boot in which it was written: rules that were saved and restored are others.
    pub(super) boot: u64,
    /// Whether they are to go on without a process.
    pub(super) persist: bool,
    /// Whether something may have been missed.
    pub(super) gap: bool,
    /// Whether the count that this was made with was seen to be there: if it is not any more, somebody set
    /// the counters back. `ip6tables-nft` of 1.8.8 and 1.8.9 makes every rule with zero.
    pub(super) canary: bool,
    /// What was not there before.
    pub(super) made: Made,
}

impl Note {
    fn text(&self) -> String {
        let Self { epoch, since, boot, persist, gap, canary, made } = self;
        let made = made.text();
        let made = if made.is_empty() { made } else { format!(" made={made}") };
        let [persist, gap, canary] = [persist, gap, canary].map(|flag| u8::from(*flag));
        format!(
            "traffic v=1 epoch={epoch:016x} since={since} boot={boot:016x} persist={persist} gap={gap} canary={canary}{made}"
        )
    }

    fn read(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix("traffic v=1 ")?.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let flag = |text: &str| match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let note = Self {
            epoch: hex(field("epoch")?)?,
            since: number(field("since")?)?,
            boot: hex(field("boot")?)?,
            persist: flag(field("persist")?)?,
            gap: flag(field("gap")?)?,
            canary: flag(field("canary")?)?,
            made: match fields.next() {
                Some(field) => Made::read(field.strip_prefix("made=")?)?,
                None => Made::default(),
            },
        };
        fields.next().is_none().then_some(note)
    }
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}

/// What to add to the counters of a group's rules in one family: tcp in, tcp out, udp in, udp out, each
/// with bytes and packets. Below zero where rules outlived the epoch in which they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carry(pub(super) [(i128, i128); 4]);

impl Carry {
    const MARK: &str = "carry";

    pub(super) const fn place(tcp: bool, direction: Direction) -> usize {
        let transport = if tcp { 0 } else { 2 };
        match direction {
            Direction::Input => transport,
            Direction::Output => transport + 1,
        }
    }

    /// Adds so many bytes and packets; less when they are below zero.
    pub(super) fn add(&mut self, tcp: bool, direction: Direction, (bytes, packets): (i128, i128)) {
        if let Some(sum) = self.0.get_mut(Self::place(tcp, direction)) {
            *sum = (sum.0.saturating_add(bytes), sum.1.saturating_add(packets));
        }
    }

    /// What is above that of another, place by place.
    pub(super) fn above(&self, other: Self) -> Self {
        let mut rest = *self;
        for (sum, less) in rest.0.iter_mut().zip(other.0) {
            *sum = (sum.0.saturating_sub(less.0).max(0), sum.1.saturating_sub(less.1).max(0));
        }
        rest
    }

    /// What it has for one transport and direction.
    pub(super) fn at(&self, tcp: bool, direction: Direction) -> (i128, i128) {
        self.0.get(Self::place(tcp, direction)).copied().unwrap_or_default()
    }

    /// One transport's traffic.
    pub(super) fn traffic(&self, tcp: bool) -> Traffic {
        let whole = |value: i128| u64::try_from(value.max(0)).unwrap_or(u64::MAX);
        let (input, output) = (self.at(tcp, Direction::Input), self.at(tcp, Direction::Output));
        Traffic {
            input_bytes: whole(input.0),
            input_packets: whole(input.1),
            output_bytes: whole(output.0),
            output_packets: whole(output.1),
        }
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    fn text(&self) -> String {
        let mut text = Self::MARK.to_owned();
        for (bytes, packets) in self.0 {
            let _ = write!(text, " {bytes} {packets}");
        }
        text
    }

    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix(Self::MARK)?.strip_prefix(' ')?.split(' ');
        // A counter of 64 bit, or minus one: 128 bit hold any sum of them.
        let mut next = || {
            let text = numbers.next()?;
            let digits = text.strip_prefix('-');
            let value = i128::from(number::<u64>(digits.unwrap_or(text))?);
            Some(if digits.is_some() { -value } else { value })
        };
        let mut carry = Self::default();
        for sum in &mut carry.0 {
            *sum = (next()?, next()?);
        }
        numbers.next().is_none().then_some(carry)
    }
}

/// All of ours in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ours {
    /// Which of our chains are there.
    pub(super) chains: Vec<&'static str>,
    /// Places of our jumps in INPUT and in OUTPUT, from 1.
    pub(super) jumps: [Vec<usize>; 2],
    /// Whether nobody else has anything in INPUT and in OUTPUT, and both let everything pass.
    pub(super) spare: [bool; 2],
    /// Packets that the first jump of each direction counted.
    pub(super) jumped: [u64; 2],
    /// What our rules say of themselves.
    pub(super) note: Option<Note>,
    /// Whether the note still has the count that it was made with.
    pub(super) canary: bool,
    /// What to add, by group.
    pub(super) carries: Vec<(String, Carry)>,
    /// How many rules are notes.
    pub(super) notes: usize,
    /// Rules that count, with bytes and packets, in the order of the chains.
    pub(super) counting: Vec<(Counting, u64, u64)>,
}

/// Something at the place of ours that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotOurs {
    /// The chain of our name.
    pub(super) chain: &'static str,
    /// Which rule, or what else is wrong with it.
    pub(super) reason: String,
}

impl Ours {
    /// Finds ours in the table `filter`.
    ///
    /// # Errors
    ///
    /// [`NotOurs`] for a rule in our chains, or a jump to them, that we did not make.
    pub(super) fn in_table(table: &Table) -> Result<Self, NotOurs> {
        let mut ours = Self::default();
        for chain in &table.chains {
            let own = CHAINS.into_iter().find(|name| *name == chain.name);
            for (index, rule) in chain.rules.iter().enumerate() {
                let foreign = |name| NotOurs { chain: name, reason: rule.text(&chain.name) };
                if let Some(own) = own {
                    ours.take(own, rule).ok_or_else(|| foreign(own))?;
                } else if let Some(target) = rule.target()
                    && let Some(name) = CHAINS.into_iter().find(|name| *name == target)
                {
                    let way = Direction::ALL.into_iter().find(|way| {
                        hook(*way) == chain.name && self::chain(*way) == name && is_jump(rule)
                    });
                    let way = way.ok_or_else(|| foreign(name))?;
                    if ours.jumps[way as usize].is_empty() {
                        ours.jumped[way as usize] = rule.packets;
                    }
                    ours.jumps[way as usize].push(index + 1);
                }
            }
            ours.chains.extend(own);
        }
        ours.spare = Direction::ALL.map(|way| {
            table.chain(hook(way)).is_none_or(|chain| {
                let accepts = chain.policy.as_deref() == Some("ACCEPT");
                accepts && chain.rules.len() == ours.jumps[way as usize].len()
            })
        });
        // Nobody has a chain of the notes' name by chance; an empty one of another name may be anybody's.
        for name in &ours.chains {
            let empty = table.chain(name).is_some_and(|chain| chain.rules.is_empty());
            let jumped = ours.jumps.iter().any(|jumps| !jumps.is_empty());
            if empty && *name != NOTE && !ours.chains.contains(&NOTE) && !jumped {
                let reason = "it is empty, and nothing says that we made it".to_owned();
                return Err(NotOurs { chain: name, reason });
            }
        }
        Ok(ours)
    }

    /// Takes a rule of one of our chains in. `None` when it is not ours.
    fn take(&mut self, chain: &str, rule: &Rule) -> Option<()> {
        let direction = match chain {
            IN => Direction::Input,
            OUT => Direction::Output,
            _ => return self.take_note(rule),
        };
        self.counting.push((Counting::read(rule, direction)?, rule.bytes, rule.packets));
        Some(())
    }

    /// A carry stands behind the name of its group.
    fn take_note(&mut self, rule: &Rule) -> Option<()> {
        let [m, comment, option, text] = rule.words.as_slice() else { return None };
        if [m.as_str(), comment, option] != ["-m", "comment", "--comment"] {
            return None;
        }
        self.notes += 1;
        if let Some(note) = Note::read(text) {
            self.note = Some(note);
            self.canary = rule.packets > 0;
        } else if let Some(carry) = Carry::read(text) {
            self.carries.last_mut()?.1 = carry;
        } else {
            text.parse::<Group>().ok()?;
            self.carries.push((text.clone(), Carry::default()));
        }
        Some(())
    }

    /// What came with ours; nothing where the notes are gone.
    pub(super) fn made(&self) -> Made {
        self.note.map(|note| note.made).unwrap_or_default()
    }

    /// Whether there is nothing of ours.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.iter().all(Vec::is_empty)
    }

    /// What to add for a group.
    #[cfg(test)]
    pub(super) fn carry(&self, group: &str) -> Carry {
        self.carries.iter().find(|(name, _)| name == group).map_or_else(Carry::default, |c| c.1)
    }

    /// The lines that take all of ours off.
    pub(super) fn removal(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for direction in Direction::ALL {
            let jump = format!("-D {}", jump(direction));
            lines.extend(self.jumps[direction as usize].iter().map(|_| jump.clone()));
        }
        lines.extend(self.chains.iter().map(|name| format!("-F {name}")));
        lines.extend(self.chains.iter().map(|name| format!("-X {name}")));
        lines
    }

    /// The lines after which these rules count and no others, and no note is there of a group that `goes`.
    /// Without a note of what they are the rest is left as it is: the next start sees to it.
    pub(super) fn with(&self, counting: Vec<Counting>, goes: impl Fn(&str) -> bool) -> Vec<String> {
        let Some(note) = self.note else { return self.replacement(&counting) };
        let carries = self.carries.iter().filter(|(group, _)| !goes(group)).cloned().collect();
        self.change(&Wanted { note, carries, counting })
    }

    /// The lines that make the rules that count those that are wanted. Those that stay are not touched.
    fn replacement(&self, wanted: &[Counting]) -> Vec<String> {
        let mut missing: HashSet<&Counting> = wanted.iter().collect();
        // The second of two alike is one too many.
        let mut lines = self.deletions(|counting| missing.remove(counting));
        for counting in wanted.iter().filter(|counting| missing.contains(counting)) {
            lines.push(format!("-A {}", counting.line()));
        }
        lines
    }

    /// The lines that take off the rules that count and do not stay, asked about in the order of the chains.
    fn deletions(&self, mut stays: impl FnMut(&Counting) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        let mut places = [0usize; 2];
        for (counting, ..) in &self.counting {
            let place = &mut places[counting.direction as usize];
            *place += 1;
            if !stays(counting) {
                lines.push(format!("-D {} {place}", chain(counting.direction)));
            }
        }
        // From the end, so that the places of the others stay what they are.
        lines.reverse();
        lines
    }

    /// The lines that make what is there into what is wanted, and as few as can be. Rules that stay are
    /// not touched and go on counting.
    pub(super) fn change(&self, wanted: &Wanted) -> Vec<String> {
        let mut lines = Vec::new();
        for name in CHAINS.iter().filter(|name| !self.chains.contains(name)) {
            lines.push(format!(":{name} - [0:0]"));
        }
        lines.extend(self.replacement(&wanted.counting));
        let carries = wanted.carries.iter().filter(|(_, carry)| !carry.is_zero());
        let carries: Vec<_> = carries.cloned().collect();
        if self.note != Some(wanted.note) || self.carries != carries {
            if self.notes > 0 {
                lines.push(format!("-F {NOTE}"));
            }
            // A count that no packet made: it goes when somebody sets the counters back.
            lines.push(format!("{} -c 1 1", note_line(&wanted.note.text())));
            for (group, carry) in &carries {
                lines.extend([note_line(group), note_line(&carry.text())]);
            }
        }
        // Last, so that all is ready when the first packet comes.
        for direction in Direction::ALL {
            let jumps = &self.jumps[direction as usize];
            if jumps.as_slice() == [1] {
                continue;
            }
            let jump = jump(direction);
            lines.extend(jumps.iter().map(|_| format!("-D {jump}")));
            lines.push(format!("-I {}", jump.replacen(' ', " 1 ", 1)));
        }
        lines
    }
}

/// What shall be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the rules say of themselves.
    pub(super) note: Note,
    /// What to add, by group.
    pub(super) carries: Vec<(String, Carry)>,
    /// Rules that count.
    pub(super) counting: Vec<Counting>,
}

/// What stands behind `-A` of the rule that leads to our chain.
fn jump(direction: Direction) -> String {
    format!("{} -m comment --comment {MARK} -j {}", hook(direction), chain(direction))
}

fn note_line(text: &str) -> String {
    format!("-A {NOTE} -m comment --comment {}", quoted(text))
}

fn is_jump(rule: &Rule) -> bool {
    let [m, comment, option, mark, j, _] = rule.words.as_slice() else { return false };
    [m.as_str(), comment, option, mark, j] == ["-m", "comment", "--comment", MARK, "-j"]
}

/// Lines as `iptables-restore` takes them: all of them or none.
pub(super) fn restore(lines: &[String]) -> String {
    format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))
}

#[cfg(test)]
mod tests;
