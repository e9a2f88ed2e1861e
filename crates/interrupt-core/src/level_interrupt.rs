// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's handle: the causes of an interrupt, the level that follows from the causes, and the answer to an EOI.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::eoi::listeners::Call;
use crate::eoi::{EoiGuard, EoiNotifier, Listener};
use crate::error::Result;
use crate::gsi::Gsi;
use crate::key::EoiScope;
use crate::level::Level;
use crate::source::LevelSource;
use crate::sync::{Condvar, Mutex, MutexGuard, lock, thread_local};

/// A level-triggered interrupt, as a device model uses it.
///
/// The device names the causes of its interrupt, up to 32 of them, one bit each. The interrupt asserts its
/// [`LevelSource`] while there is a cause, and asserts again at an EOI if a cause is left. A device with one cause uses
/// [`set_level`](Self::set_level).
///
/// All methods may be called from any thread, also from a callback that the source runs while the source is driven:
/// no lock is held then. Levels reach the source in the order of the calls, one at a time. When a call returns, the
/// source has the level that follows from the causes; a call that finds another thread at the source waits for that
/// thread. So a guest that acknowledges at the device finds the line low at its EOI. Two calls leave the level to the
/// other thread and do not wait, because that thread could be waiting for theirs: a call from within a listener of an
/// EOI, and a call from within the driving of a source. A caller that waits must not hold a lock that a listener takes.
///
/// An error of the source goes to the call that drove the source, and is counted. The level is tried again at the next
/// call and at the next EOI.
///
/// Dropping the interrupt ends its causes and its subscription to EOIs, then drops its reference to the source.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::{Gsi, Level, LevelInterrupt, Line, LoweredBy, testing::RecordingPin};
///
/// const RECEIVED: u32 = 1 << 0;
/// const SENT: u32 = 1 << 1;
///
/// let line = Line::new(Gsi(4), RecordingPin::default());
/// let source = Arc::new(line.source("serial", LoweredBy::Eoi));
/// let interrupt = LevelInterrupt::new(source, &*line)?;
///
/// interrupt.raise(RECEIVED)?;
/// interrupt.raise(SENT)?;
/// interrupt.clear(SENT)?; //              the guest's handler serves one of the two
/// assert_eq!(line.eoi()?, Level::High, "the other cause is left");
/// interrupt.clear(RECEIVED)?;
/// assert_eq!(line.eoi()?, Level::Low);
/// # Ok::<(), interrupt_core::Error>(())
/// ```
pub struct LevelInterrupt {
    // Dropped before `shared`: after that no listener uses the source.
    _eoi: EoiGuard,
    shared: Arc<Shared>,
}

/// What has happened to a [`LevelInterrupt`] since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InterruptCounts {
    /// How often the interrupt went from no cause to at least one.
    pub raised: u64,
    /// How many EOIs the interrupt was told of: EOIs of its own, EOIs of other sources of the line, and the
    /// notifications that KVM sends at an unmask.
    pub eois: u64,
    /// How often an EOI found a cause, so that the source was asserted again.
    pub reasserted: u64,
    /// How often the source refused a level.
    pub errors: u64,
}

impl LevelInterrupt {
    /// An interrupt without a cause, on `source`, which `notifier` tells of the EOIs of this source.
    ///
    /// # Errors
    /// Those of [`EoiNotifier::subscribe`]: Busy when the source has its listener already, NotFound when the source
    /// is no source of `notifier`.
    pub fn new(source: Arc<dyn LevelSource>, notifier: &dyn EoiNotifier) -> Result<Self> {
        let scope = source.key().into();
        Self::with_scope(source, notifier, scope)
    }

    /// As [`new`](Self::new), for a notifier that knows the line but not the source: one that tells of the EOIs of a
    /// GSI, whatever drives the GSI.
    ///
    /// # Errors
    /// Those of [`EoiNotifier::subscribe`].
    pub fn with_scope(source: Arc<dyn LevelSource>, notifier: &dyn EoiNotifier, scope: EoiScope) -> Result<Self> {
        let shared = Arc::new(Shared {
            source,
            state: Mutex::new(State::default()),
            idle: Condvar::new(),
        });
        // Weak, so that the notifier does not keep the source that may in turn keep the notifier.
        let weak = Arc::downgrade(&shared);
        let listener = Listener::callback(move |_| {
            if let Some(shared) = weak.upgrade() {
                // The error is counted. A listener returns nothing.
                drop(shared.on(Event::Eoi));
            }
        });
        Ok(Self {
            _eoi: notifier.subscribe(scope, listener)?,
            shared,
        })
    }

