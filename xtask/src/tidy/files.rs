//! Rules for single files: how they begin, how long they are, what must not stand in them.

use super::{Finding, Source};

/// A file that is longer asks to be two.
const LONGEST: usize = 600;

/// Documents that must be there, and what they must tell.
const DOCUMENTS: &[(&str, &[&str])] = &[
    ("README.md", &["cargo xtask run", "cargo xtask test"]),
    ("ARCHITECTURE.md", &["accounting"]),
    ("CHANGELOG.md", &["##"]),
    ("docs/accounting.md", &["epoch"]),
];

/// Leftovers of work, in Rust files. Written in two so that this file does not find itself.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("db", "g!("),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("#[ig", "nore"),
];

/// What says where somebody worked or fetched from: it is true on one machine only.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("crates", ".io"),
    concat!("rust-lang", ".org"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
];

/// How cargo itself names its registry in the lock file.
const LOCK_SOURCE: &str = concat!("registry+https://github.com/rust-lang/crates", ".io-index");

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = documents(sources);
    for source in sources {
        findings.extend(places(source));
        if source.is_rust() {
            findings.extend(rust(source));
        }
        if source.path.ends_with("Cargo.toml") {
            findings.extend(manifest(source));
        }
    }
    findings
}

fn documents(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, needles) in DOCUMENTS {
        match sources.iter().find(|source| source.path == *path) {
            None => findings.push(Finding::absent(path, "this document is missing")),
            Some(source) => findings.extend(
                needles
                    .iter()
                    .filter(|needle| !source.text.contains(**needle))
                    .map(|needle| Finding::absent(path, format!("does not speak of `{needle}`"))),
            ),
        }
    }
    findings
}

fn rust(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !["//!", "#!"].iter().any(|begin| source.text.starts_with(begin)) {
        findings.push(Finding::at(source, 1, "begins without `//!`: say what the file is for"));
    }
    let length = source.text.lines().count();
    if length > LONGEST {
        let what = format!("{length} lines, more than {LONGEST}: make it two files");
        findings.push(Finding::at(source, length, what));
    }
    findings.extend(words(source, LEFTOVERS, |word| format!("`{word}` is left over")));
    findings
}

fn places(source: &Source) -> Vec<Finding> {
    let what = |word: &str| format!("`{word}` names a machine or a server: it is not so elsewhere");
    let mut findings = words(source, PLACES, what);
    if source.path.ends_with("Cargo.lock") {
        let is_cargos = |line: &str| {
            line.strip_prefix("source = \"").is_some_and(|rest| rest.starts_with(LOCK_SOURCE))
        };
        findings.retain(|finding| {
            !source.text.lines().nth(finding.line.saturating_sub(1)).is_some_and(is_cargos)
        });
    }
    findings
}

fn words(source: &Source, words: &[&str], what: impl Fn(&str) -> String) -> Vec<Finding> {
    (1..)
        .zip(source.text.lines())
        .flat_map(|(number, line)| {
            words.iter().filter(|word| line.contains(**word)).map(move |word| (number, *word))
        })
        .map(|(number, word)| Finding::at(source, number, what(word)))
        .collect()
}

