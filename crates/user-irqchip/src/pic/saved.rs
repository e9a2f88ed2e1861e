// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The saved state of an 8259 pair, and its format.

use interrupt_core::{Gsi, Level};

use super::spec::{self, Role};
use crate::StateError;

/// The saved state of a [`Pic`](super::Pic). The state contains neither sources nor listeners: the devices own them.
///
/// With the feature `serde` the state is written as a format number and the state in that format. An unknown format is
/// refused before the state is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PicState {
    /// The master.
    pub master: SavedChip,
    /// The slave.
    pub slave: SavedChip,
}

impl PicState {
    pub(crate) fn check(&self) -> Result<(), StateError> {
        check(Role::Master, &self.master)?;
        check(Role::Slave, &self.slave)
    }

    /// The level that the line of an IRQ had.
    pub(crate) fn level(&self, gsi: Gsi) -> Level {
        let high = u32::from(self.master.high) | u32::from(self.slave.high) << 8;
        match high.checked_shr(gsi.0) {
            Some(high) if high & 1 != 0 => Level::High,
            _ => Level::Low,
        }
    }
}

/// The words that the chip waits for at its data port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Awaits {
    /// OCW1: the initialisation is over.
    #[default]
    Mask,
    /// ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
}

/// The state of one chip. Sets of inputs have bit *n* for input *n*.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SavedChip {
    /// Inputs that were high.
    pub high: u8,
    /// Inputs whose rise has not been acknowledged yet.
    pub edges: u8,
    /// Inputs in service.
    pub isr: u8,
    /// Inputs that are masked.
    pub imr: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// The input with the highest priority, 0 to 7; the others follow upwards, and round.
    pub highest: u8,
    /// The vector of input 0.
    pub base: u8,
    /// The word that the data port expects.
    pub awaits: Awaits,
    /// ICW1 said that ICW4 follows.
    pub needs_icw4: bool,
    /// ICW1 said that ICW3 does not follow.
    pub single: bool,
    /// Interrupts end as they are acknowledged.
    pub auto_eoi: bool,
    /// Each automatic EOI rotates the priorities.
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode: a masked input in service does not hold back other inputs.
    pub special_mask: bool,
    /// Special fully nested mode: the cascade in service does not hold back the slave's inputs.
    pub special_fully_nested: bool,
    /// The command port reads the inputs in service, and not the requests.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

impl SavedChip {
    /// After power-on: nothing masked, as 8259s are until they are initialised.
    pub(super) const RESET: Self = Self {
        high: 0,
        edges: 0,
        isr: 0,
        imr: 0,
        elcr: 0,
        highest: 0,
        base: 0,
        awaits: Awaits::Mask,
        needs_icw4: false,
        single: false,
        auto_eoi: false,
        rotate_on_auto_eoi: false,
        special_mask: false,
        special_fully_nested: false,
        read_isr: false,
        poll: false,
    };
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
    if spec::vector_base(state.base) != state.base {
        return impossible("vector of input 0", state.base);
    }
    Ok(())
}

#[cfg(feature = "serde")]
mod formats {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{PicState, SavedChip};
    use crate::format::{self, Body, Versioned};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct State {
        master: SavedChip,
        slave: SavedChip,
    }

    impl Versioned for PicState {
        const OLDEST: u32 = 1;
        const FORMAT: u32 = 1;

        fn read<'de, B: Body<'de>>(_format: u32, body: B) -> Result<Self, B::Error> {
            let State { master, slave } = body.take()?;
            Ok(Self { master, slave })
        }
    }

    impl Serialize for PicState {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self { master, slave } = self.clone();
            format::write(Self::FORMAT, &State { master, slave }, serializer)
        }
    }

    impl<'de> Deserialize<'de> for PicState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            format::read(deserializer)
        }
    }
}