    /// Adds causes. Causes that the interrupt has already stay.
    ///
    /// # Errors
    /// The source's, when this call drove the source. The causes are kept, and the level is tried again at the next
    /// event.
    pub fn raise(&self, causes: u32) -> Result<()> {
        self.shared.on(Event::Raise(causes))
    }

    /// Takes causes away: the guest has served them, or the device was reset. The source is deasserted when no cause is
    /// left.
    ///
    /// # Errors
    /// As for [`raise`](Self::raise).
    pub fn clear(&self, causes: u32) -> Result<()> {
        self.shared.on(Event::Clear(causes))
    }

    /// Raises or clears cause 1, for a device that has one cause only.
    ///
    /// # Errors
    /// As for [`raise`](Self::raise).
    pub fn set_level(&self, high: bool) -> Result<()> {
        if high { self.raise(1) } else { self.clear(1) }
    }

    /// Replaces all causes, and drives the level that follows even if the source has this level already: after the
    /// state of the interrupt controller was restored, which may hold another level.
    ///
    /// # Errors
    /// As for [`raise`](Self::raise).
    pub fn restore(&self, causes: u32) -> Result<()> {
        self.shared.on(Event::Restore(causes))
    }

    /// The causes that the interrupt has now: what a device saves.
    pub fn causes(&self) -> u32 {
        self.shared.state().causes
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.shared.source.gsi()
    }

    /// What has happened so far.
    pub fn counts(&self) -> InterruptCounts {
        self.shared.state().counts
    }
}

impl Drop for LevelInterrupt {
    fn drop(&mut self) {
        // Others may keep the source. A source that refuses now is lowered when its last reference goes.
        drop(self.clear(u32::MAX));
    }
}

impl fmt::Debug for LevelInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, causes {:#x}", self.shared.source, self.causes())
    }
}

/// What the handle and its listener share.
struct Shared {
    source: Arc<dyn LevelSource>,
    state: Mutex<State>,
    /// No thread is in [`Shared::drive`] any more.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    causes: u32,
    /// The level that the source took last. None before the first one, and after the source has refused one.
    driven: Option<Level>,
    /// An EOI has not been answered yet.
    eoi: bool,
    /// An event has not been looked at yet.
    dirty: bool,
    /// A thread is in [`Shared::drive`]. Only this thread uses the source, and it looks at every event before it leaves.
    driving: bool,
    /// How many threads wait for the driving thread. With none, the driving thread saves the system call that wakes.
    waiting: usize,
    counts: InterruptCounts,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Raise(u32),
    Clear(u32),
    Restore(u32),
    Eoi,
}

impl State {
    fn note(&mut self, event: Event) {
        let had_none = self.causes == 0;
        match event {
            Event::Raise(causes) => self.causes |= causes,
            Event::Clear(causes) => self.causes &= !causes,
            Event::Restore(causes) => {
                self.causes = causes;
                self.driven = None;
            }
            Event::Eoi => {
                self.counts.eois += 1;
                self.eoi = true;
            }
        }
        self.counts.raised += u64::from(had_none && self.causes != 0);
        self.dirty = true;
    }

