// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The saved state of an 8259 pair.

use interrupt_core::Level;

use super::regs::{self, Role};
use super::{Pic, SavedChip};
use crate::StateError;

/// What is saved of a [`Pic`]. Sources and listeners are not in it: the devices own them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PicState {
    /// The format of this state, [`PicState::FORMAT`].
    pub format: u32,
    /// The master.
    pub master: SavedChip,
    /// The slave.
    pub slave: SavedChip,
}

impl PicState {
    /// The format that this version of the crate saves and restores.
    pub const FORMAT: u32 = 1;
}

fn check(role: Role, state: &SavedChip) -> Result<(), StateError> {
    let impossible = |what, value: u8| {
        Err(StateError::Impossible {
            what,
            value: u64::from(value),
        })
    };
    if state.elcr & !role.elcr_mask() != 0 {
        return impossible("ELCR", state.elcr);
    }
    if state.edges & state.elcr != 0 {
        return impossible("edge of a level input", state.edges & state.elcr);
    }
    if state.highest > 7 {
        return impossible("input of the highest priority", state.highest);
    }
    if regs::vector_base(state.base) != state.base {
        return impossible("vector of input 0", state.base);
    }
    Ok(())
}

impl Pic {
    /// The state as it is now. Bring the devices and the guest to rest first, or it is that of no single moment.
    pub fn save(&self) -> PicState {
        let pair = self.shared.pair();
        // Spelled out, so that a new field is decided on.
        let super::Pair { master, slave } = &*pair;
        PicState {
            format: PicState::FORMAT,
            master: master.save(),
            slave: slave.save(),
        }
    }

    /// Takes over a saved state, and raises INTR if it asks for that.
    ///
    /// The sources own their levels. Each states its level after this, as its device restores it; until then, or until its
    /// IRQ's next EOI, the chips go by the level that was saved. Lines that are high already are stated here.
    ///
    /// # Errors
    /// [`StateError::Format`] and [`StateError::Impossible`]; the chips are as they were.
    pub fn restore(&self, state: &PicState) -> Result<(), StateError> {
        let PicState { format, master, slave } = state;
        if *format != PicState::FORMAT {
            return Err(StateError::Format {
                found: *format,
                known: PicState::FORMAT,
            });
        }
        check(Role::Master, master)?;
        check(Role::Slave, slave)?;
        self.take_over(master, slave);
        Ok(())
    }

    /// The state after power-on. Sources keep their levels, and listeners stay.
    pub fn reset(&self) {
        self.take_over(&SavedChip::RESET, &SavedChip::RESET);
    }

    fn take_over(&self, master: &SavedChip, slave: &SavedChip) {
        let rises = {
            let mut pair = self.shared.pair();
            pair.master.restore(master);
            pair.slave.restore(slave);
            self.shared.update(&mut pair)
        };
        self.shared.raise(rises);
        for line in self.lines.iter().filter(|line| line.level() == Level::High) {
            // Stating a level to an 8259 cannot fail.
            line.reassert().ok();
        }
    }
}
