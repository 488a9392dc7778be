//! What is wanted against what is there.

use proptest::prelude::*;

use super::*;
use crate::accounting::ident::Groups;

fn about(groups: &str) -> About {
    let empty =
        About { epoch: 1, since: 2, boot: 3, persist: false, gap: false, entries: Vec::new() };
    empty.watching(&Groups::parse(groups, 1000).unwrap())
}

fn table(groups: &str) -> Found {
    wanted(&about(groups), LEAST_SIZE)
}

#[track_caller]
fn check(change: impl Fn(&mut Found), want: &[&str]) {
    let wanted = table("443,20000-20009/udp");
    let mut found = wanted.clone();
    change(&mut found);
    assert_eq!(lost(&wanted, Some(&found)), want);
}

#[test]
fn a_group_has_a_counter_for_each_lane_and_direction_and_a_range_has_one_for_all_its_ports() {
    let table = table("443,20000-20009/udp");
    let names: Vec<_> = table.counters.keys().map(String::as_str).collect();
    let want = [
        "g1_tcp4_in",
        "g1_tcp4_out",
        "g1_tcp6_in",
        "g1_tcp6_out",
        "g1_udp4_in",
        "g1_udp4_out",
        "g1_udp6_in",
        "g1_udp6_out",
        "g2_udp4_in",
        "g2_udp4_out",
        "g2_udp6_in",
        "g2_udp6_out",
    ];
    assert_eq!(names, want);
    let elements = |name: &str| {
        let map = table.maps.iter().find(|map| map.name == name).unwrap();
        let of = |lane| map.elements.iter().filter(move |(key, _)| key.lane == lane);
        move |lane| of(lane).map(|(key, name)| (key.port, name.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(elements("ports_out")(Lane::Tcp6), [(443, "g1_tcp6_out")]);
    let range: Vec<_> = (20000..20010).map(|port| (port, "g2_udp4_in")).collect();
    assert_eq!(elements("ports_in")(Lane::Udp4), [vec![(443, "g1_udp4_in")], range].concat());
}

#[test]
fn a_counter_is_ours_by_the_whole_of_its_name() {
    let tcp4 = Place { lane: Lane::Tcp4, direction: Direction::Input };
    assert_eq!(owner("g12_tcp4_in"), Some((12, tcp4)));
    for name in ["g_tcp4_in", "g01_tcp4_in", "g+1_tcp4_in", "g1_tcp4", "g1_tcp4_in2", "1_tcp4_in"] {
        assert_eq!(owner(name), None, "{name}");
    }
}

#[test]
fn whatever_is_gone_is_said() {
    check(|_| {}, &[]);
    check(|found| found.dormant = true, &["the table inet traffic was switched off (dormant)"]);
    check(
        |found| found.rules.retain(|rule| rule.chain == ABOUT),
        &["1 of 1 rules in the chain input", "1 of 1 rules in the chain output"],
    );
    check(|found| drop(found.rules.remove(0)), &["1 of 3 rules in the chain about"]);
    check(
        |found| {
            let twice = found.rules.last().unwrap().clone();
            found.rules.push(twice);
        },
        &["the order of the rules in the chain output, or one is there twice"],
    );
    check(|found| found.chains.retain(|chain| chain.name != "output"), &["the chain output"]);
    check(|found| found.chains[1].hook = None, &["the chain input at its hook"]);
    check(|found| drop(found.maps.remove(0)), &["the map ports_in"]);
    let key = |lane, port| Key { lane, port };
    check(
        |found| found.maps[0].elements.retain(|key, _| key.port < 20003),
        &["14 of 24 entries in the map ports_in"],
    );
    check(
        |found| {
            found.maps[0].elements.insert(key(Lane::Udp4, 443), "g2_udp4_in".into());
        },
        &["1 of 24 entries in the map ports_in"],
    );
    check(
        |found| {
            found.maps[1].elements.insert(key(Lane::Tcp4, 80), "g1_tcp4_out".into());
        },
        &["the map ports_out: it has entries too many"],
    );
    check(
        |found| {
            found.counters.remove("g1_tcp4_in");
        },
        &["1 of 12 counters"],
    );
    assert_eq!(lost(&table("1"), None), ["the table inet traffic"]);
}

#[test]
fn a_table_of_our_name_is_ours_by_its_comment_and_by_all_that_is_in_it() {
    let with = |change: &dyn Fn(&mut Found)| {
        let mut found = table("443");
        change(&mut found);
        foreign(&found)
    };
    assert_eq!(with(&|_| {}), None);
    // Half of ours is still ours.
    assert_eq!(with(&|found| found.rules.clear()), None);
    assert_eq!(with(&|found| found.chains.clear()), None);
    for change in [
        &(|found: &mut Found| found.mark = None) as &dyn Fn(&mut Found),
        &|found| found.mark = Some("mine".into()),
        &|found| found.chains.push(Chain { name: "theirs".into(), hook: None }),
        &|found| found.maps[0].name = "blocked".into(),
        &|found| found.rules[0].text = "immediate; log".into(),
        &|found| found.rules[0].chain = "input".into(),
        &|found| _ = found.counters.insert("web".into(), Count::default()),
        &|found| found.others.push("the object limit".into()),
    ] {
        assert!(with(change).is_some());
    }
    let strange = with(&|found| found.chains[0].name = "\x1b[2J".into());
    assert_eq!(strange.as_deref(), Some("somebody put the chain \\u{1b}[2J into it"));
}

#[test]
fn what_stays_is_not_in_the_change() {
    let from = about("80,443/tcp,8443");
    let to = from.watching(&Groups::parse("443/tcp,8443=x,9000/udp", 9).unwrap());
    let (script, size) = change(&from, &to, LEAST_SIZE);
    assert_eq!(size, LEAST_SIZE);
    assert!(!script.contains(". 443 :") && !script.contains("delete map"), "{script}");
    assert_eq!(script.matches("delete element").count(), 2, "{script}");
    let gone = "{ tcp . ipv4 . 80, tcp . ipv6 . 80, udp . ipv4 . 80, udp . ipv6 . 80 }";
    assert!(script.contains(&format!("delete element inet traffic ports_in {gone}\n")), "{script}");
    let come = "udp . ipv4 . 9000 : \"g4_udp4_out\", udp . ipv6 . 9000 : \"g4_udp6_out\"";
    assert!(script.contains(&format!("elements = {{ {come} }}")), "{script}");
    assert_eq!(script.matches("counter g").count(), 4, "{script}");
}

#[test]
fn more_ports_than_fit_get_larger_maps_in_the_same_step() {
    let from = about("443");
    let to = from.watching(&Groups::parse("443,20000-23999/udp", 9).unwrap());
    let (script, size) = change(&from, &to, LEAST_SIZE);
    assert_eq!(size, 16_384);
    assert_eq!(script.matches("delete map inet traffic").count(), 2);
    assert!(script.contains("tcp . ipv4 . 443 : \"g1_tcp4_in\""));
    // Counters stay, or their numbers would go.
    assert!(!script.contains("counter g1_tcp4_in {"), "{script}");
}

/// What the maps hold, as nft reads it.
fn as_texts(about: &About) -> BTreeMap<String, BTreeMap<String, String>> {
    let texts = |way| elements(about, way).into_iter().map(|(at, name)| (key(at), name)).collect();
    Direction::ALL.into_iter().map(|way| (map(way).to_owned(), texts(way))).collect()
}

/// What a change does, by hand.
fn carried_out(from: &About, to: &About) -> BTreeMap<String, BTreeMap<String, String>> {
    let (script, size) = change(from, to, LEAST_SIZE);
    let mut maps = as_texts(from);
    let mut current = String::new();
    for line in script.lines() {
        if let Some(map) = line.strip_prefix("delete map inet traffic ") {
            maps.insert(map.into(), BTreeMap::new());
        } else if let Some(rest) = line.strip_prefix("delete element inet traffic ") {
            let (map, keys) = rest.split_once(" { ").unwrap();
            for key in keys.trim_end_matches(" }").split(", ") {
                let gone = maps.get_mut(map).unwrap().remove(key);
                assert!(gone.is_some(), "{key} is taken off twice");
            }
        } else if let Some(rest) = line.strip_prefix("map ") {
            rest.split_once(' ').unwrap().0.clone_into(&mut current);
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
    fn any_part_that_is_gone_is_noticed(rules in any::<u16>(), part in 0usize..40) {
        let want = table("443,8443/tcp,9000-9003/udp");
        let mut found = want.clone();
        let mut n = 0usize;
        found.rules.retain(|_| { n += 1; n > 16 || rules & (1 << (n - 1)) != 0 });
        if let Some(map) = found.maps.get_mut(part) {
            map.elements.pop_first();
        }
        let same = found == want;
        prop_assert_eq!(lost(&want, Some(&found)).is_empty(), same);
        prop_assert_eq!(foreign(&found), None);
    }
}
