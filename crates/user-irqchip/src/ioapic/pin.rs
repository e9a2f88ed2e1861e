// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One pin of the IOAPIC: its redirection-table entry, the level of its line, and the decision to send an interrupt.
//!
//! Nothing here calls out: what is to be sent, or to be asked of the sources, is returned and done by the chip without a lock.

use interrupt_core::{Delivery, Level, Msi};

use super::SavedPin;
use super::regs::{Half, RedirectionEntry, Trigger};

/// So many EOIs in a row that find the line high are followed by a pause, as in Linux: a guest whose handler does not serve
/// the device must get to run something else.
pub(crate) const EOIS_BEFORE_PAUSE: u32 = 10_000;

/// What the output is told of a pin: the arguments of [`MsiOutput::set_pin`](interrupt_core::MsiOutput::set_pin).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Programmed {
    pub(crate) message: Option<Msi>,
    pub(crate) masked: bool,
}

/// A message to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Send {
    pub(crate) message: Msi,
    /// Which of the pin's messages it is, for [`PinState::refused`].
    number: u32,
}

/// What a driven level came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driven {
    /// An interrupt is to be sent.
    Send(Send),
    /// Nothing is.
    Nothing(Delivery),
}

/// What remains to be done after the guest has written the pin's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterWrite {
    /// Nothing.
    Nothing,
    /// An edge that came up while the route changed is to be sent.
    Send(Send),
    /// The line has been waiting and is about to be let through: the sources are asked first whether it still stands.
    Resample,
}

/// What remains to be done after an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterEoi {
    /// Nothing.
    Nothing,
    /// The line is high again, or still.
    Send(Send),
    /// The line is high, once too often in a row.
    Pause,
}

/// The state of one pin.
#[derive(Debug)]
pub(crate) struct PinState {
    entry: RedirectionEntry,
    /// The level of the line.
    line: Level,
    /// `line` comes from a saved state, and no source has driven the line since.
    restored: bool,
    /// A rising edge has not been sent yet, because the route is changing.
    edge: bool,
    /// What the output was told last.
    programmed: Programmed,
    /// The output is being told something else, or refused to be. The pin sends nothing meanwhile.
    stale: bool,
    /// EOIs in a row that found the line high.
    eois: u32,
    /// A pause is being made.
    paused: bool,
    /// How many messages were sent, modulo 2^32.
    sent: u32,
}

impl PinState {
    pub(crate) fn new() -> Self {
        Self {
            entry: RedirectionEntry::RESET,
            line: Level::Low,
            restored: false,
            edge: false,
            programmed: Programmed {
                message: None,
                masked: true,
            },
            stale: false,
            eois: 0,
            paused: false,
            sent: 0,
        }
    }

    pub(crate) fn entry(&self) -> RedirectionEntry {
        self.entry
    }

    pub(crate) fn line(&self) -> Level {
        self.line
    }

    /// Whether the pin could send if its line asked for it, were it not for an illegal vector or mode.
    pub(crate) fn is_illegal(&self) -> bool {
        !self.entry.is_masked() && self.entry.message().is_none()
    }

    /// The one place that decides to send an interrupt. A message that is returned counts as sent.
    fn evaluate(&mut self) -> Option<Send> {
        if self.entry.is_masked() {
            // A masked edge is lost, as on hardware. A level stays.
            self.edge = false;
            return None;
        }
        if self.stale {
            return None;
        }
        // An edge that waited while the pin became a level pin is part of the level.
        let edge = std::mem::take(&mut self.edge);
        let is_level = self.entry.trigger() == Trigger::Level;
        let wanted = if is_level {
            self.line == Level::High && !self.entry.remote_irr()
        } else {
            edge
        };
        let message = self.programmed.message.filter(|_| wanted)?;
        self.paused = false;
        self.sent = self.sent.wrapping_add(1);
        self.entry.set_remote_irr(is_level);
        Some(Send {
            message,
            number: self.sent,
        })
    }

    /// The line has this level now. A high one may be stated again: a level that nobody took is then tried again.
    pub(crate) fn drive(&mut self, level: Level) -> Driven {
        let before = std::mem::replace(&mut self.line, level);
        self.restored = false;
        if level == Level::Low {
            return Driven::Nothing(Delivery::Coalesced);
        }
        if self.entry.trigger() == Trigger::Edge {
            if before == Level::High {
                return Driven::Nothing(Delivery::Coalesced);
            }
            self.edge = true;
        }
        match self.evaluate() {
            Some(send) => Driven::Send(send),
            None => Driven::Nothing(Delivery::Pending),
        }
    }

