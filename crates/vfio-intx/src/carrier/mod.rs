// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the event loop and the state machine share: the three eventfds, and the line that signals are carried to.
//!
//! The event loop never waits for a change of wiring: it takes the line only when the line is free. A signal that comes
//! during a change is noted as missed. Every change ends with an unmask, at which a device with a level signals again;
//! a pulse stays in the trigger eventfd until there is a line.

pub(crate) mod level;
pub(crate) mod pulse;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::{Error, EveryStep, LevelSource};

use crate::eventfd;

/// A relay: carries the device's signals to the line, and the line's EOIs to the device. One for a level, one for
/// pulses.
pub(crate) trait Carrier: std::fmt::Debug + Send + Sync {
    /// The eventfds and the line.
    fn wires(&self) -> &Wires;

    /// The event loop: the device has signalled.
    fn on_trigger(&self) -> Result<(), RelayError>;

    /// The event loop: the line has been sampled.
    fn on_eoi(&self, device: &dyn DeviceInterrupt) -> (AtEoi, Result<(), RelayError>);

    /// The state machine: carries signals to `line` from now on. A device with a level has to be unmasked next.
    fn open(&self, line: Arc<dyn LevelSource>) -> io::Result<()>;

    /// The state machine: forgets signals that have not been served, because the device's cause is gone.
    fn forget(&self);

    /// Whether the line is asserted and its EOI has not been seen.
    fn is_pending(&self) -> bool;

    /// Whether a pulse may not have been served yet. False for a level, which the device keeps.
    fn has_unserved_pulse(&self) -> bool;

    /// Has the next [`open`](Self::open) signal once more, because a snapshot says so.
    fn restore_pulse(&self) -> io::Result<()>;
}

/// What the state machine has to do after an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEoi {
    Nothing,
    /// The line is free and the device masked: a direct path can take over.
    HandOver,
}

/// What kept a signal from being carried.
#[derive(Debug)]
pub(crate) struct RelayError {
    pub(crate) step: RelayStep,
    pub(crate) error: Error,
    /// [`Wires::opening`] at the time.
    pub(crate) opening: usize,
    /// To be ended when the failure has been dealt with.
    pub(crate) panic: EveryStep,
}

/// The step that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RelayStep {
    /// The line would not be asserted; the device has masked itself, and no EOI will come.
    Assert,
    /// The device would not be unmasked.
    Unmask,
    /// The line would not be lowered. The device was unmasked all the same.
    Lower,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Wires {
    /// The line, while signals are carried. Only the state machine writes it.
    line: RwLock<Option<Arc<dyn LevelSource>>>,
    /// A signal came while there was no line.
    missed: AtomicBool,
    /// The wires were changed: epoll may have handed out a signal from before, and the next signal counts only if its
    /// eventfd has a count. In steady state the eventfds of a device with a level are not read.
    recheck_trigger: AtomicBool,
    recheck_eoi: AtomicBool,
    opening: AtomicUsize,
    /// The event loop is to watch the EOI eventfd. It does not while a direct path uses the eventfd.
    watch_eoi: AtomicBool,
    /// The device signals it while it signals the relay.
    pub(crate) trigger: OwnedFd,
    /// The EOI notifier signals it; on a direct path it is the device's unmask eventfd too.
    pub(crate) eoi: OwnedFd,
    /// Wakes the event loop: what it is to watch has changed, or INTx is gone.
    pub(crate) changed: OwnedFd,
}

pub(crate) type Line<'a> = RwLockReadGuard<'a, Option<Arc<dyn LevelSource>>>;

