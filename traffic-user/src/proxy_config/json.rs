//! JSON values that know where they stand.
//!
//! A value is a slice of the file's text until somebody asks for what is in it. So what nobody asks
//! for, secrets above all, is never decoded.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use super::{
    error::{Mistake, Place, ProxyConfigError},
    shown,
    text::Text,
};

/// One value in a file.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    text: &'a Text,
    raw: &'a RawValue,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    List,
    Text,
    Number,
    Flag,
    Null,
}

impl<'a> Node<'a> {
    /// The value that the file holds. The whole text is checked here: everything below it parses.
    pub(super) fn root(text: &'a Text) -> Result<Self, ProxyConfigError> {
        if text.is_blank() {
            return Err(ProxyConfigError::Empty { path: text.file.to_path_buf() });
        }
        let mut values = serde_json::Deserializer::from_str(&text.text).into_iter::<&RawValue>();
        match values.next() {
            Some(Ok(raw)) => Ok(Self { text, raw }),
            Some(Err(error)) => Err(broken(text, &error)),
            None => Err(ProxyConfigError::Empty { path: text.file.to_path_buf() }),
        }
    }

    /// The first byte behind the value that is not blank, if there is one.
    pub(super) fn behind(self) -> Option<Place> {
        let end = self.at() + self.raw.get().len();
        let rest = self.text.text.get(end..)?;
        let blank = rest.len() - rest.trim_start().len();
        (blank < rest.len()).then(|| self.text.place(end + blank))
    }

    pub(super) fn kind(self) -> Kind {
        match self.raw.get().as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b'"') => Kind::Text,
            Some(b't' | b'f') => Kind::Flag,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    pub(super) fn object(self) -> Option<Object<'a>> {
        let members: Members<'a> = serde_json::from_str(self.raw.get()).ok()?;
        let node = |raw| Self { text: self.text, raw };
        Some(Object(members.0.into_iter().map(|(key, raw)| (key, node(raw))).collect()))
    }

    /// The entries of a list that are not null.
    pub(super) fn list(self) -> Option<Vec<Self>> {
        let entries: Vec<&'a RawValue> = serde_json::from_str(self.raw.get()).ok()?;
        let nodes = entries.into_iter().map(|raw| Self { text: self.text, raw });
        Some(nodes.filter(|node| node.kind() != Kind::Null).collect())
    }

    pub(super) fn text(self) -> Option<String> {
        serde_json::from_str(self.raw.get()).ok()
    }

    pub(super) fn number(self) -> Option<u32> {
        serde_json::from_str(self.raw.get()).ok()
    }

    pub(super) fn flag(self) -> Option<bool> {
        serde_json::from_str(self.raw.get()).ok()
    }

    /// A number as it is written.
    pub(super) fn digits(self) -> Option<&'a str> {
        (self.kind() == Kind::Number).then(|| self.raw.get())
    }

    /// Where it begins, with its path of keys.
    pub(super) fn place(self) -> Place {
        let key = Self::root(self.text).map_or_else(|_| String::new(), |root| root.path_to(self));
        Place { key, ..self.text.place(self.at()) }
    }

    fn at(self) -> usize {
        self.raw.get().as_ptr().addr().saturating_sub(self.text.text.as_ptr().addr())
    }

    fn holds(self, other: Self) -> bool {
        let begin = self.at();
        (begin..begin + self.raw.get().len()).contains(&other.at())
    }

    /// The keys that lead from here to a value within.
    fn path_to(self, target: Self) -> String {
        let mut path = String::new();
        let mut here = self;
        while here.at() != target.at() {
            if let Some(object) = here.object() {
                let Some((key, next)) = object.0.into_iter().find(|(_, node)| node.holds(target))
                else {
                    break;
                };
                let dot = if path.is_empty() { "" } else { "." };
                path = format!("{path}{dot}{}", shown(&key));
                here = next;
            } else {
                let entries: Vec<&RawValue> =
                    serde_json::from_str(here.raw.get()).unwrap_or_default();
                let mut nodes = entries.into_iter().map(|raw| Self { raw, ..here }).enumerate();
                let Some((index, next)) = nodes.find(|(_, node)| node.holds(target)) else { break };
                path = format!("{path}[{index}]");
                here = next;
            }
        }
        path
    }
}

/// Says where the parser stopped. Its own text for this kind of mistake names no value of the file.
fn broken(text: &Text, error: &serde_json::Error) -> ProxyConfigError {
    let at = text.offset(error.line(), error.column().saturating_sub(1));
    if error.classify() == Category::Eof {
        return ProxyConfigError::Truncated { place: text.place(text.text.trim_end().len()) };
    }
    let said = error.to_string();
    let what = match (error.classify(), said.rsplit_once(" at line ")) {
        (Category::Syntax, Some((what, _))) => what.to_owned(),
        _ => "this is no JSON".to_owned(),
    };
    ProxyConfigError::Syntax(Mistake { place: text.place(at), what })
}

/// The members of an object, in the order of the file.
pub(super) struct Object<'a>(Vec<(String, Node<'a>)>);

impl<'a> Object<'a> {
    /// A member; null counts as none. As in Go, the case of a key does not matter and the last one
    /// counts.
    pub(super) fn get(&self, key: &str) -> Option<Node<'a>> {
        let (_, node) = self.0.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        (node.kind() != Kind::Null).then_some(*node)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&str, Node<'a>)> {
        self.0.iter().map(|(key, node)| (key.as_str(), *node))
    }
}

struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Every;

        impl<'de> Visitor<'de> for Every {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Every)
    }
}
