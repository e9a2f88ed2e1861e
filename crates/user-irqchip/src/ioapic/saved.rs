// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The saved state of an IOAPIC, and the formats that it has had.

use interrupt_core::Level;

use super::spec::{MAX_ID, RedirectionEntry, Version};
use crate::StateError;

/// The saved state of an [`Ioapic`](super::Ioapic).
///
/// The state contains neither sources nor listeners, because the devices own them, and no delay after a storm: a
/// restored chip has no delay.
///
/// With the feature `serde` the state is written as a format number and the state in that format. Format 1 is read too.
/// Any other format is refused before the state is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoapicState {
    /// The version that the guest sees: 0x11 or 0x20.
    pub version: u8,
    /// The select register.
    pub select: u8,
    /// The ID, 0 to 15.
    pub id: u8,
    /// The pins, from 0.
    pub pins: Vec<SavedPin>,
}

/// The saved state of one pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SavedPin {
    /// All bits of the redirection-table entry, remote IRR among them.
    pub entry: u64,
    /// The line was high.
    pub high: bool,
    /// An edge was waiting to be sent, because the output was being told of the pin or had refused.
    pub edge: bool,
    /// The address of the message in service, if the guest has moved the entry to another destination since. Format 2.
    pub sent_to: Option<u64>,
}

impl SavedPin {
    /// The level that the line had.
    pub(super) fn level(&self) -> Level {
        if self.high { Level::High } else { Level::Low }
    }

    pub(super) const RESET: Self = Self {
        entry: RedirectionEntry::RESET.bits(),
        high: false,
        edge: false,
        sent_to: None,
    };

    fn check(&self) -> Result<(), StateError> {
        let impossible = |what, value| Err(StateError::Impossible { what, value });
        let Self {
            entry,
            high: _,
            edge,
            sent_to,
        } = *self;
        let redirection = RedirectionEntry::from_bits(entry);
        let is_level = redirection.is_level();
        if !is_level && redirection.remote_irr() {
            return impossible("remote IRR of an edge pin, entry", entry);
        }
        if edge && (is_level || redirection.is_masked()) {
            return impossible("edge that waits on a masked or level pin, entry", entry);
        }
        match sent_to {
            Some(address) if !redirection.remote_irr() || !RedirectionEntry::is_address(address) => {
                impossible("address of a message in service", address)
            }
            _ => Ok(()),
        }
    }
}

impl IoapicState {
    /// The state of another model of an IOAPIC, from its registers: the select register, the ID (bits above 3:0 do not
    /// count), and the redirection-table entries.
    ///
    /// What no chip can be in is mended: an edge pin has no remote IRR, and no message is on its way. The lines are low
    /// until the sources state their levels.
    ///
    /// ```
    /// use user_irqchip::{IoapicState, Version};
    ///
    /// // A level pin in service, and an edge pin that the other model gave a remote IRR.
    /// let state = IoapicState::from_registers(Version::V11, 0x10, 2, [0xc031, 0x4032]);
    /// assert_eq!(state.entries().collect::<Vec<_>>(), [0xc031, 0x0032]);
    /// ```
    pub fn from_registers(version: Version, select: u8, id: u8, entries: impl IntoIterator<Item = u64>) -> Self {
        let pin = |entry| SavedPin {
            entry: RedirectionEntry::from_bits(entry).sanitised().bits(),
            ..SavedPin::RESET
        };
        Self {
            version: version.number(),
            select,
            id: id & MAX_ID,
            pins: entries.into_iter().map(pin).collect(),
        }
    }

    /// The redirection-table entries, from pin 0: for another model, with `select` and `id`.
    pub fn entries(&self) -> impl Iterator<Item = u64> {
        self.pins.iter().map(|pin| pin.entry)
    }

    /// Checks that a chip with this version and this number of pins can be in this state.
    pub(super) fn check(&self, version: u8, pins: usize) -> Result<(), StateError> {
        let other = |what, found, here| Err(StateError::OtherChip { what, found, here });
        if self.version != version {
            return other("IOAPIC version", self.version.into(), version.into());
        }
        if self.pins.len() != pins {
            return other("a number of pins of", self.pins.len(), pins);
        }
        if self.id > MAX_ID {
            return Err(StateError::Impossible {
                what: "IOAPIC ID",
                value: self.id.into(),
            });
        }
        self.pins.iter().try_for_each(SavedPin::check)
    }
}

#[cfg(feature = "serde")]
mod formats {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{IoapicState, SavedPin};
    use crate::format::{self, Body, Versioned};

    /// The state with the pins of its format.
    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct State<P> {
        version: u8,
        select: u8,
        id: u8,
        pins: Vec<P>,
    }

    /// Without the address of a message in service.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pin1 {
        entry: u64,
        high: bool,
        edge: bool,
    }

    impl From<Pin1> for SavedPin {
        fn from(Pin1 { entry, high, edge }: Pin1) -> Self {
            Self {
                entry,
                high,
                edge,
                sent_to: None,
            }
        }
    }

    impl<P: Into<SavedPin>> From<State<P>> for IoapicState {
        fn from(state: State<P>) -> Self {
            Self {
                version: state.version,
                select: state.select,
                id: state.id,
                pins: state.pins.into_iter().map(Into::into).collect(),
            }
        }
    }

    impl Versioned for IoapicState {
        const OLDEST: u32 = 1;
        const FORMAT: u32 = 2;

        fn read<'de, B: Body<'de>>(format: u32, body: B) -> Result<Self, B::Error> {
            match format {
                1 => body.take::<State<Pin1>>().map(Self::from),
                _ => body.take::<State<SavedPin>>().map(Self::from),
            }
        }
    }

    impl Serialize for IoapicState {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self {
                version,
                select,
                id,
                pins,
            } = self.clone();
            let state = State {
                version,
                select,
                id,
                pins,
            };
            format::write(Self::FORMAT, &state, serializer)
        }
    }

    impl<'de> Deserialize<'de> for IoapicState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            format::read(deserializer)
        }
    }
}
