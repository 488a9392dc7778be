//! How a provider counts what is paid for.

/// Which bytes of the two directions a provider counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Counting {
    /// Both together.
    #[default]
    Both,
    /// The direction with more of them, over the whole period.
    Larger,
    /// What leaves the host.
    Output,
}

impl Counting {
    /// Every way to count.
    pub const ALL: [Self; 3] = [Self::Both, Self::Larger, Self::Output];

    /// As it is written: `both`, `larger` or `output`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Larger => "larger",
            Self::Output => "output",
        }
    }
}

/// What a provider means by a gigabyte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Unit {
    /// 2^30 bytes.
    #[default]
    Gib,
    /// 10^9 bytes.
    Gb,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 2] = [Self::Gib, Self::Gb];

    /// As it is written: `GiB` or `GB`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gib => "GiB",
            Self::Gb => "GB",
        }
    }
}
