// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ctrl-C, and what it leaves.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::program::command;

/// Sends `signal` once the run is under way. Returns what was printed after that, and the status.
fn interrupted(arguments: &str, signal: Signal) -> (String, Option<i32>) {
    let mut child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("composed") {
        line.clear();
        assert!(
            stdout.read_line(&mut line).unwrap() > 0,
            "it ended before it composed anything"
        );
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
    (rest, child.wait().unwrap().code())
}

fn assert_summary(signal: Signal) {
    let (rest, status) = interrupted("run --count 1000000000", signal);
    assert_eq!(status, Some(130), "{rest}");
    assert!(rest.contains("lost 0, spurious 0"), "{rest}");
    let closing = rest.lines().last().unwrap();
    assert!(closing.starts_with("interrupted: "), "{rest}");
    assert!(
        closing.contains(" of 1000000000 round trips, nothing lost, nothing spurious"),
        "{rest}"
    );
}

pub fn ctrl_c() {
    assert_summary(Signal::INT);
}

pub fn sigterm() {
    assert_summary(Signal::TERM);
}

pub fn during_the_control() {
    let (rest, status) = interrupted("run --controller pic --no-guest-eoi", Signal::INT);
    // The round trip cannot be finished; the control's own limit ends it.
    assert_eq!(status, Some(130), "{rest}");
    assert!(
        rest.lines().last().unwrap().starts_with("interrupted: 0 of 10000"),
        "{rest}"
    );
}
