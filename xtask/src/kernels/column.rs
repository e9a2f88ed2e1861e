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
    /// The commit that was tested.
    pub commit: String,
    /// The tests, `<suite>::<test>`. A failure that belongs to no test has the failure's text.
    pub tests: BTreeMap<String, Verdict>,
}

impl Column {
    /// The results of a run.
    pub fn new(kernel: &str, machine: String, commit: String, tally: &Tally) -> Self {
        let mut tests = BTreeMap::new();
        // Later ones replace earlier ones: a test that differs is also among the passed tests.
        tests.extend(tally.passes().iter().map(|test| (test.clone(), Verdict::Pass)));
        let skips = tally.skipped().iter().cloned();
        tests.extend(skips.map(|(test, why)| (test, Verdict::Skip(why))));
        let differing = tally.differing().iter().cloned();
        tests.extend(differing.map(|(test, what)| (test, Verdict::Differs(what))));
        tests.extend(tally.failed().iter().map(|test| (test.clone(), Verdict::Fail)));
        Self {
            kernel: kernel.to_owned(),
            machine,
            commit,
            tests,
        }
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
            "commit": self.commit,
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
            commit: text("commit")?,
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
            ("s::row_2_b", Verdict::Skip("needs Linux 6.4".to_owned())),
            ("s::row_3_c", Verdict::Differs("accepted".to_owned())),
            ("s: did not run", Verdict::Fail),
        ];
        let column = Column {
            kernel: "6.1".to_owned(),
            machine: "m".to_owned(),
            commit: "c".to_owned(),
            tests: verdicts.map(|(test, verdict)| (test.to_owned(), verdict)).into(),
        };
        assert_eq!(Column::parse(&column.json()), Some(column.clone()));
        assert_eq!((column.count("pass"), column.count("FAIL")), (1, 1));
        assert_eq!(Column::parse(&json!({ "kernel": "6.1" })), None);
    }
}
