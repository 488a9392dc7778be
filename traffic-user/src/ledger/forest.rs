//! Buckets, and which of them make up a span of time. Pure.
//!
//! What a bucket holds is in its parent as well, once it was summed up: so the buckets without a parent
//! together are all that was ever booked. A span takes those of them that lie in it; one that is cut by
//! the span gives its parts in its place, as long as all of them are kept. What cannot be divided any
//! more belongs to the span that holds its begin.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use crate::accounting::usage::{Level, Span};

/// One span of time in which traffic is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) id: i64,
    pub(super) level: Level,
    pub(super) span: Span,
    /// The longer one that holds all that this one does.
    pub(super) parent: Option<i64>,
    /// Some of its parts were let go.
    pub(super) trimmed: bool,
}

/// A bucket that is a part of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: i64,
    /// Number of the span.
    pub(super) span: usize,
    /// It lies in the span as a whole.
    pub(super) whole: bool,
}

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct Forest {
    nodes: HashMap<i64, Node>,
    by_begin: BTreeMap<(Level, i64), i64>,
    parts: HashMap<i64, Vec<i64>>,
}

impl Forest {
    pub(super) fn insert(&mut self, node: Node) {
        self.by_begin.insert((node.level, node.span.begin), node.id);
        if let Some(parent) = node.parent {
            self.parts.entry(parent).or_default().push(node.id);
        }
        self.nodes.insert(node.id, node);
    }

