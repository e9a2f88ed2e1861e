// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the pins of one IOAPIC share, and the pin as its line drives it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::{Delivery, Gsi, Level, MsiOutput, Pin, Result};

use super::pin::{Driven, PinState, Programmed, Send};
use crate::counter::Counter;
use crate::sync::lock;

/// What has gone wrong in an [`Ioapic`](super::Ioapic) where there was nobody to return an error to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses to no register, or of a width that the register does not take. They were ignored.
    pub ignored_accesses: u64,
    /// Writes that left an entry unmasked with a vector below 16 or a reserved delivery mode. Such a pin sends nothing.
    pub illegal_entries: u64,
    /// Messages that no processor took: nobody has that destination, or its local APIC is disabled.
    pub refused_messages: u64,
    /// Messages that the output could not send, beside those whose error went to the asserting device.
    pub send_errors: u64,
    /// Refused calls of [`MsiOutput::set_pin`]. Such a pin sends nothing until its entry is written again.
    pub route_errors: u64,
    /// Listeners that could not be told of an EOI, because their eventfd could not be written.
    pub listener_errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) ignored_accesses: Counter,
    pub(super) illegal_entries: Counter,
    pub(super) refused_messages: Counter,
    pub(super) send_errors: Counter,
    pub(super) route_errors: Counter,
    pub(super) listener_errors: Counter,
}

/// What the pins of one IOAPIC share.
#[derive(Debug)]
pub(super) struct Chip {
    pub(super) output: Arc<dyn MsiOutput>,
    pub(super) counters: Counters,
    /// For each vector, the pins whose entry has it: an EOI costs what its own pins cost.
    pins: Box<[AtomicU64]>,
}

impl Chip {
    pub(super) fn new(output: Arc<dyn MsiOutput>) -> Self {
        Self {
            output,
            counters: Counters::default(),
            pins: (0..=u8::MAX).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The pins whose entry has this vector, at this moment.
    pub(super) fn pins_of(&self, vector: u8) -> impl Iterator<Item = usize> + use<> {
        let mut pins = self.pins[usize::from(vector)].load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let pin = pins.trailing_zeros();
            pins &= pins.wrapping_sub(1);
            (pin < u64::BITS).then_some(pin as usize)
        })
    }

    pub(super) fn counts(&self) -> Counts {
        let Counters {
            ignored_accesses,
            illegal_entries,
            refused_messages,
            send_errors,
            route_errors,
            listener_errors,
        } = &self.counters;
        Counts {
            ignored_accesses: ignored_accesses.get(),
            illegal_entries: illegal_entries.get(),
            refused_messages: refused_messages.get(),
            send_errors: send_errors.get(),
            route_errors: route_errors.get(),
            listener_errors: listener_errors.get(),
        }
    }
}

/// A pin of an [`Ioapic`](super::Ioapic), as a [`Line`](interrupt_core::Line) drives it.
pub struct IoapicPin {
    chip: Arc<Chip>,
    number: u8,
    gsi: Gsi,
    state: Mutex<PinState>,
}

/// What a level that was driven leaves to be done.
#[derive(Debug)]
pub struct Outcome(Driven);

impl IoapicPin {
    pub(super) fn new(chip: Arc<Chip>, number: u8, gsi: Gsi) -> Self {
        let pin = Self {
            chip,
            number,
            gsi,
            state: Mutex::new(PinState::new()),
        };
        pin.index(pin.state().entry().vector());
        pin
    }

    pub(super) fn state(&self) -> MutexGuard<'_, PinState> {
        lock(&self.state)
    }

    /// Changes the entry, and the index with it: both at once for whoever holds the pin's lock.
    pub(super) fn change<R>(&self, state: &mut PinState, change: impl FnOnce(&mut PinState) -> R) -> R {
        let before = state.entry().vector();
        let result = change(state);
        let after = state.entry().vector();
        if before != after {
            self.chip.pins[usize::from(before)].fetch_and(!self.bit(), Ordering::Release);
            self.index(after);
        }
        result
    }

    fn index(&self, vector: u8) {
        self.chip.pins[usize::from(vector)].fetch_or(self.bit(), Ordering::Release);
    }

    fn bit(&self) -> u64 {
        1 << self.number
    }

    /// Tells the output what the pin is to send, and that it may send again. Counts an error.
    pub(super) fn program(&self, program: Programmed) -> Result<()> {
        let Programmed { message, masked } = program;
        let told = self.chip.output.set_pin(self.gsi, message, masked);
        match &told {
            Ok(()) => self.state().programmed(program),
            Err(_) => self.chip.counters.route_errors.count(),
        }
        told
    }

    /// Sends a message. Not with the pin's lock: the receiver may end the interrupt at once.
    fn send(&self, send: Send) -> Result<Delivery> {
        let delivered = self.chip.output.send_msi(self.gsi, send.message);
        if matches!(delivered, Ok(Delivery::Delivered(0)) | Err(_)) {
            self.state().refused(send);
        }
        if matches!(delivered, Ok(Delivery::Delivered(0))) {
            self.chip.counters.refused_messages.count();
        }
        delivered
    }

    /// Sends a message that no source asked for now, so that there is nobody to give an error to.
    pub(super) fn send_unasked(&self, send: Option<Send>) {
        if let Some(send) = send {
            self.chip.counters.send_errors.count_error(self.send(send));
        }
    }
}

impl Pin for IoapicPin {
    type Outcome = Outcome;

    fn drive(&self, level: Level) -> Result<Outcome> {
        Ok(Outcome(self.state().drive(level)))
    }

    fn deliver(&self, outcome: Outcome) -> Result<Delivery> {
        match outcome.0 {
            Driven::Send(send) => self.send(send),
            Driven::Nothing(delivery) => Ok(delivery),
        }
    }
}

impl fmt::Debug for IoapicPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(
            f,
            "pin {}: {}, entry {:#018x}",
            self.number,
            state.line(),
            state.entry().bits()
        )
    }
}
