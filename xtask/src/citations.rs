// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks that each citation has its target: the laws of `docs/laws.md`, the rows and cases of `docs/conformance.md`,
//! and the files that the documents name. Checks also that a test names each row and case.
//!
//! A citation is written "law 6", "row 83", "rows 52 to 55", "cases E8 and E9" in text, and `row_83_..` or
//! `case_e8_e9_..` in the name of a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo::Workspace;
use crate::conformance::{self, LIST, between, is_id, named, words};
use crate::tally::Tally;
use crate::tree::{self, Source};

const LAWS: &str = "docs/laws.md";
/// The mark in the last cell of an entry that cannot have a test; the reason follows.
const NO_TEST: &str = "no test: ";
/// This file, which is not checked: it quotes citations without a target.
const OURS: &str = "xtask/src/citations.rs";

/// Checks the whole workspace.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    println!("\n     Citations");
    let root = workspace.root();
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"));
    let targets = Targets::parse(&read(LAWS)?, &read(LIST)?);
    let sources = tree::sources(root)?;
    let (mut wrong, mut tested) = (Vec::new(), BTreeSet::new());
    for source in sources.iter().filter(|source| source.path != OURS) {
        for citation in citations(&source.text) {
            if !targets.has(&citation.id) {
                let (path, line) = (&source.path, line_of(&source.text, citation.at));
                wrong.push(format!("{path}:{line}: {} is in no document", citation.id));
            } else if is_test(source, citation.at) {
                tested.insert(citation.id);
            }
        }
        wrong.extend(bare_cases(source, &targets));
    }
    let mut tally = Tally::default();
    tally.one("citations", "each cited law, row and case exists", none(&wrong));
    tally.one(
        "citations",
        "each row and case has a test",
        none(&targets.untested(&tested)),
    );
    let files: BTreeSet<String> = tree::files(root)?.into_iter().collect();
    let missing: Vec<String> = sources
        .iter()
        .filter(|source| source.path.ends_with(".md") && !source.path.ends_with("CHANGELOG.md"))
        .flat_map(|source| missing_files(source, &files))
        .collect();
    tally.one("citations", "each file that a document names exists", none(&missing));
    Ok(tally)
}

fn none(wrong: &[String]) -> Result<(), String> {
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("\n  {}", wrong.join("\n  ")))
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The target of a citation: "law 6", "row 83", "case E8".
type Id = String;

#[derive(Debug, PartialEq, Eq)]
struct Citation {
    id: Id,
    at: usize,
}

/// All targets of citations, and for each entry that cannot have a test the reason.
#[derive(Debug, Default)]
struct Targets {
    entries: BTreeMap<Id, Option<String>>,
}

impl Targets {
    fn parse(laws: &str, list: &str) -> Self {
        let mut targets = Self::default();
        for line in laws.lines() {
            if let Some((number, _)) = line.strip_prefix("## Law ").and_then(|rest| rest.split_once(':')) {
                let reason = Some("a law is not a test".to_owned());
                targets.entries.insert(format!("law {number}"), reason);
            }
        }
        for entry in conformance::entries(list) {
            let reason = entry.place.split_once(NO_TEST).map(|(_, reason)| reason.to_owned());
            targets.entries.insert(entry.id, reason);
        }
        targets
    }

    fn has(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    /// The entries that no test names and that give no reason, and those that give a reason although a test names them.
    fn untested(&self, tested: &BTreeSet<Id>) -> Vec<String> {
        let wrong = |(id, reason): (&Id, &Option<String>)| match (reason, tested.contains(id)) {
            (None, false) => Some(format!("{id}: no test names it")),
            (Some(reason), true) if !id.starts_with("law") => {
                Some(format!("{id}: a test names it, and {LIST} says \"{NO_TEST}{reason}\""))
            }
            _ => None,
        };
        self.entries.iter().filter_map(wrong).collect()
    }
}

/// Whether the place is in a test: in a folder `tests`, among testkit's shared rows, or behind `#[cfg(test)]`. What a
/// module says of itself (`//!`) is no test.
fn is_test(source: &Source, at: usize) -> bool {
    let line = &source.text[source.text[..at].rfind('\n').map_or(0, |newline| newline + 1)..at];
    let in_tests =
        source.path.split('/').any(|part| part == "tests") || source.path.starts_with("testkit/src/conformance/");
    source.path.ends_with(".rs")
        && !line.trim_start().starts_with("//!")
        && (in_tests || source.text[..at].contains("#[cfg(test)]"))
}

/// All citations of a text, in its order.
fn citations(text: &str) -> Vec<Citation> {
    let mut found = Vec::new();
    for (at, word) in words(text) {
        let rest = &text[at + word.len()..];
        match word.to_ascii_lowercase().as_str() {
            kind @ ("law" | "laws" | "row" | "rows" | "case" | "cases") => {
                let kind = kind.trim_end_matches('s');
                found.extend(listed(kind, rest).into_iter().map(|id| Citation { id, at }));
            }
            name if name.contains("row_") || name.contains("case_") => {
                found.extend(named(name).into_iter().map(|id| Citation { id, at }));
            }
            _ => {}
        }
    }
    found
}

/// The ids in " 52 to 55, 57 and 58" after the word `kind`.
fn listed(kind: &str, rest: &str) -> Vec<Id> {
    let mut found: Vec<Id> = Vec::new();
    let (mut rest, mut range) = (rest, false);
    while let Some(after) = space(rest) {
        let (id, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len()));
        if !is_id(kind, id) {
            break;
        }
        let id = format!("{kind} {id}");
        if std::mem::take(&mut range) {
            found.extend(between(found.last().unwrap_or(&id).clone().as_str(), &id));
        }
        found.push(id);
        (rest, range) = after_separator(after);
    }
    found
}

