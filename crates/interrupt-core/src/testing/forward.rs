// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The doubles of a registry's two sides.

use std::sync::{Arc, Mutex};

use super::{ManualNotifier, RecordingSource, Refusals, lock};
use crate::forward::{Consumer, ConsumerInfo, Path, Producer, ProducerInfo, ProducerState};
use crate::forward::{GuestLine, InterruptInfo};
use crate::{Error, Gsi, Irqchip, Result};

/// What was called, in order. Both sides of a pair may write into one.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    /// Every call since the last time this was asked.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0))
    }

    fn note(&self, what: impl Into<String>) {
        lock(&self.0).push(what.into());
    }
}

/// A [`Producer`] that has no device, and records what the registry did with it. It can do every path until it is told otherwise.
#[derive(Debug)]
pub struct RecordingProducer {
    label: String,
    journal: Journal,
    refusals: Refusals,
    state: Mutex<ProducerFields>,
}

#[derive(Debug)]
struct ProducerFields {
    info: ProducerInfo,
    stopped: bool,
    path: Option<Path>,
    masked: bool,
    active: bool,
}

impl RecordingProducer {
    /// A producer with a journal of its own.
    pub fn new(label: impl Into<String>) -> Self {
        Self::with_journal(label, Journal::default())
    }

    /// A producer that writes into `journal`: `p.stop`, `p.connect(PATH)`, `p.disconnect`, `p.start`.
    pub fn with_journal(label: impl Into<String>, journal: Journal) -> Self {
        Self {
            label: label.into(),
            journal,
            refusals: Refusals::default(),
            state: Mutex::new(ProducerFields {
                info: ProducerInfo {
                    interrupt: InterruptInfo {
                        level: true,
                        maskable: true,
                        automasked: true,
                        unmask_fd: true,
                    },
                    relay: true,
                    irq: None,
                },
                stopped: false,
                path: None,
                masked: false,
                active: false,
            }),
        }
    }

    /// Changes what it can do. The registry is not told.
    pub fn set_info(&self, change: impl FnOnce(&mut ProducerInfo)) {
        change(&mut lock(&self.state).info);
    }

    /// Says that it is masked, or that the guest has not ended its interrupt.
    pub fn set_now(&self, masked: bool, active: bool) {
        let mut state = lock(&self.state);
        (state.masked, state.active) = (masked, active);
    }

    /// Makes `calls` of the methods that can fail do so, with EIO, after `skip` that do not.
    pub fn refuse(&self, skip: usize, calls: usize) {
        self.refusals.set_after(skip, calls);
    }

    /// Whether it was stopped and not started again: what a device's mask would be.
    pub fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    fn act(&self, what: String, change: impl FnOnce(&mut ProducerFields)) -> Result<()> {
        self.journal.note(&what);
        self.refusals.check().map_err(|source| Error::Device {
            operation: "refused by the test",
            device: self.label.clone(),
            source,
        })?;
        change(&mut lock(&self.state));
        Ok(())
    }
}

impl Producer for RecordingProducer {
    fn label(&self) -> &str {
        &self.label
    }

    fn info(&self) -> ProducerInfo {
        lock(&self.state).info
    }

    fn state(&self) -> ProducerState {
        let state = lock(&self.state);
        ProducerState {
            path: state.path.filter(|_| !state.stopped),
            held: state.masked.then(|| "masked".to_owned()),
            masked: state.masked,
            active: state.active,
            failed: None,
        }
    }

    fn stop(&self) -> Result<()> {
        self.act("p.stop".to_owned(), |state| state.stopped = true)
    }

    fn connect(&self, path: Path, _consumer: &dyn Consumer) -> Result<()> {
        self.act(format!("p.connect({path})"), |state| state.path = Some(path))
    }

    fn disconnect(&self) {
        self.journal.note("p.disconnect");
        let mut state = lock(&self.state);
        (state.path, state.stopped) = (None, false);
    }

    fn start(&self) -> Result<()> {
        self.act("p.start".to_owned(), |state| state.stopped = false)
    }
}

/// A [`Consumer`] whose line is a [`RecordingSource`], and that records what the registry did with it. It ends at an irqchip in the
/// kernel, and nothing forwards by the host, until it is told otherwise.
#[derive(Debug)]
pub struct RecordingConsumer {
    line: GuestLine,
    journal: Journal,
    refusals: Refusals,
    state: Mutex<ConsumerState>,
}

#[derive(Debug)]
struct ConsumerState {
    info: ConsumerInfo,
    stopped: bool,
    path: Option<Path>,
}

impl RecordingConsumer {
    /// A consumer with a journal of its own.
    pub fn new(gsi: u32) -> Self {
        Self::with_journal(gsi, Journal::default())
    }

    /// A consumer that writes into `journal`: `c.stop`, `c.connect(PATH)`, `c.disconnect(PATH)`, `c.start`.
    pub fn with_journal(gsi: u32, journal: Journal) -> Self {
        let source = Arc::new(RecordingSource::new(Gsi(gsi)));
        Self {
            line: GuestLine::kernel(source, Arc::new(ManualNotifier::default())),
            journal,
            refusals: Refusals::default(),
            state: Mutex::new(ConsumerState {
                info: ConsumerInfo {
                    irqchip: Irqchip::Kernel,
                    relay_only: None,
                    trigger: true,
                    host_forward: Err("the test has no host".into()),
                },
                stopped: false,
                path: None,
            }),
        }
    }

    /// Changes what it can do. The registry is not told.
    pub fn set_info(&self, change: impl FnOnce(&mut ConsumerInfo)) {
        change(&mut lock(&self.state).info);
    }

    /// Makes `calls` of the methods that can fail do so, with EIO, after `skip` that do not.
    pub fn refuse(&self, skip: usize, calls: usize) {
        self.refusals.set_after(skip, calls);
    }

    /// Whether it was stopped and not started again.
    pub fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    /// The path that it is prepared for.
    pub fn path(&self) -> Option<Path> {
        lock(&self.state).path
    }

    fn act(&self, what: String, change: impl FnOnce(&mut ConsumerState)) -> Result<()> {
        self.journal.note(&what);
        self.refusals.check().map_err(|source| Error::Os {
            operation: "refused by the test",
            gsi: self.line.gsi(),
            source,
        })?;
        change(&mut lock(&self.state));
        Ok(())
    }
}

impl Consumer for RecordingConsumer {
    fn line(&self) -> &GuestLine {
        &self.line
    }

    fn info(&self) -> ConsumerInfo {
        lock(&self.state).info.clone()
    }

    fn stop(&self) -> Result<()> {
        self.act("c.stop".to_owned(), |state| state.stopped = true)
    }

    fn connect(&self, path: Path, _producer: &dyn Producer) -> Result<()> {
        self.act(format!("c.connect({path})"), |state| state.path = Some(path))
    }

    fn disconnect(&self, path: Path) {
        self.journal.note(format!("c.disconnect({path})"));
        lock(&self.state).path = None;
    }

    fn start(&self) -> Result<()> {
        self.act("c.start".to_owned(), |state| state.stopped = false)
    }
}
