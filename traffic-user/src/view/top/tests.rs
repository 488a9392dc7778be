//! Rankings to the letter.

use super::*;
use crate::accounting::{
    history::Terms,
    reading::{Coverage, Traffic},
    subject::Subject,
    usage::{By, Span},
};

fn usage(input_bytes: u64, output_bytes: u64) -> Usage {
    let traffic = Traffic { input_bytes, output_bytes, ..Traffic::default() };
    Usage { layer: Layer::Payload, traffic, coverage: Coverage::Complete }
}

fn report() -> TopReport {
    let place =
        |email: &str, usage| Ranked { subject: Subject::User(email.into()), name: None, usage };
    let places = vec![
        place("alice@example.com", usage(1 << 20, 3 << 20)),
        place("=cmd()\u{1b}[2J", usage(512, 1536)),
    ];
    let total = Some(usage((1 << 20) + 600, (3 << 20) + 2000));
    TopReport {
        taken_at: 1_795_190_400,
        host: "vps1".into(),
        terms: Terms::default(),
        field: Field::Users,
        by: By::Down,
        span: Span { begin: 1_795_132_800, end: 1_795_219_200 },
        rankings: vec![(Layer::Payload, Ranking { places, subjects: 3, total })],
    }
}

#[test]
fn a_table_ranks_and_says_how_many_there_are() {
    let want = "top users on vps1 by down, 2026-11-20 00:00 to 2026-11-21 00:00 (UTC)

payload bytes, as the proxy counts them
 #  USER                    UP     DOWN    TOTAL   SHARE
 1  alice@example.com  1.0 MiB  3.0 MiB  4.0 MiB  99.9 %
 2  =cmd()\\u{1b}[2J      512 B  1.5 KiB  2.0 KiB   0.0 %
    all 3              1.0 MiB  3.0 MiB  4.0 MiB
and 1 more with less traffic
";
    assert_eq!(table(&report(), None), want);
    let bars = table(&report(), Some(80));
    assert!(bars.contains(" 99.9 %  ██████████████████████\n"), "{bars}");
    assert!(bars.contains("  0.0 %  ▏\n"), "{bars}");
}

#[test]
fn no_name_of_a_user_is_a_formula_in_a_spreadsheet() {
    let want = "\"payload\",2,\"user\",\"'=cmd()\\u{1b}[2J\",\"\",0.000488,512,1536,,,2048,2048,\"complete\"";
    assert_eq!(csv(&report()).lines().nth(2), Some(want));
}

#[test]
fn json_has_shares_of_the_whole() {
    let document: serde_json::Value = serde_json::from_str(&json(&report()).unwrap()).unwrap();
    let layer = &document["layers"][0];
    assert_eq!((&document["kind"], &document["by"]), (&"top".into(), &"down".into()));
    assert_eq!(layer["subjects"], 3);
    assert_eq!(layer["places"][0]["share"], 0.999365);
    assert_eq!(layer["places"][1]["key"], "=cmd()\u{1b}[2J");
    assert_eq!(layer["places"][1]["place"], 2);
    assert_eq!(layer["total"]["output_bytes"], 3_147_728);
}
