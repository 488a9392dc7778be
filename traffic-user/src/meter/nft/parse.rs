//! What the kernel says about our tables, read from its messages. No message can do harm: what is not
//! understood is left out, and what is missing then counts as lost or foreign.

use std::{collections::BTreeMap, fmt::Write as _};

use netlink_packet_core::{NLA_HEADER_SIZE, NlaBuffer, NlasIterator};

use crate::accounting::reading::Lane;

/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER: u32 = 1;

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// Which of the tables of our name: nf_tables keeps those of each family apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    /// The lanes of IPv4.
    Ip,
    /// The lanes of IPv6.
    Ip6,
    /// Both in one table, as builds before 2026-11-30 made it. Read once more and taken off, never set.
    Inet,
}

impl Family {
    /// Those that we set.
    pub(super) const OURS: [Self; 2] = [Self::Ip, Self::Ip6];
    /// Those that earlier builds set.
    pub(super) const FORMER: [Self; 1] = [Self::Inet];

    /// As nft writes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }

    /// As the kernel counts them (`NFPROTO_*`).
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// Whether packets of this lane come to its tables.
    pub(super) const fn has(self, lane: Lane) -> bool {
        match self {
            Self::Ip => lane.ipv4(),
            Self::Ip6 => !lane.ipv4(),
            Self::Inet => true,
        }
    }
}

/// Tables of our name.
pub(super) type Tables = BTreeMap<Family, Table>;

/// What stands in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The generation in which all of it stood.
    pub(super) generation: u32,
    pub(super) tables: Tables,
}

/// A table as it stands in the kernel, or as it should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Comment of the table.
    pub(super) mark: Option<String>,
    /// Whether the table is switched off (`flags dormant`).
    pub(super) dormant: bool,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
    pub(super) maps: Vec<Map>,
    pub(super) counters: BTreeMap<String, Count>,
    /// What nobody of ours makes: other objects, flow tables.
    pub(super) others: Vec<String>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hooked>,
}

/// Where a base chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hooked {
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) policy: u32,
}

/// A rule, with its expressions in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) text: String,
    pub(super) comment: Option<String>,
}

/// What a map is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// TCP; else it is UDP.
    pub(super) tcp: bool,
    pub(super) port: u16,
}

impl Key {
    /// From two numbers, each in four bytes that begin with it; `None` for other protocols.
    fn of(bytes: &[u8]) -> Option<Self> {
        let &[protocol, _, _, _, high, low, _, _] = bytes else {
            return None;
        };
        let tcp = match protocol {
            6 => true,
            17 => false,
            _ => return None,
        };
        Some(Self { tcp, port: u16::from_be_bytes([high, low]) })
    }
}

/// A map from transports and ports to counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) name: String,
    /// Bytes of its key, and whether its values are counters.
    pub(super) shape: (u32, bool),
    /// Most elements that it takes; 0 when it grows.
    pub(super) size: u32,
    pub(super) elements: BTreeMap<Key, String>,
}

impl Table {
    pub(super) fn add_table(&mut self, body: &[u8]) {
        const FLAGS: u16 = 2;
        const USERDATA: u16 = 6;
        const DORMANT: u32 = 1;
        self.mark = find(body, USERDATA).and_then(comment);
        self.dormant = find(body, FLAGS).and_then(number).unwrap_or(0) & DORMANT != 0;
    }

    pub(super) fn add_chain(&mut self, body: &[u8], table: &str) {
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        if !is_of(body, table) {
            return;
        }
        let hook = find(body, HOOK).map(|hook| Hooked {
            hook: find(hook, 1).and_then(number).unwrap_or(u32::MAX),
            priority: find(hook, 2).and_then(number).unwrap_or(0).cast_signed(),
            policy: find(body, POLICY).and_then(number).unwrap_or(u32::MAX),
        });
        self.chains.push(Chain { name: name(body, NAME), hook });
    }

    pub(super) fn add_rule(&mut self, body: &[u8], table: &str) {
        const CHAIN: u16 = 2;
        const EXPRESSIONS: u16 = 4;
        const USERDATA: u16 = 7;
        if !is_of(body, table) {
            return;
        }
        let expressions: Vec<String> = attributes(find(body, EXPRESSIONS).unwrap_or_default())
            .map(|(_, e)| expression(e))
            .collect();
        self.rules.push(Rule {
            chain: name(body, CHAIN),
            text: expressions.join("; "),
            comment: find(body, USERDATA).and_then(comment),
        });
    }

