// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a pin, and the decision to send an interrupt.
//!
//! Everything here is a function from one state to the next. The state is one word.

use std::fmt;

use interrupt_core::{Delivery, Level};

use super::spec::RedirectionEntry;

/// The number of EOIs in a row with the line high after which a delay follows, as in Linux
/// (IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT). The delay lets a guest whose handler does not serve the device run other code.
pub(super) const EOIS_BEFORE_DELAY: u64 = 10_000;

/// The state of one pin. Bits 16:0 are bits 16:0 of the redirection-table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PinState(u64);

/// The bits of the entry that the decision needs: vector, delivery mode, remote IRR, trigger mode and mask.
const ENTRY: u64 = 0x1_ffff;

const MASKED: u64 = RedirectionEntry::MASKED;
const REMOTE_IRR: u64 = RedirectionEntry::REMOTE_IRR;
/// The line is high.
const LINE: u64 = 1 << 17;
/// A rising edge has not been sent yet, because the output is being programmed.
const EDGE: u64 = 1 << 18;
/// The output is being told of the pin, or has refused. The pin sends nothing meanwhile.
const STALE: u64 = 1 << 19;
/// The output knows a message of the pin.
const ROUTED: u64 = 1 << 20;
/// The guest has moved the entry to another destination while its interrupt is in service. The output is told at the
/// EOI.
const MOVED: u64 = 1 << 21;
/// The next interrupt waits for the end of a delay.
const DELAYED: u64 = 1 << 22;
/// Bits 45:32 count the EOIs in a row that found the line high.
const EOI: u64 = 1 << 32;
const EOIS: u64 = 0x3fff * EOI;
/// Bits 63:48 count the messages that were sent.
const SEND: u64 = 1 << 48;

/// The number of a pin's message, modulo 2^16.
pub(super) type Sent = u16;

/// The result of a level that was driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driven {
    /// An interrupt is to be sent.
    Send(Sent),
    /// An interrupt waits for the output, which is being told of the pin or has refused.
    Tell,
    /// Nothing is to be done.
    Nothing(Delivery),
}

/// What remains to be done after the guest has written the pin's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterWrite {
    /// Nothing.
    Nothing,
    /// An edge that arrived while the output was being told is to be sent.
    Send(Sent),
    /// A waiting level can be sent now. The sources are asked first whether their cause persists.
    Resample,
    /// The line is low, but a signal that goes to the processor without this chip (an irqfd on the pin's GSI) may have
    /// been lost: the listeners of the GSI are told.
    ResampleGsi,
}

/// What remains to be done after an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterEoi {
    /// Nothing.
    Nothing,
    /// The line is high again, or still.
    Send(Sent),
    /// The line is high, and the limit of such EOIs in a row is reached.
    Delay,
    /// The output is to be told of the entry's new destination. Then the interrupt is sent if the line is high.
    Program,
}

