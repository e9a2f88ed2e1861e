// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a person at a terminal gets.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::program::command;

/// Runs it with a terminal for standard output and standard error, and returns what the terminal got and the status.
fn at_a_terminal(arguments: &str, environment: &[(&str, &str)]) -> (String, i32) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize {
        ws_row: 24,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let terminal = || Stdio::from(OpenOptions::new().read(true).write(true).open(name).unwrap());
    let mut child = command(arguments)
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(terminal())
        .stderr(terminal())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    // The last close of the other side ends this with EIO.
    let _ = File::from(master).read_to_end(&mut seen);
    let status = child.wait().unwrap().code().unwrap();
    (String::from_utf8_lossy(&seen).into_owned(), status)
}

pub fn colour_and_bar() {
    let (seen, status) = at_a_terminal("run --count 5000", &[]);
    assert_eq!(status, 0, "{}", seen.escape_debug());
    assert!(
        seen.contains("\x1b[1m\x1b[32mall well: 5000 of 5000"),
        "{}",
        seen.escape_debug()
    );
    assert!(seen.contains("/5,000 round trips"), "{}", seen.escape_debug());
}

pub fn no_color() {
    let (seen, status) = at_a_terminal("run --count 100", &[("NO_COLOR", "1")]);
    assert_eq!(status, 0, "{}", seen.escape_debug());
    assert!(!seen.contains("\x1b[32m"), "{}", seen.escape_debug());
    assert!(seen.contains("all well: 100 of 100"), "{}", seen.escape_debug());
}
