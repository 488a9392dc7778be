//! What holds at every tick of every history.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    tests::{group, inbound, kernel, merge, payload, report},
    *,
};

const GROUPS: [&str; 4] = ["443", "8443/tcp", "20000-50000/udp", "53"];
const USERS: [&str; 5] = ["a", "b", "c", "d", "stranger"];

#[derive(Clone, Debug)]
enum Event {
    /// The kernel sees bytes.
    Wire {
        group: usize,
        input: u64,
        output: u64,
    },
    /// The proxy relays payload.
    Move {
        user: usize,
        uplink: u64,
        downlink: u64,
    },
    /// The inbounds that the config has, and the users of each.
    Configure(Vec<(usize, Vec<usize>)>),
    Tick {
        kernel: bool,
        payload: bool,
        seam: usize,
    },
}

const SEAMS: [PayloadSeam; 5] = [
    PayloadSeam::Same,
    PayloadSeam::First(First::Baseline),
    PayloadSeam::Restarted,
    PayloadSeam::Reset,
    PayloadSeam::Unclear,
];

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..1000, 4 => 0u64..1 << 34, 1 => 0u64..1 << 62, 1 => any::<u64>()]
}

fn event() -> impl Strategy<Value = Event> {
    let users = prop::collection::vec(0..USERS.len() - 1, 0..5);
    let config = prop::collection::vec((0..GROUPS.len() - 1, users), 0..4);
    prop_oneof![
        6 => (0..GROUPS.len(), amount(), amount())
            .prop_map(|(group, input, output)| Event::Wire { group, input, output }),
        6 => (0..USERS.len(), amount(), amount())
            .prop_map(|(user, uplink, downlink)| Event::Move { user, uplink, downlink }),
        1 => config.prop_map(Event::Configure),
        6 => (prop::bool::weighted(0.8), prop::bool::weighted(0.7), 0..SEAMS.len())
            .prop_map(|(kernel, payload, seam)| Event::Tick { kernel, payload, seam }),
    ]
}

fn inbounds(config: &[(usize, Vec<usize>)]) -> Vec<Inbound> {
    let one = |(group, users): &(usize, Vec<usize>)| {
        let users: Vec<_> = users.iter().map(|user| USERS[*user]).collect();
        inbound(&format!("{}=in{group}", GROUPS[*group]), &users)
    };
    config.iter().map(one).collect()
}

/// Amounts by name, taken out of the map.
fn take<'a>(moved: &mut BTreeMap<&'a str, (u64, u64)>) -> Vec<(&'a str, u64, u64)> {
    std::mem::take(moved).into_iter().map(|(name, (a, b))| (name, a, b)).collect()
}

