//! What our tables should hold, what they lack, and what in them is not ours. Pure: the kernel is asked
//! and told elsewhere.
//!
//! ```text
//! table ip traffic
//!   counter g1_tcp4_in                          one for each group, lane and direction
//!   map     ports_in  { tcp . 443 : "g1_tcp4_in", ... }
//!   map     ports_out { tcp . 443 : "g1_tcp4_out", ... }
//!   chain   input   { hook input, first }       one rule: look transport and port up, count
//!   chain   output  { hook output, last }
//!   chain   about   { comments }                no packet comes here
//! table ip6 traffic                             the same for the lanes of IPv6
//! ```
//!
//! A range is many elements that lead to one counter, so a packet costs one look-up in a hash table of
//! fixed size, whatever the number of ports and whether one is watched or not. The kernel itself leads a
//! packet to the table of its version of IP: one table for both, with the version in the key, was a tenth
//! dearer, since four more bytes are fetched and hashed. Packets from outside pass `input` alone, those to
//! it `output` alone. A packet over the loopback passes both, once as entering its port of destination and
//! once as leaving its port of origin.
//!
//! Each table says all about both, so that one alone is understood when the other is gone. They are
//! changed in one transaction, and live in one epoch: when one is damaged, both are set anew.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use super::{
    about::{About, Entry},
    kernel::TABLE,
    parse::{Chain, Count, Family, Hooked, Key, Map, Rule, Table, Tables},
};
use crate::accounting::{
    ident::Group,
    reading::{Direction, Lane, Lanes, Snapshot},
};

/// Comment of a table, by which it is known as ours.
pub(super) const MARK: &str = "traffic: counts ports, decides nothing";
const ABOUT: &str = "about";
/// The chains that packets come to: first and last at their hooks.
const HOOKS: &str = "chain input { type filter hook input priority -300; policy accept; }
chain output { type filter hook output priority 300; policy accept; }
";

/// Bytes of a key: two numbers, each in a register of its own.
const KEY: u32 = 8;
/// Smallest room of a map. It costs 32 KiB.
const LEAST_SIZE: u32 = 2048;
/// All ports of both transports.
const MOST_SIZE: u32 = 2 * 65_536;

/// A rule without effect, which nft lists as another one: who finds that one has a table that somebody
/// saved and loaded again.
const CANARY: &str = "meta l4proto tcp meta mark 0 th dport 1 continue";

/// The canary as the kernel says it: as we make it, and as it is loaded from a listing.
const fn canaries(family: Family) -> [&'static str; 2] {
    match family {
        Family::Ip | Family::Ip6 => [
            "meta 16 1 -; cmp 1 0 06; meta 3 1 -; cmp 1 0 00000000; \
             payload 2 2 2 1; cmp 1 0 0001; immediate",
            "meta 3 1 -; cmp 1 0 00000000; meta 16 1 -; cmp 1 0 06; \
             payload 2 2 2 1; cmp 1 0 0001; immediate",
        ],
        Family::Inet => [
            "meta 16 1 -; cmp 1 0 06; meta 15 1 -; cmp 1 0 02; \
             payload 2 2 2 1; cmp 1 0 0001; immediate",
            "meta 15 1 -; cmp 1 0 02; meta 16 1 -; cmp 1 0 06; \
             payload 2 2 2 1; cmp 1 0 0001; immediate",
        ],
    }
}

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
    format!("counter name meta l4proto . th {side} map @{map}")
}

/// The same as the kernel says it.
fn expressions(family: Family, direction: Direction) -> String {
    let offset = match direction {
        Direction::Input => 2,
        Direction::Output => 0,
    };
    let map = map(direction);
    match family {
        Family::Ip | Family::Ip6 => {
            format!("meta 16 1 -; payload 2 {offset} 2 9; objref 1 @{map}")
        }
        Family::Inet => {
            format!("meta 16 1 -; meta 15 9 -; payload 2 {offset} 2 10; objref 1 @{map}")
        }
    }
}

/// A key as nft reads it.
fn key(key: Key) -> String {
    let protocol = if key.tcp { "tcp" } else { "udp" };
    format!("{protocol} . {}", key.port)
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

/// Whose counter of a table this is; `None` when it is none of ours.
pub(super) fn owned(family: Family, counter: &str) -> Option<(u32, Place)> {
    owner(counter).filter(|(_, place)| family.has(place.lane))
}

fn owner(counter: &str) -> Option<(u32, Place)> {
    let (id, place) = counter.strip_prefix('g')?.split_once('_')?;
    let canonical = !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit());
    Some((id.parse().ok().filter(|_| canonical)?, Place::of(place)?))
}

