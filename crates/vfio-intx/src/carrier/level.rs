// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay of a device that holds a level and masks itself when it signals: the EOI unmasks the device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interrupt_core::LevelSource;
use interrupt_core::forward::DeviceInterrupt;

use super::{AtEoi, Carrier, RelayError, RelayStep, Wires};
use crate::eventfd;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct LevelRelay {
    wires: Wires,
    /// The line is asserted and its EOI has not been seen.
    pending: AtomicBool,
    /// An interrupt that a direct path brought may be in service: its EOI unmasks the device too.
    inherited: AtomicBool,
    /// The next EOI of an interrupt hands over to a direct path, instead of unmasking.
    hand_over: AtomicBool,
}

impl LevelRelay {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wires: Wires::new()?,
            pending: AtomicBool::new(false),
            inherited: AtomicBool::new(false),
            hand_over: AtomicBool::new(false),
        })
    }

    fn set_under_way(&self, pending: bool, inherited: bool) {
        self.pending.store(pending, Ordering::Relaxed);
        self.inherited.store(inherited, Ordering::Relaxed);
        self.hand_over.store(false, Ordering::Relaxed);
    }

    // ---- a change of path on one line, which leaves an interrupt that is under way alone ----

    /// Stops carrying. What the event loop is told of from now on is noted as missed.
    #[must_use]
    pub(crate) fn pause(&self) -> Option<Arc<dyn LevelSource>> {
        self.hand_over.store(false, Ordering::Relaxed);
        self.wires.clear_missed();
        self.wires.close()
    }

    /// Ends [`pause`](Self::pause). Returns whether the event loop was told of something meanwhile. While an interrupt
    /// is under way that was its EOI, because the device has masked itself.
    pub(crate) fn go_on(&self, line: Arc<dyn LevelSource>, hand_over: bool) -> io::Result<bool> {
        self.hand_over.store(hand_over, Ordering::Relaxed);
        self.wires.set(line, || Ok(()))?;
        Ok(self.wires.take_missed())
    }

    /// Before the device is taken off a direct path on the same line: what it signals from now on is counted.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        eventfd::drain(&self.wires.trigger)?;
        self.wires.clear_missed();
        Ok(())
    }

    /// After [`prepare`](Self::prepare): whether the device has signalled.
    pub(crate) fn has_signalled(&self) -> io::Result<bool> {
        Ok(eventfd::drain(&self.wires.trigger)? | self.wires.take_missed())
    }

    /// Carries to a line that a direct path has served: an interrupt of that path may be in service, and its EOI
    /// unmasks the device, also an EOI that has come already. Returns whether the device has signalled since
    /// [`prepare`](Self::prepare).
    pub(crate) fn take_over(&self, line: Arc<dyn LevelSource>) -> io::Result<bool> {
        let signalled = self.wires.set(line, || {
            let signalled = eventfd::drain(&self.wires.trigger)?;
            self.wires.recheck(true, false);
            self.set_under_way(false, true);
            Ok(signalled)
        })?;
        Ok(signalled | self.wires.take_missed())
    }

    /// Notes that the EOI of the line has been seen. Returns whether an interrupt may have been under way.
    pub(crate) fn end_interrupt(&self) -> bool {
        let pending = self.pending.swap(false, Ordering::Relaxed);
        // Looked at before it is written: it is of use once, after a change of path.
        let inherited = self.inherited.load(Ordering::Relaxed) && self.inherited.swap(false, Ordering::Relaxed);
        pending || inherited
    }

    /// Whether an interrupt may be under way on the line, by whichever path it came.
    pub(crate) fn may_be_under_way(&self) -> bool {
        self.is_pending() || self.inherited.load(Ordering::Relaxed)
    }
}

impl Carrier for LevelRelay {
    fn wires(&self) -> &Wires {
        &self.wires
    }

    fn on_trigger(&self) -> Result<(), RelayError> {
        let slot = self.wires.line();
        let Some(line) = slot.as_ref().and_then(|slot| slot.as_ref()) else {
            return Ok(());
        };
        if self.wires.trigger_is_stale() {
            return Ok(());
        }
        self.pending.store(true, Ordering::Relaxed);
        let asserted = self.wires.take(RelayStep::Assert, &**line, || line.assert());
        asserted.map(drop)
    }

