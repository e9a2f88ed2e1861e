// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab suite found on one kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tally::Tally;

/// How a test ended on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// It did not run, and why.
    Skip(String),
    /// The kernel has another answer than the conformance list: the answer.
    Differs(String),
    Fail,
}

impl Verdict {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip(_) => "skip",
            Self::Differs(_) => "differs",
            Self::Fail => "FAIL",
        }
    }

    /// The reason, or the other answer.
    pub fn why(&self) -> &str {
        match self {
            Self::Skip(why) | Self::Differs(why) => why,
            Self::Pass | Self::Fail => "",
        }
    }

    fn parse(word: &str, why: &str) -> Option<Self> {
        let verdicts = [
            Self::Pass,
            Self::Skip(why.to_owned()),
            Self::Differs(why.to_owned()),
            Self::Fail,
        ];
        verdicts.into_iter().find(|verdict| verdict.word() == word)
    }
}

/// One run of the lab suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The kernel's short name, "6.12".
    pub kernel: String,
    /// The versions of the kernel and of the emulator.
    pub machine: String,
    /// The commit that each test program was built from.
    pub commits: BTreeMap<String, String>,
    /// The tests, `<program>::<test>`. A failure that belongs to no test has the failure's text.
    pub tests: BTreeMap<String, Verdict>,
}

impl Column {
    /// The results of a run of `programs`.
    pub fn new(kernel: &str, machine: String, programs: &[String], commit: &str, tally: &Tally) -> Self {
        let mut tests = BTreeMap::new();
        // Later ones replace earlier ones: a test that one CPU skips may pass on two, and one that differs has passed.
        let skips = tally.skipped().iter().cloned();
        tests.extend(skips.map(|(test, why)| (test, Verdict::Skip(why))));
        tests.extend(tally.passes().iter().map(|test| (test.clone(), Verdict::Pass)));
        let differing = tally.differing().iter().cloned();
        tests.extend(differing.map(|(test, what)| (test, Verdict::Differs(what))));
        tests.extend(tally.failed().iter().map(|test| (test.clone(), Verdict::Fail)));
        Self {
            kernel: kernel.to_owned(),
            machine,
            commits: programs
                .iter()
                .map(|program| (program.clone(), commit.to_owned()))
                .collect(),
            tests,
        }
    }

    /// Adds the results of an earlier run: those of the programs that this run does not have.
    #[must_use]
    pub fn over(mut self, earlier: Self) -> Self {
        let program = |test: &str| test.split(':').next().unwrap_or_default().to_owned();
        let tests = earlier.tests.into_iter();
        self.tests
            .extend(tests.filter(|(test, _)| !self.commits.contains_key(&program(test))));
        for (program, commit) in earlier.commits {
            self.commits.entry(program).or_insert(commit);
        }
        self
    }

    /// The commits that were tested, each once.
    pub fn commits(&self) -> String {
        let mut commits: Vec<&str> = self.commits.values().map(String::as_str).collect();
        commits.sort_unstable();
        commits.dedup();
        commits.join(", ")
    }

    /// The number of tests with this word.
    pub fn count(&self, word: &str) -> usize {
        self.tests.values().filter(|verdict| verdict.word() == word).count()
    }

    /// The column as JSON.
    pub fn json(&self) -> Value {
        let tests = self.tests.iter().map(|(test, verdict)| {
            let value = match verdict.why() {
                "" => json!({ "state": verdict.word() }),
                why => json!({ "state": verdict.word(), "why": why }),
            };
            (test.clone(), value)
        });
        json!({
            "kernel": self.kernel,
            "machine": self.machine,
            "commits": self.commits,
            "tests": Value::Object(tests.collect()),
        })
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
        let tests = value.get("tests")?.as_object()?.iter().map(|(test, value)| {
            let why = value.get("why").and_then(Value::as_str).unwrap_or_default();
            Some((test.clone(), Verdict::parse(value.get("state")?.as_str()?, why)?))
        });
        Some(Self {
            kernel: text("kernel")?,
            machine: text("machine")?,
            commits: serde_json::from_value(value.get("commits")?.clone()).ok()?,
            tests: tests.collect::<Option<_>>()?,
        })
    }

    /// Writes the column to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, self.json().to_string()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the column of the last run; `None` when there was none.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let column = serde_json::from_str(&text).ok().as_ref().and_then(Self::parse);
        let context = || format!("{} is not a column of the table; remove it", path.display());
        Ok(Some(column.with_context(context)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_survives_its_file() {
        let verdicts = [
            ("s::row_1_a", Verdict::Pass),
            ("s::row_2_b", Verdict::Skip("needs Linux 6.3".to_owned())),
            ("s::row_3_c", Verdict::Differs("accepted".to_owned())),
            ("s: did not run", Verdict::Fail),
        ];
        let column = Column {
            kernel: "6.1".to_owned(),
            machine: "m".to_owned(),
            commits: [("s".to_owned(), "c".to_owned())].into(),
            tests: verdicts.map(|(test, verdict)| (test.to_owned(), verdict)).into(),
        };
        assert_eq!(Column::parse(&column.json()), Some(column.clone()));
        assert_eq!((column.count("pass"), column.count("FAIL")), (1, 1));
        assert_eq!(Column::parse(&json!({ "kernel": "6.1" })), None);
    }

    #[test]
    fn a_run_of_some_programs_replaces_these_programs() {
        let column = |commit: &str, tests: &[(&str, Verdict)]| Column {
            kernel: "6.1".to_owned(),
            machine: "m".to_owned(),
            commits: tests
                .iter()
                .filter_map(|(test, _)| Some((test.split_once(':')?.0.to_owned(), commit.to_owned())))
                .collect(),
            tests: tests
                .iter()
                .map(|(test, verdict)| ((*test).to_owned(), verdict.clone()))
                .collect(),
        };
        let earlier = [
            ("p/s::row_1_gone", Verdict::Pass),
            ("p/s: did not run", Verdict::Fail),
            ("p/t::row_2_b", Verdict::Pass),
        ];
        let merged = column("new", &[("p/s::row_1_a", Verdict::Fail)]).over(column("old", &earlier));
        let tests: Vec<_> = merged.tests.keys().map(String::as_str).collect();
        assert_eq!(tests, ["p/s::row_1_a", "p/t::row_2_b"]);
        assert_eq!(merged.commits(), "new, old");
    }
}
