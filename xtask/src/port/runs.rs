// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMMs' turns in the lab, and what is seen of each.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::counts::Counts;
use super::guest_report::GuestReport;
use crate::lab::{Lab, Run, Sink, quote_path};

/// The cards of the lab that are tried (lab/cards.rs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    E1000,
    E1000e,
}

impl Card {
    fn address(self) -> &'static str {
        match self {
            Self::E1000 => "0000:00:0a.0",
            Self::E1000e => "0000:00:12.0",
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
        })
    }
}

pub const UPSTREAM: &str = "upstream";
pub const PATCHED: &str = "patched";

/// A VMM that gets a turn.
#[derive(Clone, Debug)]
pub struct Vmm {
    name: &'static str,
    /// cloud-hypervisor; none is the lab's QEMU.
    program: Option<PathBuf>,
}

impl Vmm {
    pub fn upstream(program: PathBuf) -> Self {
        let program = Some(program);
        Self {
            name: UPSTREAM,
            program,
        }
    }

    pub fn patched(program: PathBuf) -> Self {
        let program = Some(program);
        Self { name: PATCHED, program }
    }

    pub fn qemu() -> Self {
        Self {
            name: "QEMU",
            program: None,
        }
    }
}

/// One guest of one VMM with one card.
#[derive(Clone, Debug)]
pub struct Turn {
    pub card: Card,
    vmm: Vmm,
}

/// What was seen of a turn.
#[derive(Debug)]
pub struct Seen {
    pub card: Card,
    pub vmm: &'static str,
    /// The number of pings that the guest was asked for.
    pub pings: u32,
    pub guest: GuestReport,
    pub counts: Counts,
}

/// In each round each card goes through the VMMs and back, so that a drift of the machine's speed meets all alike.
pub fn turns(cards: &[Card], vmms: &[Vmm], rounds: u32) -> Vec<Turn> {
    let mut turns = Vec::new();
    for _ in 0..rounds {
        for &card in cards {
            let there_and_back = vmms.iter().chain(vmms.iter().rev());
            turns.extend(there_and_back.cloned().map(|vmm| Turn { card, vmm }));
        }
    }
    turns
}

/// Gives all their turns in one boot of the lab.
pub fn run(lab: &Lab, turns: &[Turn], pings: u32, time_limit: Duration, verbose: bool) -> Result<Vec<Seen>> {
    let output = Arc::new(Mutex::new(Vec::new()));
    let stdout: Sink = {
        let output = Arc::clone(&output);
        let mut shown = 0;
        let total = turns.len();
        Box::new(move |bytes| {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.extend_from_slice(bytes);
            let begun = String::from_utf8_lossy(&output).matches(TURN).count();
            if begun > shown {
                shown = begun;
                eprintln!("port: turn {begun} of {total}");
            }
            if verbose {
                io::Write::write_all(&mut io::stderr(), bytes)?;
            }
            Ok(())
        })
    };
    let run = Run {
        script: script(turns, pings),
        cpus: 1,
        edu: 0,
        time_limit,
        verbose,
        parts_begun: Arc::new(AtomicUsize::new(0)),
    };
    let status = lab.run(&run, stdout)?;
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let output = String::from_utf8_lossy(&output);
    let mut of_turns = output.split(TURN);
    let preface = of_turns.next().unwrap_or_default();
    let seen: Vec<Seen> = turns
        .iter()
        .zip(of_turns)
        .map(|(turn, text)| seen(turn, pings, text))
        .collect();
    if status != 0 || seen.len() != turns.len() {
        bail!(
            "the lab's script ended with status {status} in turn {}: {preface}",
            seen.len()
        );
    }
    Ok(seen)
}

const TURN: &str = "port: turn\n";

fn script(turns: &[Turn], pings: u32) -> String {
    let mut script = include_str!("run.sh").to_owned();
    for Turn { card, vmm } in turns {
        // A guest that uses INTx alone, and does not wait a second for each of 300 answers that never come.
        let command_line = format!(
            "console=ttyS0 loglevel=4 reboot=t panic=-1 no_timer_check tsc=reliable mitigations=off pci=nomsi \
             work=cards,interrupts,ping,interrupts pings={pings} interval=0.2"
        );
        let address = card.address();
        script += &match &vmm.program {
            Some(program) => format!("cloud_hypervisor {address} '{command_line}' {}\n", quote_path(program)),
            None => format!("qemu {address} '{command_line}'\n"),
        };
    }
    script
}

fn seen(turn: &Turn, pings: u32, text: &str) -> Seen {
    // The last counts of a name are the closest ones.
    let counts = |name: &str| {
        let lines = text
            .rsplit(&format!("port: counts {name}\n"))
            .next()
            .unwrap_or_default();
        Counts::of(lines.lines().take_while(|line| *line != "port: counted"))
    };
    Seen {
        card: turn.card,
        vmm: turn.vmm.name,
        pings,
        guest: GuestReport::of(text.lines()),
        counts: counts("after") - counts("before"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_that_between_the_closest_counts_of_a_turn() {
        let text = "\
port: counts before
thread 7
{ common_pid: 7, cmd: 15214 } hitcount: 1
port: counted
guest: pings on link 1
port: counts after
thread 7
{ common_pid: 7, cmd: 15214 } hitcount: 9
port: counted
port: counts before
thread 7
{ common_pid: 7, cmd: 15214 } hitcount: 2
port: counted
port: counts after
thread 7
{ common_pid: 7, cmd: 15214 } hitcount: 6
port: counted
3 packets transmitted, 2 packets received, 33% packet loss
port: ended 0
";
        let turn = Turn {
            card: Card::E1000,
            vmm: Vmm::qemu(),
        };
        let seen = seen(&turn, 3, text);
        assert_eq!((seen.guest.answered, seen.counts.other_ioctls), (2, 4));
    }

    #[test]
    fn a_round_goes_there_and_back() {
        let vmms = [Vmm::upstream("u".into()), Vmm::patched("p".into())];
        let turns = turns(&[Card::E1000], &vmms, 1);
        let names: Vec<&str> = turns.iter().map(|turn| turn.vmm.name).collect();
        assert_eq!(names, [UPSTREAM, PATCHED, PATCHED, UPSTREAM]);
    }
}
