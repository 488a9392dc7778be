//! The port list, as the command line and the kernel's `GROUPS` map write it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 65_535;

fn parse(text: &str) -> Result<Groups, GroupError> {
    Groups::parse(text, LIMIT)
}

#[track_caller]
fn check(text: &str, want: &[(&str, Transport, Option<&str>)]) {
    let groups = parse(text).unwrap_or_else(|err| panic!("`{text}`: {err}"));
    let got: Vec<_> =
        groups.iter().map(|group| (group.ports_text(), group.transport(), group.name())).collect();
    let want: Vec<_> =
        want.iter().map(|&(ports, transport, name)| (ports.to_owned(), transport, name)).collect();
    assert_eq!(got, want, "`{text}`");
}

#[track_caller]
fn check_refused(text: &str, want: &GroupError) {
    assert_eq!(parse(text).as_ref(), Err(want), "`{text}`");
}

fn text(text: &str) -> String {
    text.to_owned()
}

#[test]
fn a_list_of_ports_ranges_transports_and_names() {
    use Transport::{Both, Tcp, Udp};
    check("443", &[("443", Both, None)]);
    check("1,65535", &[("1", Both, None), ("65535", Both, None)]);
    check("1-65535", &[("1-65535", Both, None)]);
    check("8443/tcp", &[("8443", Tcp, None)]);
    check("20000-50000/udp=hop", &[("20000-50000", Udp, Some("hop"))]);
    check("443+8443=web", &[("443,8443", Both, Some("web"))]);
    check(" 443 , 8443/tcp ", &[("443", Both, None), ("8443", Tcp, None)]);
    check("443/tcp,443/udp", &[("443", Tcp, None), ("443", Udp, None)]);
    check("443=a=b/c+d", &[("443", Both, Some("a=b/c+d"))]);
    check("443=прокси", &[("443", Both, Some("прокси"))]);
    // A range of one is a port, and leading zeros are no other number.
    check("7-7", &[("7", Both, None)]);
    check("00443", &[("443", Both, None)]);
}

#[test]
fn ranges_of_one_group_are_sorted_and_joined() {
    use Transport::Both;
    check("30+10+20", &[("10,20,30", Both, None)]);
    check("2+1", &[("1-2", Both, None)]);
    check("1-3+4-6+6-9", &[("1-9", Both, None)]);
    check("1-3+5-6", &[("1-3,5-6", Both, None)]);
    check("443+443", &[("443", Both, None)]);
    check("65535+65534", &[("65534-65535", Both, None)]);
    check("10-20+12-13", &[("10-20", Both, None)]);
}

#[test]
fn what_is_no_port_is_refused_by_name() {
    for port in ["0", "70000", "65536", "abc", "4 43", "٤٤٣", "0x1bb", "443.0"] {
        check_refused(port, &GroupError::Port(text(port)));
    }
    for half in ["443-", "443+", "+443", "-443", "-", "80+443-", "80--90", "80++90"] {
        check_refused(half, &GroupError::Half(text(half)));
    }
    check_refused("443-70000", &GroupError::Port(text("70000")));
    check_refused("0-10", &GroupError::Port(text("0")));
    check_refused("1-2-3", &GroupError::Port(text("2-3")));
    check_refused("9-3", &GroupError::Backwards(text("9-3")));
    check_refused("99999999999999999999", &GroupError::Port(text("99999999999999999999")));
}

#[test]
fn what_is_missing_or_unknown_is_refused() {
    for empty in ["", " ", ",", "443,", ",443", "443,,80", "/tcp", "=name", "/udp=x"] {
        check_refused(empty, &GroupError::Empty);
    }
    check_refused("443/sctp", &GroupError::Transport(text("sctp")));
    check_refused("443/TCP", &GroupError::Transport(text("TCP")));
    check_refused("443/", &GroupError::Transport(text("")));
    check_refused("443/tcp/udp", &GroupError::Transport(text("tcp/udp")));
    check_refused("443=", &GroupError::Name(text("")));
    check_refused("443=a\nb", &GroupError::Name(text("a\\nb")));
    check_refused("443=\u{1b}[31m", &GroupError::Name(text("\\u{1b}[31m")));
}

