//! What is wanted against what is there.

use proptest::prelude::*;

use super::*;
use crate::accounting::ident::Groups;

fn about(groups: &str) -> About {
    let empty =
        About { epoch: 1, since: 2, boot: 3, persist: false, gap: false, entries: Vec::new() };
    empty.watching(&Groups::parse(groups, 1000).unwrap())
}

const EPOCH: u64 = 1;

fn tables(groups: &str) -> Tables {
    wanted(&about(groups), LEAST_SIZE)
}

fn lost(wanted: &Tables, found: &Tables) -> Vec<String> {
    compare(wanted, EPOCH, found).0
}

/// The table of IPv4 is changed.
#[track_caller]
fn check(change: impl Fn(&mut Table), want: &[&str]) {
    let wanted = tables("443,20000-20009/udp");
    let mut found = wanted.clone();
    change(found.get_mut(&Family::Ip).unwrap());
    assert_eq!(lost(&wanted, &found), want);
}

#[test]
fn a_group_has_a_counter_for_each_lane_and_direction_and_a_range_has_one_for_all_its_ports() {
    let tables = tables("443,20000-20009/udp");
    let names = |family| tables[&family].counters.keys().map(String::as_str).collect::<Vec<_>>();
    let of_ipv4 =
        ["g1_tcp4_in", "g1_tcp4_out", "g1_udp4_in", "g1_udp4_out", "g2_udp4_in", "g2_udp4_out"];
    assert_eq!(names(Family::Ip), of_ipv4);
    assert_eq!(names(Family::Ip6), of_ipv4.map(|name| name.replace('4', "6")));
    let elements = |family, name: &str, tcp| {
        let map = tables[&family].maps.iter().find(|map| map.name == name).unwrap();
        let of = map.elements.iter().filter(move |(key, _)| key.tcp == tcp);
        of.map(|(key, name)| (key.port, name.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(elements(Family::Ip6, "ports_out", true), [(443, "g1_tcp6_out")]);
    let range: Vec<_> = (20000..20010).map(|port| (port, "g2_udp4_in")).collect();
    let want = [vec![(443, "g1_udp4_in")], range].concat();
    assert_eq!(elements(Family::Ip, "ports_in", false), want);
}

#[test]
fn a_counter_is_ours_by_the_whole_of_its_name_and_in_the_table_of_its_lane() {
    let tcp4 = Place { lane: Lane::Tcp4, direction: Direction::Input };
    for (family, want) in [(Family::Ip, true), (Family::Ip6, false), (Family::Inet, true)] {
        assert_eq!(owned(family, "g12_tcp4_in"), want.then_some((12, tcp4)), "{family:?}");
    }
    for name in ["g_tcp4_in", "g01_tcp4_in", "g+1_tcp4_in", "g1_tcp4", "g1_tcp4_in2", "1_tcp4_in"] {
        assert_eq!(owned(Family::Ip, name), None, "{name}");
    }
}

#[test]
fn whatever_is_gone_is_said() {
    check(|_| {}, &[]);
    check(|table| table.dormant = true, &["the table ip traffic was switched off (dormant)"]);
    check(
        |table| table.rules.retain(|rule| rule.chain == ABOUT),
        &[
            "1 of 1 rules in the chain ip traffic input",
            "1 of 1 rules in the chain ip traffic output",
        ],
    );
    check(|table| drop(table.rules.remove(0)), &["1 of 3 rules in the chain ip traffic about"]);
    check(
        |table| {
            let twice = table.rules.last().unwrap().clone();
            table.rules.push(twice);
        },
        &["the order of the rules in the chain ip traffic output, or one is there twice"],
    );
    check(
        |table| table.chains.retain(|chain| chain.name != "output"),
        &["the chain ip traffic output"],
    );
    check(|table| table.chains[1].hook = None, &["the chain ip traffic input at its hook"]);
    check(|table| drop(table.maps.remove(0)), &["the map ip traffic ports_in"]);
    let key = |tcp, port| Key { tcp, port };
    check(
        |table| table.maps[0].elements.retain(|key, _| key.port < 20003),
        &["7 of 12 entries in the map ip traffic ports_in"],
    );
    check(
        |table| {
            table.maps[0].elements.insert(key(false, 443), "g2_udp4_in".into());
        },
        &["1 of 12 entries in the map ip traffic ports_in"],
    );
    check(
        |table| {
            table.maps[1].elements.insert(key(true, 80), "g1_tcp4_out".into());
        },
        &["the map ip traffic ports_out: it has entries too many"],
    );
    check(
        |table| {
            table.counters.remove("g1_tcp4_in");
        },
        &["1 of 6 counters in the table ip traffic"],
    );
    let none = lost(&tables("1"), &Tables::new());
    assert_eq!(none, ["the table ip traffic", "the table ip6 traffic"]);
}

/// Every counter says the same.
fn counting(groups: &str, packets: u64) -> Tables {
    let mut tables = tables(groups);
    for table in tables.values_mut() {
        table.counters.values_mut().for_each(|count| *count = Count { packets, bytes: packets });
    }
    tables
}

/// Packets by family of what is left.
fn left(found: &Tables) -> [u64; 2] {
    let (_, left) = compare(&tables("443"), EPOCH, found);
    Family::OURS.map(|family| {
        let of = left.iter().filter(|((_, place), _)| family.has(place.lane));
        of.map(|(_, count)| count.packets).sum()
    })
}

#[test]
fn what_one_table_counted_is_left_when_the_other_is_gone_or_of_another_time() {
    let whole = counting("443", 5);
    assert_eq!(left(&whole), [20, 20]);
    for (family, want) in [(Family::Ip, [0, 20]), (Family::Ip6, [20, 0])] {
        let mut gone = whole.clone();
        gone.remove(&family);
        assert_eq!(left(&gone), want);
        assert_eq!(super::about(&gone), Some(about("443")));

        let said = "was loaded from a listing, with the numbers of another time";
        let said = [format!("the table {} traffic {said}", family.name())];
        let mut loaded = whole.clone();
        let rules = &mut loaded.get_mut(&family).unwrap().rules;
        let canary = rules.iter_mut().find(|rule| is_canary(family, rule)).unwrap();
        canaries(family)[1].clone_into(&mut canary.text);
        assert_eq!((left(&loaded), lost(&tables("443"), &loaded)), (want, said.into()));

        // It is not known by its form: then by what it says about itself.
        let before = About { epoch: 9, since: -7, ..about("443") };
        let mut other = whole.clone();
        other.insert(family, table(&before, family, LEAST_SIZE));
        assert_eq!(left(&other), want);
        assert_eq!(super::about(&other), Some(about("443")), "the later one is believed");
    }
}

#[test]
fn a_table_that_was_loaded_is_believed_only_where_there_is_no_other() {
    let load = |table: &mut Table, family, about: &About| {
        *table = super::table(about, family, LEAST_SIZE);
        let canary = table.rules.iter_mut().find(|rule| is_canary(family, rule)).unwrap();
        canaries(family)[1].clone_into(&mut canary.text);
    };
    let old = About { epoch: 9, since: 100, ..about("80") };
    let mut found = tables("443");
    load(found.get_mut(&Family::Ip).unwrap(), Family::Ip, &old);
    assert_eq!(super::about(&found), Some(about("443")));
    // The other one does not say any more whose its counters are: no numbers are anybody's.
    found.get_mut(&Family::Ip6).unwrap().rules.retain(|rule| rule.chain != ABOUT);
    assert_eq!(super::about(&found), None);
    found.remove(&Family::Ip6);
    assert_eq!(super::about(&found), Some(old));
}

#[test]
fn a_table_of_our_name_is_ours_by_its_comment_and_by_all_that_is_in_it() {
    for family in Family::OURS {
        let with = |change: &dyn Fn(&mut Table)| {
            let mut table = tables("443")[&family].clone();
            change(&mut table);
            foreign(family, &table)
        };
        assert_eq!(with(&|_| {}), None);
        // Half of ours is still ours.
        assert_eq!(with(&|table| table.rules.clear()), None);
        assert_eq!(with(&|table| table.chains.clear()), None);
        for change in [
            &(|table: &mut Table| table.mark = None) as &dyn Fn(&mut Table),
            &|table| table.mark = Some("mine".into()),
            &|table| table.chains.push(Chain { name: "theirs".into(), hook: None }),
            &|table| table.maps[0].name = "blocked".into(),
            &|table| table.rules[0].text = "immediate; log".into(),
            &|table| table.rules[0].chain = "input".into(),
            &|table| _ = table.counters.insert("web".into(), Count::default()),
            &|table| table.others.push("the object limit".into()),
        ] {
            assert!(with(change).is_some());
        }
        let strange = with(&|table| table.chains[0].name = "\x1b[2J".into());
        assert_eq!(strange.as_deref(), Some("somebody put the chain \\u{1b}[2J into it"));
    }
    // Counters of the other lanes are none of ours.
    assert!(foreign(Family::Ip6, &tables("443")[&Family::Ip]).is_some());
}

#[test]
fn what_stays_is_not_in_the_change() {
    let from = about("80,443/tcp,8443");
    let to = from.watching(&Groups::parse("443/tcp,8443=x,9000/udp", 9).unwrap());
    let (script, size) = change(&from, &to, LEAST_SIZE);
    assert_eq!(size, LEAST_SIZE);
    assert!(!script.contains(". 443 :") && !script.contains("delete map"), "{script}");
    assert_eq!(script.matches("delete element").count(), 4, "{script}");
    for line in [
        "delete element ip traffic ports_in { udp . 80, tcp . 80 }\n",
        "delete element ip6 traffic ports_out { udp . 80, tcp . 80 }\n",
        "elements = { udp . 9000 : \"g4_udp4_out\" }\n",
        "elements = { udp . 9000 : \"g4_udp6_in\" }\n",
    ] {
        assert!(script.contains(line), "{script}");
    }
    assert_eq!(script.matches("counter g").count(), 4, "{script}");
}

#[test]
fn more_ports_than_fit_get_larger_maps_in_the_same_step() {
    let from = about("443");
    let to = from.watching(&Groups::parse("443,20000-23999/udp", 9).unwrap());
    let (script, size) = change(&from, &to, LEAST_SIZE);
    assert_eq!(size, 8192);
    for family in ["ip", "ip6"] {
        assert_eq!(script.matches(&format!("delete map {family} traffic ")).count(), 2);
    }
    assert!(script.contains("tcp . 443 : \"g1_tcp4_in\""));
    // Counters stay, or their numbers would go.
    assert!(!script.contains("counter g1_tcp4_in {"), "{script}");
}

/// Maps by family and name, as nft reads them.
type Texts = BTreeMap<String, BTreeMap<String, String>>;

/// What the maps hold.
fn as_texts(about: &About) -> Texts {
    let both = |family| Direction::ALL.map(move |way| (family, way));
    let texts = |(family, way): (Family, Direction)| {
        let texts = elements(about, family, way).into_iter().map(|(at, name)| (key(at), name));
        (format!("{} {}", family.name(), map(way)), texts.collect())
    };
    Family::OURS.into_iter().flat_map(both).map(texts).collect()
}

/// What a change does, by hand.
fn carried_out(from: &About, to: &About) -> Texts {
    let (script, size) = change(from, to, LEAST_SIZE);
    let mut maps = as_texts(from);
    let (mut family, mut current) = (String::new(), String::new());
    for line in script.lines() {
        if let Some(map) = line.strip_prefix("delete map ") {
            maps.insert(map.replace(" traffic", ""), BTreeMap::new());
        } else if let Some(rest) = line.strip_prefix("delete element ") {
            let (map, keys) = rest.split_once(" { ").unwrap();
            for key in keys.trim_end_matches(" }").split(", ") {
                let gone = maps.get_mut(&map.replace(" traffic", "")).unwrap().remove(key);
                assert!(gone.is_some(), "{key} is taken off twice");
            }
        } else if let Some(rest) = line.strip_prefix("table ") {
            rest.split_once(' ').unwrap().0.clone_into(&mut family);
        } else if let Some(rest) = line.strip_prefix("map ") {
            current = format!("{family} {}", rest.split_once(' ').unwrap().0);
        } else if let Some(pairs) = line.strip_prefix("elements = { ") {
            for pair in pairs.trim_end_matches(" }").split(", ") {
                let (key, name) = pair.split_once(" : ").unwrap();
                let old = maps
                    .get_mut(&current)
                    .unwrap()
                    .insert(key.into(), name.trim_matches('"').into());
                assert_eq!(old, None, "{key} is put in twice");
            }
        }
    }
    assert!(maps.values().all(|map| map.len() <= size as usize));
    maps
}

proptest! {
    #[test]
    fn any_change_leads_to_what_is_wanted(
        first in proptest::collection::btree_map(1u16..200, 0u8..3, 1..20),
        second in proptest::collection::btree_map(1u16..200, 0u8..3, 1..20),
        large in any::<bool>(),
    ) {
        let text = |ports: &BTreeMap<u16, u8>, large: bool| {
            let end = |kind: &u8| ["", "/tcp", "/udp"][usize::from(*kind)];
            let mut all: Vec<_> = ports.iter().map(|(port, kind)| format!("{port}{}", end(kind))).collect();
            if large { all.push("30000-32000/udp".into()); }
            all.join(",")
        };
        let from = about(&text(&first, false));
        let to = from.watching(&Groups::parse(&text(&second, large), 100).unwrap());
        prop_assert_eq!(carried_out(&from, &to), as_texts(&to));
    }

    #[test]
    fn any_part_that_is_gone_is_noticed(rules in any::<u16>(), part in 0usize..40, ipv6 in any::<bool>()) {
        let want = tables("443,8443/tcp,9000-9003/udp");
        let mut found = want.clone();
        let family = if ipv6 { Family::Ip6 } else { Family::Ip };
        let table = found.get_mut(&family).unwrap();
        let mut n = 0usize;
        table.rules.retain(|_| { n += 1; n > 16 || rules & (1 << (n - 1)) != 0 });
        if let Some(map) = table.maps.get_mut(part) {
            map.elements.pop_first();
        }
        let same = found == want;
        prop_assert_eq!(lost(&want, &found).is_empty(), same);
        prop_assert_eq!(foreign(family, &found[&family]), None);
    }
}