    /// Makes a bucket a part of another one.
    pub(super) fn adopt(&mut self, id: i64, parent: i64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.parent = Some(parent);
            self.parts.entry(parent).or_default().push(id);
        }
    }

    /// Lets a bucket go.
    pub(super) fn remove(&mut self, id: i64) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.by_begin.remove(&(node.level, node.span.begin));
        if let Some(parent) = node.parent {
            if let Some(parts) = self.parts.get_mut(&parent) {
                parts.retain(|part| *part != id);
            }
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.trimmed = true;
            }
        }
    }

    pub(super) fn get(&self, id: i64) -> Option<Node> {
        self.nodes.get(&id).copied()
    }

    /// The bucket of a level that holds a second.
    pub(super) fn at(&self, level: Level, second: i64) -> Option<Node> {
        let (_, id) = self.by_begin.range((level, i64::MIN)..=(level, second)).next_back()?;
        self.get(*id).filter(|node| node.span.contains(second))
    }

    /// Whether there are parts of a bucket.
    pub(super) fn has_parts(&self, id: i64) -> bool {
        self.parts.get(&id).is_some_and(|parts| !parts.is_empty())
    }

    /// A span cut to what no bucket of this level has. `second` is in it, and in no bucket.
    pub(super) fn free(&self, level: Level, second: i64, span: Span) -> Span {
        let before = self.by_begin.range((level, i64::MIN)..=(level, second)).next_back();
        let after = self.by_begin.range((level, second)..=(level, i64::MAX)).next();
        let node = |found: Option<(_, &i64)>| found.and_then(|(_, id)| self.get(*id));
        Span {
            begin: node(before).map_or(span.begin, |node| span.begin.max(node.span.end)),
            end: node(after).map_or(span.end, |node| span.end.min(node.span.begin)),
        }
    }

    /// Buckets of a level, in order of time.
    pub(super) fn of_level(&self, level: Level) -> impl Iterator<Item = Node> {
        self.by_begin
            .range((level, i64::MIN)..=(level, i64::MAX))
            .filter_map(|(_, id)| self.get(*id))
    }

    /// Those that together are everything.
    pub(super) fn roots(&self) -> impl Iterator<Item = Node> {
        self.by_begin.values().filter_map(|id| self.get(*id)).filter(|node| node.parent.is_none())
    }

    /// The shortest buckets that together are everything, in order of time.
    pub(super) fn leaves(&self) -> Vec<Node> {
        let mut left: Vec<Node> = self.roots().collect();
        let mut leaves = Vec::new();
        while let Some(node) = left.pop() {
            match self.divided(node) {
                Some(parts) => left.extend(parts),
                None => leaves.push(node),
            }
        }
        leaves.sort_unstable_by_key(|node| (node.span.begin, Reverse(node.level)));
        leaves
    }

    /// From the first begin to the last end.
    pub(super) fn extent(&self) -> Option<Span> {
        let begin = self.nodes.values().map(|node| node.span.begin).min()?;
        let end = self.nodes.values().map(|node| node.span.end).max()?;
        Some(Span { begin, end })
    }

    /// What makes up each of these spans, which are in order and apart from one another. Every bucket is
    /// in one span at most.
    pub(super) fn cover(&self, spans: &[Span]) -> Vec<Part> {
        let mut left: Vec<Node> = self.roots().collect();
        let mut cover = Vec::new();
        while let Some(node) = left.pop() {
            // The first span that ends behind its begin.
            let at = spans.partition_point(|span| span.end <= node.span.begin);
            let Some(span) = spans.get(at) else { continue };
            if span.covers(node.span) {
                cover.push(Part { id: node.id, span: at, whole: true });
            } else if span.meets(node.span) {
                match self.divided(node) {
                    Some(parts) => left.extend(parts),
                    None if span.contains(node.span.begin) => {
                        cover.push(Part { id: node.id, span: at, whole: false });
                    }
                    None => {}
                }
            }
        }
        // In the order of the file.
        cover.sort_unstable_by_key(|part| part.id);
        cover
    }

    /// The parts that together are all of a bucket, if it still has them.
    fn divided(&self, node: Node) -> Option<impl Iterator<Item = Node>> {
        let parts = self.parts.get(&node.id).filter(|parts| !parts.is_empty() && !node.trimmed)?;
        Some(parts.iter().filter_map(|id| self.get(*id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i64, level: Level, begin: i64, end: i64, parent: Option<i64>) -> Node {
        Node { id, level, span: Span { begin, end }, parent, trimmed: false }
    }

    /// A day of two hours with two parts each, and what came after it.
    fn forest() -> Forest {
        let mut forest = Forest::default();
        forest.insert(node(7, Level::Day, 0, 20, None));
        forest.insert(node(5, Level::Hour, 0, 10, Some(7)));
        forest.insert(node(6, Level::Hour, 10, 20, Some(7)));
        for (id, begin, parent) in [(1, 0, 5), (2, 5, 5), (3, 10, 6), (4, 15, 6)] {
            forest.insert(node(id, Level::Minutes, begin, begin + 5, Some(parent)));
        }
        forest.insert(node(8, Level::Minutes, 20, 25, None));
        forest
    }

    fn cover(forest: &Forest, spans: &[(i64, i64)]) -> Vec<(i64, usize, bool)> {
        let spans: Vec<_> =
            spans.iter().map(|(begin, end)| Span { begin: *begin, end: *end }).collect();
        forest.cover(&spans).into_iter().map(|part| (part.id, part.span, part.whole)).collect()
    }

    #[test]
    fn a_span_takes_the_longest_buckets_that_lie_in_it() {
        let forest = forest();
        assert_eq!(cover(&forest, &[(0, 100)]), [(7, 0, true), (8, 0, true)]);
        assert_eq!(cover(&forest, &[(0, 10), (10, 20)]), [(5, 0, true), (6, 1, true)]);
        assert_eq!(cover(&forest, &[(5, 20)]), [(2, 0, true), (6, 0, true)]);
        assert_eq!(cover(&forest, &[(100, 200)]), []);
        assert_eq!(cover(&forest, &[]), []);
    }

    #[test]
    fn what_cannot_be_divided_belongs_to_the_span_of_its_begin() {
        let mut forest = forest();
        assert_eq!(cover(&forest, &[(0, 7), (7, 20)]), [(1, 0, true), (2, 0, false), (6, 1, true)]);
        // A gap between spans that are asked for takes what begins in it.
        assert_eq!(cover(&forest, &[(0, 5), (7, 10)]), [(1, 0, true)]);
        forest.remove(1);
        assert_eq!(cover(&forest, &[(0, 7), (7, 20)]), [(5, 0, false), (6, 1, true)]);
        assert_eq!(forest.leaves().iter().map(|node| node.id).collect::<Vec<_>>(), [5, 3, 4, 8]);
    }

    #[test]
    fn a_new_bucket_takes_only_what_is_free() {
        let forest = forest();
        assert_eq!(forest.at(Level::Minutes, 19).unwrap().id, 4);
        assert_eq!(forest.at(Level::Minutes, 25), None);
        let span = |begin, end| Span { begin, end };
        assert_eq!(forest.free(Level::Day, 22, span(15, 40)), span(20, 40));
        assert_eq!(forest.free(Level::Day, -5, span(-10, 14)), span(-10, 0));
    }
}