#[test]
fn groups_that_get_in_one_anothers_way_are_refused() {
    let overlap = |first: &str, second: &str, transport, port| GroupError::Overlap {
        first: text(first),
        second: text(second),
        transport,
        port,
    };
    check_refused("443,443", &overlap("443", "443", "tcp", 443));
    check_refused("443/udp,443/udp=x", &overlap("443/udp", "443/udp=x", "udp", 443));
    check_refused("443/tcp,443", &overlap("443/tcp", "443", "tcp", 443));
    check_refused("443/udp,443", &overlap("443/udp", "443", "udp", 443));
    check_refused("1-100,50-60", &overlap("1-100", "50-60", "tcp", 50));
    check_refused("50-60,1-100", &overlap("1-100", "50-60", "tcp", 50));
    check_refused("1-50,50-100", &overlap("1-50", "50-100", "tcp", 50));
    check_refused("1+9,5-20", &overlap("5-20", "1+9", "tcp", 9));
    check_refused("443=web,80=web", &GroupError::NameTwice(text("web")));
}

#[test]
fn more_groups_than_slots_are_refused_before_any_is_read() {
    let many = vec!["nonsense"; 70_000].join(",");
    let want = GroupError::TooMany { found: 70_000, limit: LIMIT };
    check_refused(&many, &want);
    let all: Vec<String> = (1..=u16::MAX).map(|port| port.to_string()).collect();
    assert_eq!(parse(&all.join(",")).map(|groups| groups.len()), Ok(LIMIT));
    assert_eq!(Groups::parse("1,2,3", 2), Err(GroupError::TooMany { found: 3, limit: 2 }));
}

#[test]
fn a_group_longer_than_the_kernel_side_keeps_is_refused() {
    let room = GROUP_TEXT_LIMIT - "443=".len();
    assert!(parse(&format!("443={}", "x".repeat(room))).is_ok());
    let long = format!("443={}", "x".repeat(room + 1));
    assert!(matches!(parse(&long), Err(GroupError::TooLong(start)) if start.len() == 40));
    // Bytes count, not characters: what is cut must still be text.
    let long = format!("443={}", "я".repeat(room / 2 + 1));
    assert!(matches!(parse(&long), Err(GroupError::TooLong(_))));
}

#[test]
fn foreign_text_is_shown_short_and_without_control_characters() {
    let nasty = format!("\u{1b}]0;{}\u{7}", "x".repeat(5000));
    let Err(err) = parse(&nasty) else {
        panic!("accepted");
    };
    let shown = err.to_string();
    assert!(shown.len() < 200 && !shown.chars().any(char::is_control), "{shown}");
}

#[test]
fn a_key_names_the_transport_only_where_it_must() {
    let groups = parse("443/tcp,443/udp,80/tcp,53").unwrap();
    let keys: Vec<String> = groups.iter().map(|group| groups.key(group)).collect();
    assert_eq!(keys, ["443/tcp", "443/udp", "80", "53"]);
}

#[test]
fn what_is_counted_already_is_not_taken_twice() {
    let named = parse("443/tcp=web,20000-20010").unwrap();
    let found = parse("443,8080,20005/udp,20011").unwrap();
    let found: Vec<Group> = found.iter().cloned().collect();
    let all = named.extended_by(&found);
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["443/tcp=web", "20000-20010", "443/udp", "8080", "20011"]);
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Tcp), Just(Transport::Udp), Just(Transport::Both)]
}

/// Ranges close together, so that they often touch.
fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let range = (1u16..200, 0u16..5).prop_map(|(first, more)| PortRange::new(first, first + more));
    prop::collection::vec(range.prop_map(Option::unwrap), 1..6)
}

fn group() -> impl Strategy<Value = Group> {
    let name = prop::option::of("[a-zA-Z0-9а-я =/+_.@-]{0,10}[a-z]");
    (ranges(), transport(), name)
        .prop_map(|(ranges, transport, name)| Group::new(ranges, transport, name).unwrap())
}

