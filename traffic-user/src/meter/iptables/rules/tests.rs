//! What is wanted against what is there.

use proptest::prelude::*;

use super::*;
use crate::meter::iptables::{base::Made, parse::tables};

const NOTE_NOW: Note = Note {
    epoch: 7,
    since: 1_700_000_000,
    boot: 9,
    persist: true,
    gap: false,
    canary: false,
    made: Made { table: false, hooks: [false; 2] },
};

fn group(text: &str) -> Group {
    text.parse().unwrap()
}

fn counting(groups: &[&str]) -> Vec<Counting> {
    groups.iter().flat_map(|text| Counting::of(&group(text))).collect()
}

fn wanted(groups: &[&str], carries: &[(&str, Carry)]) -> Wanted {
    Wanted {
        note: NOTE_NOW,
        carries: carries.iter().map(|(text, carry)| ((*text).to_owned(), *carry)).collect(),
        counting: counting(groups),
    }
}

/// A table to which lines are done as `iptables-restore` would.
#[derive(Clone)]
struct Kernel(Vec<(String, Vec<String>)>);

impl Kernel {
    fn new(input: &[&str]) -> Self {
        let rules = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
        Self(vec![("INPUT".into(), rules(input)), ("OUTPUT".into(), rules(&[]))])
    }

    fn chain(&mut self, name: &str) -> &mut Vec<String> {
        &mut self.0.iter_mut().find(|(own, _)| own == name).unwrap().1
    }

    fn restore(&mut self, lines: &[String]) {
        for line in lines {
            if let Some(name) = line.strip_prefix(':') {
                let name = name.split(' ').next().unwrap();
                assert!(self.0.iter().all(|(own, _)| own != name), "it would be emptied: {line}");
                self.0.push((name.into(), Vec::new()));
                continue;
            }
            let (what, rest) = line.split_once(' ').unwrap();
            let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match what {
                "-A" => self.chain(name).push(rule.to_owned()),
                "-I" => self.chain(name).insert(0, rule.strip_prefix("1 ").unwrap().to_owned()),
                "-F" => self.chain(name).clear(),
                "-X" => {
                    assert!(self.chain(name).is_empty());
                    self.0.retain(|(own, _)| own != name);
                }
                "-D" => {
                    let chain = self.chain(name);
                    let at = rule.parse::<usize>().map_or_else(
                        |_| chain.iter().position(|own| own == rule).unwrap(),
                        |place| place - 1,
                    );
                    chain.remove(at);
                }
                other => panic!("{other}"),
            }
        }
    }

    fn save(&self) -> String {
        let mut text = "*filter\n".to_owned();
        for (name, _) in &self.0 {
            let policy = if matches!(name.as_str(), "INPUT" | "OUTPUT") { "ACCEPT" } else { "-" };
            text.push_str(&format!(":{name} {policy} [0:0]\n"));
        }
        for (name, rules) in &self.0 {
            for rule in rules {
                let rule = rule.strip_suffix(" -c 1 1").unwrap_or(rule);
                text.push_str(&format!("[3:300] -A {name} {rule}\n"));
            }
        }
        text + "COMMIT\n"
    }

    fn ours(&self) -> Result<Ours, NotOurs> {
        Ours::in_table(&tables(&self.save()).unwrap()[0])
    }
}

#[track_caller]
fn lines(groups: &str, want: &[&str]) {
    let lines: Vec<String> = Counting::of(&group(groups)).iter().map(Counting::line).collect();
    assert_eq!(lines, want);
}

#[test]
fn a_port_has_a_rule_for_each_transport_and_direction() {
    lines(
        "443",
        &[
            "TRAFFIC_IN -p tcp -m tcp --dport 443 -m comment --comment 443",
            "TRAFFIC_IN -p udp -m udp --dport 443 -m comment --comment 443",
            "TRAFFIC_OUT -p tcp -m tcp --sport 443 -m comment --comment 443",
            "TRAFFIC_OUT -p udp -m udp --sport 443 -m comment --comment 443",
        ],
    );
    lines(
        r#"20000-50000/udp=a "b" \c"#,
        &[
            r#"TRAFFIC_IN -p udp -m udp --dport 20000:50000 -m comment --comment "20000-50000/udp=a \"b\" \\c""#,
            r#"TRAFFIC_OUT -p udp -m udp --sport 20000:50000 -m comment --comment "20000-50000/udp=a \"b\" \\c""#,
        ],
    );
}