    /// The level to be driven now, if any. This is the one place that decides.
    fn decide(&mut self) -> Option<Level> {
        let eoi = std::mem::take(&mut self.eoi);
        let level = if self.causes == 0 { Level::Low } else { Level::High };
        let reassert = eoi && level == Level::High;
        self.counts.reasserted += u64::from(reassert);
        (reassert || self.driven != Some(level)).then_some(level)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn on(&self, event: Event) -> Result<()> {
        let mut state = self.state();
        state.note(event);
        if state.driving {
            // The thread that drives looks at every event before it leaves, so that the level is right in any case.
            if matches!(event, Event::Eoi) || Driver::is_inside() || Call::is_inside() {
                return Ok(());
            }
            state.waiting += 1;
            while state.driving {
                state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
            // What the source refused is tried again by this call, which the error is for.
            state.dirty |= state.driven.is_none();
        }
        state.driving = true;
        drop(state);
        let mut driver = Driver::enter(self);
        let result = self.drive();
        driver.panicked = false;
        result
    }

    /// Drives the source until every event has been looked at. Returns the last error.
    fn drive(&self) -> Result<()> {
        let mut result = Ok(());
        let mut state = self.state();
        while std::mem::take(&mut state.dirty) {
            let Some(level) = state.decide() else { continue };
            state.driven = Some(level);
            drop(state);
            let driven = match level {
                Level::High => self.source.assert().map(drop),
                Level::Low => self.source.deassert(),
            };
            state = self.state();
            if driven.is_err() {
                state.driven = None;
                state.counts.errors += 1;
                result = driven;
            }
        }
        state.driving = false;
        if state.waiting > 0 {
            self.idle.notify_all();
        }
        result
    }
}

// How many sources this thread is driving now, one inside the other. The model checker's macro has no const form.
#[cfg(not(all(loom, test)))]
thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
#[cfg(all(loom, test))]
thread_local!(static DEPTH: Cell<usize> = Cell::new(0));

/// One thread in [`Shared::drive`]. Lets the next event drive the source if the source's own code has panicked.
struct Driver<'a> {
    shared: &'a Shared,
    panicked: bool,
}

impl<'a> Driver<'a> {
    fn enter(shared: &'a Shared) -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self { shared, panicked: true }
    }

