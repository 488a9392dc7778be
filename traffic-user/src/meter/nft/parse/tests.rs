//! Messages as the kernel sends them, and such as it never would.

use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn object(table: &[u8], name: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    [
        attribute(1, table),
        attribute(2, name),
        attribute(3, &kind.to_be_bytes()),
        attribute(4 | 0x8000, data),
    ]
    .concat()
}

fn numbers(bytes: u64, packets: u64) -> Vec<u8> {
    [attribute(1, &bytes.to_be_bytes()), attribute(2, &packets.to_be_bytes())].concat()
}

#[test]
fn a_counter_has_its_name_and_64_bits() {
    let data = numbers(u64::MAX, 1 << 40);
    let body = object(b"traffic\0", b"g1_tcp4_in\0", COUNTER, &data);
    let want = Count { packets: 1 << 40, bytes: u64::MAX };
    assert_eq!(counter(&body, "traffic"), Some(("g1_tcp4_in", want)));
    // Of another table, or no counter.
    assert_eq!(counter(&body, "traffi"), None);
    assert_eq!(counter(&object(b"traffic\0", b"q\0", 2, &data), "traffic"), None);
    assert_eq!(counter(&object(b"traffic\0", b"c\0", COUNTER, &[]), "traffic"), None);
}

#[test]
fn objects_that_are_no_counters_are_others() {
    let mut found = Table::default();
    found.add_object(&object(b"traffic\0", b"q\0", 2, &[]), "traffic");
    found.add_object(&object(b"other\0", b"r\0", 2, &[]), "traffic");
    assert_eq!(found.others, ["the object q"]);
}

#[test]
fn a_comment_stands_among_other_notes() {
    assert_eq!(comment(b"\x02\x01x\x00\x04abc\0"), Some("abc".into()));
    assert_eq!(comment(b"\x02\x01x"), None);
    assert_eq!(comment(b"\x00\x09abc"), None);
    assert_eq!(comment(b"\x00\x02\xff\0"), None);
}

#[test]
fn elements_lead_from_a_transport_and_a_port_to_a_counter() {
    let element = |key: &[u8], name: &[u8]| {
        let key = attribute(1, &attribute(1, key));
        attribute(1, &[key, attribute(9, name)].concat())
    };
    let tcp = [6, 0, 0, 0, 1, 187, 0, 0];
    let udp = [17, 0, 0, 0, 255, 255, 0, 0];
    let sctp = [132, 0, 0, 0, 1, 187, 0, 0];
    // A table of an earlier build has the version of IP in the middle.
    let former = [6, 0, 0, 0, 2, 0, 0, 0, 1, 187, 0, 0];
    let elements = [
        element(&tcp, b"a\0"),
        element(&udp, b"b\0"),
        element(&sctp, b"c\0"),
        element(&former, b"d\0"),
    ];
    let body = attribute(3, &elements.concat());
    let mut map = Map { name: String::new(), shape: (8, true), size: 0, elements: BTreeMap::new() };
    map.add_elements(&body);
    let key = |tcp, port| Key { tcp, port };
    let want = [(key(true, 443), "a".into()), (key(false, 65535), "b".into())];
    assert_eq!(map.elements, BTreeMap::from(want));
}

#[test]
fn a_rule_in_words_says_all_that_decides_what_it_does() {
    let one =
        |name: &[u8], data: &[u8]| attribute(1, &[attribute(1, name), attribute(2, data)].concat());
    let n = |kind, number: u32| attribute(kind, &number.to_be_bytes());
    let expressions = [
        one(b"meta\0", &[n(2, 16), n(1, 1)].concat()),
        one(b"cmp\0", &[n(1, 1), n(2, 0), attribute(3, &attribute(1, &[6]))].concat()),
        one(b"payload\0", &[n(1, 1), n(2, 2), n(3, 2), n(4, 2)].concat()),
        one(b"objref\0", &[n(3, 1), attribute(4, b"tcp4_in\0")].concat()),
        one(b"log\0", &[]),
    ];
    let body =
        [attribute(1, b"traffic\0"), attribute(2, b"input\0"), attribute(4, &expressions.concat())];
    let mut found = Table::default();
    found.add_rule(&body.concat(), "traffic");
    let want = "meta 16 1 -; cmp 1 0 06; payload 2 2 2 1; objref 1 @tcp4_in; log";
    assert_eq!(found.rules[0].text, want);
    assert_eq!((found.rules[0].chain.as_str(), &found.rules[0].comment), ("input", &None));
}

proptest! {
    #[test]
    fn no_message_does_harm(body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..120) {
        let good = object(b"traffic\0", b"g1_tcp4_in\0", COUNTER, &numbers(1, 2));
        let short = good.get(..cut.min(good.len())).unwrap_or_default();
        for body in [&body[..], short] {
            let mut found = Table::default();
            found.add_table(body);
            found.add_chain(body, "");
            found.add_rule(body, "");
            found.add_map(body, "");
            found.add_object(body, "");
            found.add_flowtable(body, "");
            let mut map = Map { name: String::new(), shape: (2, true), size: 0, elements: BTreeMap::new() };
            map.add_elements(body);
            prop_assert_eq!(generation(&[]), None);
            if short.len() < good.len() {
                prop_assert_eq!(counter(short, "traffic"), None);
            }
        }
    }
}
