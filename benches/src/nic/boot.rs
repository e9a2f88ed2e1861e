// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One boot of the guest, and what was measured in it.
//!
//! The guest (xtask/src/lab/guest-init.sh) says where it is by connecting to port 7000 of the neighbour, and goes on when
//! the connection is closed. All durations but the single pings' are thereby measured with the host's clock.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::host::{Counts, ExitCounter};
use super::vmm::Vmm;
use crate::Result;
use crate::results::Spread;

/// The guest connects before and after the timed pings, before and after the counted pings, and before, between and after
/// the two halves of the transfer.
const WORK: &str = "work=cards,ping,ping,transfer";

/// What is moved each way: enough for a rate, and a boot of the VMM takes longer.
pub const MIB_MOVED: u32 = 4;

/// What was measured in one boot.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The median of the pings.
    pub ping_us: f64,
    /// From the start of the VMM to the guest's first connection.
    pub boot_s: f64,
    /// From the neighbour to the guest.
    pub receive_mib_s: f64,
    /// From the guest to the neighbour.
    pub send_mib_s: f64,
    /// Exits of the counted pings by reason.
    pub exits: BTreeMap<String, u64>,
    /// Counts of the timed pings.
    pub counts: Counts,
}

/// A VMM that is killed when its boot is over, for whatever reason.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when the VMM has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection of the guest and its time; `None` when the VMM has closed its console.
type Event = Option<(Instant, TcpStream)>;

/// The meetings with all guests.
#[derive(Debug)]
pub struct Meetings {
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Meetings {
    /// Listens at port 7000 until the program ends.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn new() -> Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", 7000)).context("port 7000")?;
        let (sender, events) = mpsc::channel();
        let connections = sender.clone();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(io::Result::ok) {
                // The receiver lives as long as this program measures.
                let _ = connections.send(Some((Instant::now(), connection)));
            }
        });
        Ok(Self { sender, events })
    }

    /// Waits for the guest's next connection, does `then`, and closes the connection. Returns the times of both.
    fn meet(&self, then: impl FnOnce() -> Result<()>) -> Result<(Instant, Instant)> {
        let Ok(Some((at, connection))) = self.events.recv() else {
            // The end is expected once more, by `forget`.
            let _ = self.sender.send(None);
            bail!("the VMM ended early");
        };
        then()?;
        drop(connection);
        Ok((at, Instant::now()))
    }

    /// Waits until the VMM has closed its console.
    fn forget(&self) {
        while let Ok(Some(_)) = self.events.recv() {}
    }
}

/// Boots the guest with `vmm`, once. `sum` is the checksum of what is moved.
///
/// # Errors
/// When the VMM does not start, the guest ends early, or a byte or a ping is lost. The error has what the VMM said.
pub fn boot(vmm: &Vmm, pings: u32, sum: &str, meetings: &Meetings) -> Result<Measured> {
    let mut command = vmm.command(&format!("{WORK} pings={pings} mib={MIB_MOVED}"))?;
    let start = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut running = Running(child.with_context(|| format!("cannot start {}", vmm.name))?);
    let (stdout, stderr) = (running.0.stdout.take(), running.0.stderr.take());
    let said = thread::spawn(move || text(stderr));
    let end = meetings.sender.clone();
    let console = thread::spawn(move || {
        let text = text(stdout);
        // The receiver lives as long as this program measures.
        let _ = end.send(None);
        text
    });
    let phases = phases(meetings);
    if phases.is_err() {
        drop(running.0.kill());
    }
    drop(running.0.wait());
    meetings.forget();
    let (console, said) = (console.join().unwrap_or_default(), said.join().unwrap_or_default());
    let phases = phases.with_context(|| last_lines(&format!("{console}{said}")))?;
    let sums = checksums(&console);
    ensure!(
        sums == Some((sum, sum)),
        "the transfer differs: {}",
        last_lines(&console)
    );
    let times = ping_times(&console);
    // Both phases print their times.
    ensure!(
        times.len() == 2 * pings as usize,
        "{} of {} pings were answered",
        times.len(),
        2 * pings
    );
    let rate = |time: Duration| f64::from(MIB_MOVED) / time.as_secs_f64();
    Ok(Measured {
        ping_us: Spread::of(&times[..pings as usize]).median,
        boot_s: phases.first.duration_since(start).as_secs_f64(),
        receive_mib_s: rate(phases.receive),
        send_mib_s: rate(phases.send),
        exits: phases.exits,
        counts: phases.counts,
    })
}

struct Phases {
    first: Instant,
    counts: Counts,
    exits: BTreeMap<String, u64>,
    receive: Duration,
    send: Duration,
}

fn phases(meetings: &Meetings) -> Result<Phases> {
    let (mut before, mut after) = (Counts::default(), Counts::default());
    let (first, _) = meetings.meet(|| Counts::read().map(|counts| before = counts))?;
    meetings.meet(|| Counts::read().map(|counts| after = counts))?;
    let (mut counter, mut exits) = (None, BTreeMap::new());
    meetings.meet(|| ExitCounter::start().map(|started| counter = Some(started)))?;
    meetings.meet(|| {
        if let Some(counter) = counter.take() {
            exits = counter.read()?;
        }
        Ok(())
    })?;
    let (_, began) = meetings.meet(|| Ok(()))?;
    let (received, resumed) = meetings.meet(|| Ok(()))?;
    let (sent, _) = meetings.meet(|| Ok(()))?;
    Ok(Phases {
        first,
        counts: after.since(before),
        exits,
        receive: received.duration_since(began),
        send: sent.duration_since(resumed),
    })
}

fn text(from: Option<impl io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error counts.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// The times that ping printed, in microseconds.
fn ping_times(console: &str) -> Vec<f64> {
    let times = console.lines().filter_map(|line| {
        let time = line.split_once("time=")?.1;
        time.split_whitespace().next()?.parse::<f64>().ok()
    });
    times.map(|milliseconds| milliseconds * 1000.0).collect()
}

/// The checksum of what the guest got, and of what the neighbour got back.
fn checksums(console: &str) -> Option<(&str, &str)> {
    let line = console
        .lines()
        .find_map(|line| line.split_once("guest: link 1 got "))?
        .1;
    line.trim_end().split_once(" and gave back ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_times_and_checksums() {
        let console = "64 bytes from 10.0.1.1: seq=0 ttl=64 time=7.158 ms\r\nguest: link 1 got ab and gave back ac\r\n";
        assert_eq!(ping_times(console), [7158.0]);
        assert_eq!(checksums(console), Some(("ab", "ac")));
        assert_eq!(checksums("guest: link 1 got\n"), None);
    }
}
