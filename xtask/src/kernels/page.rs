// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table as one page of HTML that needs no other file.

use super::table::{COMMAND, Cell, Row, Table};

/// The page.
pub fn html(table: &Table) -> String {
    let mut page = String::from(HEAD);
    page += &format!("<p>Made by <code>{COMMAND}</code>.</p>\n<ul>\n");
    for column in &table.columns {
        page += &format!(
            "<li><b>{}</b>: {}; commit {}: {} tests passed, {} with another answer than the list, {} failed, {} \
             skipped</li>\n",
            escape(&column.kernel),
            escape(&column.machine),
            escape(&column.commits()),
            column.count("pass") + column.count("differs"),
            column.count("differs"),
            column.count("FAIL"),
            column.count("skip"),
        );
    }
    page += "</ul>\n<input type=\"checkbox\" id=\"uneven\"><label for=\"uneven\"> only what is not a plain pass \
             everywhere</label>\n<table>\n<thead><tr><th>row</th><th>what the list says</th>";
    for column in &table.columns {
        page += &format!("<th>{}</th>", escape(&column.kernel));
    }
    page += "</tr></thead>\n";
    let mut section = "";
    for row in &table.rows {
        if row.entry.section != section {
            section = &row.entry.section;
            let columns = table.columns.len() + 2;
            page += &format!(
                "<tr class=\"section\"><th colspan=\"{columns}\">{}</th></tr>\n",
                escape(section)
            );
        }
        page += &line(row);
    }
    page += "</table>\n";
    let others = table.other_tests();
    if !others.is_empty() {
        page += "<h2>Tests that name no row, and did not pass everywhere</h2>\n<table>\n";
        for (test, verdicts) in others {
            page += &format!("<tr><td>{}</td>", escape(test));
            for verdict in verdicts {
                let cell = verdict.map_or_else(
                    || Cell {
                        state: "-",
                        notes: Vec::new(),
                    },
                    |verdict| Cell {
                        state: verdict.word(),
                        notes: vec![verdict.why().to_owned()],
                    },
                );
                page += &shown(&cell);
            }
            page += "</tr>\n";
        }
        page += "</table>\n";
    }
    page + "</body></html>\n"
}

fn line(row: &Row) -> String {
    let even = row
        .cells
        .iter()
        .all(|cell| cell.state == "pass" && cell.notes.is_empty());
    let class = if even { "even" } else { "uneven" };
    let text: Vec<String> = row
        .entry
        .text
        .iter()
        .map(|cell| escape(&cell.replace('`', "")))
        .collect();
    let mut line = format!("<tr class=\"{class}\"><td>{}</td><td>", escape(&row.entry.id));
    line += &text.join(" &#8594; ");
    line += "</td>";
    line.extend(row.cells.iter().map(shown));
    line + "</tr>\n"
}

fn shown(cell: &Cell) -> String {
    let class = match cell.state {
        "-" => "none",
        state => state,
    };
    let notes = escape(&cell.notes.join("; "));
    format!(
        "<td class=\"{class}\"><b>{}</b> <small>{notes}</small></td>",
        cell.state
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Interrupts by kernel</title>
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8884; padding: .25em .5em; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: Canvas; }
td:first-child { white-space: nowrap; }
.section th { padding-top: 1.2em; }
.pass b { color: light-dark(#17692f, #6fd08c); }
.differs { background: light-dark(#fff1c9, #4a3a00); }
.skip, .none { background: light-dark(#e9ecf1, #30343b); }
.FAIL { background: light-dark(#ffd9d6, #6b1512); }
#uneven:checked ~ table .even { display: none; }
</style></head><body>
<h1>Interrupts by kernel</h1>
<p>Rows of docs/conformance.md on each kernel. <b>pass</b>: every test of the row that ran passed. <b>differs</b>: this kernel has
another answer than the list, and the test knows that answer. <b>skip</b>: no test of the row ran, and why. <b>-</b>: no test of the
suite names the row.</p>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::entries;

    #[test]
    fn text_of_the_list_and_of_tests_is_escaped() {
        let row = Row {
            entry: entries("| 1 | a < `b` | c | K |\n").remove(0),
            cells: vec![Cell {
                state: "differs",
                notes: vec!["<b> & \"c\"".to_owned()],
            }],
        };
        assert_eq!(
            line(&row),
            "<tr class=\"uneven\"><td>row 1</td><td>a &lt; b &#8594; c</td>\
             <td class=\"differs\"><b>differs</b> <small>&lt;b&gt; &amp; &quot;c&quot;</small></td></tr>\n"
        );
    }
}
