// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list: the rows and cases of `docs/conformance.md`, and how the names of tests cite them.

/// The document.
pub const LIST: &str = "docs/conformance.md";

/// One row or case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// "row 83" or "case E8".
    pub id: String,
    /// The heading that the entry is under.
    pub section: String,
    /// The cells between the number and the place.
    pub text: Vec<String>,
    /// What the entry runs on, and why it has no test if it cannot have one.
    pub place: String,
}

impl Entry {
    /// Whether a test of the entry asks something of a kernel: K, E or V is among its places.
    pub fn asks_a_kernel(&self) -> bool {
        let letters = self.place.split(';').next().unwrap_or_default();
        letters.split_whitespace().any(|place| ["K", "E", "V"].contains(&place))
    }
}

/// All entries of the list's text, in their order.
pub fn entries(list: &str) -> Vec<Entry> {
    let (mut found, mut section) = (Vec::new(), String::new());
    for line in list.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut section);
        }
        if !line.starts_with('|') {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, text @ .., place] = cells.as_slice() else {
            continue;
        };
        let kind = match number.as_bytes() {
            [b'0'..=b'9', ..] => "row",
            [b'A'..=b'Z', digits @ ..] if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => "case",
            _ => continue,
        };
        found.push(Entry {
            id: format!("{kind} {number}"),
            section: section.clone(),
            text: text.iter().map(|&cell| cell.to_owned()).collect(),
            place: (*place).to_owned(),
        });
    }
    found
}

/// Whether `id` is a number of the `kind` "law", "row" or "case".
pub fn is_id(kind: &str, id: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    match kind {
        "case" => id.starts_with(|c: char| c.is_ascii_uppercase()) && digits(&id[1..]),
        _ => digits(id),
    }
}

/// The ids between two ids of one kind and letter, without these two. Not every one of them needs to be in the list.
pub fn between(first: &str, last: &str) -> Vec<String> {
    let split = |id: &str| {
        let at = id.find(|c: char| c.is_ascii_digit())?;
        Some((id[..at].to_owned(), id[at..].parse::<u32>().ok()?))
    };
    match (split(first), split(last)) {
        (Some((prefix, first)), Some((other, last))) if prefix == other => {
            (first + 1..last).map(|number| format!("{prefix}{number}")).collect()
        }
        _ => Vec::new(),
    }
}

/// The ids in the name of a test: `row_05_and_06_..`, `row_69_.._and_row_13_..`, `case_l6_l7_..`, `case_o1_to_o6_..`.
pub fn named(name: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut kind, mut range) = ("", false);
    for part in name.split('_') {
        match part {
            "row" | "case" => (kind, range) = (if part == "row" { "row" } else { "case" }, false),
            "and" if !kind.is_empty() => {}
            "to" if !kind.is_empty() => range = true,
            part if !kind.is_empty() && is_id(kind, &part.to_ascii_uppercase()) => {
                let id = part.to_ascii_uppercase();
                let id = format!("{kind} {}", id.trim_start_matches('0'));
                if std::mem::take(&mut range) {
                    let first = found.last().cloned().unwrap_or_default();
                    found.extend(between(&first, &id));
                }
                found.push(id);
            }
            _ => kind = "",
        }
    }
    found
}

/// Words with their offsets: letters, digits and underscores.
pub fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c| !is_part(c))
        .filter(|word| !word.is_empty())
        .map(move |word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_their_section_and_place() {
        let list =
            "## A. Levels\n| row | x | where |\n|---|---|---|\n| 1 | a | b | K U |\n## B\n| E3 | U; no test: x |\n";
        let entries = entries(list);
        let ids: Vec<_> = entries
            .iter()
            .map(|entry| (entry.id.as_str(), entry.section.as_str()))
            .collect();
        assert_eq!(ids, [("row 1", "A. Levels"), ("case E3", "B")]);
        assert_eq!(entries[0].text, ["a", "b"]);
        assert!(entries[0].asks_a_kernel() && !entries[1].asks_a_kernel());
    }
}
