//! What our table should hold, what it lacks, and what in it is not ours. Pure: the kernel is asked
//! and told elsewhere.
//!
//! ```text
//! counter g1_tcp4_in                          one for each group, lane and direction
//! map     ports_in  { tcp . ipv4 . 443 : "g1_tcp4_in", ... }
//! map     ports_out { tcp . ipv4 . 443 : "g1_tcp4_out", ... }
//! chain   input   { hook input, first }       one rule: look lane and port up, count
//! chain   output  { hook output, last }
//! chain   about   { comments }                no packet comes here
//! ```
//!
//! A range is many elements that lead to one counter, so a packet costs one look-up in a hash table of
//! fixed size, whatever the number of ports and whether one is watched or not. A rule for each lane, with
//! a map for ports alone, was a third dearer: each rule that does not match costs as much as the longer
//! key. Packets from outside pass `input` alone, those to it `output` alone. A packet over the loopback
//! passes both, once as entering its port of destination and once as leaving its port of origin.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use super::{
    about::{About, Entry},
    kernel::TABLE,
    parse::{Chain, Count, Found, Hooked, Key, Map, Rule},
};
use crate::accounting::{
    ident::Group,
    reading::{Direction, Lane, Lanes, Snapshot},
};

/// Comment of the table, by which it is known as ours.
pub(super) const MARK: &str = "traffic: counts ports, decides nothing";
const ABOUT: &str = "about";

/// Bytes of a key: three numbers, each in a register of its own.
const KEY: u32 = 12;
/// Smallest room of a map. It costs 64 KiB.
const LEAST_SIZE: u32 = 4096;
/// All ports of all lanes.
const MOST_SIZE: u32 = 4 * 65_536;

/// A rule without effect, which nft lists as another one: who finds that one has a table that somebody
/// saved and loaded again.
const CANARY: &str = "meta l4proto tcp meta nfproto ipv4 th dport 1 continue";
const CANARY_EXPRESSIONS: &str = "meta 16 1 -; cmp 1 0 06; meta 15 1 -; cmp 1 0 02; \
                                  payload 2 2 2 1; cmp 1 0 0001; immediate";
const CANARY_LOADED: &str = "meta 15 1 -; cmp 1 0 02; meta 16 1 -; cmp 1 0 06; \
                             payload 2 2 2 1; cmp 1 0 0001; immediate";

/// A lane and a direction: what a counter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) lane: Lane,
    pub(super) direction: Direction,
}

impl Place {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Direction::ALL
            .into_iter()
            .flat_map(|direction| Lane::ALL.into_iter().map(move |lane| Self { lane, direction }))
    }

    /// End of the names of its counters.
    const fn name(self) -> &'static str {
        match (self.lane, self.direction) {
            (Lane::Tcp4, Direction::Input) => "tcp4_in",
            (Lane::Tcp6, Direction::Input) => "tcp6_in",
            (Lane::Udp4, Direction::Input) => "udp4_in",
            (Lane::Udp6, Direction::Input) => "udp6_in",
            (Lane::Tcp4, Direction::Output) => "tcp4_out",
            (Lane::Tcp6, Direction::Output) => "tcp6_out",
            (Lane::Udp4, Direction::Output) => "udp4_out",
            (Lane::Udp6, Direction::Output) => "udp6_out",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::all().find(|place| place.name() == name)
    }

    fn suits(self, entry: &Entry) -> bool {
        let transport = entry.group.transport();
        if self.lane.tcp() { transport.tcp() } else { transport.udp() }
    }
}

/// Name of the chain of a direction.
const fn chain(direction: Direction) -> &'static str {
    match direction {
        Direction::Input => "input",
        Direction::Output => "output",
    }
}

/// Name of the map of a direction.
const fn map(direction: Direction) -> &'static str {
    match direction {
        Direction::Input => "ports_in",
        Direction::Output => "ports_out",
    }
}

/// The rule of a direction, as nft reads it.
fn rule(direction: Direction) -> String {
    let side = match direction {
        Direction::Input => "dport",
        Direction::Output => "sport",
    };
    let map = map(direction);
    format!("counter name meta l4proto . meta nfproto . th {side} map @{map}")
}

/// The same as the kernel says it.
fn expressions(direction: Direction) -> String {
    let offset = match direction {
        Direction::Input => 2,
        Direction::Output => 0,
    };
    let map = map(direction);
    format!("meta 16 1 -; meta 15 9 -; payload 2 {offset} 2 10; objref 1 @{map}")
}

