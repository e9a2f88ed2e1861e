// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The saved state of an IOAPIC.

use std::sync::atomic::Ordering;

use interrupt_core::Level;

use super::regs::{self, RedirectionEntry, Trigger};
use super::{Ioapic, IoapicPin};
use crate::StateError;
use crate::sync::lock;

/// What is saved of an [`Ioapic`].
///
/// Sources and listeners are not in it: the devices own them. Nor is a pause; it ends with the save.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct IoapicState {
    /// The format of this state, [`IoapicState::FORMAT`].
    pub format: u32,
    /// The version that the guest sees: 0x11 or 0x20.
    pub version: u8,
    /// The select register.
    pub select: u8,
    /// The ID, 0 to 15.
    pub id: u8,
    /// The pins, from 0.
    pub pins: Vec<SavedPin>,
}

/// What is saved of one pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SavedPin {
    /// All bits of the redirection-table entry, remote IRR among them.
    pub entry: u64,
    /// The line was high.
    pub high: bool,
    /// An edge had come up that the output could not be told of.
    pub edge: bool,
}

impl IoapicState {
    /// The format that this version of the crate saves and restores.
    pub const FORMAT: u32 = 1;
}

impl SavedPin {
    const RESET: Self = Self {
        entry: RedirectionEntry::RESET.bits(),
        high: false,
        edge: false,
    };

    fn check(&self) -> Result<(), StateError> {
        let Self { entry, high: _, edge } = *self;
        let redirection = RedirectionEntry::from_bits(entry);
        let is_edge = redirection.trigger() == Trigger::Edge;
        if is_edge && redirection.remote_irr() {
            return Err(StateError::Impossible {
                what: "remote IRR of an edge pin, entry",
                value: entry,
            });
        }
        if edge && (!is_edge || redirection.is_masked()) {
            return Err(StateError::Impossible {
                what: "edge that waits on a masked or level pin, entry",
                value: entry,
            });
        }
        Ok(())
    }
}

impl Ioapic {
    /// The state as it is now. Bring the devices and the guest to rest first, or it is that of no single moment.
    pub fn save(&self) -> IoapicState {
        let _writes = lock(&self.writes);
        // Spelled out, so that a new field is decided on.
        let Self {
            lines,
            chip: _,
            first_gsi: _,
            version,
            pause: _,
            select,
            id,
            reset_id: _,
            writes: _,
        } = self;
        IoapicState {
            format: IoapicState::FORMAT,
            version: version.number(),
            select: select.load(Ordering::Relaxed),
            id: id.load(Ordering::Relaxed),
            pins: lines.iter().map(|line| line.pin().state().save()).collect(),
        }
    }

    /// Takes over a saved state, and tells the output of every route that differs. Sends nothing by itself.
    ///
    /// The sources own their levels. Each states its level after this, as its device restores it; until then, or until the
    /// next EOI or unmask of the pin, the chip goes by the level that was saved. Lines that are high already are stated here.
    ///
    /// # Errors
    /// [`StateError`]; the chip is as it was, except after [`StateError::Route`].
    pub fn restore(&self, state: &IoapicState) -> Result<(), StateError> {
        let IoapicState {
            format,
            version,
            select,
            id,
            pins,
        } = state;
        if *format != IoapicState::FORMAT {
            return Err(StateError::Format {
                found: *format,
                known: IoapicState::FORMAT,
            });
        }
        if *version != self.version.number() {
            return Err(StateError::OtherChip {
                what: "IOAPIC version",
                found: usize::from(*version),
                here: usize::from(self.version.number()),
            });
        }
        if pins.len() != self.lines.len() {
            return Err(StateError::OtherChip {
                what: "a number of pins of",
                found: pins.len(),
                here: self.lines.len(),
            });
        }
        if *id > regs::MAX_ID {
            return Err(StateError::Impossible {
                what: "IOAPIC ID",
                value: u64::from(*id),
            });
        }
        pins.iter().try_for_each(SavedPin::check)?;

        let routed = {
            let _writes = lock(&self.writes);
            self.select.store(*select, Ordering::Relaxed);
            self.id.store(*id, Ordering::Relaxed);
            // Every pin is restored, whatever becomes of the first one's route.
            let mut routed = Ok(());
            for (line, saved) in self.lines.iter().zip(pins) {
                routed = routed.and(self.restore_pin(line.pin(), *saved));
            }
            routed
        };
        self.restate();
        routed
    }

    /// The state after power-on: everything masked. Sources keep their levels, and listeners stay.
    ///
    /// # Errors
    /// [`StateError::Route`].
    pub fn reset(&self) -> Result<(), StateError> {
        self.restore(&IoapicState {
            format: IoapicState::FORMAT,
            version: self.version.number(),
            select: 0,
            id: self.reset_id,
            pins: vec![SavedPin::RESET; self.lines.len()],
        })
    }

    fn restore_pin(&self, pin: &IoapicPin, saved: SavedPin) -> Result<(), StateError> {
        let program = pin.change(&mut pin.state(), |state| state.restore(saved));
        program.map_or(Ok(()), |program| pin.program(program).map_err(StateError::Route))
    }

    /// States the lines that are high: the pins may have another idea of them now.
    fn restate(&self) {
        for line in self.lines.iter().filter(|line| line.level() == Level::High) {
            self.chip.counters.send_errors.count_error(line.reassert());
        }
    }
}