fn manifest(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The workspace itself, and one of its own (the fuzzer's), cannot inherit.
    if section(source, "[workspace]").is_none() {
        let inherits = section(source, "[lints]")
            .is_some_and(|mut lines| lines.any(|(_, line)| line == "workspace = true"));
        if !inherits {
            findings.push(Finding::absent(
                &source.path,
                "without `[lints] workspace = true` the project's lints are off in this crate",
            ));
        }
    }
    match source.path.as_str() {
        "traffic-ebpf/Cargo.toml" => findings.extend(
            section(source, "[dependencies]")
                .into_iter()
                .flatten()
                .filter(|(_, line)| !line.contains("optional = true"))
                .map(|(number, _)| {
                    Finding::at(source, number, "the shared library depends on nothing")
                }),
        ),
        "xtask/Cargo.toml" => findings.extend(
            (1..).zip(source.text.lines()).filter(|(_, line)| line.starts_with("traffic-")).map(
                |(number, _)| {
                    Finding::at(source, number, "what builds the project cannot need it built")
                },
            ),
        ),
        _ => {}
    }
    findings
}

/// The lines of a section that say something, numbered.
fn section<'a>(
    source: &'a Source,
    name: &'a str,
) -> Option<impl Iterator<Item = (usize, &'a str)> + use<'a>> {
    let lines = || (1..).zip(source.text.lines().map(str::trim));
    lines().any(|(_, line)| line == name).then(|| {
        lines()
            .skip_while(move |(_, line)| *line != name)
            .skip(1)
            .take_while(|(_, line)| !line.starts_with('['))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// What is found in one file, beside the documents that are not there.
    #[track_caller]
    fn check_one(path: &str, text: &str, want: &[(usize, &str)]) {
        let sources = [source(path, text)];
        let found: Vec<_> = check(&sources)
            .into_iter()
            .filter(|finding| finding.path == path)
            .map(|finding| (finding.line, finding.what))
            .collect();
        assert_eq!(found.len(), want.len(), "{path}: {found:?}");
        for ((line, what), (want_line, want_what)) in found.iter().zip(want) {
            assert_eq!(line, want_line, "{what}");
            assert!(what.contains(want_what), "{what}");
        }
    }

    #[test]
    fn a_rust_file_says_what_it_is_for_and_is_not_long() {
        check_one("a.rs", "//! What.\n", &[]);
        check_one("a.rs", "#![no_std]\n", &[]);
        check_one("a.rs", "use a;\n", &[(1, "begins without")]);
        check_one("a.rs", &format!("//!\n{}", "\n".repeat(LONGEST - 1)), &[]);
        check_one("a.rs", &format!("//!\n{}", "\n".repeat(LONGEST)), &[(601, "601 lines")]);
    }

    #[test]
    fn leftovers_are_found() {
        for word in LEFTOVERS {
            check_one("a.rs", &format!("//!\nx {word}\n"), &[(2, word)]);
        }
        check_one("a.md", &format!("{}\n", LEFTOVERS[0]), &[]);
    }

    #[test]
    fn places_of_one_machine_are_found_in_every_text() {
        for word in PLACES {
            check_one("a.md", &format!("one\n{word}x\n"), &[(2, word)]);
        }
        check_one("Cargo.lock", &format!("source = \"{LOCK_SOURCE}\"\n"), &[]);
        let other = format!("source = \"sparse+https://index.{}/\"\n", PLACES[2]);
        check_one("Cargo.lock", &other, &[(1, PLACES[2])]);
    }

    #[test]
    fn every_crate_opts_in_to_the_lints() {
        check_one("a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n", &[]);
        check_one("a/Cargo.toml", "[package]\n", &[(0, "lints")]);
        check_one(
            "a/Cargo.toml",
            "[package]\n[lints]\n[dependencies]\nworkspace = true\n",
            &[(0, "lints")],
        );
        check_one("fuzz/Cargo.toml", "[package]\n\n[workspace]\n", &[]);
    }

    #[test]
    fn the_shared_library_and_xtask_stay_at_the_bottom() {
        let lints = "[lints]\nworkspace = true\n";
        let text = format!("[dependencies]\na = {{ optional = true }}\nb = \"1\"\n\n{lints}");
        check_one("traffic-ebpf/Cargo.toml", &text, &[(3, "depends on nothing")]);
        let text = format!("{lints}[dependencies]\ntraffic-user.workspace = true\n");
        check_one("xtask/Cargo.toml", &text, &[(4, "built")]);
    }

    #[test]
    fn documents_are_there_and_tell() {
        let absent: Vec<_> = documents(&[]).into_iter().map(|finding| finding.path).collect();
        let want: Vec<_> = DOCUMENTS.iter().map(|(path, _)| *path).collect();
        assert_eq!(absent, want);
        let readme = source("README.md", "run `cargo xtask run`");
        let found = documents(&[readme]);
        assert!(found.iter().any(|finding| finding.what.contains("cargo xtask test")), "{found:?}");
    }
}
