// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC's registers: their addresses, and the meaning of their bits.
//!
//! Source: Intel 82093AA datasheet, section 3; the EOI register is that of version 0x20 (ICH and later).

use std::fmt;

use interrupt_core::Msi;

/// Offset of the select register (IOREGSEL) in the window.
pub(super) const SELECT: u64 = 0x00;
/// Offset of the data window (IOWIN).
pub(super) const WINDOW: u64 = 0x10;
/// Offset of the EOI register, which version 0x20 has.
pub(super) const EOI: u64 = 0x40;

/// Index of the identification register; the ID is in bits 27:24.
pub(super) const ID: u8 = 0x00;
/// Index of the version register; see [`version_register`].
pub(super) const VERSION: u8 = 0x01;
/// Index of the arbitration register, which follows the ID.
pub(super) const ARBITRATION: u8 = 0x02;
/// Index of the low half of pin 0's redirection-table entry; pin *n* has `0x10 + 2n` and, for the high half, `0x11 +
/// 2n`.
pub(super) const REDIRECTION_TABLE: u8 = 0x10;

const ID_SHIFT: u32 = 24;
/// The greatest ID of an IOAPIC.
pub(super) const MAX_ID: u8 = 0xf;

/// The value of the identification register for this ID (0 to 15).
pub(super) fn id_register(id: u8) -> u32 {
    u32::from(id) << ID_SHIFT
}

/// The ID in a value written to the identification register.
pub(super) fn id_of(value: u32) -> u8 {
    (value >> ID_SHIFT) as u8 & MAX_ID
}

/// The value of the version register: the version in bits 7:0, the number of the last pin in bits 23:16.
pub(super) fn version_register(version: u8, pins: usize) -> u32 {
    u32::from(version) | (pins.saturating_sub(1) as u32 & 0xff) << 16
}

/// The IOAPIC that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Version 0x11, as KVM's own: an interrupt is ended by the local APIC's EOI broadcast, or by switching the pin to
    /// edge and back. The default, because KVM broadcasts every EOI unless the VMM chooses otherwise.
    #[default]
    V11,
    /// Version 0x20: also has the EOI register. A guest that sees this version may suppress EOI broadcasts. On a split
    /// irqchip choose this version together with KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST: without that flag KVM offers
    /// suppression and then broadcasts all the same, which ends each interrupt twice and storms.
    V20,
}

impl Version {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::V11 => 0x11,
            Self::V20 => 0x20,
        }
    }
}

/// One half of a redirection-table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Bits 31:0.
    Low,
    /// Bits 63:32.
    High,
}

/// The register that an index selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// The identification register.
    Id,
    /// The version register.
    Version,
    /// The arbitration register.
    Arbitration,
    /// Half of the entry of a pin. The pin may be beyond the last one.
    Entry {
        /// The pin.
        pin: u8,
        /// The half.
        half: Half,
    },
    /// Nothing.
    Reserved,
}

impl Register {
    /// The register that `index` selects.
    pub(super) fn at(index: u8) -> Self {
        match index {
            ID => Self::Id,
            VERSION => Self::Version,
            ARBITRATION => Self::Arbitration,
            REDIRECTION_TABLE.. => Self::Entry {
                pin: (index - REDIRECTION_TABLE) / 2,
                half: if index % 2 == 0 { Half::Low } else { Half::High },
            },
            _ => Self::Reserved,
        }
    }
}

/// How the destination's local APIC treats the interrupt, bits 10:8 of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryMode {
    /// To every processor of the destination.
    Fixed,
    /// To the processor of the destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// From an 8259, which supplies the vector.
    ExtInt,
    /// 3 or 6, which are reserved.
    Reserved,
}

/// How a pin reads its line, bit 15 of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A rising line is an interrupt.
    Edge,
    /// A high line is an interrupt, again after each EOI.
    Level,
}

/// A redirection-table entry.
///
/// The reserved bits keep the written value. Polarity is stored and has no effect: a line's level is logical.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RedirectionEntry(u64);

impl RedirectionEntry {
    /// Delivery status, bit 12, which the guest cannot write.
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    /// Remote IRR, bit 14, which the guest cannot write.
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    /// Trigger mode, bit 15: 1 is level.
    pub(super) const LEVEL: u64 = 1 << 15;
    /// Mask, bit 16.
    pub(super) const MASKED: u64 = 1 << 16;

    const DELIVERY_MODE: u64 = 0b111 << 8;
    const LOGICAL: u64 = 1 << 11;
    const READ_ONLY: u64 = Self::DELIVERY_STATUS | Self::REMOTE_IRR;
    const LOW: u64 = 0xffff_ffff;
    /// The address of every message, without its destination.
    const ADDRESS: u64 = 0xfee0_0000;
    /// The IOAPIC sends no vector below: such a vector is illegal at the local APIC (Intel SDM vol. 3, 12.5.2).
    const FIRST_VECTOR: u8 = 16;

    /// The entry after a reset: masked, and 0 otherwise.
    pub(super) const RESET: Self = Self(Self::MASKED);