/// A key as nft reads it.
fn key(key: Key) -> String {
    let protocol = if key.lane.tcp() { "tcp" } else { "udp" };
    let family = if key.lane.ipv4() { "ipv4" } else { "ipv6" };
    format!("{protocol} . {family} . {}", key.port)
}

/// What counters say, by entry and place.
pub(super) type Counts = HashMap<(u32, Place), Count>;

/// What the counters said when this was read of them.
pub(super) fn counts_in(snapshot: &Snapshot, about: &About) -> Counts {
    let key = |group: &Group| (group.ranges().to_vec(), group.transport());
    let read: HashMap<_, &Lanes> =
        snapshot.groups.iter().map(|reading| (key(&reading.group), &reading.lanes)).collect();
    let mut counts = Counts::new();
    for entry in &about.entries {
        let Some(lanes) = read.get(&key(&entry.group)) else { continue };
        for place in Place::all().filter(|place| place.suits(entry)) {
            let (bytes, packets) = lanes.lane(place.lane).way(place.direction);
            counts.insert((entry.id, place), Count { packets, bytes });
        }
    }
    counts
}

/// Name of the counter of an entry.
pub(super) fn counter(id: u32, place: Place) -> String {
    format!("g{id}_{}", place.name())
}

/// Whose counter this is; `None` when it is none of ours.
pub(super) fn owner(counter: &str) -> Option<(u32, Place)> {
    let (id, place) = counter.strip_prefix('g')?.split_once('_')?;
    let canonical = !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit());
    Some((id.parse().ok().filter(|_| canonical)?, Place::of(place)?))
}

/// Names of all counters.
pub(super) fn counters(about: &About) -> impl Iterator<Item = String> {
    about.entries.iter().flat_map(|entry| {
        Place::all().filter(|place| place.suits(entry)).map(|place| counter(entry.id, place))
    })
}

fn elements(about: &About, direction: Direction) -> BTreeMap<Key, String> {
    let places = |entry| {
        Place::all().filter(move |place| place.direction == direction && place.suits(entry))
    };
    about
        .watched()
        .flat_map(|entry| places(entry).map(move |place| (entry, place)))
        .flat_map(|(entry, place)| {
            let name = counter(entry.id, place);
            let lane = place.lane;
            entry.group.ports().map(move |port| (Key { lane, port }, name.clone()))
        })
        .collect()
}

/// The room that the maps need, and some for groups that come later.
pub(super) fn size_for(about: &About) -> u32 {
    let needed: u32 = about
        .watched()
        .map(|entry| {
            let lanes = Lane::ALL.into_iter().filter(|lane| {
                let transport = entry.group.transport();
                if lane.tcp() { transport.tcp() } else { transport.udp() }
            });
            let ports: u32 = entry.group.ranges().iter().map(|r| ports(r.first(), r.last())).sum();
            lanes.map(|_| ports).sum::<u32>()
        })
        .sum();
    needed.saturating_add(needed / 4).next_power_of_two().clamp(LEAST_SIZE, MOST_SIZE)
}

fn ports(first: u16, last: u16) -> u32 {
    u32::from(last) - u32::from(first) + 1
}

/// The table as it should be.
pub(super) fn wanted(about: &About, size: u32) -> Found {
    let base = |name: &str, hook, priority| Chain {
        name: name.to_owned(),
        hook: Some(Hooked { hook, priority, policy: 1 }),
    };
    let comments = about.comments().into_iter().map(|comment| Rule {
        chain: ABOUT.into(),
        text: "immediate".into(),
        comment: Some(comment),
    });
    let canary = Rule { chain: ABOUT.into(), text: CANARY_EXPRESSIONS.into(), comment: None };
    let rules = Direction::ALL.into_iter().map(|direction| Rule {
        chain: chain(direction).into(),
        text: expressions(direction),
        comment: None,
    });
    Found {
        generation: 0,
        mark: Some(MARK.into()),
        dormant: false,
        chains: vec![
            Chain { name: ABOUT.into(), hook: None },
            base("input", 1, -300),
            base("output", 3, 300),
        ],
        rules: comments.chain([canary]).chain(rules).collect(),
        maps: Direction::ALL
            .into_iter()
            .map(|direction| Map {
                name: map(direction).into(),
                shape: (KEY, true),
                size,
                elements: elements(about, direction),
            })
            .collect(),
        counters: counters(about).map(|name| (name, Count::default())).collect(),
        others: Vec::new(),
    }
}

