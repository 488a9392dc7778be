//! The paths that Rust code names (`std::fs::File`), with `use` groups written out.

/// A path and the line where it ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) parts: Vec<String>,
}

impl Named {
    /// Whether it begins with these parts.
    pub(super) fn is_under(&self, path: &str) -> bool {
        let mut parts = self.parts.iter();
        path.split("::").all(|want| parts.next().is_some_and(|part| part == want))
    }
}

/// All paths of a file, single words as well, in their order. Comments and strings name nothing.
pub(super) fn named(text: &str) -> Vec<Named> {
    let code = code_only(text);
    let mut reader = Reader { rest: code.as_str(), line: 1, found: Vec::new() };
    while !reader.rest.is_empty() {
        if reader.at_word() {
            reader.path(&mut Vec::new());
        } else {
            reader.skip_one();
        }
    }
    reader.found
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn next(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn at_word(&self) -> bool {
        self.next().is_some_and(|c| c.is_alphanumeric() || c == '_')
    }

    fn skip_one(&mut self) {
        let Some(c) = self.next() else { return };
        self.line += usize::from(c == '\n');
        self.rest = &self.rest[c.len_utf8()..];
    }

    fn skip_space(&mut self) {
        while self.next().is_some_and(char::is_whitespace) {
            self.skip_one();
        }
    }

    fn skip(&mut self, text: &str) -> bool {
        self.skip_space();
        let found = self.rest.strip_prefix(text);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    /// Reads on from a word; `parts` is what stood before it.
    fn path(&mut self, parts: &mut Vec<String>) {
        loop {
            let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
            parts.push(word.to_owned());
            self.rest = rest;
            let line = self.line;
            if !self.skip("::") {
                self.found.push(Named { line, parts: parts.clone() });
                return;
            }
            if self.skip("{") {
                return self.group(parts);
            }
            if !self.at_word() {
                // A glob or type arguments.
                self.found.push(Named { line, parts: parts.clone() });
                return;
            }
        }
    }

    /// Reads the branches of a `use` group, after its brace.
    fn group(&mut self, parts: &[String]) {
        while !self.rest.is_empty() && !self.skip("}") {
            if self.at_word() {
                self.path(&mut parts.to_vec());
                if self.skip("as ") {
                    while self.at_word() {
                        self.skip_one();
                    }
                }
            } else {
                self.skip_one();
            }
        }
    }
}

/// The code with comments and the insides of literals blanked; lines stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let literal = literal(rest);
        if literal == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            // `r` or `b` at the end of a name begins no literal.
            if c.is_alphanumeric() || c == '_' {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
                let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
                code.push_str(name);
                rest = after;
            }
        } else {
            let (blank, after) = rest.split_at(literal);
            code.extend(blank.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
    }
    code
}

/// How many bytes of comment, string or character begin here; 0 for none.
fn literal(rest: &str) -> usize {
    let until = |from: usize, end: &str| {
        rest.get(from..)
            .and_then(|tail| tail.find(end))
            .map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    let body = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let prefix = rest.len() - body.len();
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return until(prefix + hashes + 2, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if body.starts_with('"') {
        return prefix + quoted(body, '"');
    }
    if body.starts_with('\'') {
        // A lifetime has no second quote behind one character.
        let mut inside = body.chars().skip(1);
        let first = inside.next();
        if first == Some('\\') || inside.next() == Some('\'') {
            return prefix + quoted(body, '\'');
        }
    }
    0
}

/// The length of a literal in quotes with its escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let found: Vec<_> = named(text).iter().map(|named| named.parts.join("::")).collect();
        assert_eq!(found, want, "{text}");
    }

    #[test]
    fn groups_are_written_out() {
        check("use std::fs;", &["use", "std::fs"]);
        check(
            "use std::{fs, io::{self, Read as _}, net::*};",
            &["use", "std::fs", "std::io::self", "std::io::Read", "std::net"],
        );
        check("use crate::{\n    a::B, // why\n    c,\n};", &["use", "crate::a::B", "crate::c"]);
    }

    #[test]
    fn paths_in_code_are_seen() {
        check("a::b::<C>(d)", &["a::b", "C", "d"]);
        check("#[e::main] fn f() { g::h!(); }", &["e::main", "fn", "f", "g::h"]);
        check("super::super::k::L", &["super::super::k::L"]);
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        check("// std::fs\n/* a::b */ x", &["x"]);
        check(r#"f("std::fs \" a::b", 'x', '\'', b"a::b")"#, &["f"]);
        check("f(r#\"a::b \" c::d\"#, br\"e::f\")", &["f"]);
        check("fn f<'a>(x: &'a str)", &["fn", "f", "a", "x", "a", "str"]);
        check("for\"x\"", &["for"]);
    }

    #[test]
    fn lines_are_counted_through_everything() {
        let text = "/* one\ntwo */\n\"three\nfour\"\na::b;\nuse c::{\n    d,\n};\n";
        let lines: Vec<_> = named(text).iter().map(|named| named.line).collect();
        assert_eq!(lines, [5, 6, 7]);
    }
}
