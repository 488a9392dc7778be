//! What holds for every history.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    super::{reading::Lane, subject::GroupKey},
    tests::{frame, poll, snapshot},
    *,
};

/// What can happen.
#[derive(Clone, Debug)]
enum What {
    Kernel(u64),
    Proxy(u32),
    /// A tick, whose plan is stored or not.
    Tick {
        stored: bool,
    },
    /// The process dies, before or after its plan is stored.
    Die {
        stored: bool,
    },
    /// The clock is set.
    Clock(i32),
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => (0u64..1 << 40).prop_map(What::Kernel),
        2 => (0u32..1 << 30).prop_map(What::Proxy),
        4 => prop::bool::ANY.prop_map(|stored| What::Tick { stored }),
        2 => prop::bool::ANY.prop_map(|stored| What::Die { stored }),
        1 => (-10_000i32..10_000).prop_map(What::Clock),
    ]
}

/// A ledger without a disk.
#[derive(Default)]
struct Books {
    booked: HashMap<(Subject, Layer), Traffic>,
    cursors: Cursors,
}

impl Books {
    fn store(&mut self, plan: Plan) {
        for Entry { subject, usage, .. } in plan.entries {
            assert_ne!(usage.traffic, Traffic::default());
            let booked = self.booked.entry((subject, usage.layer)).or_default();
            *booked = booked.plus(usage.traffic);
        }
        self.cursors = plan.cursors;
    }

    fn of(&self, subject: &Subject, layer: Layer) -> Traffic {
        self.booked.get(&(subject.clone(), layer)).copied().unwrap_or_default()
    }
}

proptest! {
    /// However ticks, failures and deaths are spaced and wherever the clock is set, what was counted
    /// under our eyes is booked once.
    #[test]
    fn what_is_counted_is_booked_exactly_once(whats in prop::collection::vec(what(), 0..60)) {
        let (mut kernel, mut downlink, mut second, mut offset) = (0u64, 0i64, 1000i128, 0i128);
        let mut books = Books::default();
        let now = |second, offset| Begin { now: (second + offset) * NANOS, boot: 1 };
        let mut state = State::begin(Cursors::default(), now(second, offset));
        state.watch_proxy(second * NANOS);
        let tick = |state: &mut State, kernel, downlink, second: i128, offset: i128| {
            let at = (second + offset) * NANOS;
            let next = snapshot("tcx", 7, at, kernel);
            let uptime = u32::try_from(second).unwrap();
            state.tick(frame([next]), Some(&poll(second, uptime, downlink)));
        };
        // The first reading is the baseline.
        tick(&mut state, kernel, downlink, second, offset);
        books.store(state.plan(0));
        for what in whats.into_iter().chain([What::Tick { stored: true }]) {
            second += 10;
            match what {
                What::Kernel(bytes) => kernel += bytes,
                What::Proxy(bytes) => downlink += i64::from(bytes),
                What::Clock(by) => offset += i128::from(by),
                What::Tick { stored } | What::Die { stored } => {
                    tick(&mut state, kernel, downlink, second, offset);
                    let plan = state.plan(0);
                    if stored {
                        books.store(plan);
                    } else {
                        state.take_back(plan);
                    }
                    if matches!(what, What::Die { .. }) {
                        state = State::begin(books.cursors.clone(), now(second, offset));
                        state.watch_proxy(second * NANOS);
                    }
                }
            }
        }
        let key: GroupKey = "443/tcp".parse().unwrap();
        let group = books.of(&Subject::Group(key.clone()), Layer::L3);
        prop_assert_eq!(group.input_bytes, kernel);
        prop_assert_eq!(books.of(&Subject::Lane(key, Lane::Tcp4), Layer::L3), group);
        let user = books.of(&Subject::User("a@x".into()), Layer::Payload);
        prop_assert_eq!(i64::try_from(user.output_bytes).unwrap(), downlink);
        prop_assert_eq!(user.input_bytes, 0);
    }
}
