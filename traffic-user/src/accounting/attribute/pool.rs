//! One direction of a group: kernel bytes that wait for payload, and how many of them a byte of
//! payload takes.

/// How many blocks of polls are remembered.
const BLOCKS: usize = 8;
/// Polls with payload that make a block.
const BLOCK_POLLS: u32 = 32;
/// Payload that a block has at least, bytes.
const BLOCK_PAYLOAD: u64 = 64 << 10;

/// Kernel bytes for a byte of payload, at least 1 and at most 4, in parts of 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Multiple(u32);

impl Multiple {
    pub(super) const ONE: Self = Self(1 << 16);
    /// Nobody is charged more than this many times his payload.
    pub(super) const MOST: Self = Self(4 << 16);
    /// What holds as long as a group has no past: bulk transfers take 1.005 to 1.013, small requests
    /// on one connection 1.10 to 1.17. What is too little stays unattributed, what is too much would be
    /// charged to the wrong one.
    pub(super) const START: Self = Self((1 << 16) / 20 * 21);

    /// The multiple that was. `None` above the most, where wire bytes wait for payload that is not
    /// reported yet, and below one, where payload is reported whose bytes passed earlier or later.
    fn of(wire: u64, payload: u64) -> Option<Self> {
        let parts = (u128::from(wire) << 16).checked_div(u128::from(payload))?;
        let multiple = Self(u32::try_from(parts).ok()?);
        (Self::ONE..=Self::MOST).contains(&multiple).then_some(multiple)
    }

    /// Most kernel bytes that this payload may take.
    pub(super) fn claim(self, payload: u64) -> u64 {
        let wire = (u128::from(payload) * u128::from(self.0)) >> 16;
        u64::try_from(wire).unwrap_or(u64::MAX)
    }
}

/// Learns the multiple from the group's own past.
///
/// The past is cut into blocks of polls that had payload. A block in which the wire carried less than
/// the payload or more than four times of it is not settled and teaches nothing: something is in flight
/// that the proxy did not report in it, or nobody's traffic. The multiple is the smallest of the last blocks, so one that is swollen by
/// part of a spliced download raises nothing: to charge too little is mended when payload comes, to
/// charge the wrong one is not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Past {
    blocks: [Multiple; BLOCKS],
    oldest: usize,
    wire: u64,
    payload: u64,
    polls: u32,
}

impl Default for Past {
    fn default() -> Self {
        Self { blocks: [Multiple::START; BLOCKS], oldest: 0, wire: 0, payload: 0, polls: 0 }
    }
}

impl Past {
    fn multiple(&self) -> Multiple {
        self.blocks.into_iter().min().unwrap_or(Multiple::ONE)
    }

    fn poll(&mut self, wire: u64, payload: u64) {
        if payload == 0 {
            // Scans, and what flows out of full buffers.
            return;
        }
        self.wire = self.wire.saturating_add(wire);
        self.payload = self.payload.saturating_add(payload);
        self.polls += 1;
        if self.polls < BLOCK_POLLS || self.payload < BLOCK_PAYLOAD {
            return;
        }
        if let Some(multiple) = Multiple::of(self.wire, self.payload)
            && let Some(block) = self.blocks.get_mut(self.oldest)
        {
            *block = multiple;
            self.oldest = (self.oldest + 1) % BLOCKS;
        }
        self.forget_block();
    }

    fn forget_block(&mut self) {
        (self.wire, self.payload, self.polls) = (0, 0, 0);
    }
}

/// Kernel bytes of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// Charged to nobody (yet).
    pub(super) pending: u64,
    /// What came since the last poll.
    pub(super) since_poll: u64,
    /// Payload of this poll that is matched here or waits for it.
    pub(super) payload: u64,
    past: Past,
}

impl Pool {
    pub(super) fn multiple(&self) -> Multiple {
        self.past.multiple()
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.pending = self.pending.saturating_add(bytes);
        self.since_poll = self.since_poll.saturating_add(bytes);
    }

    /// Serves the claims as far as the pending bytes go. What each gets, in the same order.
    pub(super) fn draw(&mut self, claims: Vec<u64>) -> Vec<u64> {
        let sum: u128 = claims.iter().copied().map(u128::from).sum();
        let drawn =
            if sum <= u128::from(self.pending) { claims } else { split(self.pending, &claims) };
        self.pending -= drawn.iter().sum::<u64>();
        drawn
    }