impl PinState {
    pub(super) const RESET: Self = Self(RedirectionEntry::RESET.bits());

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    const fn with(self, bit: u64, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    pub(super) fn line(self) -> Level {
        if self.has(LINE) { Level::High } else { Level::Low }
    }

    pub(super) fn remote_irr(self) -> bool {
        self.has(REMOTE_IRR)
    }

    /// Whether a rising edge waits for the output.
    pub(super) fn edge(self) -> bool {
        self.has(EDGE)
    }

    pub(super) fn is_stale(self) -> bool {
        self.has(STALE)
    }

    fn is_level(self) -> bool {
        RedirectionEntry::from_bits(self.0).is_level()
    }

    /// The pin sends rising edges now.
    pub(super) fn is_open_edge(self) -> bool {
        !self.has(MASKED) && !self.is_level()
    }

    pub(super) fn sent(self) -> Sent {
        (self.0 / SEND) as Sent
    }

    /// Decides whether to send an interrupt; no other code does. A returned message counts as sent.
    fn evaluate(self) -> (Self, Option<Sent>) {
        if self.has(MASKED) {
            // A masked edge is lost, as on hardware. A level stays.
            return (self.with(EDGE, false), None);
        }
        if self.has(STALE) {
            return (self, None);
        }
        let is_level = self.is_level();
        let wanted = if is_level {
            self.has(LINE) && !self.has(REMOTE_IRR)
        } else {
            self.has(EDGE)
        };
        // An edge that waited while the pin became a level pin is part of the level.
        let next = self.with(EDGE, false);
        if !wanted || !self.has(ROUTED) {
            return (next, None);
        }
        let next = next.with(REMOTE_IRR, is_level).with(DELAYED, false);
        let next = Self(next.0.wrapping_add(SEND));
        (next, Some(next.sent()))
    }

    /// The line has this level now. Driving a high level again sends again a message that no processor took.
    pub(super) fn drive(self, level: Level) -> (Self, Driven) {
        if level == Level::Low {
            return (self.with(LINE, false), Driven::Nothing(Delivery::Coalesced));
        }
        let mut high = self.with(LINE, true);
        if !self.is_level() {
            if self.has(LINE) {
                return (self, Driven::Nothing(Delivery::Coalesced));
            }
            high = high.with(EDGE, true);
        }
        let (next, sent) = high.evaluate();
        let driven = match sent {
            Some(sent) => Driven::Send(sent),
            None if next.has(STALE) && !next.has(MASKED) => Driven::Tell,
            None => Driven::Nothing(Delivery::Pending),
        };
        (next, driven)
    }

    /// The guest has written `entry`. `Output` says how the entry differs from the output's knowledge. If it differs,
    /// an unmasked pin sends nothing until [`told`](Self::told).
    pub(super) fn written(self, entry: RedirectionEntry, output: Output) -> Self {
        let remote_irr = self.has(REMOTE_IRR) && entry.is_level();
        let next = Self(self.0 & !ENTRY | entry.bits() & ENTRY & !REMOTE_IRR).with(REMOTE_IRR, remote_irr);
        // Keep the old route until the EOI of the interrupt in service: KVM before 6.2 forgets an interrupt in service
        // whose route goes to another CPU.
        let waits = remote_irr && output.destination;
        let masked = entry.is_masked();
        let differs = !masked && output.mask || output.message && !waits;
        next.with(MOVED, output.message && waits)
            .with(STALE, self.has(STALE) || differs)
            // A masked edge is lost, as on hardware. A level stays.
            .with(EDGE, self.has(EDGE) && !masked)
    }

    /// The destination of the output's message differs from the entry's until the EOI.
    pub(super) fn is_moved(self) -> bool {
        self.has(MOVED)
    }

    /// The output has been told, and knows whether the pin has a message. Without this call the pin waits until the
    /// output is told again.
    pub(super) fn told(self, has_message: bool) -> Self {
        self.with(STALE, false).with(ROUTED, has_message)
    }

    /// The output refused a masked pin. The pin sends nothing until the output has accepted the unmasked pin.
    pub(super) fn untold(self) -> Self {
        self.with(STALE, true)
    }

    /// The second half of a write of the entry, when the output has been told. `changed`: the output was told of a
    /// change.
    pub(super) fn after_write(self, changed: bool) -> (Self, AfterWrite) {
        let is_open = self.is_level() && !self.has(MASKED) && !self.has(REMOTE_IRR);
        if is_open && self.has(LINE) {
            return (self, AfterWrite::Resample);
        }
        match self.evaluate() {
            (next, Some(sent)) => (next, AfterWrite::Send(sent)),
            (next, None) if is_open && changed => (next, AfterWrite::ResampleGsi),
            (next, None) => (next, AfterWrite::Nothing),
        }
    }

    /// The sources have been asked for their level, or the output has been programmed.
    pub(super) fn settled(self) -> (Self, Option<Sent>) {
        self.evaluate()
    }

    /// Ends a delay, if there is one.
    pub(super) fn delay_over(self) -> (Self, Option<Sent>) {
        if self.has(DELAYED) {
            self.with(DELAYED, false).evaluate()
        } else {
            (self, None)
        }
    }

    /// The guest has ended an interrupt with this vector, which came in level-triggered. The sources have been asked.
    pub(super) fn end(self, vector: u8, delays: bool) -> (Self, AfterEoi) {
        if RedirectionEntry::from_bits(self.0).vector() != vector || !self.is_level() {
            return (self, AfterEoi::Nothing);
        }
        let mut next = self.with(REMOTE_IRR, false);
        if self.has(MOVED) {
            return (next, AfterEoi::Program);
        }
        if self.has(MASKED) || !self.has(LINE) {
            return (next.with(EOIS, false), AfterEoi::Nothing);
        }
        next = Self(next.0 + EOI);
        if (next.0 & EOIS) / EOI >= EOIS_BEFORE_DELAY {
            next = next.with(EOIS, false);
            if delays {
                return (next.with(DELAYED, true), AfterEoi::Delay);
            }
        }
        let (next, sent) = next.evaluate();
        (next, sent.map_or(AfterEoi::Nothing, AfterEoi::Send))
    }

    /// No processor took the message. A level waits; it is sent again when the level is driven again, at a write of the
    /// entry, and at an EOI of its vector. The message does not count as sent. Has no effect if another message has been
    /// sent since.
    pub(super) fn refused(self, sent: Sent) -> Self {
        if self.sent() != sent {
            return self;
        }
        Self(self.0.wrapping_sub(SEND)).with(REMOTE_IRR, false)
    }

    /// A saved state. The count of messages continues, so that a message on its way is not mistaken for a new message.
    /// The count of EOIs begins at 0 and a delay is dropped, which at worst sends an interrupt a few milliseconds
    /// early.
    pub(super) fn restored(self, entry: RedirectionEntry, high: bool, edge: bool, output: Output) -> Self {
        let kept = self.0 & (STALE | ROUTED) | (self.0 & !(SEND - 1)).wrapping_add(SEND);
        Self(kept | entry.bits() & ENTRY)
            .with(LINE, high)
            .with(EDGE, edge)
            .with(MOVED, output.destination)
            .with(STALE, self.has(STALE) || output.mask || output.message)
    }
}

/// The difference between an entry and the output's knowledge of the pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    /// The mask differs.
    pub(super) mask: bool,
    /// The entry is unmasked, and its message differs.
    pub(super) message: bool,
    /// The message differs in its destination only.
    pub(super) destination: bool,
}

impl fmt::Debug for PinState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits();
        write!(
            f,
            "{}, entry bits {:#07x}, state {:#x}",
            self.line(),
            bits & ENTRY,
            bits >> 17
        )
    }
}

#[cfg(test)]
#[path = "../../tests/whole_space/ioapic.rs"]
mod whole_space;
