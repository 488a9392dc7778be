//! The text of a config file: comments out, positions kept.

use std::{path::Path, sync::Arc};

use super::error::Place;

/// A file's text, ready for a JSON parser, that still knows which line and column a byte is in.
pub(super) struct Text {
    pub(super) file: Arc<Path>,
    /// Every character of a comment is a blank here, so lines and columns are those of the file.
    pub(super) text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Text {
    pub(super) fn new(file: &Path, bytes: &[u8]) -> Self {
        let text = without_comments(&decode(bytes));
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { file: file.into(), text, lines }
    }

    pub(super) fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The place of a byte, without a path of keys.
    pub(super) fn place(&self, at: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines[line - 1];
        let before = self.text.get(start..at).map_or(0, |before| before.chars().count());
        Place { file: Arc::clone(&self.file), line, column: before + 1, key: String::new() }
    }

    /// The byte in this line (from 1) and byte column (from 0, as the JSON parser counts).
    pub(super) fn offset(&self, line: usize, column: usize) -> usize {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let mut at = start.saturating_add(column).min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// As the proxies decode it: each byte that is not UTF-8 becomes one replacement character, so that
/// names compare equal to those of the API.
fn decode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// Where the reader of comments is.
#[derive(Clone, Copy)]
enum Within {
    Json,
    String,
    Escape,
    Line,
    Block,
}

/// `//`, `#` and `/* */` blanked out, as both products allow them (Xray `infra/conf/json/reader.go`).
fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut within = Within::Json;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        within = match (within, char) {
            (Within::Json, '"') => Within::String,
            (Within::Json, '#') => Within::Line,
            (Within::Json, '/') if chars.peek() == Some(&'/') => Within::Line,
            (Within::Json, '/') if chars.peek() == Some(&'*') => {
                chars.next();
                clean.push_str("  ");
                within = Within::Block;
                continue;
            }
            (Within::String, '"') | (Within::Line, '\n') => Within::Json,
            (Within::String, '\\') => Within::Escape,
            (Within::Escape, _) => Within::String,
            (Within::Block, '*') if chars.peek() == Some(&'/') => {
                chars.next();
                clean.push_str("  ");
                within = Within::Json;
                continue;
            }
            (within, _) => within,
        };
        let comment = matches!(within, Within::Line | Within::Block);
        clean.push(if comment && char != '\n' { ' ' } else { char });
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, want: &str) {
        assert_eq!(without_comments(input), want);
    }

    #[test]
    fn comments_become_blanks_of_the_same_length() {
        check("{} // a\n{}", "{}     \n{}");
        check("{} # a\n{}", "{}    \n{}");
        check("{/* ä\n*/}", "{    \n  }");
        check("{/***/}", "{     }");
        check("{/* never closed", "{               ");
    }

    #[test]
    fn marks_in_texts_are_no_comments() {
        check(r#"{"a": "http://x#y/*"}"#, r#"{"a": "http://x#y/*"}"#);
        check(r#"{"a\"//": 1} //"#, r#"{"a\"//": 1}   "#);
    }

    #[test]
    fn places_are_those_of_the_file() {
        let text = Text::new(Path::new("f"), "{\n /* ü */ x".as_bytes());
        let at = text.text.find('x').unwrap();
        assert_eq!((text.place(at).line, text.place(at).column), (2, 10));
        assert_eq!(text.place(0).column, 1);
        assert_eq!(text.place(usize::MAX).line, 2);
    }

    #[test]
    fn each_bad_byte_is_one_character() {
        assert_eq!(decode(b"a\xe2\x82b\xffc"), "a\u{fffd}\u{fffd}b\u{fffd}c");
    }
}
