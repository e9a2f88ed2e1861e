// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The search: every sequence of events up to a depth, from every wiring and every moment of an interrupt, and for each the
//! same with every single request failing once, and twice. A world cannot be copied, so each sequence begins anew.

use std::collections::BTreeMap;

use interrupt_core::forward::Path;

use crate::claims::{self, Broken};
use crate::faults::Fault;
use crate::watch::Watch;
use crate::world::{Event, LineKind, Op, World};

const OPS: [Op; 31] = [
    Op::Enable,
    Op::Disable,
    Op::Mask(true),
    Op::Mask(false),
    Op::DisIntx(true),
    Op::DisIntx(false),
    Op::DisIntxFirst(true),
    Op::DisIntxFirst(false),
    Op::EnterMsi,
    Op::LeaveMsi,
    Op::LeaveMsiEarly,
    Op::Reset,
    Op::Restrict(Some(Path::Relay)),
    Op::Restrict(None),
    Op::LineLeaves,
    Op::LineComes(LineKind::Kernel),
    Op::LineComes(LineKind::Plain),
    Op::LineComes(LineKind::Other),
    Op::DeviceLeaves,
    Op::DeviceComes,
    Op::DropRelay,
    Op::SaveAndRestore,
    Op::Raise,
    Op::RunRelay,
    Op::RunRelayRefused,
    Op::Inject,
    Op::PollUnmask,
    Op::Accept,
    Op::Look,
    Op::Eoi,
    Op::OthersEoi,
];

/// How many files this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The wirings that a sequence begins with.
pub const WIRINGS: [(&str, LineKind, Option<Path>); 5] = [
    ("relay", LineKind::Kernel, Some(Path::Relay)),
    ("kernel loop", LineKind::Kernel, None),
    ("split kick", LineKind::Split, None),
    ("pulses", LineKind::Kernel, None),
    ("own connection", LineKind::Kernel, None),
];

/// How far an interrupt has come when a sequence begins.
pub const MOMENTS: [(&str, &[Op]); 6] = [
    ("idle", &[]),
    ("signalled", &[Op::Raise]),
    ("pending", &[Op::Raise, Op::RunRelay, Op::Inject]),
    ("in service", &[Op::Raise, Op::RunRelay, Op::Inject, Op::Accept]),
    (
        "acknowledged",
        &[Op::Raise, Op::RunRelay, Op::Inject, Op::Accept, Op::Look],
    ),
    (
        "EOI under way",
        &[Op::Raise, Op::RunRelay, Op::Inject, Op::Accept, Op::Look, Op::Eoi],
    ),
];

/// One sequence, from its start.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub wiring: usize,
    pub moment: usize,
    pub events: Vec<Event>,
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", WIRINGS[self.wiring].0, MOMENTS[self.moment].0)?;
        self.events.iter().try_for_each(|event| write!(f, "; {event}"))
    }
}

/// What one run of a sequence has shown.
struct Run {
    outcome: Result<(), Broken>,
    /// What can follow.
    next: Vec<Op>,
    /// How many requests the last event made.
    requests: usize,
    /// What failed, and what INTx says, for people.
    said: String,
    failed: Vec<&'static str>,
}

/// A sequence after which a claim does not hold.
pub struct Finding {
    pub sequence: Sequence,
    pub broken: Broken,
    pub failed: Vec<&'static str>,
    pub said: String,
}

pub struct Search {
    pub runs: usize,
    watch: Watch,
    /// What has run since the open files were counted last.
    recent: Vec<Sequence>,
    files: usize,
    pub findings: Vec<Finding>,
}

fn start(wiring: usize) -> World {
    let (name, kind, only) = WIRINGS[wiring];
    let mut world = World::new(name == "pulses", name == "own connection");
    for op in [
        Op::DeviceComes,
        Op::LineComes(kind),
        Op::Restrict(only),
        Op::Enable,
        Op::RunRelay,
    ] {
        world.apply(op.into());
    }
    world
}

