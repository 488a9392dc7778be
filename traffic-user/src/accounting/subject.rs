//! Whom traffic is booked to.

use std::{fmt, str::FromStr, sync::Arc};

use super::{
    ident::{Group, GroupError},
    reading::Lane,
};

/// What tells a group from the others for as long as there are records of it: its ports and transport.
///
/// A name is no part of it, so that a group that is renamed goes on, and one that gets other ports is
/// another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey(Arc<Group>);

impl GroupKey {
    /// That of a group.
    pub fn of(group: &Group) -> Self {
        Self(Arc::new(group.unnamed()))
    }

    /// Its ports and transport, without a name.
    pub fn group(&self) -> &Group {
        &self.0
    }
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for GroupKey {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        text.parse().map(|group: Group| Self::of(&group))
    }
}

/// Whom traffic is booked to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// All that the kernel's meter saw, in a group or not.
    Host,
    /// One network device.
    Device(Arc<str>),
    /// All lanes of a group.
    Group(GroupKey),
    /// One lane of a group.
    Lane(GroupKey, Lane),
    /// A user, under the name by which the proxy counts him. Foreign text: never print it raw to a
    /// terminal.
    User(Arc<str>),
    /// What was seen on no watched port: the other leg of what is proxied.
    Relay,
}

/// What kind of subject it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// [`Subject::Host`].
    Host,
    /// [`Subject::Device`].
    Device,
    /// [`Subject::Group`].
    Group,
    /// [`Subject::Lane`].
    Lane,
    /// [`Subject::User`].
    User,
    /// [`Subject::Relay`].
    Relay,
}

impl SubjectKind {
    /// All of them, in the order of the outputs.
    pub const ALL: [Self; 6] =
        [Self::Host, Self::Device, Self::Group, Self::Lane, Self::User, Self::Relay];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Device => "device",
            Self::Group => "group",
            Self::Lane => "lane",
            Self::User => "user",
            Self::Relay => "relay",
        }
    }
}

impl Subject {
    /// The subject that a group is.
    pub fn group(group: &Group) -> Self {
        Self::Group(GroupKey::of(group))
    }

    /// What kind it is of.
    pub const fn kind(&self) -> SubjectKind {
        match self {
            Self::Host => SubjectKind::Host,
            Self::Device(_) => SubjectKind::Device,
            Self::Group(_) => SubjectKind::Group,
            Self::Lane(..) => SubjectKind::Lane,
            Self::User(_) => SubjectKind::User,
            Self::Relay => SubjectKind::Relay,
        }
    }

    /// What tells it from the others of its kind: the device's name, `443/tcp`, `443/tcp tcp4`, the
    /// email; empty for host and relay. Foreign text.
    pub fn key(&self) -> String {
        match self {
            Self::Host | Self::Relay => String::new(),
            Self::Device(name) | Self::User(name) => name.as_ref().to_owned(),
            Self::Group(group) => group.to_string(),
            Self::Lane(group, lane) => format!("{group} {}", lane.name()),
        }
    }

    /// The subject that has this key; `None` when none of the kind can have it.
    ///
    /// ```
    /// use traffic_user::accounting::subject::{Subject, SubjectKind};
    ///
    /// let subject = Subject::from_key(SubjectKind::Lane, "443+8443/tcp udp6").unwrap();
    /// assert_eq!(subject.key(), "443+8443/tcp udp6");
    /// assert_eq!(Subject::from_key(SubjectKind::Group, "0"), None);
    /// ```
    pub fn from_key(kind: SubjectKind, key: &str) -> Option<Self> {
        Some(match kind {
            SubjectKind::Host => Self::Host,
            SubjectKind::Relay => Self::Relay,
            SubjectKind::Device => Self::Device(key.into()),
            SubjectKind::User => Self::User(key.into()),
            SubjectKind::Group => Self::Group(key.parse().ok()?),
            SubjectKind::Lane => {
                let (group, lane) = key.rsplit_once(' ')?;
                let lane = Lane::ALL.into_iter().find(|one| one.name() == lane)?;
                Self::Lane(group.parse().ok()?, lane)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_renamed_is_the_same_and_one_with_other_ports_is_not() {
        let key = |text: &str| GroupKey::of(&text.parse().unwrap());
        assert_eq!(key("443/tcp=web"), key("443/tcp=vless-in"));
        assert_eq!(key("443/tcp=web").to_string(), "443/tcp");
        assert_ne!(key("443/tcp"), key("443"));
        assert_ne!(key("443/tcp=web"), key("443+8443/tcp=web"));
    }

    #[test]
    fn every_subject_is_found_by_its_key() {
        let group: GroupKey = "20000-50000/udp=hop".parse().unwrap();
        let subjects = [
            Subject::Host,
            Subject::Device("eth0".into()),
            Subject::Group(group.clone()),
            Subject::Lane(group, Lane::Udp6),
            Subject::User("a b\n@x".into()),
            Subject::Relay,
        ];
        for (subject, kind) in subjects.into_iter().zip(SubjectKind::ALL) {
            assert_eq!(subject.kind(), kind);
            assert_eq!(Subject::from_key(kind, &subject.key()), Some(subject));
        }
        for (kind, key) in [
            (SubjectKind::Group, "x"),
            (SubjectKind::Lane, "443"),
            (SubjectKind::Lane, "443 tcp5"),
            (SubjectKind::Lane, "0 tcp4"),
        ] {
            assert_eq!(Subject::from_key(kind, key), None, "{key}");
        }
    }
}