    fn on_eoi(&self, device: &dyn DeviceInterrupt) -> (AtEoi, Result<(), RelayError>) {
        let slot = self.wires.line();
        let Some(line) = slot.as_ref().and_then(|slot| slot.as_ref()) else {
            return (AtEoi::Nothing, Ok(()));
        };
        if self.wires.eoi_is_stale() || !self.end_interrupt() {
            return (AtEoi::Nothing, Ok(()));
        }
        // Lowered first: the unmask may signal at once, and that signal is a new assertion.
        let lowered = self.wires.take(RelayStep::Lower, &**line, || line.deassert());
        if self.hand_over.load(Ordering::Relaxed) {
            return (AtEoi::HandOver, lowered);
        }
        // A line that would not be lowered is no reason to leave the device masked.
        let unmasked = self.wires.take(RelayStep::Unmask, &**line, || device.unmask());
        (AtEoi::Nothing, unmasked.and(lowered))
    }

    fn open(&self, line: Arc<dyn LevelSource>) -> io::Result<()> {
        self.wires.set(line, || {
            // The unmask that follows states anew what was signalled before.
            eventfd::drain(&self.wires.trigger)?;
            eventfd::drain(&self.wires.eoi)?;
            self.wires.recheck(true, true);
            self.set_under_way(false, false);
            Ok(())
        })?;
        self.wires.take_missed();
        Ok(())
    }

    fn forget(&self) {
        self.set_under_way(false, false);
        self.wires.clear_missed();
    }

    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    fn has_unserved_pulse(&self) -> bool {
        false
    }

    fn restore_pulse(&self) -> io::Result<()> {
        Ok(())
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

    /// A device that is enabled and has signalled `relay`.
    fn signalled(relay: &LevelRelay) -> LevelDevice {
        use std::os::fd::AsFd;
        let device = LevelDevice::new();
        device.set_trigger(Some(relay.wires.trigger.as_fd())).unwrap();
        device.set_level(Level::High).unwrap();
        device
    }

    #[test]
    fn a_signal_from_before_a_change_is_not_relayed_after_it() {
        let (relay, source) = (LevelRelay::new().unwrap(), source());
        relay.open(source.clone()).unwrap();
        // Epoll has handed out this signal, and the event loop comes to it only when all has changed.
        eventfd::signal(&relay.wires.trigger).unwrap();
        drop(relay.wires.close());
        relay.open(source.clone()).unwrap();
        relay.on_trigger().unwrap();
        assert_eq!(source.asserts(), 0);
        for n in 1..4 {
            eventfd::signal(&relay.wires.trigger).unwrap();
            relay.on_trigger().unwrap();
            assert_eq!(source.asserts(), n);
        }
    }

    #[test]
    fn an_eoi_from_before_a_change_does_not_unmask_after_it() {
        let (relay, source) = (LevelRelay::new().unwrap(), source());
        relay.open(source.clone()).unwrap();
        eventfd::signal(&relay.wires.eoi).unwrap();
        drop(relay.wires.close());
        relay.open(source.clone()).unwrap();
        let device = signalled(&relay);
        relay.on_trigger().unwrap();
        relay.on_eoi(&device).1.unwrap();
        assert_eq!(
            (source.level(), device.signals()),
            (Level::High, 1),
            "that EOI was not its"
        );
        eventfd::signal(&relay.wires.eoi).unwrap();
        relay.on_eoi(&device).1.unwrap();
        assert_eq!((source.level(), device.signals()), (Level::Low, 2));
    }

    #[test]
    fn an_eoi_with_nothing_pending_is_nothing_to_the_device() {
        let (relay, source) = (LevelRelay::new().unwrap(), source());
        relay.open(source.clone()).unwrap();
        let device = signalled(&relay);
        for _ in 0..1_000 {
            eventfd::signal(&relay.wires.eoi).unwrap();
            relay.on_eoi(&device).1.unwrap();
        }
        assert_eq!((source.asserts(), device.signals(), device.is_masked()), (0, 1, true));
    }

    #[test]
    fn the_event_loop_never_waits_for_a_change() {
        let (relay, source) = (LevelRelay::new().unwrap(), source());
        relay.open(source.clone()).unwrap();
        relay
            .wires
            .set(source.clone(), || {
                relay.on_trigger().unwrap();
                Ok(())
            })
            .unwrap();
        assert_eq!(source.asserts(), 0);
    }
}
