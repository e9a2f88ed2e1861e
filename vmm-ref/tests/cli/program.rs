// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running the program and looking at what it leaves.

use std::process::{Command, Output};

use serde_json::Value;

/// The program with arguments, separated by spaces.
pub fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-ref"));
    command.args(arguments.split_whitespace());
    command
}

/// What a run that has ended leaves.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs it to its end.
pub fn run(arguments: &str) -> Ended {
    command(arguments).output().unwrap().into()
}

/// Runs it with `--json`, and returns the status and the object.
pub fn run_json(arguments: &str) -> (i32, Value) {
    let ended = run(&format!("{arguments} --json"));
    assert_eq!(ended.stderr, "", "{arguments}");
    let object = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{arguments}: {error}: {ended:?}"));
    (ended.status.unwrap(), object)
}

/// Asserts that it was refused with one line that contains `cause`, and with nothing on standard output.
pub fn assert_refused(what: &str, ended: &Ended, cause: &str) {
    assert_eq!(ended.status, Some(2), "{what}: {ended:?}");
    assert_eq!(ended.stdout, "", "{what}");
    assert_eq!(ended.stderr.matches('\n').count(), 1, "{what}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("vmm-ref: "), "{what}: {}", ended.stderr);
    assert!(ended.stderr.contains(cause), "{what}: {}", ended.stderr);
}
