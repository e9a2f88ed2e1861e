// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the relay's event loop does with a signal, and how it is kept from doing so while the wires are changed.
//!
//! The event loop never waits for a change: it takes the line only when it can have it at once. A signal that comes during a
//! change is not forwarded, and is not lost either: every change ends with an unmask, at which a device with a level
//! signals again; for one without a level the signal is remembered here and made again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::{Delivery, Error, LevelSource, SourceKey};

use crate::eventfd;

/// Where signals are forwarded to.
#[derive(Debug)]
struct Slot {
    /// The line while signals are forwarded, and nothing while they are not.
    line: Option<Arc<dyn LevelSource>>,
    /// The line that was here last.
    last: Option<SourceKey>,
}

/// The part of the state machine that the event loop touches.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The device's signals are events and not a level.
    pulse: bool,
    /// Changed only by whoever changes the wires; the event loop never waits for it.
    slot: RwLock<Slot>,
    /// The line is asserted and its EOI has not been seen.
    pending: AtomicBool,
    /// The device pulsed when its line may have been past the guest's look: the EOI is to be followed by another assertion.
    again: AtomicBool,
    /// The line may be in service from before the wires were changed. For pulses only.
    unsure: AtomicBool,
    /// A signal came while there was no line.
    missed: AtomicBool,
    /// An interrupt that a direct path brought may be in service: its EOI is to unmask the device too.
    inherited: AtomicBool,
    /// The next EOI of an interrupt is to end with the change to a direct path, instead of an unmask.
    hand_over: AtomicBool,
    /// The wires were changed: the next signal may be one from before that epoll had handed out already, and counts only if
    /// its eventfd says so. In steady state no eventfd is read.
    recheck_trigger: AtomicBool,
    recheck_eoi: AtomicBool,
    opening: AtomicUsize,
    /// The event loop is to watch the EOI eventfd. It does not while a direct path uses it, so as not to be woken.
    watch_eoi: AtomicBool,
    /// The device signals it while it signals the relay.
    pub(crate) trigger: OwnedFd,
    /// The EOI notifier signals it; on a direct path it is the device's unmask eventfd too.
    pub(crate) eoi: OwnedFd,
    /// Tells the event loop that what it is to watch has changed.
    pub(crate) changed: OwnedFd,
}

/// What kept a signal from being forwarded.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) what: Failed,
    pub(crate) error: Error,
    /// [`Forward::opening`] at the time.
    pub(crate) opening: usize,
}

/// The step that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failed {
    /// The line would not be asserted; the device has masked itself, and no EOI will come.
    Assert,
    /// The device would not be unmasked.
    Unmask,
    /// The line would not be lowered. The device was unmasked all the same.
    Lower,
}

impl Forward {
    pub(crate) fn new(pulse: bool) -> io::Result<Self> {
        Ok(Self {
            pulse,
            slot: RwLock::new(Slot { line: None, last: None }),
            pending: AtomicBool::new(false),
            again: AtomicBool::new(false),
            unsure: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            inherited: AtomicBool::new(false),
            hand_over: AtomicBool::new(false),
            recheck_trigger: AtomicBool::new(false),
            recheck_eoi: AtomicBool::new(false),
            opening: AtomicUsize::new(0),
            watch_eoi: AtomicBool::new(false),
            trigger: eventfd::new()?,
            eoi: eventfd::new()?,
            changed: eventfd::new()?,
        })
    }

    // ---- the event loop's side ----

    /// The device has signalled.
    pub(crate) fn on_trigger(&self) -> Result<(), Trouble> {
        let slot = self.look();
        let Some(line) = slot.as_ref().and_then(|slot| slot.line.as_ref()) else {
            return Ok(());
        };
        if self.is_stale(&self.recheck_trigger, &self.trigger) {
            return Ok(());
        }
        let was_pending = self.pending.swap(true, Ordering::Relaxed);
        if self.pulse && was_pending {
            // The guest may have looked at the device before this pulse, and the EOI that ends its look is still to come.
            self.again.store(true, Ordering::Relaxed);
            return Ok(());
        }
        match line.assert().map_err(self.trouble(Failed::Assert))? {
            // Another sharer's interrupt is in service, or the pin is masked: whether the guest still looks at this device
            // before the next EOI is not known.
            Delivery::Pending | Delivery::Coalesced if self.pulse => self.again.store(true, Ordering::Relaxed),
            // The same, when the line may have been in service since before the wires were changed.
            _ if self.pulse && self.unsure.swap(false, Ordering::Relaxed) => self.again.store(true, Ordering::Relaxed),
            _ => {}
        }
        Ok(())
    }

