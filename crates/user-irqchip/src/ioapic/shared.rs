// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts that all pins of one IOAPIC share: the output, the counters, and the index of pins by vector.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use interrupt_core::MsiOutput;

use crate::counter::Counter;

/// Failures in an [`Ioapic`](super::Ioapic) that had no caller to return an error to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ignored accesses: to no register, or of a width that the register does not take.
    pub ignored_accesses: u64,
    /// Writes that left an entry unmasked with a vector below 16 or a reserved delivery mode. Such a pin sends nothing.
    pub illegal_entries: u64,
    /// Messages that no processor took: none has that destination, or its local APIC is disabled.
    pub refused_messages: u64,
    /// Messages that the output could not send, except those whose error was returned to the asserting device.
    pub send_errors: u64,
    /// Refused calls of [`MsiOutput::set_pin`]. The next assertion that raises the line of such a pin, the next write of
    /// an entry, and the next EOI try again.
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

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) output: Arc<dyn MsiOutput>,
    pub(super) counters: Counters,
    /// Held from the write of an entry until the output knows of it, so that the output is told in the order of the
    /// writes.
    pub(super) writes: Mutex<()>,
    /// The pins that the output has refused, or is being told of.
    refused: AtomicU64,
    /// For each vector, the pins whose entry has the vector, so that an EOI looks at these pins only.
    pins: Box<[AtomicU64]>,
}

impl Shared {
    pub(super) fn new(output: Arc<dyn MsiOutput>) -> Self {
        Self {
            output,
            counters: Counters::default(),
            writes: Mutex::new(()),
            refused: AtomicU64::new(0),
            pins: (0..=u8::MAX).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The pins whose entry has this vector, at this moment.
    pub(super) fn pins_of(&self, vector: u8) -> impl Iterator<Item = usize> + use<> {
        bits(self.pins[usize::from(vector)].load(Ordering::Acquire))
    }

    /// The pins that the output has refused, at this moment.
    pub(super) fn refused(&self) -> impl Iterator<Item = usize> + use<> {
        bits(self.refused.load(Ordering::SeqCst))
    }

    pub(super) fn set_refused(&self, pin: u8, refused: bool) {
        if refused {
            self.refused.fetch_or(1 << pin, Ordering::SeqCst);
        } else {
            self.refused.fetch_and(!(1 << pin), Ordering::SeqCst);
        }
    }

    /// Moves a pin from one vector to another.
    pub(super) fn reindex(&self, pin: u8, before: u8, after: u8) {
        if before != after {
            self.pins[usize::from(before)].fetch_and(!(1 << pin), Ordering::Release);
            self.index(pin, after);
        }
    }

    pub(super) fn index(&self, pin: u8, vector: u8) {
        self.pins[usize::from(vector)].fetch_or(1 << pin, Ordering::Release);
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

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit as usize)
    })
}
