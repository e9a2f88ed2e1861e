// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay of a device that pulses: each signal is an event, which nothing but this relay keeps.
//!
//! A pulse is kept in the trigger eventfd until the relay takes it, and by the relay from then on. The relay notes a
//! pulse before it takes the pulse, so that a snapshot finds the pulse in one place or the other at any moment. That
//! needs a read for each pulse, and such a device needs no unmask.
//!
//! Nor has a pulse a level that would say it again, so no EOI may end a pulse that the guest has not seen. Where the
//! relay cannot tell whose EOI it gets, it asserts once more: a handler that runs for nothing is harmless.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::{Delivery, LevelSource, SourceKey};

use super::{AtEoi, Carrier, RelayError, RelayStep, Wires};
use crate::eventfd;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PulseRelay {
    wires: Wires,
    /// The line that was open last.
    last: Mutex<Option<SourceKey>>,
    /// The line is asserted and its EOI has not been seen.
    pending: AtomicBool,
    /// The guest may have looked at the device before the last pulse: the EOI is followed by another assertion.
    again: AtomicBool,
    /// The line may be in service from before the wires were changed.
    unsure: AtomicBool,
}

impl PulseRelay {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wires: Wires::new()?,
            last: Mutex::new(None),
            pending: AtomicBool::new(false),
            again: AtomicBool::new(false),
            unsure: AtomicBool::new(false),
        })
    }
}

impl Carrier for PulseRelay {
    fn wires(&self) -> &Wires {
        &self.wires
    }