/// The text after a comma, "and", "or" or "to", and whether the word was "to".
fn after_separator(text: &str) -> (&str, bool) {
    let comma = text.strip_prefix(',').unwrap_or(text);
    let word = space(comma).unwrap_or_default();
    for (name, is_range) in [("and", false), ("or", false), ("to", true)] {
        if let Some(end) = word.strip_prefix(name) {
            return (end, is_range);
        }
    }
    (if comma.len() < text.len() { comma } else { "" }, false)
}

/// The rest after at least one space; a line break inside a comment is a space.
fn space(text: &str) -> Option<&str> {
    let mut rest = text.trim_start_matches([' ', '\t']);
    if let Some(next) = rest.strip_prefix('\n') {
        rest = next
            .trim_start()
            .trim_start_matches('/')
            .trim_start_matches('!')
            .trim_start_matches([' ', '\t']);
    }
    (rest.len() < text.len()).then_some(rest)
}

/// The comments that begin with a case's id without the word "case", which the other checks do not recognise as a
/// citation.
fn bare_cases(source: &Source, targets: &Targets) -> Vec<String> {
    let is_bare = |line: &str| {
        let text = line.trim_start().strip_prefix("//")?.trim_start_matches(['/', '!']);
        let word = text.trim_start().split([',', ':', '.', ' ']).next()?;
        targets.has(&format!("case {word}")).then(|| word.to_owned())
    };
    let lines = source.text.lines().enumerate();
    lines
        .filter(|_| source.path.ends_with(".rs"))
        .filter_map(|(line, text)| {
            let word = is_bare(text)?;
            Some(format!("{}:{}: write \"case {word}\"", source.path, line + 1))
        })
        .collect()
}

/// The files that a document names and that do not exist: the targets of its links, and the names in backticks with a
/// file's ending. A name in backticks may leave the folders out. After the name of a crate in the same paragraph the
/// name means a file of that crate.
fn missing_files(source: &Source, files: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let text = without_blocks(&source.text);
    let mut say = |line: usize, name: &str| wrong.push(format!("{}:{line}: there is no {name}", source.path));
    let mut package = String::new();
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with(['*', '-', '|', '#']) {
            package.clear();
        }
        for name in line.split('`').skip(1).step_by(2) {
            if files.contains(&format!("crates/{name}/Cargo.toml")) {
                package = format!("crates/{name}/");
            } else if is_file_name(name) && !exists(name, &package, folder, files) {
                say(number + 1, name);
            }
        }
        for target in links(line) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !target.contains("://") && !exists_at(&normal(&folder.join(path)), files) {
                say(number + 1, target);
            }
        }
    }
    wrong
}

/// The text with the lines of its fenced blocks emptied.
fn without_blocks(text: &str) -> String {
    let mut inside = false;
    let keep = |line: &str| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        if inside || fence {
            String::new()
        } else {
            line.to_owned()
        }
    };
    text.lines().map(keep).collect::<Vec<_>>().join("\n")
}

fn is_file_name(name: &str) -> bool {
    let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    is_path && !name.starts_with(['.', '/']) && [".rs", ".md", ".sh"].iter().any(|end| name.ends_with(end))
}

fn exists(name: &str, package: &str, folder: &Path, files: &BTreeSet<String>) -> bool {
    let end = format!("/{name}");
    files.contains(name)
        || files.contains(&normal(&folder.join(name)))
        || files
            .iter()
            .any(|file| file.starts_with(package) && file.ends_with(&end))
}