    /// The line has been sampled: lowers it and lets the device state its level. Returns whether a direct path is to do the latter,
    /// from now on; the device is masked then.
    pub(crate) fn on_eoi(&self, device: &dyn DeviceInterrupt) -> Result<bool, Trouble> {
        let slot = self.look();
        let Some(line) = slot.as_ref().and_then(|slot| slot.line.as_ref()) else {
            return Ok(false);
        };
        if self.is_stale(&self.recheck_eoi, &self.eoi) {
            return Ok(false);
        }
        let pending = self.pending.swap(false, Ordering::Relaxed);
        // Looked at only when it has to be: it is of use once, after a change.
        let inherited = self.inherited.load(Ordering::Relaxed) && self.inherited.swap(false, Ordering::Relaxed);
        if !pending && !inherited {
            return Ok(false);
        }
        // Lowered first: the unmask may signal at once, and that signal is a new assertion.
        let lowered = line.deassert();
        if !self.pulse {
            if self.hand_over.load(Ordering::Relaxed) {
                return lowered.map(|_| true).map_err(self.trouble(Failed::Lower));
            }
            device.unmask().map_err(self.trouble(Failed::Unmask))?;
        } else if self.again.swap(false, Ordering::Relaxed) {
            self.pending.store(true, Ordering::Relaxed);
            line.assert().map_err(self.trouble(Failed::Assert))?;
        }
        lowered.map(|_| false).map_err(self.trouble(Failed::Lower))
    }

    /// Whether the EOI eventfd is to be watched now.
    pub(crate) fn watches_eoi(&self) -> bool {
        self.watch_eoi.load(Ordering::Acquire)
    }