/// Pieces of which a list is made, in any order.
fn nearly_a_list() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(","),
        Just("-"),
        Just("+"),
        Just("/"),
        Just("="),
        Just("tcp"),
        Just("udp"),
        Just("0"),
        Just("1"),
        Just("443"),
        Just("65535"),
        Just("65536"),
        Just("443/tcp=web"),
        Just(" "),
        Just("\n"),
        Just("я"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_a_list_or_an_error_that_says_why(text: String) {
        if let Err(err) = parse(&text) {
            prop_assert!(!err.to_string().is_empty());
        }
    }

    #[test]
    fn what_is_nearly_a_list_reads_the_same_when_written_again(text in nearly_a_list()) {
        if let Ok(groups) = parse(&text) {
            let again: Vec<String> = groups.iter().map(ToString::to_string).collect();
            prop_assert_eq!(parse(&again.join(",")), Ok(groups));
        }
    }

    #[test]
    fn a_group_reads_the_same_when_written_and_read(group in group()) {
        let text = group.to_string();
        prop_assert!(text.len() <= GROUP_TEXT_LIMIT);
        prop_assert_eq!(text.parse(), Ok(group));
    }

    #[test]
    fn a_group_has_the_ports_of_its_ranges_each_once(ranges in ranges(), transport in transport()) {
        let mut want: Vec<u16> = ranges.iter().flat_map(|range| range.ports()).collect();
        want.sort_unstable();
        want.dedup();
        let group = Group::new(ranges, transport, None).unwrap();
        prop_assert_eq!(group.ports().collect::<Vec<_>>(), want);
        // Apart from one another: nothing is left to join.
        let apart = |pair: &[PortRange]| u32::from(pair[0].last()) + 1 < u32::from(pair[1].first());
        prop_assert!(group.ranges().windows(2).all(apart));
    }

    #[test]
    fn an_overlap_is_found_exactly_where_a_port_is_counted_twice(
        groups in prop::collection::vec(group(), 0..8),
    ) {
        let nameless: Vec<Group> = groups
            .into_iter()
            .map(|group| Group { name: None, ..group })
            .collect();
        let mut counted: BTreeMap<(&str, u16), usize> = BTreeMap::new();
        for group in &nameless {
            for port in group.ports() {
                for (transport, counts) in
                    [("tcp", group.transport().tcp()), ("udp", group.transport().udp())]
                {
                    *counted.entry((transport, port)).or_default() += usize::from(counts);
                }
            }
        }
        let twice: Vec<_> =
            counted.into_iter().filter(|(_, times)| *times > 1).map(|(at, _)| at).collect();
        match Groups::new(nameless.clone(), LIMIT) {
            Ok(groups) => {
                prop_assert!(twice.is_empty(), "{twice:?} not found");
                prop_assert_eq!(groups.len(), nameless.len());
            }
            Err(GroupError::Overlap { transport, port, first, second }) => {
                prop_assert!(twice.contains(&(transport, port)));
                for text in [first, second] {
                    let group: Group = text.parse().unwrap();
                    prop_assert!(group.ports().any(|counts| counts == port));
                }
            }
            Err(err) => prop_assert!(false, "{err}"),
        }
    }
}

#[test]
fn a_name_that_is_shown_can_be_typed_back_and_gives_a_terminal_no_orders() {
    for name in ["a@x", "o'neil \"x\" \\ y", "über@example.org", "日本", "\\u{1b}"] {
        assert_eq!(shown(name), name);
    }
    for (text, want) in [
        ("a\u{1b}[2J", "a\\u{1b}[2J"),
        ("a\nb\t\"", "a\\nb\\t\""),
        ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
        ("\u{200b}\u{feff}\u{2028}", "\\u{200b}\\u{feff}\\u{2028}"),
    ] {
        assert_eq!(shown(text), want);
    }
    assert_eq!(shown(&"x".repeat(80)), "x".repeat(80));
    assert_eq!(shown(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
}

#[test]
fn a_port_is_taken_out_of_the_middle_and_off_the_ends() {
    let rest = |group: &str, port| {
        group.parse::<Group>().unwrap().without(port).map(|group| group.to_string())
    };
    assert_eq!(rest("443", 443), None);
    assert_eq!(rest("443+8443=web", 443).as_deref(), Some("8443=web"));
    assert_eq!(rest("1-9/udp", 5).as_deref(), Some("1-4+6-9/udp"));
    assert_eq!(rest("1-9", 1).as_deref(), Some("2-9"));
    assert_eq!(rest("65534-65535", 65535).as_deref(), Some("65534"));
}
