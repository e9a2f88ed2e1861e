// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs one test program: its output passes through as it comes, and is counted on the way.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::tally::{Parser, Tally};

/// One test program may take this long, so that one that hangs does not hide the others.
pub const LIMIT: Duration = Duration::from_secs(300);

/// `command` for at most [`LIMIT`]; its arguments are still to be added.
pub fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited
        // In the foreground it stays in our process group, and Ctrl-C reaches the test.
        .args(["--foreground", "-k", "5", &LIMIT.as_secs().to_string()])
        .arg(command.get_program());
    limited
}

/// What the exit status of timeout(1) with that limit around a test program means.
pub fn how(status: i32, limit: Duration) -> String {
    match status {
        124 | 137 => format!("took longer than {} s", limit.as_secs()),
        129.. => format!("killed by signal {}", status - 128),
        _ => format!("exit status {status}"),
    }
}

/// Runs `command` to its end and counts what it reports under the name `suite`.
///
/// Its standard output appears on ours as it comes; standard error is left to it. Standard input is empty.
pub fn run(suite: &str, mut command: Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let mut output = child.stdout.take().context("no pipe to the test program")?;
    let mut parser = Parser::new(suite);
    let mut buffer = [0; 8192];
    loop {
        let count = match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("cannot read the test program's output"),
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(&buffer[..count])?;
        stdout.flush()?;
        parser.feed(&buffer[..count]);
    }
    let status = child.wait().context("cannot wait for the test program")?;
    let how = status
        .code()
        .map_or_else(|| status.to_string(), |status| how(status, LIMIT));
    Ok(parser.finish(status.success(), &how))
}