    /// The entry with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All 64 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Half of the bits.
    pub(super) fn half(self, half: Half) -> u32 {
        match half {
            Half::Low => (self.0 & Self::LOW) as u32,
            Half::High => (self.0 >> 32) as u32,
        }
    }

    /// The entry after the guest has written one half. The read-only bits stay, except that an edge pin has no remote
    /// IRR: a guest without an EOI register ends an interrupt by switching its pin to edge and back.
    #[must_use]
    pub(super) fn written(self, half: Half, value: u32) -> Self {
        let written = match half {
            Half::Low => self.0 & !Self::LOW | u64::from(value),
            Half::High => self.0 & Self::LOW | u64::from(value) << 32,
        };
        Self(written & !Self::READ_ONLY | self.0 & Self::READ_ONLY).without_edge_irr()
    }

    /// The entry as a chip can have it: no message is on its way, and an edge pin has no remote IRR.
    pub(super) fn sanitised(self) -> Self {
        Self(self.0 & !Self::DELIVERY_STATUS).without_edge_irr()
    }

    fn without_edge_irr(self) -> Self {
        if self.is_level() {
            self
        } else {
            self.without_remote_irr()
        }
    }

    /// Bits 7:0.
    pub fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Bits 10:8.
    pub(super) fn delivery_mode(self) -> DeliveryMode {
        match (self.0 & Self::DELIVERY_MODE) >> 8 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            _ => DeliveryMode::Reserved,
        }
    }

    /// Bit 11: the destination is a logical one.
    pub fn is_logical(self) -> bool {
        self.0 & Self::LOGICAL != 0
    }

    /// How the pin reads its line. Only interrupts that a local APIC ends can be level-triggered. The datasheet (3.2.4)
    /// treats all other interrupts as edges, whatever bit 15 is.
    pub fn trigger(self) -> Trigger {
        if self.is_level() { Trigger::Level } else { Trigger::Edge }
    }

    pub(super) const fn is_level(self) -> bool {
        // Fixed and lowest priority are delivery modes 0 and 1.
        const OTHER_MODES: u64 = 0b110 << 8;
        self.0 & (Self::LEVEL | OTHER_MODES) == Self::LEVEL
    }

    /// An interrupt message can have this address.
    pub(super) fn is_address(address: u64) -> bool {
        address & !0xf_ffff == Self::ADDRESS
    }

    pub(super) const fn without_remote_irr(self) -> Self {
        Self(self.0 & !Self::REMOTE_IRR)
    }

    /// Bit 14: a local APIC has taken an interrupt of this level pin, and the interrupt has not ended.
    pub fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    /// Sets bit 14.
    pub(super) fn set_remote_irr(&mut self, remote_irr: bool) {
        if remote_irr {
            self.0 |= Self::REMOTE_IRR;
        } else {
            self.0 &= !Self::REMOTE_IRR;
        }
    }

    /// Bit 16.
    pub fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// The destination: bits 63:56, and bits 55:49 above them for guests that know KVM_FEATURE_MSI_EXT_DEST_ID.
    pub fn destination(self) -> u16 {
        (self.0 >> 56) as u16 | ((self.0 >> 49 & 0x7f) as u16) << 8
    }

    /// The message that the pin sends, whether or not it is masked. None when no local APIC would take it: an illegal
    /// vector or a reserved delivery mode.
    pub fn message(self) -> Option<Msi> {
        match self.delivery_mode() {
            DeliveryMode::Reserved => return None,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if self.vector() < Self::FIRST_VECTOR => return None,
            _ => {}
        }
        let trigger = match self.trigger() {
            Trigger::Level => 1 << 15,
            Trigger::Edge => 0,
        };
        Some(Msi {
            address: Self::ADDRESS
                | u64::from(self.destination() & 0xff) << 12
                | u64::from(self.destination() >> 8) << 5
                | u64::from(self.is_logical()) << 2,
            data: u32::from(self.vector()) | (self.0 & Self::DELIVERY_MODE) as u32 | trigger,
        })
    }
}

/// "vector 0x31, fixed, level, to logical 0x3, masked, in service", as a person reads an entry.
impl fmt::Display for RedirectionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.delivery_mode() {
            DeliveryMode::Fixed => "fixed",
            DeliveryMode::LowestPriority => "lowest priority",
            DeliveryMode::Smi => "SMI",
            DeliveryMode::Nmi => "NMI",
            DeliveryMode::Init => "INIT",
            DeliveryMode::ExtInt => "ExtINT",
            DeliveryMode::Reserved => "reserved mode",
        };
        let trigger = if self.is_level() { "level" } else { "edge" };
        let kind = if self.is_logical() { "logical" } else { "physical" };
        let masked = if self.is_masked() { ", masked" } else { "" };
        let in_service = if self.remote_irr() { ", in service" } else { "" };
        let (vector, to) = (self.vector(), self.destination());
        write!(
            f,
            "vector {vector:#04x}, {mode}, {trigger}, to {kind} {to:#x}{masked}{in_service}"
        )
    }
}

impl fmt::Debug for RedirectionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} ({self})", self.0)
    }
}

#[cfg(test)]
#[path = "../../tests/whole_space/entry.rs"]
mod tests;