/// Names of all counters of a table.
pub(super) fn counters(about: &About, family: Family) -> impl Iterator<Item = String> {
    let places =
        move |entry| Place::all().filter(move |place| family.has(place.lane) && place.suits(entry));
    about
        .entries
        .iter()
        .flat_map(move |entry| places(entry).map(move |place| counter(entry.id, place)))
}

/// Which ports lead to which counters.
fn elements(about: &About, family: Family, direction: Direction) -> BTreeMap<Key, String> {
    let places = |entry| {
        let here = move |place: &Place| place.direction == direction && family.has(place.lane);
        Place::all().filter(move |place| here(place) && place.suits(entry))
    };
    about
        .watched()
        .flat_map(|entry| places(entry).map(move |place| (entry, place)))
        .flat_map(|(entry, place)| {
            let name = counter(entry.id, place);
            let tcp = place.lane.tcp();
            entry.group.ports().map(move |port| (Key { tcp, port }, name.clone()))
        })
        .collect()
}

/// The room that each map needs, and some for groups that come later.
pub(super) fn size_for(about: &About) -> u32 {
    let needed: u32 = about
        .watched()
        .map(|entry| {
            let transport = entry.group.transport();
            let transports = u32::from(transport.tcp()) + u32::from(transport.udp());
            let ports: u32 = entry.group.ranges().iter().map(|r| ports(r.first(), r.last())).sum();
            transports * ports
        })
        .sum();
    needed.saturating_add(needed / 4).next_power_of_two().clamp(LEAST_SIZE, MOST_SIZE)
}

fn ports(first: u16, last: u16) -> u32 {
    u32::from(last) - u32::from(first) + 1
}

/// The tables as they should be.
pub(super) fn wanted(about: &About, size: u32) -> Tables {
    Family::OURS.into_iter().map(|family| (family, table(about, family, size))).collect()
}

fn table(about: &About, family: Family, size: u32) -> Table {
    let base = |name: &str, hook, priority| Chain {
        name: name.to_owned(),
        hook: Some(Hooked { hook, priority, policy: 1 }),
    };
    let comments = about.comments().into_iter().map(|comment| Rule {
        chain: ABOUT.into(),
        text: "immediate".into(),
        comment: Some(comment),
    });
    let [canary, _] = canaries(family);
    let canary = Rule { chain: ABOUT.into(), text: canary.into(), comment: None };
    let rules = Direction::ALL.into_iter().map(|direction| Rule {
        chain: chain(direction).into(),
        text: expressions(family, direction),
        comment: None,
    });
    Table {
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
                elements: elements(about, family, direction),
            })
            .collect(),
        counters: counters(about, family).map(|name| (name, Count::default())).collect(),
        others: Vec::new(),
    }
}

/// What the tables say about themselves. One that was loaded from a listing is believed only where there
/// is no other.
pub(super) fn about(tables: &Tables) -> Option<About> {
    let all_loaded = tables.iter().all(|(family, table)| is_loaded(*family, table));
    tables
        .iter()
        .filter(|(family, table)| all_loaded || !is_loaded(**family, table))
        .filter_map(|(family, table)| about_in(*family, table))
        .max_by_key(|about| about.since)
}

fn about_in(family: Family, table: &Table) -> Option<About> {
    let comments =
        table.rules.iter().filter(|rule| rule.chain == ABOUT && !is_canary(family, rule));
    About::from_comments(comments.map(|rule| rule.comment.as_deref().unwrap_or_default()))
}

/// Whether a table carries our comment, whatever else is in it.
pub(super) fn is_marked(table: &Table) -> bool {
    table.mark.as_deref() == Some(MARK)
}

/// Why a table of our name is not ours, or what in it is not; `None` when all of it is ours.
pub(super) fn foreign(family: Family, table: &Table) -> Option<String> {
    if !is_marked(table) {
        return Some("it does not carry our comment".into());
    }
    let ours = |chain: &str| [ABOUT, "input", "output"].contains(&chain);
    let inside = |what: &str, name: &str| {
        let name: String = name.chars().take(40).collect();
        Some(format!("somebody put {what} {} into it", name.escape_debug()))
    };
    if let Some(chain) = table.chains.iter().find(|chain| !ours(&chain.name)) {
        return inside("the chain", &chain.name);
    }
    if let Some(map) =
        table.maps.iter().find(|found| Direction::ALL.into_iter().all(|way| map(way) != found.name))
    {
        return inside("the set", &map.name);
    }
    if let Some(name) = table.counters.keys().find(|name| owned(family, name).is_none()) {
        return inside("the counter", name);
    }
    if let Some(other) = table.others.first() {
        return inside("", other);
    }
    let known = |rule: &Rule| {
        let of_chain = |way: &Direction| chain(*way) == rule.chain;
        match Direction::ALL.into_iter().find(of_chain) {
            None => rule.text == "immediate" || is_canary(family, rule),
            Some(direction) => rule.text == expressions(family, direction),
        }
    };
    table
        .rules
        .iter()
        .find(|rule| !known(rule))
        .and_then(|rule| inside("a rule of the chain", &rule.chain))
}