    /// The guest writes half of the entry. The answer is what the output has to be told before
    /// [`programmed`](Self::programmed) is called; until then the pin sends nothing.
    pub(crate) fn write(&mut self, half: Half, value: u32) -> Option<Programmed> {
        self.entry = self.entry.written(half, value);
        // A masked pin keeps its message: the interrupt in service was sent by it.
        let message = if self.entry.is_masked() {
            self.programmed.message
        } else {
            self.entry.message()
        };
        self.program(message)
    }

    fn program(&mut self, message: Option<Msi>) -> Option<Programmed> {
        let wanted = Programmed {
            message,
            masked: self.entry.is_masked(),
        };
        self.stale |= wanted != self.programmed;
        self.stale.then_some(wanted)
    }

    /// The output has been told.
    pub(crate) fn programmed(&mut self, told: Programmed) {
        self.programmed = told;
        self.stale = false;
    }

    /// The second half of a write of the entry, when the output knows what it has to know.
    pub(crate) fn after_write(&mut self) -> AfterWrite {
        let asks = self.entry.trigger() == Trigger::Level && self.line == Level::High;
        if asks && !self.entry.is_masked() && !self.entry.remote_irr() {
            return AfterWrite::Resample;
        }
        self.evaluate().map_or(AfterWrite::Nothing, AfterWrite::Send)
    }

    /// The sources have been asked for their level, and those that restated it have driven the line.
    pub(crate) fn resampled(&mut self) -> Option<Send> {
        self.drop_unstated();
        self.evaluate()
    }

    /// A level that was restored, and that no source stands by when it is asked, is gone.
    fn drop_unstated(&mut self) {
        if std::mem::take(&mut self.restored) {
            self.line = Level::Low;
        }
    }

    /// Ends a pause, if there is one.
    pub(crate) fn resume(&mut self) -> Option<Send> {
        if std::mem::take(&mut self.paused) {
            self.evaluate()
        } else {
            None
        }
    }

    /// The guest has ended an interrupt with this vector, which came in level-triggered. The sources have been asked.
    pub(crate) fn end(&mut self, vector: u8, pauses: bool) -> AfterEoi {
        self.drop_unstated();
        if self.entry.vector() != vector || self.entry.trigger() == Trigger::Edge {
            return AfterEoi::Nothing;
        }
        self.entry.set_remote_irr(false);
        if self.entry.is_masked() || self.line == Level::Low {
            self.eois = 0;
            return AfterEoi::Nothing;
        }
        self.eois += 1;
        if self.eois >= EOIS_BEFORE_PAUSE {
            self.eois = 0;
            if pauses {
                self.paused = true;
                return AfterEoi::Pause;
            }
        }
        self.evaluate().map_or(AfterEoi::Nothing, AfterEoi::Send)
    }

    /// No processor took the message: a level waits, and is tried again when it is stated again, at a write of the entry and
    /// at an EOI of its vector. Without effect when another message was sent since.
    pub(crate) fn refused(&mut self, send: Send) {
        if self.sent == send.number {
            self.entry.set_remote_irr(false);
        }
    }

    pub(crate) fn save(&self) -> SavedPin {
        // Spelled out, so that a new field is decided on. `restored` is true of any saved line; what the output knows
        // follows from the entry; the count of EOIs and a pause begin anew, at worst sending an interrupt a few milliseconds early.
        let Self {
            entry,
            line,
            restored: _,
            edge,
            programmed: _,
            stale: _,
            eois: _,
            paused: _,
            sent: _,
        } = *self;
        SavedPin {
            entry: entry.bits(),
            high: line == Level::High,
            edge,
        }
    }

    /// Takes over a saved state. The answer is that of [`write`](Self::write), except that a masked entry is routed too: an
    /// interrupt that is in service behind the mask has to find its way back.
    pub(crate) fn restore(&mut self, saved: SavedPin) -> Option<Programmed> {
        let SavedPin { entry, high, edge } = saved;
        *self = Self {
            entry: RedirectionEntry::from_bits(entry),
            line: if high { Level::High } else { Level::Low },
            restored: true,
            edge,
            programmed: self.programmed,
            stale: self.stale,
            eois: 0,
            paused: false,
            // Goes on counting, so that a message on its way is not mistaken for a new one.
            sent: self.sent.wrapping_add(1),
        };
        self.program(self.entry.message())
    }
}
