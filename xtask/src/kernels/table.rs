// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table: rows of the conformance list by kernel, as text and as JSON.

use std::fmt;

use serde_json::{Value, json};

use super::column::{Column, Verdict};
use crate::conformance::{Entry, named, words};

/// One row on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The worst verdict of the row's tests: fail, differs, pass, skip. "-" when none of them ran or was skipped.
    pub state: &'static str,
    /// The reasons and other answers of the row's tests.
    pub notes: Vec<String>,
}

/// One row on each kernel.
#[derive(Clone, Debug)]
pub struct Row {
    pub entry: Entry,
    pub cells: Vec<Cell>,
}

/// All rows that ask something of a kernel, or that a test of the suite names.
#[derive(Debug)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl Table {
    /// Sorts the tests of `columns` by the rows that they name.
    pub fn new(entries: &[Entry], columns: Vec<Column>) -> Self {
        let rows = entries.iter().map(|entry| Row {
            entry: entry.clone(),
            cells: columns.iter().map(|column| cell(&entry.id, column)).collect(),
        });
        let belongs = |row: &Row| row.entry.asks_a_kernel() || row.cells.iter().any(|cell| cell.state != NONE);
        Self {
            rows: rows.filter(belongs).collect(),
            columns,
        }
    }

    /// The tests that name no row and did not pass on every kernel: the test, and its verdict on each kernel.
    pub fn other_tests(&self) -> Vec<(&str, Vec<Option<&Verdict>>)> {
        let mut names: Vec<&str> = self
            .columns
            .iter()
            .flat_map(|column| column.tests.keys())
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .filter(|name| ids(name).is_empty())
            .map(|name| {
                (
                    name,
                    self.columns
                        .iter()
                        .map(|column| column.tests.get(name))
                        .collect::<Vec<_>>(),
                )
            })
            .filter(|(_, verdicts)| verdicts.iter().flatten().any(|verdict| **verdict != Verdict::Pass))
            .collect()
    }

    /// The table and the tests that it is made of.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(&row.cells).map(|(column, cell)| {
                let value = json!({ "state": cell.state, "notes": cell.notes });
                (column.kernel.clone(), value)
            });
            let Entry {
                id,
                section,
                text,
                place,
            } = &row.entry;
            json!({
                "row": id,
                "section": section,
                "text": text,
                "where": place,
                "kernels": Value::Object(cells.collect()),
            })
        });
        json!({
            "command": COMMAND,
            "columns": self.columns.iter().map(Column::json).collect::<Vec<_>>(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

/// The command that makes the table.
pub const COMMAND: &str = "cargo xtask test --kernels";

const NONE: &str = "-";

/// The ids that the name of a test, or the text of a failure, cites.
fn ids(test: &str) -> Vec<String> {
    words(test).flat_map(|(_, word)| named(word)).collect()
}

fn cell(id: &str, column: &Column) -> Cell {
    let tests = column
        .tests
        .iter()
        .filter(|(test, _)| ids(test).iter().any(|cited| cited == id));
    let verdicts: Vec<&Verdict> = tests.map(|(_, verdict)| verdict).collect();
    let worst = ["FAIL", "differs", "pass", "skip"]
        .into_iter()
        .find(|word| verdicts.iter().any(|verdict| verdict.word() == *word));
    let mut notes: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict.why().is_empty())
        .map(|verdict| match verdict {
            Verdict::Skip(why) if worst != Some("skip") => format!("a part is skipped: {why}"),
            verdict => verdict.why().to_owned(),
        })
        .collect();
    notes.sort();
    notes.dedup();
    Cell {
        state: worst.unwrap_or(NONE),
        notes,
    }
}

/// One line for each row, the numbered notes, the other tests, and the machines.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WIDTH: usize = 14;
        let mut notes: Vec<&str> = Vec::new();
        write!(f, "{:9}", "")?;
        for column in &self.columns {
            write!(f, " {:WIDTH$}", column.kernel)?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:9}", row.entry.id)?;
            for cell in &row.cells {
                let mut text = cell.state.to_owned();
                for note in &cell.notes {
                    let number = notes.iter().position(|known| known == note).unwrap_or_else(|| {
                        notes.push(note);
                        notes.len() - 1
                    });
                    text += &format!(" [{}]", number + 1);
                }
                write!(f, " {text:WIDTH$}")?;
            }
            writeln!(f)?;
        }
        for (number, note) in notes.iter().enumerate() {
            writeln!(f, "[{}] {note}", number + 1)?;
        }
        let others = self.other_tests();
        if !others.is_empty() {
            writeln!(f, "\ntests that name no row, and did not pass everywhere:")?;
        }
        for (test, verdicts) in others {
            writeln!(f, "{test}")?;
            for (column, verdict) in self.columns.iter().zip(verdicts) {
                let (word, why) = verdict.map_or((NONE, ""), |verdict| (verdict.word(), verdict.why()));
                writeln!(f, "  {}: {word} {why}", column.kernel)?;
            }
        }
        writeln!(f, "\n{COMMAND}")?;
        for (index, column) in self.columns.iter().enumerate() {
            let rows = |state: &str| self.rows.iter().filter(|row| row.cells[index].state == state).count();
            let (kernel, machine, commit) = (&column.kernel, &column.machine, column.commits());
            writeln!(
                f,
                "{kernel}: {} rows pass, {} differ, {} are skipped, {} fail, {} have no test here; {machine}; {commit}",
                rows("pass"),
                rows("differs"),
                rows("skip"),
                rows("FAIL"),
                rows(NONE),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::entries;

    fn table() -> Table {
        let list = "## A\n| 1 | a | K |\n| 2 | b | U |\n| 3 | c | V |\n| 4 | d | E |\n";
        let column = |kernel: &str, tests: &[(&str, Verdict)]| Column {
            kernel: kernel.to_owned(),
            machine: "m".to_owned(),
            commits: [("s".to_owned(), "c".to_owned())].into(),
            tests: tests
                .iter()
                .map(|(test, verdict)| ((*test).to_owned(), verdict.clone()))
                .collect(),
        };
        let old = column(
            "6.1",
            &[
                ("s::row_1_a", Verdict::Pass),
                ("t::row_01_b", Verdict::Differs("accepted".to_owned())),
                ("s::row_4_a", Verdict::Skip("old".to_owned())),
                ("s::other", Verdict::Fail),
            ],
        );
        let new = column(
            "7.3",
            &[
                ("s::row_1_a", Verdict::Pass),
                ("s: ended during k/row_4_a before its summary", Verdict::Fail),
                ("s::other", Verdict::Pass),
                ("s::all_pass", Verdict::Pass),
            ],
        );
        Table::new(&entries(list), vec![old, new])
    }

    #[test]
    fn the_worst_test_of_a_row_speaks_for_it() {
        let table = table();
        let states: Vec<_> = table
            .rows
            .iter()
            .map(|row| (row.entry.id.as_str(), row.cells[0].state, row.cells[1].state))
            .collect();
        // Row 2 asks nothing of a kernel.
        assert_eq!(
            states,
            [
                ("row 1", "differs", "pass"),
                ("row 3", "-", "-"),
                ("row 4", "skip", "FAIL")
            ]
        );
    }

    #[test]
    fn the_text_has_the_reasons_and_the_other_tests() {
        let text = table().to_string();
        assert!(text.contains("row 1     differs [1]    pass"), "{text}");
        assert!(text.contains("[1] accepted\n[2] old\n"), "{text}");
        assert!(text.contains("s::other\n  6.1: FAIL \n  7.3: pass \n"), "{text}");
        assert!(!text.contains("all_pass"), "{text}");
        assert!(
            text.contains("7.3: 1 rows pass, 0 differ, 0 are skipped, 1 fail, 1 have no test here; m; c"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_each_row_and_each_test() {
        let json = table().json();
        assert_eq!(json.pointer("/rows/0/kernels/6.1/state"), Some(&json!("differs")));
        assert_eq!(json.pointer("/columns/1/tests/s::all_pass/state"), Some(&json!("pass")));
    }
}