    fn on_trigger(&self) -> Result<(), RelayError> {
        let slot = self.wires.line();
        let Some(line) = slot.as_ref().and_then(|slot| slot.as_ref()) else {
            // The pulse stays in the eventfd for the next opening.
            return Ok(());
        };
        let pending = self.pending.swap(true, Ordering::SeqCst);
        // An eventfd of our own that cannot be read is no reason to drop a pulse.
        if !eventfd::drain(&self.wires.trigger).unwrap_or(true) {
            // A signal from before a change of wiring, which has dealt with the pulse.
            self.pending.store(pending, Ordering::SeqCst);
            return Ok(());
        }
        if pending {
            // The guest may have looked at the device before this pulse, and the EOI that ends its look is still to
            // come.
            self.again.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let delivery = self.wires.take(RelayStep::Assert, &**line, || line.assert())?;
        // Unless the controller says that the assertion sent an interrupt, another sharer's interrupt may be in service;
        // and after a change of wiring the line may be in service since before. Then the next EOI may end a look at this
        // device that came before the pulse.
        let sent = matches!(delivery, Delivery::Delivered(_));
        if self.unsure.swap(false, Ordering::Relaxed) || !sent {
            self.again.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn on_eoi(&self, _device: &dyn DeviceInterrupt) -> (AtEoi, Result<(), RelayError>) {
        let slot = self.wires.line();
        let Some(line) = slot.as_ref().and_then(|slot| slot.as_ref()) else {
            return (AtEoi::Nothing, Ok(()));
        };
        if self.wires.eoi_is_stale() || !self.is_pending() {
            return (AtEoi::Nothing, Ok(()));
        }
        let lowered = self.wires.take(RelayStep::Lower, &**line, || line.deassert());
        if !self.again.swap(false, Ordering::Relaxed) {
            self.pending.store(false, Ordering::SeqCst);
            return (AtEoi::Nothing, lowered);
        }
        let asserted = self.wires.take(RelayStep::Assert, &**line, || line.assert());
        if matches!(asserted, Ok(Delivery::Pending | Delivery::Coalesced)) {
            // Nothing was sent: the pin is masked, and the next notification is that of the unmask, or another interrupt
            // is in service.
            self.again.store(true, Ordering::Relaxed);
        }
        (AtEoi::Nothing, asserted.and(lowered))
    }

    fn open(&self, line: Arc<dyn LevelSource>) -> io::Result<()> {
        let key = line.key();
        let pending = self.wires.set(line, || {
            eventfd::drain(&self.wires.eoi)?;
            self.wires.recheck(false, true);
            self.again.store(false, Ordering::Relaxed);
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(key);
            let pending = self.pending.swap(false, Ordering::SeqCst);
            if pending || last.is_some_and(|last| last != key) {
                self.unsure.store(true, Ordering::Relaxed);
            }
            Ok(pending)
        })?;
        // A pulse that came while there was no line, or that was carried to a line where it may not have been served.
        // The write is what tells the event loop, which may have seen the count before.
        if pending | eventfd::drain(&self.wires.trigger)? {
            eventfd::signal(&self.wires.trigger)?;
        }
        Ok(())
    }

    fn forget(&self) {
        self.pending.store(false, Ordering::SeqCst);
        self.again.store(false, Ordering::Relaxed);
        self.unsure.store(false, Ordering::Relaxed);
        if let Err(error) = eventfd::drain(&self.wires.trigger) {
            log::error!("read the relay's eventfd: {error}");
        }
    }

    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    fn has_unserved_pulse(&self) -> bool {
        // In this order: a pulse that the relay has taken meanwhile is noted. An eventfd of our own that cannot be
        // polled is no reason to lose a pulse.
        eventfd::wait(&self.wires.trigger, Some(Duration::ZERO)).unwrap_or(true) || self.is_pending()
    }

    fn restore_pulse(&self) -> io::Result<()> {
        self.unsure.store(true, Ordering::Relaxed);
        eventfd::signal(&self.wires.trigger)
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

    #[test]
    fn a_pulse_that_came_while_closed_is_signalled_again() {
        let (relay, source) = (PulseRelay::new().unwrap(), source());
        eventfd::signal(&relay.wires.trigger).unwrap();
        relay.on_trigger().unwrap();
        assert!(relay.has_unserved_pulse());
        relay.open(source.clone()).unwrap();
        for _ in 0..2 {
            relay.on_trigger().unwrap();
            assert_eq!(source.asserts(), 1);
            assert!(relay.has_unserved_pulse());
        }
        // Once.
        drop(relay.wires.close());
        relay.forget();
        relay.open(source.clone()).unwrap();
        relay.on_trigger().unwrap();
        assert_eq!(source.asserts(), 1);
        assert!(!relay.has_unserved_pulse());
    }

    /// A line whose pin the guest masks and unmasks.
    #[derive(Debug)]
    struct Masked {
        source: RecordingSource,
        is_masked: AtomicBool,
    }

    impl LevelSource for Masked {
        fn key(&self) -> SourceKey {
            self.source.key()
        }

        fn label(&self) -> &str {
            self.source.label()
        }

        fn assert(&self) -> interrupt_core::Result<Delivery> {
            self.source.assert()?;
            Ok(match self.is_masked.load(Ordering::Relaxed) {
                true => Delivery::Pending,
                false => Delivery::Delivered(1),
            })
        }

        fn deassert(&self) -> interrupt_core::Result<()> {
            self.source.deassert()
        }

        fn force_deassert(&self) -> interrupt_core::Result<()> {
            self.source.force_deassert()
        }

        fn trigger(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            None
        }
    }

    /// The guest masks the pin, serves the device, ends the interrupt and unmasks the pin. The device pulses after it was
    /// served.
    #[test]
    fn a_pulse_behind_a_mask_outlives_the_eoi() {
        let (relay, device) = (PulseRelay::new().unwrap(), LevelDevice::new());
        let line = Arc::new(Masked {
            source: RecordingSource::new(Gsi(5)),
            is_masked: AtomicBool::new(false),
        });
        let told = |level| {
            eventfd::signal(&relay.wires.eoi).unwrap();
            relay.on_eoi(&device).1.unwrap();
            assert_eq!(line.source.level(), level);
        };
        relay.open(line.clone()).unwrap();
        line.is_masked.store(true, Ordering::Relaxed);
        eventfd::signal(&relay.wires.trigger).unwrap();
        relay.on_trigger().unwrap();
        told(Level::High); // the EOI
        line.is_masked.store(false, Ordering::Relaxed);
        told(Level::High); // the unmask
        told(Level::Low); //  the EOI of the pulse
        assert!(!relay.has_unserved_pulse());
    }

    /// How often the line is asserted for one pulse, when each assertion is followed by an EOI.
    fn assertions_of_a_pulse(relay: &PulseRelay, source: &RecordingSource) -> usize {
        let (device, before) = (LevelDevice::new(), source.asserts());
        eventfd::signal(&relay.wires.trigger).unwrap();
        relay.on_trigger().unwrap();
        for _ in 0..4 {
            eventfd::signal(&relay.wires.eoi).unwrap();
            relay.on_eoi(&device).1.unwrap();
        }
        assert_eq!(source.level(), Level::Low);
        source.asserts() - before
    }

    #[test]
    fn a_pulse_is_said_twice_when_the_first_eoi_may_be_that_of_a_service_from_before() {
        let (relay, a, b) = (PulseRelay::new().unwrap(), source(), source());
        relay.open(a.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&relay, &a), 1);
        // The same line again, at rest: nothing of this device's is in service there.
        drop(relay.wires.close());
        relay.open(a.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&relay, &a), 1);
        // Another line, where it may have been before.
        drop(relay.wires.close());
        relay.open(b.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&relay, &b), 2);
        assert_eq!(assertions_of_a_pulse(&relay, &b), 1);
        // The same line again, with a pulse that may be in service.
        eventfd::signal(&relay.wires.trigger).unwrap();
        relay.on_trigger().unwrap();
        drop(relay.wires.close());
        b.force_deassert().unwrap();
        relay.open(b.clone()).unwrap();
        assert_eq!(assertions_of_a_pulse(&relay, &b), 2);
    }
}
