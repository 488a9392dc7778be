//! What is to be said about a config, gathered while it is read.

use super::{
    error::{Mistake, ProxyConfigError},
    json::{Kind, Node, Object},
};

/// Most of each kind that are kept: a file that is wrong in a thousand places is wrong in one way.
const MOST: usize = 50;

/// Mistakes make the config useless; problems make the numbers wrong; notes explain them.
#[derive(Default)]
pub(super) struct Findings {
    mistakes: Pile,
    problems: Pile,
    notes: Pile,
}

#[derive(Default)]
struct Pile {
    said: Vec<Mistake>,
    more: usize,
}

impl Pile {
    fn add(&mut self, node: Node<'_>, what: impl Into<String>) {
        if self.said.len() < MOST {
            self.said.push(Mistake { place: node.place(), what: what.into() });
        } else {
            self.more += 1;
        }
    }

    fn all(mut self) -> Vec<Mistake> {
        if let (1.., Some(last)) = (self.more, self.said.last()) {
            let what = format!("and {} more like these", self.more);
            self.said.push(Mistake { place: last.place.clone(), what });
        }
        self.said
    }
}

impl Findings {
    pub(super) fn mistake(&mut self, node: Node<'_>, what: impl Into<String>) {
        self.mistakes.add(node, what);
    }

    pub(super) fn problem(&mut self, node: Node<'_>, what: impl Into<String>) {
        self.problems.add(node, what);
    }

    pub(super) fn note(&mut self, node: Node<'_>, what: impl Into<String>) {
        self.notes.add(node, what);
    }

    /// Says that the proxy stops reading where a file's value ends.
    pub(super) fn behind(&mut self, root: Node<'_>) {
        if let Some(place) = root.behind() {
            let what = "the proxy reads only what stands before this".to_owned();
            self.problems.said.push(Mistake { place, what });
        }
    }

    /// Problems and notes, unless there are mistakes.
    pub(super) fn result(self) -> Result<(Vec<Mistake>, Vec<Mistake>), ProxyConfigError> {
        let mut mistakes = self.mistakes;
        mistakes.said.sort_by(|a, b| {
            let key = |mistake: &Mistake| (mistake.place.line, mistake.place.column);
            a.place.file.cmp(&b.place.file).then_with(|| key(a).cmp(&key(b)))
        });
        let mistakes = mistakes.all();
        if mistakes.is_empty() {
            Ok((self.problems.all(), self.notes.all()))
        } else {
            Err(ProxyConfigError::Wrong(mistakes))
        }
    }

    /// An object, or nothing and a mistake.
    pub(super) fn object<'a>(&mut self, node: Node<'a>) -> Option<Object<'a>> {
        let object = node.object();
        if object.is_none() {
            self.mistake(node, "this must be an object: { … }");
        }
        object
    }

    /// A list, or nothing and a mistake.
    pub(super) fn list<'a>(&mut self, node: Node<'a>) -> Vec<Node<'a>> {
        node.list().unwrap_or_else(|| {
            self.mistake(node, "this must be a list: [ … ]");
            Vec::new()
        })
    }

    /// A text, or nothing and a mistake.
    pub(super) fn text(&mut self, node: Node<'_>) -> Option<String> {
        let text = node.text();
        if text.is_none() {
            self.mistake(node, "this must be a text in quotes");
        }
        text
    }

    /// A text that is not empty, or nothing.
    pub(super) fn word(&mut self, node: Option<Node<'_>>) -> Option<String> {
        self.text(node?).filter(|text| !text.is_empty())
    }

    /// Whether a switch is on; off when it is not there.
    pub(super) fn flag(&mut self, node: Option<Node<'_>>) -> bool {
        let Some(node) = node else { return false };
        node.flag().unwrap_or_else(|| {
            self.mistake(node, "this must be true or false");
            false
        })
    }

    /// A policy level; 0 when it is not there.
    pub(super) fn level(&mut self, node: Option<Node<'_>>) -> u32 {
        let Some(node) = node else { return 0 };
        node.number().unwrap_or_else(|| {
            self.mistake(node, "a level must be a number from 0");
            0
        })
    }

    /// Texts, written as a list or as one text with commas. Blanks around them do not matter.
    pub(super) fn words(&mut self, node: Option<Node<'_>>) -> Vec<String> {
        let Some(node) = node else { return Vec::new() };
        let entries = if node.kind() == Kind::List { self.list(node) } else { vec![node] };
        let texts = entries.into_iter().filter_map(|entry| self.text(entry));
        texts
            .flat_map(|text| text.split(',').map(|word| word.trim().to_owned()).collect::<Vec<_>>())
            .filter(|word| !word.is_empty())
            .collect()
    }
}