impl Search {
    fn run(&mut self, sequence: &Sequence) -> Run {
        self.watch.note(sequence);
        self.runs += 1;
        let mut world = start(sequence.wiring);
        for op in MOMENTS[sequence.moment].1 {
            world.apply((*op).into());
        }
        let (mut requests, mut changed) = (0, true);
        for event in &sequence.events {
            changed = world.apply(*event);
            requests = world.faults.seen();
        }
        let last = sequence.events.last().map(|event| event.op);
        // After an event that changed nothing comes what came without it.
        let follows = |op: &Op| changed && world.can(*op) && Some(*op) != last;
        let next = OPS.into_iter().filter(follows).collect();
        let mut outcome = claims::check(&mut world);
        let said = match &outcome {
            Ok(()) => String::new(),
            Err(_) => format!("{}; {:?}", world.wires.say(), world.model),
        };
        let failed = world.faults.failed();
        let world = world.without_wires(self.runs % 2 == 0);
        outcome = outcome.and_then(|()| claims::check_gone(&world));
        Run {
            outcome,
            next,
            requests,
            said,
            failed,
        }
    }

    /// Runs a sequence, and looks now and then for files that are left over.
    fn try_out(&mut self, sequence: &Sequence) -> Run {
        let run = self.run(sequence);
        self.recent.push(sequence.clone());
        if self.recent.len() >= 500 {
            self.look_for_leaks();
        }
        run
    }

    fn look_for_leaks(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        if open_files() == self.files {
            return;
        }
        for sequence in recent {
            let before = open_files();
            let Run { failed, .. } = self.run(&sequence);
            if open_files() != before {
                let said = format!("{before} files before, {} after", open_files());
                self.findings.push(Finding {
                    sequence,
                    broken: Broken::Leak,
                    failed,
                    said,
                });
            }
        }
        self.files = open_files();
    }

    /// All sequences that begin with `sequence` and go on for `depth` events; `faults` further ones may fail.
    fn below(&mut self, sequence: &mut Sequence, depth: usize, faults: usize) {
        let Run {
            outcome,
            next,
            requests,
            said,
            failed,
        } = self.try_out(sequence);
        if let Err(broken) = outcome {
            self.findings.push(Finding {
                sequence: sequence.clone(),
                broken,
                failed,
                said,
            });
            // What follows a broken state says nothing new.
            return;
        }
        if faults > 0 {
            for fault in (0..requests).flat_map(|skip| [1, 2, 1_000].map(|times| Fault { skip, times })) {
                let Some(last) = sequence.events.last_mut() else { break };
                last.fault = Some(fault);
                self.below(sequence, depth, faults - 1);
                if let Some(last) = sequence.events.last_mut() {
                    last.fault = None;
                }
            }
        }
        if depth > 0 {
            for op in next {
                sequence.events.push(op.into());
                self.below(sequence, depth - 1, faults);
                sequence.events.pop();
            }
        }
    }

    pub fn explore(depth: usize, faults: usize) -> Self {
        // The first world opens what stays open.
        drop(start(0));
        let mut search = Self {
            runs: 0,
            watch: Watch::default(),
            recent: Vec::new(),
            files: open_files(),
            findings: Vec::new(),
        };
        for (wiring, (name, ..)) in WIRINGS.iter().enumerate() {
            // What becomes of a pulse when a request fails is nobody's claim.
            let faults = if *name == "pulses" { 0 } else { faults };
            for moment in 0..MOMENTS.len() {
                let mut start = Sequence {
                    wiring,
                    moment,
                    events: Vec::new(),
                };
                search.below(&mut start, depth, faults);
            }
        }
        search.look_for_leaks();
        search
    }

    /// The shortest finding of each kind, with the last event's operation.
    pub fn report(&self) -> String {
        let mut kinds: BTreeMap<String, Vec<&Finding>> = BTreeMap::new();
        for finding in &self.findings {
            let events = &finding.sequence.events;
            let guilty = events.iter().find(|event| event.fault.is_some()).or(events.last());
            let op = guilty.map(|event| event.op);
            kinds
                .entry(format!("{:?} {op:?} {:?}", finding.broken, finding.failed))
                .or_default()
                .push(finding);
        }
        let mut text = String::new();
        for mut findings in kinds.into_values() {
            findings.sort_by_key(|finding| finding.sequence.events.len());
            let Finding {
                sequence,
                broken,
                failed,
                said,
            } = findings[0];
            text += &format!(
                "{broken:?}, failed: {failed:?} ({} sequences), for instance:\n  {sequence}\n  {said}\n",
                findings.len()
            );
        }
        text
    }
}