/// What the table says about itself.
pub(super) fn about(found: &Found) -> Option<About> {
    let comments = found.rules.iter().filter(|rule| rule.chain == ABOUT && !is_canary(rule));
    About::from_comments(comments.map(|rule| rule.comment.as_deref().unwrap_or_default()))
}

/// Why a table of our name is not ours, or what in it is not; `None` when all of it is ours.
pub(super) fn foreign(found: &Found) -> Option<String> {
    if found.mark.as_deref() != Some(MARK) {
        return Some("it does not carry our comment".into());
    }
    let ours = |chain: &str| [ABOUT, "input", "output"].contains(&chain);
    let inside = |what: &str, name: &str| {
        let name: String = name.chars().take(40).collect();
        Some(format!("somebody put {what} {} into it", name.escape_debug()))
    };
    if let Some(chain) = found.chains.iter().find(|chain| !ours(&chain.name)) {
        return inside("the chain", &chain.name);
    }
    if let Some(map) =
        found.maps.iter().find(|found| Direction::ALL.into_iter().all(|way| map(way) != found.name))
    {
        return inside("the set", &map.name);
    }
    if let Some(name) = found.counters.keys().find(|name| owner(name).is_none()) {
        return inside("the counter", name);
    }
    if let Some(other) = found.others.first() {
        return inside("", other);
    }
    let known = |rule: &Rule| {
        let of_chain = |way: &Direction| chain(*way) == rule.chain;
        match Direction::ALL.into_iter().find(of_chain) {
            None => rule.text == "immediate" || is_canary(rule),
            Some(direction) => rule.text == expressions(direction),
        }
    };
    found
        .rules
        .iter()
        .find(|rule| !known(rule))
        .and_then(|rule| inside("a rule of the chain", &rule.chain))
}

/// Whether the table was loaded from a listing that somebody saved. Its counters begin with what they had
/// then.
pub(super) fn is_loaded(found: &Found) -> bool {
    found.rules.iter().any(|rule| rule.chain == ABOUT && rule.text == CANARY_LOADED)
}

fn is_canary(rule: &Rule) -> bool {
    [CANARY_EXPRESSIONS, CANARY_LOADED].contains(&rule.text.as_str())
}

/// What of the wanted is not there, in words; nothing when all of it is. Whether others put something
/// beside it does not matter here.
pub(super) fn lost(wanted: &Found, found: Option<&Found>) -> Vec<String> {
    let Some(found) = found else {
        return vec!["the table inet traffic".into()];
    };
    let mut lost = Vec::new();
    if found.dormant {
        lost.push("the table inet traffic was switched off (dormant)".into());
    }
    for chain in &wanted.chains {
        match found.chains.iter().find(|other| other.name == chain.name) {
            None => lost.push(format!("the chain {}", chain.name)),
            Some(other) if other.hook != chain.hook => {
                lost.push(format!("the chain {} at its hook", chain.name));
            }
            Some(_) => lost.extend(lost_rules(&chain.name, wanted, found)),
        }
    }
    let present: HashMap<&str, &Map> =
        found.maps.iter().map(|map| (map.name.as_str(), map)).collect();
    for map in &wanted.maps {
        match present.get(map.name.as_str()) {
            None => lost.push(format!("the map {}", map.name)),
            Some(other) if other.shape != map.shape => {
                lost.push(format!("the map {} as it was", map.name));
            }
            Some(other) if other.elements != map.elements => {
                let gone =
                    map.elements.iter().filter(|(key, name)| other.elements.get(key) != Some(name));
                match gone.count() {
                    0 => lost.push(format!("the map {}: it has entries too many", map.name)),
                    gone => lost.push(format!(
                        "{gone} of {} entries in the map {}",
                        map.elements.len(),
                        map.name
                    )),
                }
            }
            Some(_) => {}
        }
    }
    let gone = wanted.counters.keys().filter(|name| !found.counters.contains_key(*name)).count();
    if gone > 0 {
        lost.push(format!("{gone} of {} counters", wanted.counters.len()));
    }
    lost
}

fn lost_rules(chain: &str, wanted: &Found, found: &Found) -> Option<String> {
    let of = |table: &Found| -> Vec<Rule> {
        table.rules.iter().filter(|rule| rule.chain == chain).cloned().collect()
    };
    let (wanted, found) = (of(wanted), of(found));
    // Rules of others between ours do not keep ours from counting.
    let ours: Vec<_> = found.iter().filter(|rule| wanted.contains(rule)).collect();
    if ours.iter().copied().eq(wanted.iter()) {
        return None;
    }
    let gone = wanted.iter().filter(|rule| !ours.contains(rule)).count();
    Some(match gone {
        0 => format!("the order of the rules in the chain {chain}, or one is there twice"),
        gone => format!("{gone} of {} rules in the chain {chain}", wanted.len()),
    })
}