/// Whether the table was loaded from a listing that somebody saved. Its counters begin with what they had
/// then.
pub(super) fn is_loaded(family: Family, table: &Table) -> bool {
    let [_, loaded] = canaries(family);
    table.rules.iter().any(|rule| rule.chain == ABOUT && rule.text == loaded)
}

fn is_canary(family: Family, rule: &Rule) -> bool {
    canaries(family).contains(&rule.text.as_str())
}

/// What the counters of these tables say.
pub(super) fn counts(tables: &Tables) -> Counts {
    tables.iter().flat_map(|(family, table)| counts_of(*family, table)).collect()
}

fn counts_of(family: Family, table: &Table) -> impl Iterator<Item = ((u32, Place), Count)> {
    table.counters.iter().filter_map(move |(name, count)| Some((owned(family, name)?, *count)))
}

/// What of the wanted is not there, in words; nothing when all of it is. Whether others put something
/// beside it does not matter here. And what the counters that are left have counted in this epoch.
pub(super) fn compare(wanted: &Tables, epoch: u64, found: &Tables) -> (Vec<String>, Counts) {
    let (mut lost, mut left) = (Vec::new(), Counts::new());
    for (family, wanted) in wanted {
        let name = format!("{} {TABLE}", family.name());
        let Some(table) = found.get(family) else {
            lost.push(format!("the table {name}"));
            continue;
        };
        let of_another = about_in(*family, table).is_some_and(|about| about.epoch != epoch);
        if of_another || is_loaded(*family, table) {
            // What was counted before the listing was saved is in them and is charged already.
            lost.push(format!(
                "the table {name} was loaded from a listing, with the numbers of another time"
            ));
            continue;
        }
        lost.extend(lost_in(&name, wanted, table));
        left.extend(counts_of(*family, table));
    }
    (lost, left)
}

/// What of one table is not there.
fn lost_in(name: &str, wanted: &Table, found: &Table) -> Vec<String> {
    let mut lost = Vec::new();
    if found.dormant {
        lost.push(format!("the table {name} was switched off (dormant)"));
    }
    for chain in &wanted.chains {
        let chain_name = format!("{name} {}", chain.name);
        match found.chains.iter().find(|other| other.name == chain.name) {
            None => lost.push(format!("the chain {chain_name}")),
            Some(other) if other.hook != chain.hook => {
                lost.push(format!("the chain {chain_name} at its hook"));
            }
            Some(_) => lost.extend(lost_rules((&chain.name, &chain_name), wanted, found)),
        }
    }
    let present: HashMap<&str, &Map> =
        found.maps.iter().map(|map| (map.name.as_str(), map)).collect();
    for map in &wanted.maps {
        let map_name = format!("{name} {}", map.name);
        match present.get(map.name.as_str()) {
            None => lost.push(format!("the map {map_name}")),
            Some(other) if other.shape != map.shape => {
                lost.push(format!("the map {map_name} as it was"));
            }
            Some(other) if other.elements != map.elements => {
                let gone =
                    map.elements.iter().filter(|(key, name)| other.elements.get(key) != Some(name));
                match gone.count() {
                    0 => lost.push(format!("the map {map_name}: it has entries too many")),
                    gone => lost.push(format!(
                        "{gone} of {} entries in the map {map_name}",
                        map.elements.len()
                    )),
                }
            }
            Some(_) => {}
        }
    }
    let gone = wanted.counters.keys().filter(|name| !found.counters.contains_key(*name)).count();
    if gone > 0 {
        lost.push(format!("{gone} of {} counters in the table {name}", wanted.counters.len()));
    }
    lost
}

fn lost_rules((chain, said): (&str, &str), wanted: &Table, found: &Table) -> Option<String> {
    let of = |table: &Table| -> Vec<Rule> {
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
        0 => format!("the order of the rules in the chain {said}, or one is there twice"),
        gone => format!("{gone} of {} rules in the chain {said}", wanted.len()),
    })
}