impl Wires {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            line: RwLock::new(None),
            missed: AtomicBool::new(false),
            recheck_trigger: AtomicBool::new(false),
            recheck_eoi: AtomicBool::new(false),
            opening: AtomicUsize::new(0),
            watch_eoi: AtomicBool::new(false),
            trigger: eventfd::new()?,
            eoi: eventfd::new()?,
            changed: eventfd::new()?,
        })
    }

    // ---- for the event loop ----

    /// The line, if signals are carried now. Never waits.
    pub(crate) fn line(&self) -> Option<Line<'_>> {
        if let Some(line) = self.try_line() {
            return Some(line);
        }
        // Noted before the second try, as the state machine looks for notes after it has opened: one sees the other.
        self.missed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let line = self.try_line()?;
        self.missed.store(false, Ordering::Relaxed);
        Some(line)
    }

    fn try_line(&self) -> Option<Line<'_>> {
        let line = match self.line.try_read() {
            Ok(line) => line,
            // A line that panicked when it was asserted is a line still.
            Err(TryLockError::Poisoned(line)) => line.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        line.is_some().then_some(line)
    }

    /// Whether a signal of the trigger is one from before a change.
    pub(crate) fn trigger_is_stale(&self) -> bool {
        is_stale(&self.recheck_trigger, &self.trigger)
    }

    /// Whether a signal of the EOI eventfd is one from before a change.
    pub(crate) fn eoi_is_stale(&self) -> bool {
        is_stale(&self.recheck_eoi, &self.eoi)
    }

    /// Takes a step at the line or at the device. Called while the line is held, so that the opening is the line's. A
    /// line or a device that panics has refused.
    pub(crate) fn take<R>(
        &self,
        step: RelayStep,
        line: &dyn LevelSource,
        call: impl FnOnce() -> Result<R, Error>,
    ) -> Result<R, RelayError> {
        let mut panic = EveryStep::default();
        let taken = panic.take(call).unwrap_or_else(|| {
            Err(Error::Os {
                operation: "relay",
                gsi: line.gsi(),
                source: io::Error::other("the line or the device panicked"),
            })
        });
        taken.map_err(|error| RelayError {
            step,
            error,
            opening: self.opening(),
            panic,
        })
    }

    /// Whether the EOI eventfd is to be watched now.
    pub(crate) fn watches_eoi(&self) -> bool {
        self.watch_eoi.load(Ordering::Acquire)
    }

    // ---- for the state machine ----

    /// Counts how often a line was set.
    pub(crate) fn opening(&self) -> usize {
        self.opening.load(Ordering::Relaxed)
    }

    /// Carries signals to `line` from now on. `prepare` runs while the event loop cannot take the line.
    pub(crate) fn set<R>(&self, line: Arc<dyn LevelSource>, prepare: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        let mut slot = self.line.write().unwrap_or_else(PoisonError::into_inner);
        let prepared = prepare()?;
        self.opening.fetch_add(1, Ordering::Relaxed);
        let old = slot.replace(line);
        drop(slot);
        drop(old);
        Ok(prepared)
    }

    /// Carries nothing any more. When it returns the event loop is not carrying either. The caller drops the line when
    /// it holds no lock.
    #[must_use]
    pub(crate) fn close(&self) -> Option<Arc<dyn LevelSource>> {
        self.line.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Has the next signal of each eventfd count only if the eventfd says so.
    pub(crate) fn recheck(&self, trigger: bool, eoi: bool) {
        self.recheck_trigger.store(trigger, Ordering::Relaxed);
        self.recheck_eoi.store(eoi, Ordering::Relaxed);
    }

    /// Forgets missed signals.
    pub(crate) fn clear_missed(&self) {
        self.missed.store(false, Ordering::Relaxed);
    }

    /// Notes a missed signal.
    pub(crate) fn note_missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Whether a signal was missed; forgets it.
    pub(crate) fn take_missed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Has the event loop watch the EOI eventfd, or not.
    pub(crate) fn watch_eoi(&self, watch: bool) -> io::Result<()> {
        if self.watch_eoi.swap(watch, Ordering::AcqRel) == watch {
            return Ok(());
        }
        eventfd::signal(&self.changed)
    }
}

fn is_stale(recheck: &AtomicBool, fd: &OwnedFd) -> bool {
    recheck.load(Ordering::Relaxed)
        && recheck.swap(false, Ordering::Relaxed)
        // An eventfd of our own that cannot be read is no reason to drop a signal.
        && !eventfd::drain(fd).unwrap_or(true)
}