    /// Ends a poll; `learn` is false when its two sides are not of one span.
    pub(super) fn end_poll(&mut self, learn: bool) {
        if learn {
            self.past.poll(self.since_poll, self.payload);
        } else {
            self.past.forget_block();
        }
        (self.since_poll, self.payload) = (0, 0);
    }
}

/// Parts of `amount` in proportion to the weights, by largest remainder: they add up to it exactly,
/// unless all weights are 0. None is more than its weight where `amount` is not more than their sum.
pub(super) fn split(amount: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().copied().map(u128::from).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let share = |weight: &u64| u128::from(amount) * u128::from(*weight);
    // A part is at most `amount`.
    let mut parts: Vec<u64> = weights
        .iter()
        .map(|weight| u64::try_from(share(weight) / sum).unwrap_or(u64::MAX))
        .collect();
    // Below the number of parts: each lost less than one.
    let rest = usize::try_from(amount - parts.iter().sum::<u64>()).unwrap_or(usize::MAX);
    if rest > 0 {
        let mut order: Vec<(u128, usize)> =
            weights.iter().map(|weight| share(weight) % sum).zip(0..).collect();
        order.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, at) in order.into_iter().take(rest) {
            if let Some(part) = parts.get_mut(at) {
                *part += 1;
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learned(polls: impl IntoIterator<Item = (u64, u64)>) -> u64 {
        let mut past = Past::default();
        for (wire, payload) in polls {
            past.poll(wire, payload);
        }
        past.multiple().claim(1000)
    }

    #[test]
    fn the_multiple_follows_what_the_group_needs() {
        let of = |wire, polls| std::iter::repeat_n((wire, 10_000), polls);
        assert_eq!(learned([]), 1049);
        // Down with the first block, up only when all agree.
        assert_eq!(learned(of(10_200, 32)), 1019);
        assert_eq!(learned(of(15_000, 32 * 7)), 1049);
        assert_eq!(learned(of(15_000, 32 * 8)), 1500);
        assert_eq!(learned(of(15_000, 32 * 8).chain(of(12_000, 32))), 1199);
        // Nothing is learned from payload that is of other bytes, nor where it is far behind.
        assert_eq!(learned(of(10_000, 32)), 1000);
        assert_eq!(learned(of(9999, 32)), 1049);
        assert_eq!(learned(of(40_000, 32 * 8)), 4000);
        assert_eq!(learned(of(40_001, 32 * 8)), 1049);
        assert_eq!(learned(of(u64::MAX, 32 * 8)), 1049);
    }

    #[test]
    fn wire_without_payload_teaches_nothing() {
        let scans = std::iter::repeat_n((1 << 30, 0), 1000);
        let traffic = std::iter::repeat_n((11_000, 10_000), 32 * 8);
        assert_eq!(learned(scans.chain(traffic)), 1099);
    }

    #[test]
    fn what_is_short_is_shared_by_largest_remainder() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(10, &[5, 3, 3]), [4, 3, 3]);
        assert_eq!(split(7, &[0, 0]), [0, 0]);
        assert_eq!(split(u64::MAX, &[u64::MAX, 0, 1]), [u64::MAX - 1, 0, 1]);
        let mut pool = Pool { pending: 10, ..Pool::default() };
        assert_eq!(pool.draw(vec![2, 3]), [2, 3]);
        assert_eq!(pool.draw(vec![u64::MAX, u64::MAX, 0]), [3, 2, 0]);
        assert_eq!(pool.pending, 0);
    }

    proptest! {
        #[test]
        fn parts_add_up_and_nobody_gets_more_than_he_claims(
            pending: u64,
            claims in prop::collection::vec(prop_oneof![0u64..20, any::<u64>()], 0..20),
        ) {
            let mut pool = Pool { pending, ..Pool::default() };
            let drawn = pool.draw(claims.clone());
            prop_assert_eq!(drawn.len(), claims.len());
            let sum: u64 = drawn.iter().sum();
            prop_assert_eq!(sum + pool.pending, pending);
            for (drawn, claim) in drawn.iter().zip(&claims) {
                prop_assert!(drawn <= claim);
            }
            let claimed: u128 = claims.iter().copied().map(u128::from).sum();
            prop_assert_eq!(u128::from(sum), claimed.min(u128::from(pending)));
        }

        #[test]
        fn a_claim_is_within_its_bounds(payload: u64, wire: u64, other: u64) {
            let multiple = Multiple::of(wire, other).unwrap_or(Multiple::MOST);
            let claim = multiple.claim(payload);
            prop_assert!(claim >= payload);
            prop_assert!(u128::from(claim) <= 4 * u128::from(payload));
        }
    }
}