/// Both tables, in the place of whatever of ours is there, with counters that begin at these numbers.
pub(super) fn script(about: &About, size: u32, begin: &HashMap<String, Count>) -> String {
    let mut text = String::new();
    for family in Family::OURS {
        let name = family.name();
        // The first line makes the second one work where there is no table.
        let _ = writeln!(text, "add table {name} {TABLE}\ndelete table {name} {TABLE}");
        let _ = writeln!(text, "table {name} {TABLE} {{\ncomment \"{MARK}\"");
        for counter in counters(about, family) {
            let Count { packets, bytes } = begin.get(&counter).copied().unwrap_or_default();
            let _ = writeln!(text, "counter {counter} {{ packets {packets} bytes {bytes} }}");
        }
        write_maps(&mut text, about, family, size);
        text.push_str(HOOKS);
        write_rules(&mut text);
        write_about(&mut text, about);
        text.push_str("}\n");
    }
    text
}

/// Whether the kernel has what a table of this family needs to see packets. To be checked, not set.
pub(super) fn probe(family: Family) -> String {
    format!("table {} {TABLE} {{\n{HOOKS}}}\n", family.name())
}

/// From one list of groups to the next, in one step that loses no packet of those that stay.
/// `room` is the size of the maps; where it is too small for the next list, larger ones take their
/// place.
pub(super) fn change(from: &About, to: &About, room: u32) -> (String, u32) {
    let needed = size_for(to);
    let size = if needed > room { needed } else { room };
    let mut text = String::new();
    for family in Family::OURS {
        write_change(&mut text, (from, to), family, (size, size == room));
    }
    (text, size)
}

/// The part of one table. Maps that do not stay are made anew, of this size.
fn write_change(
    text: &mut String,
    (from, to): (&About, &About),
    family: Family,
    (size, maps_stay): (u32, bool),
) {
    let table = format!("{} {TABLE}", family.name());
    let _ = writeln!(text, "flush chain {table} {ABOUT}");
    let mut parts = String::new();
    if maps_stay {
        for direction in Direction::ALL {
            let [old, new] = [from, to].map(|about| elements(about, family, direction));
            let gone = old.iter().filter(|(key, name)| new.get(key) != Some(name));
            let gone: Vec<String> = gone.map(|(gone, _)| key(*gone)).collect();
            if !gone.is_empty() {
                let (name, gone) = (map(direction), gone.join(", "));
                let _ = writeln!(text, "delete element {table} {name} {{ {gone} }}");
            }
            let come = new.iter().filter(|(key, name)| old.get(key) != Some(name));
            let come = come.map(|(key, name)| (*key, name.clone())).collect();
            write_map(&mut parts, direction, size, &come);
        }
    } else {
        for direction in Direction::ALL {
            let _ = writeln!(text, "flush chain {table} {}", chain(direction));
        }
        for direction in Direction::ALL {
            let _ = writeln!(text, "delete map {table} {}", map(direction));
        }
        write_maps(&mut parts, to, family, size);
        write_rules(&mut parts);
    }
    let _ = writeln!(text, "table {table} {{");
    let known: HashSet<String> = counters(from, family).collect();
    for name in counters(to, family).filter(|name| !known.contains(name)) {
        let _ = writeln!(text, "counter {name} {{ packets 0 bytes 0 }}");
    }
    text.push_str(&parts);
    write_about(text, to);
    text.push_str("}\n");
}

/// Takes off counters of groups that are no more, after a [`change`] that took their elements off.
pub(super) fn forget(from: &About, to: &About) -> String {
    let mut text = String::new();
    for family in Family::OURS {
        let stay: HashSet<String> = counters(to, family).collect();
        for name in counters(from, family).filter(|name| !stay.contains(name)) {
            let _ = writeln!(text, "delete counter {} {TABLE} {name}", family.name());
        }
    }
    text
}

/// Takes off these tables.
pub(super) fn removal<'a>(families: impl IntoIterator<Item = &'a Family>) -> String {
    let line = |family: &Family| format!("delete table {} {TABLE}\n", family.name());
    families.into_iter().map(line).collect()
}

fn write_maps(text: &mut String, about: &About, family: Family, size: u32) {
    for direction in Direction::ALL {
        write_map(text, direction, size, &elements(about, family, direction));
    }
}

fn write_map(text: &mut String, direction: Direction, size: u32, elements: &BTreeMap<Key, String>) {
    let name = map(direction);
    let _ = writeln!(text, "map {name} {{ type inet_proto . inet_service : counter; size {size};");
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