fn add(sum: &mut (u64, u64), more: (u64, u64)) {
    *sum = (sum.0.saturating_add(more.0), sum.1.saturating_add(more.1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn shares_and_what_is_nobodys_are_what_the_kernel_saw(
        config in prop::collection::vec(
            (0..GROUPS.len() - 1, prop::collection::vec(0..USERS.len() - 1, 0..5)), 0..4),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut merge = merge(&inbounds(&config));
        let (mut wire, mut moved) = (BTreeMap::new(), BTreeMap::new());
        let (mut seen, mut told) = (BTreeMap::new(), BTreeMap::new());
        let mut before: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        for event in &events {
            let (with_kernel, with_payload, seam) = match event {
                Event::Wire { group, input, output } => {
                    add(wire.entry(GROUPS[*group]).or_default(), (*input, *output));
                    continue;
                }
                Event::Move { user, uplink, downlink } => {
                    add(moved.entry(USERS[*user]).or_default(), (*uplink, *downlink));
                    continue;
                }
                Event::Configure(config) => {
                    merge.configure(&inbounds(config), &[]);
                    continue;
                }
                Event::Tick { kernel, payload, seam } => (*kernel, *payload, SEAMS[*seam]),
            };
            let mut groups = Vec::new();
            if with_kernel {
                groups = take(&mut wire);
                for (name, input, output) in &groups {
                    add(seen.entry((*name).to_owned()).or_default(), (*input, *output));
                }
            }
            let mut charges = Vec::new();
            if with_payload {
                charges = take(&mut moved);
                for (name, uplink, downlink) in &charges {
                    add(told.entry((*name).to_owned()).or_default(), (*uplink, *downlink));
                }
            }
            let groups = kernel(&groups);
            let charges = payload(seam, &charges);
            merge.tick(with_kernel.then_some(&groups), with_payload.then_some(&charges));

            let report = report(&merge);
            let mut drawn: BTreeMap<String, (u128, u128)> = BTreeMap::new();
            let mut after = BTreeMap::new();
            let mut found = 0;
            for stats in &report.groups {
                let name = GROUPS
                    .into_iter()
                    .find(|name| stats.group.same_ports(&group(name)))
                    .unwrap();
                let Some(nobody) = stats.unattributed else {
                    prop_assert!(!seen.contains_key(name));
                    continue;
                };
                found += 1;
                let (mut input, mut output) = (u128::from(nobody.input), u128::from(nobody.output));
                for user in &stats.users {
                    let share = user.wire.unwrap();
                    input += u128::from(share.input);
                    output += u128::from(share.output);
                    let sum = drawn.entry(user.email.to_string()).or_default();
                    sum.0 += u128::from(share.input);
                    sum.1 += u128::from(share.output);
                    let key = (name.to_owned(), user.email.to_string());
                    prop_assert!(after.insert(key, (share.input, share.output)).is_none());
                }
                let (want_input, want_output) = seen[name];
                prop_assert_eq!((input, output), (want_input.into(), want_output.into()));
                let kernel = stats.kernel.unwrap();
                prop_assert_eq!((kernel.input_bytes, kernel.output_bytes), seen[name]);
            }
            // No group that counted is ever lost, and no share becomes smaller.
            prop_assert_eq!(found, seen.len());
            for (key, (input, output)) in &before {
                let now = after.get(key).copied().unwrap_or_default();
                prop_assert!(now.0 >= *input && now.1 >= *output, "{key:?}");
            }
            before = after;
            // Nobody is charged more than four times what he moved, in all groups together.
            for (email, (input, output)) in drawn {
                let (uplink, downlink) = told.get(&email).copied().unwrap_or_default();
                prop_assert!(input <= 4 * u128::from(uplink), "{email}: {input} for {uplink}");
                prop_assert!(output <= 4 * u128::from(downlink), "{email}: {output} for {downlink}");
            }
            // Every user is in the totals once.
            let sum = told.values().fold((0, 0), |mut sum, more| {
                add(&mut sum, *more);
                sum
            });
            let total = report.system_total.payload;
            prop_assert_eq!((total.uplink, total.downlink), sum);
        }
    }

    /// The order in which the proxy names its counters and the kernel its groups does not matter.
    #[test]
    fn the_order_of_what_comes_in_does_not_matter(
        wire in prop::collection::vec((amount(), amount()), GROUPS.len()),
        moved in prop::collection::vec((amount(), amount()), USERS.len()),
        config in prop::collection::vec(
            (0..GROUPS.len() - 1, prop::collection::vec(0..USERS.len() - 1, 0..5)), 1..4),
    ) {
        let mut groups: Vec<_> =
            GROUPS.into_iter().zip(wire).map(|(name, (a, b))| (name, a, b)).collect();
        let mut charges: Vec<_> =
            USERS.into_iter().zip(moved).map(|(name, (a, b))| (name, a, b)).collect();
        let mut reports = Vec::new();
        for _ in 0..2 {
            // Known in one order, so that equal remainders fall the same way.
            let mut merge = merge(&[inbound("1", &USERS)]);
            merge.configure(&inbounds(&config), &[]);
            merge.tick(Some(&kernel(&groups)), Some(&payload(PayloadSeam::Same, &charges)));
            let mut report = report(&merge);
            report.groups.sort_by(|a, b| a.group.cmp(&b.group));
            reports.push(report);
            groups.reverse();
            charges.reverse();
        }
        prop_assert_eq!(&reports[0], &reports[1]);
    }
}
