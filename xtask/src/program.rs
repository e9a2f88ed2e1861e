// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs one test program, passes its output through, and counts the results.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::progress::{Meter, Spent, TICK, family};
use crate::tally::{Parser, Tally};

/// The limit of a test program's own time, so that a program that hangs does not hide the results of the others.
pub const LIMIT: Duration = Duration::from_secs(600);

/// The limit of a test program's CPU time, which adds up all threads and so may exceed its own time.
const CPU_LIMIT: Duration = Duration::from_secs(1200);

/// The limit that a program has exceeded, if any.
fn excess(spent: Spent, limit: Duration, cpu_limit: Duration) -> Option<String> {
    if spent.own >= limit {
        Some(format!("took more than {} s of its own time: {spent}", limit.as_secs()))
    } else if spent.cpu >= cpu_limit {
        Some(format!("took more than {} s on a CPU: {spent}", cpu_limit.as_secs()))
    } else {
        None
    }
}

/// Runs `command` to its end and counts its results under the name `suite`.
///
/// The program's standard output is copied to the standard output of this process; it inherits standard error, and its
/// standard input is empty. A program that exceeds a limit has failed, and is ended with all processes that it has
/// started.
pub fn run(suite: &str, command: Command) -> Result<Tally> {
    run_within(suite, command, LIMIT, CPU_LIMIT)
}

fn run_within(suite: &str, mut command: Command, limit: Duration, cpu_limit: Duration) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let mut output = child.stdout.take().context("no pipe to the test program")?;
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        loop {
            let piece = match output.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => Ok(buffer[..count].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_end = piece.is_err();
            if sender.send(piece).is_err() || is_end {
                break;
            }
        }
    });
    let mut parser = Parser::new(suite);
    let mut meter = Meter::new(child.id());
    let mut ended = None;
    loop {
        match pieces.recv_timeout(TICK) {
            Ok(piece) => {
                let piece = piece.context("cannot read the test program's output")?;
                let mut stdout = io::stdout().lock();
                stdout.write_all(&piece)?;
                stdout.flush()?;
                parser.feed(&piece);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if ended.is_none() {
            ended = meter.tick().and_then(|spent| excess(spent, limit, cpu_limit));
            if ended.is_some() {
                family(child.id()).into_iter().for_each(kill);
            }
        }
    }
    let spent = meter.look();
    let status = child.wait().context("cannot wait for the test program")?;
    let is_good = status.success() && ended.is_none();
    let mut tally = parser.finish(is_good, &ended.unwrap_or_else(|| status.to_string()));
    tally.took(suite, spent);
    Ok(tally)
}

fn kill(process: u32) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    // A process that has already ended needs no signal.
    let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn ended(script: &str, limit: Duration, cpu_limit: Duration) -> String {
        run_within("s", shell(script), limit, cpu_limit).unwrap().to_string()
    }

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn one_that_sleeps_for_ever_is_ended_with_its_children() {
        // The child would hold the output open.
        let text = ended("echo running 1 test; echo test a ...; sleep 1000 & wait", SHORT, LONG);
        assert!(text.contains("took more than 0 s of its own time"), "{text}");
        assert!(text.contains("0 passed, 1 failed"), "{text}");
    }

    #[test]
    fn one_that_never_rests_is_ended() {
        let text = ended("while :; do :; done", LONG, SHORT);
        assert!(text.contains("s: took more than 0 s on a CPU"), "{text}");
    }

    #[test]
    fn one_that_ends_by_itself_is_left_alone() {
        assert!(ended("echo hello", LONG, LONG).ends_with("1 passed, 0 failed, 0 skipped\n"));
        assert!(ended("exit 3", LONG, LONG).contains("s: exit status: 3\n"));
    }
}