    pub(super) fn add_map(&mut self, body: &[u8], table: &str) {
        const NAME: u16 = 2;
        const KEY_LENGTH: u16 = 5;
        const DESCRIPTION: u16 = 9;
        const OBJECT: u16 = 15;
        if !is_of(body, table) {
            return;
        }
        let key = find(body, KEY_LENGTH).and_then(number).unwrap_or(0);
        let counts = find(body, OBJECT).and_then(number) == Some(COUNTER);
        let size = find(body, DESCRIPTION).and_then(|d| find(d, 1)).and_then(number);
        self.maps.push(Map {
            name: name(body, NAME),
            shape: (key, counts),
            size: size.unwrap_or(0),
            elements: BTreeMap::new(),
        });
    }

    pub(super) fn add_object(&mut self, body: &[u8], table: &str) {
        match counter(body, table) {
            Some((name, count)) => {
                self.counters.insert(name.to_owned(), count);
            }
            None if is_of(body, table) => self.others.push(format!("the object {}", name(body, 2))),
            None => {}
        }
    }

    pub(super) fn add_flowtable(&mut self, body: &[u8], table: &str) {
        if is_of(body, table) {
            self.others.push(format!("the flowtable {}", name(body, 2)));
        }
    }
}

impl Map {
    pub(super) fn add_elements(&mut self, body: &[u8]) {
        const ELEMENTS: u16 = 3;
        const KEY: u16 = 1;
        const OBJECT: u16 = 9;
        for (_, element) in attributes(find(body, ELEMENTS).unwrap_or_default()) {
            let key = find(element, KEY).and_then(|key| find(key, 1));
            if let Some(key) = key.and_then(Key::of) {
                self.elements.insert(key, name(element, OBJECT));
            }
        }
    }
}

/// Number of the generation.
pub(super) fn generation(body: &[u8]) -> Option<u32> {
    find(body, 1).and_then(number)
}

/// Name and value of a counter of this table.
pub(super) fn counter<'a>(body: &'a [u8], table: &str) -> Option<(&'a str, Count)> {
    let (mut of, mut name, mut kind, mut data) = (None, None, None, None);
    // The one list that is long: looked through once.
    for (attribute, value) in attributes(body) {
        match attribute {
            1 => of = text(value),
            2 => name = text(value),
            3 => kind = number(value),
            4 => data = Some(value),
            _ => {}
        }
    }
    if of != Some(table) || kind != Some(COUNTER) {
        return None;
    }
    let data = data?;
    let count = Count { bytes: long(find(data, 1)?)?, packets: long(find(data, 2)?)? };
    Some((name?, count))
}

/// One expression of a rule, in words of ours: all that decides what it does.
fn expression(body: &[u8]) -> String {
    let kind = name(body, 1);
    let data = find(body, 2).unwrap_or_default();
    let numbers = |attributes: &[u16]| {
        attributes.iter().fold(kind.clone(), |mut text, attribute| {
            let _ = match find(data, *attribute).and_then(number) {
                Some(number) => write!(text, " {number}"),
                None => write!(text, " -"),
            };
            text
        })
    };
    let bytes = |attribute| {
        let value = find(data, attribute).and_then(|value| find(value, 1)).unwrap_or_default();
        value.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    match kind.as_str() {
        // Key and where to.
        "meta" => numbers(&[2, 1, 3]),
        // From where, operator, what with.
        "cmp" => format!("{} {}", numbers(&[1, 2]), bytes(3)),
        // Header, offset, length and where to.
        "payload" => numbers(&[2, 3, 4, 1]),
        "bitwise" => format!("{} {} {}", numbers(&[1, 2, 3]), bytes(4), bytes(5)),
        "objref" => format!("{} @{}", numbers(&[3]), name(data, 4)),
        _ => kind,
    }
}

/// The comment in what nft keeps beside a thing for itself: pairs of kind, length and value.
fn comment(mut data: &[u8]) -> Option<String> {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return text(value).map(str::to_owned);
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}

/// Attributes in order; ends at the first that is cut.
fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(body).map_while(|attribute| {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end)?))
    })
}

fn find(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

fn text(value: &[u8]) -> Option<&str> {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    std::str::from_utf8(value).ok()
}

fn name(body: &[u8], kind: u16) -> String {
    find(body, kind)
        .map(|name| String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)))
        .unwrap_or_default()
        .into_owned()
}

pub(super) fn is_of(body: &[u8], table: &str) -> bool {
    find(body, 1).and_then(text) == Some(table)
}

#[cfg(test)]
mod tests;