    /// The slot, if signals are forwarded now. Never waits.
    fn look(&self) -> Option<RwLockReadGuard<'_, Slot>> {
        let look = || self.slot.try_read().ok().filter(|slot| slot.line.is_some());
        if let Some(slot) = look() {
            return Some(slot);
        }
        // Noted before the second look, as `open` looks for notes after it has opened: one of the two sees the other.
        self.missed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slot = look()?;
        self.missed.store(false, Ordering::Relaxed);
        Some(slot)
    }

    /// Called while the slot is held, so that it is the line's opening.
    fn trouble(&self, what: Failed) -> impl FnOnce(Error) -> Trouble {
        let opening = self.opening();
        move |error| Trouble { what, error, opening }
    }

    fn is_stale(&self, recheck: &AtomicBool, fd: &OwnedFd) -> bool {
        recheck.load(Ordering::Relaxed)
            && recheck.swap(false, Ordering::Relaxed)
            // An eventfd of our own that cannot be read is no reason to drop a signal.
            && !eventfd::drain(fd).unwrap_or(true)
    }

    /// Counts [`open`](Self::open).
    pub(crate) fn opening(&self) -> usize {
        self.opening.load(Ordering::Relaxed)
    }

    // ---- the side of whoever changes the wires, one at a time ----

    /// Forwards signals to `line` from now on. A device with a level is to be unmasked next.
    pub(crate) fn open(&self, line: Arc<dyn LevelSource>) -> io::Result<()> {
        let (pending, moved) = {
            let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
            if !self.pulse {
                // Whatever was signalled before is stated anew by the unmask that follows.
                eventfd::drain(&self.trigger)?;
                self.recheck_trigger.store(true, Ordering::Relaxed);
            }
            eventfd::drain(&self.eoi)?;
            self.recheck_eoi.store(true, Ordering::Relaxed);
            self.opening.fetch_add(1, Ordering::Relaxed);
            self.again.store(false, Ordering::Relaxed);
            self.inherited.store(false, Ordering::Relaxed);
            self.hand_over.store(false, Ordering::Relaxed);
            let last = slot.last.replace(line.key());
            let moved = last.is_some_and(|last| last != line.key());
            slot.line = Some(line);
            (self.pending.swap(false, Ordering::Relaxed), moved)
        };
        fence(Ordering::SeqCst);
        let missed = self.missed.swap(false, Ordering::Relaxed);
        if self.pulse && (pending || moved) {
            self.unsure.store(true, Ordering::Relaxed);
        }
        if self.pulse && (pending || missed) {
            // Not forwarded, or forwarded to a line where it may not have been served.
            eventfd::signal(&self.trigger)?;
        }
        Ok(())
    }

    /// Forwards nothing any more. When it returns the event loop is not forwarding either.
    pub(crate) fn close(&self) {
        self.slot.write().unwrap_or_else(PoisonError::into_inner).line = None;
    }

    /// As [`close`](Self::close), for a change of path on the same line: an interrupt that is under way stays so, and what the event
    /// loop is told of from now on is noted.
    pub(crate) fn pause(&self) {
        self.hand_over.store(false, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
        self.close();
    }

    /// Ends [`pause`](Self::pause). Says whether the event loop was told of something meanwhile. When the line is asserted that was
    /// its EOI, because the device has masked itself.
    pub(crate) fn go_on(&self, line: Arc<dyn LevelSource>, hand_over: bool) -> bool {
        self.hand_over.store(hand_over, Ordering::Relaxed);
        {
            let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
            self.opening.fetch_add(1, Ordering::Relaxed);
            slot.line = Some(line);
        }
        self.take_missed()
    }

    /// Before a device is taken off a direct path on the same line: what it signals from now on is counted.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        eventfd::drain(&self.trigger)?;
        self.missed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// After that: whether it has signalled.
    pub(crate) fn has_signalled(&self) -> io::Result<bool> {
        Ok(eventfd::drain(&self.trigger)? | self.take_missed())
    }

    /// Forwards to a line that a direct path has served: an interrupt of that may be in service, and its EOI unmasks the device,
    /// also if it has come already. Says whether the device has signalled since [`prepare`](Self::prepare).
    pub(crate) fn take_over(&self, line: Arc<dyn LevelSource>) -> io::Result<bool> {
        let signalled = {
            let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
            let signalled = eventfd::drain(&self.trigger)?;
            self.recheck_trigger.store(true, Ordering::Relaxed);
            self.recheck_eoi.store(false, Ordering::Relaxed);
            self.pending.store(false, Ordering::Relaxed);
            self.again.store(false, Ordering::Relaxed);
            self.hand_over.store(false, Ordering::Relaxed);
            self.inherited.store(true, Ordering::Relaxed);
            self.opening.fetch_add(1, Ordering::Relaxed);
            slot.last = Some(line.key());
            slot.line = Some(line);
            signalled
        };
        Ok(signalled | self.take_missed())
    }

    /// Takes note of what the event loop was told of while it had no line.
    pub(crate) fn take_missed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Has whoever looks at [`take_missed`](Self::take_missed) next unmask the device.
    pub(crate) fn note_missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Takes note that the EOI of the line has been seen. Says whether the line may have been asserted.
    pub(crate) fn end_pending(&self) -> bool {
        self.pending.swap(false, Ordering::Relaxed) | self.inherited.swap(false, Ordering::Relaxed)
    }

    /// Whether an interrupt may be under way on the line, whoever brought it.
    pub(crate) fn may_be_under_way(&self) -> bool {
        self.pending.load(Ordering::Relaxed) || self.inherited.load(Ordering::Relaxed)
    }

    /// Whether the device's signals are events and not a level.
    pub(crate) fn is_pulse(&self) -> bool {
        self.pulse
    }

    /// Forgets signals that have not been served: the device's cause is gone.
    pub(crate) fn forget(&self) {
        self.pending.store(false, Ordering::Relaxed);
        self.again.store(false, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
        self.unsure.store(false, Ordering::Relaxed);
        self.inherited.store(false, Ordering::Relaxed);
    }

    /// Has the event loop watch the EOI eventfd, or not.
    pub(crate) fn watch_eoi(&self, watch: bool) -> io::Result<()> {
        if self.watch_eoi.swap(watch, Ordering::AcqRel) == watch {
            return Ok(());
        }
        eventfd::signal(&self.changed)
    }

    /// Whether the line is asserted, and its EOI has not been seen.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Whether a pulse may not have been served yet.
    pub(crate) fn pulse_pending(&self) -> bool {
        self.pulse && (self.pending.load(Ordering::Relaxed) || self.missed.load(Ordering::Relaxed))
    }

    /// Has the next [`open`](Self::open) signal once more.
    pub(crate) fn restore_pulse(&self) {
        self.missed.store(true, Ordering::Relaxed);
        self.unsure.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use interrupt_core::testing::{LevelDevice, RecordingSource};
    use interrupt_core::{Gsi, Level};

    use super::*;

    fn source() -> Arc<RecordingSource> {
        Arc::new(RecordingSource::new(Gsi(5)))
    }

    /// A device that is enabled and has signalled `forward`.
    fn signalled(forward: &Forward) -> LevelDevice {
        use std::os::fd::AsFd;
        let device = LevelDevice::new();
        device.set_trigger(Some(forward.trigger.as_fd())).unwrap();
        device.set_level(Level::High).unwrap();
        device
    }

    #[test]
    fn a_signal_from_before_a_change_is_not_forwarded_after_it() {
        let (forward, source) = (Forward::new(false).unwrap(), source());
        forward.open(source.clone()).unwrap();
        // Epoll has handed out this signal, and the event loop comes to it only when all has changed.
        eventfd::signal(&forward.trigger).unwrap();
        forward.close();
        forward.open(source.clone()).unwrap();
        forward.on_trigger().unwrap();
        assert_eq!(source.asserts(), 0);
        for n in 1..4 {
            eventfd::signal(&forward.trigger).unwrap();
            forward.on_trigger().unwrap();
            assert_eq!(source.asserts(), n);
        }
    }

    #[test]
    fn an_eoi_from_before_a_change_does_not_unmask_after_it() {
        let (forward, source) = (Forward::new(false).unwrap(), source());
        forward.open(source.clone()).unwrap();
        eventfd::signal(&forward.eoi).unwrap();
        forward.close();
        forward.open(source.clone()).unwrap();
        let device = signalled(&forward);
        forward.on_trigger().unwrap();
        forward.on_eoi(&device).unwrap();
        assert_eq!(
            (source.level(), device.signals()),
            (Level::High, 1),
            "that EOI was not its"
        );
        eventfd::signal(&forward.eoi).unwrap();
        forward.on_eoi(&device).unwrap();
        assert_eq!((source.level(), device.signals()), (Level::Low, 2));
    }

    #[test]
    fn an_eoi_with_nothing_pending_is_nothing_to_the_device() {
        let (forward, source) = (Forward::new(false).unwrap(), source());
        forward.open(source.clone()).unwrap();
        let device = signalled(&forward);
        for _ in 0..1_000 {
            eventfd::signal(&forward.eoi).unwrap();
            forward.on_eoi(&device).unwrap();
        }
        assert_eq!((source.asserts(), device.signals(), device.is_masked()), (0, 1, true));
    }

    #[test]
    fn a_pulse_that_came_while_closed_is_signalled_again() {
        let (forward, source) = (Forward::new(true).unwrap(), source());
        forward.on_trigger().unwrap();
        assert!(forward.pulse_pending());
        forward.open(source.clone()).unwrap();
        assert!(eventfd::drain(&forward.trigger).unwrap());
        forward.on_trigger().unwrap();
        assert_eq!(source.asserts(), 1);
        // Once.
        forward.close();
        forward.forget();
        forward.open(source).unwrap();
        assert!(!eventfd::drain(&forward.trigger).unwrap());
    }

    /// How often the line is asserted for one pulse, when each assertion is followed by an EOI.
    fn assertions_of_a_pulse(forward: &Forward, source: &RecordingSource) -> usize {
        let (device, before) = (LevelDevice::new(), source.asserts());
        forward.on_trigger().unwrap();
        for _ in 0..4 {
            eventfd::signal(&forward.eoi).unwrap();
            forward.on_eoi(&device).unwrap();
        }
        assert_eq!(source.level(), Level::Low);
        source.asserts() - before
    }

    #[test]
    fn a_pulse_is_said_twice_when_the_first_eoi_may_be_that_of_a_service_from_before() {
        let (forward, a, b) = (Forward::new(true).unwrap(), source(), source());
        forward.open(a.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&forward, &a), 1);
        // The same line again, at rest: nothing of this device's is in service there.
        forward.close();
        forward.open(a.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&forward, &a), 1);
        // Another line, where it may have been before.
        forward.close();
        forward.open(b.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&forward, &b), 2);
        assert_eq!(assertions_of_a_pulse(&forward, &b), 1);
        // The same line again, with a pulse that may be in service.
        forward.on_trigger().unwrap();
        forward.close();
        b.force_deassert().unwrap();
        forward.open(b.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&forward, &b), 2);
    }

    #[test]
    fn the_event_loop_never_waits_for_a_change() {
        let (forward, source) = (Forward::new(false).unwrap(), source());
        forward.open(source.clone()).unwrap();
        let changing = forward.slot.write().unwrap();
        forward.on_trigger().unwrap();
        assert_eq!(source.asserts(), 0);
        drop(changing);
    }
}