#[test]
fn a_list_is_cut_where_multiport_is_full() {
    let rules = |text: &str| -> Vec<String> {
        let group = group(text);
        Counting::of(&group).iter().take(2).map(|rule| rule.line()).collect()
    };
    let ports: Vec<String> = (1..=16).map(|port| (port * 10).to_string()).collect();
    let text = format!("{}/tcp=x", ports.join("+"));
    let in_rule = |ports: &str| format!("TRAFFIC_IN -p tcp {ports} -m comment --comment {text}");
    let fifteen = ports[..15].join(",");
    assert_eq!(
        rules(&text),
        [in_rule(&format!("-m multiport --dports {fifteen}")), in_rule("-m tcp --dport 160")]
    );
    // Fourteen entries and a range are sixteen.
    let text = format!("{}+200-300/tcp=x", ports[..14].join("+"));
    let in_rule = |ports: &str| format!("TRAFFIC_IN -p tcp {ports} -m comment --comment {text}");
    let fourteen = ports[..14].join(",");
    assert_eq!(
        rules(&text),
        [in_rule(&format!("-m multiport --dports {fourteen}")), in_rule("-m tcp --dport 200:300")]
    );
}

#[test]
fn what_is_right_is_left_alone() {
    let mut kernel = Kernel::new(&["-j ACCEPT"]);
    let carry = Carry([(-5, -1), (0, 0), (3, 2), (i128::from(u64::MAX), 0)]);
    let wanted = wanted(&["443", "80+81-90=web"], &[("9=old", carry)]);
    kernel.restore(&kernel.ours().unwrap().change(&wanted));
    let ours = kernel.ours().unwrap();
    assert_eq!(ours.change(&wanted), Vec::<String>::new());
    assert_eq!((ours.note, ours.carry("9=old")), (Some(NOTE_NOW), carry));
    assert_eq!(kernel.chain("INPUT").len(), 2);
    kernel.restore(&kernel.ours().unwrap().removal());
    assert_eq!(kernel.0, Kernel::new(&["-j ACCEPT"]).0);
}

#[test]
fn a_change_touches_what_changes_and_nothing_else() {
    let mut kernel = Kernel::new(&[]);
    kernel.restore(&Ours::default().change(&wanted(&["1/tcp", "2/tcp", "3/tcp"], &[])));
    let lines = kernel.ours().unwrap().change(&wanted(&["1/tcp", "3/tcp", "4/tcp"], &[]));
    assert_eq!(
        lines,
        [
            "-D TRAFFIC_OUT 2",
            "-D TRAFFIC_IN 2",
            "-A TRAFFIC_IN -p tcp -m tcp --dport 4 -m comment --comment 4/tcp",
            "-A TRAFFIC_OUT -p tcp -m tcp --sport 4 -m comment --comment 4/tcp",
        ]
    );
}

#[test]
fn rules_of_one_group_go_also_where_the_notes_are_gone() {
    let mut kernel = Kernel::new(&["-j ACCEPT"]);
    kernel.restore(&Ours::default().change(&wanted(&["1/tcp", "2", "3/udp"], &[])));
    kernel.chain(NOTE).clear();
    let ours = kernel.ours().unwrap();
    let all: Vec<Counting> = ours.counting.iter().map(|(rule, ..)| rule.clone()).collect();
    assert_eq!(ours.with(all.clone(), |_| false), Vec::<String>::new());
    let others = all.into_iter().filter(|rule| rule.group != "2").collect();
    kernel.restore(&ours.with(others, |group| group == "2"));
    let left = kernel.ours().unwrap();
    let groups: Vec<&str> = left.counting.iter().map(|(rule, ..)| rule.group.as_str()).collect();
    assert_eq!(groups, ["1/tcp", "3/udp", "1/tcp", "3/udp"]);
    assert_eq!(left.jumps, [vec![1], vec![1]]);
}

#[test]
fn a_jump_that_is_not_first_becomes_it() {
    let mut kernel = Kernel::new(&[]);
    let wanted = wanted(&["1/tcp"], &[]);
    kernel.restore(&Ours::default().change(&wanted));
    kernel.chain("INPUT").insert(0, "-j DROP".into());
    let again = kernel.chain("OUTPUT")[0].clone();
    kernel.chain("OUTPUT").push(again);
    kernel.restore(&kernel.ours().unwrap().change(&wanted));
    assert_eq!(kernel.chain("INPUT")[1], "-j DROP");
    assert_eq!(kernel.ours().unwrap().jumps, [vec![1], vec![1]]);
}

#[track_caller]
fn not_ours(kernel: &Kernel, chain: &str) {
    let found = kernel.ours().map_err(|not_ours| not_ours.chain);
    assert!(matches!(found, Err(found) if found == chain), "{found:?}");
}

