//! How long buckets are kept.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long buckets of one length are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keep {
    /// So long after they ended.
    For(Duration),
    /// Never removed. More than any time.
    Forever,
}

/// How long buckets are kept, by their length. Longer ones are kept at least as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Those of 5 minutes.
    pub minutes: Keep,
    /// Those of an hour.
    pub hours: Keep,
    /// Those of a day.
    pub days: Keep,
}

impl Default for Retention {
    /// 2 days, 60 days, for ever.
    fn default() -> Self {
        Self {
            minutes: Keep::For(DAY.saturating_mul(2)),
            hours: Keep::For(DAY.saturating_mul(60)),
            days: Keep::Forever,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_ever_is_longer_than_any_time() {
        assert!(Keep::Forever > Keep::For(Duration::MAX));
        assert!(Keep::For(DAY.saturating_mul(2)) > Keep::For(DAY));
    }
}