    fn is_inside() -> bool {
        DEPTH.with(Cell::get) > 0
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
        if self.panicked {
            let mut state = self.shared.state();
            state.driven = None;
            state.driving = false;
            self.shared.idle.notify_all();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::{ManualNotifier, RecordingPin, RecordingSource};
    use crate::{Delivery, Line, LoweredBy, Pin, WiredOr};

    const GSI: Gsi = Gsi(16);

    fn rig(lowered_by: LoweredBy) -> (Arc<Line<RecordingPin>>, LevelInterrupt) {
        let line = Line::new(GSI, RecordingPin::default());
        let source = Arc::new(line.source("device", lowered_by));
        let interrupt = LevelInterrupt::new(source, &*line).unwrap();
        (line, interrupt)
    }

    #[test]
    fn the_level_follows_from_the_causes() {
        for lowered_by in [LoweredBy::Device, LoweredBy::Eoi] {
            let (line, interrupt) = rig(lowered_by);
            interrupt.raise(1).unwrap();
            interrupt.raise(2).unwrap();
            interrupt.clear(1).unwrap();
            assert_eq!(line.level(), Level::High, "a cause is left");
            interrupt.clear(2).unwrap();
            assert_eq!(line.level(), Level::Low);
            assert_eq!(interrupt.counts().raised, 1);
        }
    }

    #[test]
    fn an_eoi_is_answered_with_the_level_that_holds() {
        for lowered_by in [LoweredBy::Device, LoweredBy::Eoi] {
            let (line, interrupt) = rig(lowered_by);
            interrupt.set_level(true).unwrap();
            assert_eq!(line.eoi().unwrap(), Level::High, "the cause is left");
            interrupt.set_level(false).unwrap();
            assert_eq!(line.eoi().unwrap(), Level::Low);
            let counts = interrupt.counts();
            assert_eq!((counts.raised, counts.eois, counts.reasserted), (1, 2, 1));
        }
    }

    #[test]
    fn sharers_of_a_line_each_state_their_own_level() {
        let line = Line::new(GSI, RecordingPin::default());
        let [one, other] = ["one", "other"]
            .map(|label| LevelInterrupt::new(Arc::new(line.source(label, LoweredBy::Eoi)), &*line).unwrap());
        one.raise(1).unwrap();
        other.raise(1).unwrap();
        one.clear(1).unwrap();
        assert_eq!(line.eoi().unwrap(), Level::High, "the other one's");
        assert_eq!([one.counts().reasserted, other.counts().reasserted], [0, 1]);
    }

    #[test]
    fn a_refused_level_is_counted_and_tried_again_at_the_next_event() {
        let source = Arc::new(RecordingSource::new(GSI));
        let notifier = ManualNotifier::default();
        let interrupt = LevelInterrupt::with_scope(source.clone(), &notifier, GSI.into()).unwrap();
        source.refuse_next(2);
        interrupt.raise(1).unwrap_err();
        notifier.eoi(GSI).unwrap();
        assert_eq!((source.level(), interrupt.counts().errors), (Level::Low, 2));
        interrupt.raise(1).unwrap();
        assert_eq!((source.level(), interrupt.causes()), (Level::High, 1));
    }

    #[test]
    fn a_restored_level_is_driven_also_when_it_is_the_same() {
        let source = Arc::new(RecordingSource::new(GSI));
        let interrupt = LevelInterrupt::new(source.clone(), &ManualNotifier::default()).unwrap();
        interrupt.raise(1).unwrap();
        interrupt.restore(2).unwrap();
        assert_eq!((interrupt.causes(), source.asserts()), (2, 2));
        source.assert().unwrap();
        interrupt.restore(0).unwrap();
        assert_eq!((interrupt.causes(), source.level()), (0, Level::Low));
        source.assert().unwrap();
        interrupt.restore(0).unwrap();
        assert_eq!(source.level(), Level::Low);
    }

    #[test]
    fn the_level_ends_with_the_interrupt_even_if_the_source_stays() {
        let line = Line::new(GSI, RecordingPin::default());
        let source = Arc::new(line.source("device", LoweredBy::Device));
        let interrupt = LevelInterrupt::new(source.clone(), &*line).unwrap();
        interrupt.raise(1).unwrap();
        drop(interrupt);
        assert_eq!(source.level(), Level::Low);
        LevelInterrupt::new(source, &*line).unwrap();
    }

    /// A pin whose processor takes the interrupt, serves it and ends it while the pin delivers it.
    #[derive(Default)]
    struct EndsAtOnce {
        state: Mutex<WiredOr>,
        line: OnceLock<Arc<Line<EndsAtOnce>>>,
        interrupt: OnceLock<Arc<LevelInterrupt>>,
        /// How many interrupts the processor ends before it serves the cause.
        unserved: AtomicU32,
        taken: AtomicU32,
    }

    impl fmt::Debug for EndsAtOnce {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ends at once")
        }
    }

    impl Pin for EndsAtOnce {
        type State = WiredOr;
        type Outcome = Level;

        fn lock(&self) -> MutexGuard<'_, WiredOr> {
            lock(&self.state)
        }

        fn wired_or<'a>(&self, state: &'a mut WiredOr) -> &'a mut WiredOr {
            state
        }

        fn drive(&self, _: &mut WiredOr, level: Level) -> Result<Level> {
            Ok(level)
        }

        fn deliver(&self, level: Level) -> Result<Delivery> {
            if level == Level::High {
                if self.taken.fetch_add(1, Ordering::Relaxed) >= self.unserved.load(Ordering::Relaxed) {
                    self.interrupt.get().unwrap().clear(1)?;
                }
                self.line.get().unwrap().eoi()?;
            }
            Ok(Delivery::Delivered(1))
        }
    }

    #[test]
    fn an_interrupt_may_be_served_and_ended_while_it_is_delivered() {
        for unserved in [0, 1, 3] {
            let line = Line::new(GSI, EndsAtOnce::default());
            let source = Arc::new(line.source("device", LoweredBy::Eoi));
            let interrupt = Arc::new(LevelInterrupt::new(source, &*line).unwrap());
            let pin = line.pin();
            pin.line.set(Arc::clone(&line)).unwrap();
            pin.interrupt.set(Arc::clone(&interrupt)).ok().unwrap();
            pin.unserved.store(unserved, Ordering::Relaxed);
            interrupt.raise(1).unwrap();
            assert_eq!(pin.taken.load(Ordering::Relaxed), unserved + 1);
            assert_eq!((line.level(), interrupt.causes()), (Level::Low, 0));
            assert_eq!(interrupt.counts().reasserted, u64::from(unserved));
        }
    }
}