#[test]
fn a_chain_of_our_name_with_anything_else_in_it_is_not_ours() {
    let mut ours = Kernel::new(&[]);
    ours.restore(&Ours::default().change(&wanted(&["443"], &[])));
    for (chain, rule) in [
        (IN, "-j ACCEPT"),
        (IN, "-p tcp -m tcp --dport 443 -m comment --comment 443 -j ACCEPT"),
        (IN, "-p tcp -m tcp --sport 443 -m comment --comment 443"),
        (IN, "-p tcp -m tcp --dport 443"),
        (IN, "-p tcp -m tcp --dport 443 -m comment --comment \"my web\""),
        (IN, "-s 10.0.0.0/8 -p tcp -m tcp --dport 443 -m comment --comment 443"),
        (IN, "! -p tcp -m comment --comment 443"),
        (OUT, "-p icmp -m comment --comment 443"),
        (NOTE, "-m comment --comment hello"),
        (NOTE, "-m comment --comment \"carry 1 2 3\""),
        (NOTE, "-j LOG"),
    ] {
        let mut kernel = ours.clone();
        kernel.chain(chain).push(rule.to_owned());
        not_ours(&kernel, chain);
    }
    for (hook, rule) in [
        ("INPUT", "-j TRAFFIC_OUT"),
        ("INPUT", "-p tcp -j TRAFFIC_IN"),
        ("OUTPUT", "-m comment --comment traffic -j TRAFFIC_IN"),
        ("INPUT", "-m comment --comment other -g TRAFFIC_IN"),
    ] {
        let mut kernel = ours.clone();
        kernel.chain(hook).push(rule.to_owned());
        assert!(kernel.ours().is_err(), "{rule}");
    }
    let mut empty = Kernel::new(&[]);
    empty.0.push((IN.into(), Vec::new()));
    not_ours(&empty, IN);
}

#[test]
fn what_a_flush_of_everything_leaves_is_ours() {
    let mut kernel = Kernel::new(&[]);
    let wanted = wanted(&["443"], &[]);
    kernel.restore(&Ours::default().change(&wanted));
    for (_, rules) in &mut kernel.0 {
        rules.clear();
    }
    let ours = kernel.ours().unwrap();
    assert!(!ours.is_empty());
    kernel.restore(&ours.change(&wanted));
    assert_eq!(kernel.ours().unwrap().change(&wanted), Vec::<String>::new());
}

#[test]
fn a_name_with_blanks_at_its_ends_stays_what_it_is() {
    for name in [" ", "a ", " a", "=", "a=b/udp"] {
        let ranges = group("443").ranges().to_vec();
        let own = Group::new(ranges, crate::accounting::ident::Transport::Both, Some(name.into()));
        let own = own.unwrap();
        assert_eq!(own.to_string().parse(), Ok(own));
    }
}

fn ports() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop::collection::vec((1..=u16::MAX, 0..300u16), 1..18)
}

prop_compose! {
    fn any_group()(ports in ports(), transport in 0..3usize, name in "[^,\\pC]{1,20}") -> Option<Group> {
        use crate::accounting::ident::Transport;
        let ranges = ports.iter().filter_map(|(first, more)| {
            PortRange::new(*first, first.saturating_add(*more))
        });
        let transport = [Transport::Tcp, Transport::Udp, Transport::Both][transport];
        Group::new(ranges.collect(), transport, Some(name)).ok()
    }
}

proptest! {
    #[test]
    fn any_rule_of_ours_is_known_again(group in any_group()) {
        let Some(group) = group else { return Ok(()) };
        let mut kernel = Kernel::new(&[]);
        let want = Wanted { note: NOTE_NOW, carries: Vec::new(), counting: Counting::of(&group) };
        kernel.restore(&Ours::default().change(&want));
        let ours = kernel.ours().unwrap();
        let found: Vec<Counting> = ours.counting.iter().map(|rule| rule.0.clone()).collect();
        let sorted = |mut rules: Vec<Counting>| { rules.sort(); rules };
        prop_assert_eq!(sorted(found), sorted(want.counting.clone()));
        // No port is in two of them, and none is missing.
        for tcp in [true, false] {
            let rules = want.counting.iter().filter(|r| r.tcp == tcp && r.direction == Direction::Input);
            let ranges: Vec<_> = rules.flat_map(|rule| rule.ranges.iter().copied()).collect();
            let counts = if tcp { group.transport().tcp() } else { group.transport().udp() };
            let none: &[PortRange] = &[];
            prop_assert_eq!(&ranges[..], if counts { group.ranges() } else { none });
        }
    }

    #[test]
    fn any_rules_become_any_others(
        first in prop::collection::btree_set(1..30u16, 0..12),
        second in prop::collection::btree_set(1..30u16, 0..12),
        lost in prop::collection::vec((0..5usize, 0..12usize), 0..6),
    ) {
        let of = |ports: &std::collections::BTreeSet<u16>| {
            let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
            wanted(&texts.iter().map(String::as_str).collect::<Vec<_>>(), &[])
        };
        let mut kernel = Kernel::new(&["-j ACCEPT"]);
        kernel.restore(&Ours::default().change(&of(&first)));
        for (chain, rule) in lost {
            let (_, rules) = &mut kernel.0[chain];
            if rule < rules.len() && rules[rule] != "-j ACCEPT" {
                rules.remove(rule);
            }
        }
        kernel.restore(&kernel.ours().unwrap().change(&of(&second)));
        let ours = kernel.ours().unwrap();
        prop_assert_eq!(ours.change(&of(&second)), Vec::<String>::new());
        prop_assert_eq!(&kernel.chain("INPUT")[1..], &["-j ACCEPT".to_owned()]);
    }
}