/// Whether there is a file or a folder of this path.
fn exists_at(path: &str, files: &BTreeSet<String>) -> bool {
    let folder = format!("{}/", path.trim_end_matches('/'));
    files.contains(path) || files.iter().any(|file| file.starts_with(&folder))
}

/// The path without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part.as_os_str().to_string_lossy().as_ref() {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part.to_owned()),
        }
    }
    parts.join("/")
}

/// The targets of the links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        citations(text).into_iter().map(|citation| citation.id).collect()
    }

    #[test]
    fn citations_in_text_are_found() {
        assert_eq!(ids("law 6, and Row 83."), ["law 6", "row 83"]);
        assert_eq!(ids("rows 128 and 129 of"), ["row 128", "row 129"]);
        assert_eq!(
            ids("rows 52 to 54, 57 or 58"),
            ["row 52", "row 53", "row 54", "row 57", "row 58"]
        );
        assert_eq!(
            ids("/// Cases E8, E9\n    /// and E12: one"),
            ["case E8", "case E9", "case E12"]
        );
        assert_eq!(ids("in this case A word; rows 5x, laws of 3, in case 5"), [""; 0]);
    }

    #[test]
    fn citations_in_names_are_found() {
        assert_eq!(ids("fn row_05_and_06_not_an_eventfd()"), ["row 5", "row 6"]);
        assert_eq!(ids("\"kernel/row_70_has_2_and_row_13_none\""), ["row 70", "row 13"]);
        assert_eq!(ids("case_l6_l7_a_level"), ["case L6", "case L7"]);
        assert_eq!(ids("case_o1_to_o3"), ["case O1", "case O2", "case O3"]);
        assert_eq!(ids("arrow_5 rows_can_fail row_is_gone"), [""; 0]);
    }

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_citation_without_a_target_and_an_entry_without_a_test_are_wrong() {
        let list = "| row | x |\n|---|---|\n| 1 | K |\n| 2 | K; no test: no machine |\n| E3 | U |\n";
        let targets = Targets::parse("## Law 1: a\ntext\n", list);
        assert!(targets.has("law 1") && targets.has("row 1") && targets.has("case E3"));
        assert!(!targets.has("law 2") && !targets.has("row 3") && !targets.has("case E1"));
        let tested = |ids: &[&str]| targets.untested(&ids.iter().map(|&id| id.to_owned()).collect());
        assert_eq!(tested(&["row 1", "case E3"]), [""; 0]);
        assert_eq!(tested(&["row 1"]), ["case E3: no test names it"]);
        assert!(tested(&["row 1", "row 2", "case E3"])[0].contains("a test names it"));
    }

    #[test]
    fn what_is_a_test() {
        let at = |path, text: &str| is_test(&source(path, text), text.find("row").unwrap());
        assert!(at("a/tests/b.rs", "/// row 1"));
        assert!(!at("a/tests/b.rs", "//! row 1"));
        assert!(!at("a/src/b.rs", "/// row 1"));
        assert!(at("a/src/b.rs", "#[cfg(test)]\nmod tests { // row 1"));
        assert!(!at("a/tests/README.md", "row 1"));
    }

    #[test]
    fn a_case_is_called_a_case() {
        let targets = Targets::parse("", "| L9 | U |\n| R1 | U |\n");
        let bare = |text| bare_cases(&source("a.rs", text), &targets);
        assert_eq!(bare("\n    /// L9: x\n"), ["a.rs:2: write \"case L9\""]);
        assert_eq!(bare("/// R1, R2.\n").len(), 1);
        assert_eq!(bare("/// Case R1: S5 is\n//! A0 is a pin\n// N\n"), [""; 0]);
    }

    #[test]
    fn files_that_a_document_names_exist() {
        let files = [
            "crates/x/Cargo.toml",
            "crates/x/src/a/b.rs",
            "crates/y/src/c.rs",
            "docs/d.md",
        ];
        let files = files.iter().map(|&file| file.to_owned()).collect();
        let missing = |text| missing_files(&source("docs/d.md", text), &files);
        assert_eq!(
            missing("`a/b.rs` `b.rs` `c.rs` [d](d.md#x) [x](../crates/x) [w](https://a/b.md)"),
            [""; 0]
        );
        assert_eq!(
            missing("* `x`: `b.rs`,\n  `c.rs`\n* `c.rs`"),
            ["docs/d.md:2: there is no c.rs"]
        );
        assert_eq!(missing("[e](e.md)"), ["docs/d.md:1: there is no e.md"]);
        assert_eq!(missing("```\n`e.rs`\n```\n`e.rs`"), ["docs/d.md:4: there is no e.rs"]);
    }
}
