// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events of a pin: interrupts of devices that signal and have no level to state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use interrupt_core::{Delivery, EoiGuard, EoiNotifier, LevelSource, Line, LineSource, Listener, LoweredBy, Result};

use super::pin::IoapicPin;
use super::pin_state::Sent;
use super::spec::Trigger;

/// The source of a pin's events. On an edge-triggered pin an event is an edge. On a level-triggered pin the source holds
/// the line until a message has been sent, which a mask or an interrupt in service can delay.
pub(super) struct Events {
    // First: no more calls of the listener, then the source ends.
    _guard: EoiGuard,
    pulse: Arc<Pulse>,
}

struct Pulse {
    source: LineSource<IoapicPin>,
    line: Arc<Line<IoapicPin>>,
    /// The number of the last event, and the number of the pin's last message at that time. [`NONE`] when a message has
    /// been sent since.
    waits: AtomicU64,
    events: AtomicU64,
}

const NONE: u64 = 0;

impl Events {
    pub(super) fn new(line: &Arc<Line<IoapicPin>>) -> Result<Self> {
        let pulse = Arc::new(Pulse {
            source: line.source("events", LoweredBy::Device),
            line: Arc::clone(line),
            waits: AtomicU64::new(NONE),
            events: AtomicU64::new(0),
        });
        // The line would keep itself if its listener kept the source.
        let told = Arc::downgrade(&pulse);
        let listener = Listener::callback(move |_| {
            if let Some(pulse) = told.upgrade() {
                pulse.resampled();
            }
        });
        Ok(Self {
            _guard: line.subscribe(pulse.source.key().into(), listener)?,
            pulse,
        })
    }

    pub(super) fn signal(&self) -> Result<Delivery> {
        let event = self.pulse.now();
        // Before the assertion: whoever lowers the line for an earlier event sees this event, or is seen by the
        // assertion.
        self.pulse.waits.store(event, Ordering::SeqCst);
        self.pulse.drive(event)
    }
}

impl Pulse {
    fn now(&self) -> u64 {
        let event = self.events.fetch_add(1, Ordering::Relaxed) + 1;
        event << Sent::BITS | u64::from(self.line.pin().sent())
    }

    /// Sends the event's message, or leaves the line high until the message can be sent.
    fn drive(&self, event: u64) -> Result<Delivery> {
        let is_edge = self.line.pin().entry().trigger() == Trigger::Edge;
        let mut delivery = self.source.assert()?;
        if is_edge && delivery == Delivery::Coalesced {
            // An event waited when the guest made this pin an edge pin, so the line has to fall first.
            self.source.deassert()?;
            delivery = self.source.assert()?;
        }
        match delivery {
            // No processor took the message, so that it does not count.
            Delivery::Delivered(0) => self.settle(),
            Delivery::Delivered(_) | Delivery::Unknown => self.end(event),
            // An edge is lost behind a mask, as on hardware.
            _ if is_edge => self.end(event),
            Delivery::Coalesced | Delivery::Pending => self.settle(),
        }
        Ok(delivery)
    }

    /// The chip has asked for the level: the interrupt of the last message has ended, or the guest has unmasked the pin.
    fn resampled(&self) {
        let event = self.waits.load(Ordering::SeqCst);
        if event == NONE {
            return;
        }
        // One ahead of the pin: the message on its way at the event was refused, and does not count.
        if (event as Sent).wrapping_sub(self.line.pin().sent()) <= 1 {
            // An error leaves the event to the next one.
            drop(self.drive(event));
        } else {
            self.end(event);
        }
    }

    /// A message has been sent since this event.
    fn end(&self, event: u64) {
        // This fails if there is a later event, or if a later event's message has ended both.
        let _ = self
            .waits
            .compare_exchange(event, NONE, Ordering::SeqCst, Ordering::SeqCst);
        self.settle();
    }

    /// Lowers the line, if no event waits.
    fn settle(&self) {
        if self.waits.load(Ordering::SeqCst) == NONE {
            // A pin that would not be lowered is lowered at the line's next change.
            drop(self.source.deassert());
            // An event that came in between has found the line high.
            let later = self.waits.load(Ordering::SeqCst);
            if later != NONE {
                drop(self.drive(later));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use interrupt_core::{Gsi, Level};

    use super::*;
    use crate::Ioapic;
    use crate::testing::LocalApics;

    /// A thread has noted its event, and another thread's later event is carried before the first thread asserts.
    #[test]
    fn an_event_that_a_later_one_has_carried_leaves_the_line_low() {
        const LEVEL: u32 = 0x8000;
        for entry in [0x31, LEVEL | 0x31] {
            let apics = LocalApics::new(1);
            let ioapic = Ioapic::builder().build(apics.clone()).unwrap();
            ioapic.write(0, &[0x10 + 2 * 5]);
            ioapic.write(0x10, &u32::to_le_bytes(entry));
            let events = Events::new(ioapic.line(Gsi(5)).unwrap()).unwrap();
            let event = events.pulse.now();
            events.pulse.waits.store(event, Ordering::SeqCst);
            events.signal().unwrap();
            events.pulse.drive(event).unwrap();
            for _ in 0..3 {
                apics.accept(0);
                apics.eoi(0, &ioapic);
            }
            assert_eq!(ioapic.level(Gsi(5)).unwrap(), Level::Low, "{entry:#x}");
            assert_eq!(apics.accept(0), None, "{entry:#x}");
        }
    }
}