/// The whole table, in the place of whatever of ours is there, with counters that begin at these
/// numbers.
pub(super) fn script(about: &About, size: u32, begin: &HashMap<String, Count>) -> String {
    // The first line makes the second one work where there is no table.
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    let _ = writeln!(text, "table inet {TABLE} {{\ncomment \"{MARK}\"");
    for name in counters(about) {
        let Count { packets, bytes } = begin.get(&name).copied().unwrap_or_default();
        let _ = writeln!(text, "counter {name} {{ packets {packets} bytes {bytes} }}");
    }
    write_maps(&mut text, about, size);
    let _ =
        writeln!(text, "chain input {{ type filter hook input priority -300; policy accept; }}");
    let _ =
        writeln!(text, "chain output {{ type filter hook output priority 300; policy accept; }}");
    write_rules(&mut text);
    write_about(&mut text, about);
    text.push_str("}\n");
    text
}

/// From one list of groups to the next, in one step that loses no packet of those that stay.
/// `room` is the size of the maps; where it is too small for the next list, larger ones take their
/// place.
pub(super) fn change(from: &About, to: &About, room: u32) -> (String, u32) {
    let mut text = format!("flush chain inet {TABLE} {ABOUT}\n");
    let needed = size_for(to);
    let size = if needed > room { needed } else { room };
    let mut parts = String::new();
    if size == room {
        for direction in Direction::ALL {
            let (old, new) = (elements(from, direction), elements(to, direction));
            let gone = old.iter().filter(|(key, name)| new.get(key) != Some(name));
            let gone: Vec<String> = gone.map(|(gone, _)| key(*gone)).collect();
            if !gone.is_empty() {
                let (name, gone) = (map(direction), gone.join(", "));
                let _ = writeln!(text, "delete element inet {TABLE} {name} {{ {gone} }}");
            }
            let come = new.iter().filter(|(key, name)| old.get(key) != Some(name));
            let come = come.map(|(key, name)| (*key, name.clone())).collect();
            write_map(&mut parts, direction, size, &come);
        }
    } else {
        for chain in ["input", "output"] {
            let _ = writeln!(text, "flush chain inet {TABLE} {chain}");
        }
        for direction in Direction::ALL {
            let _ = writeln!(text, "delete map inet {TABLE} {}", map(direction));
        }
        write_maps(&mut parts, to, size);
        write_rules(&mut parts);
    }
    let _ = writeln!(text, "table inet {TABLE} {{");
    let known: std::collections::HashSet<String> = counters(from).collect();
    for name in counters(to).filter(|name| !known.contains(name)) {
        let _ = writeln!(text, "counter {name} {{ packets 0 bytes 0 }}");
    }
    text.push_str(&parts);
    write_about(&mut text, to);
    text.push_str("}\n");
    (text, size)
}

fn write_maps(text: &mut String, about: &About, size: u32) {
    for direction in Direction::ALL {
        write_map(text, direction, size, &elements(about, direction));
    }
}

fn write_map(text: &mut String, direction: Direction, size: u32, elements: &BTreeMap<Key, String>) {
    let name = map(direction);
    let _ = writeln!(
        text,
        "map {name} {{ type inet_proto . nf_proto . inet_service : counter; size {size};"
    );
    if !elements.is_empty() {
        let pairs: Vec<_> =
            elements.iter().map(|(at, name)| format!("{} : \"{name}\"", key(*at))).collect();
        let _ = writeln!(text, "elements = {{ {} }}", pairs.join(", "));
    }
    text.push_str("}\n");
}

fn write_rules(text: &mut String) {
    for direction in Direction::ALL {
        let _ = writeln!(text, "chain {} {{ {}; }}", chain(direction), rule(direction));
    }
}

fn write_about(text: &mut String, about: &About) {
    let _ = writeln!(text, "chain {ABOUT} {{");
    for comment in about.comments() {
        let _ = writeln!(text, "continue comment \"{comment}\"");
    }
    let _ = writeln!(text, "{CANARY}");
    text.push_str("}\n");
}

#[cfg(test)]
mod tests;
