// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controllers in the kernel that GSIs are routed to.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

/// A controller in the kernel that has pins.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chip {
    /// The 8259 at ports 0x20 and 0x21: pins 0 to 7.
    PicMaster,
    /// The 8259 at ports 0xA0 and 0xA1: pins 0 to 7.
    PicSlave,
    /// The IOAPIC: pins 0 to 23.
    Ioapic,
}

#[cfg(target_arch = "x86_64")]
impl Chip {
    pub(crate) const ALL: [Self; 3] = [Self::PicMaster, Self::PicSlave, Self::Ioapic];

    pub(crate) fn pins(self) -> u32 {
        match self {
            Self::PicMaster | Self::PicSlave => 8,
            Self::Ioapic => 24,
        }
    }

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::PicMaster => KVM_IRQCHIP_PIC_MASTER,
            Self::PicSlave => KVM_IRQCHIP_PIC_SLAVE,
            Self::Ioapic => KVM_IRQCHIP_IOAPIC,
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PicMaster => "first 8259",
            Self::PicSlave => "second 8259",
            Self::Ioapic => "IOAPIC",
        })
    }
}

/// A controller in the kernel that has pins.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chip {
    /// The GIC's distributor: pin n is SPI n, whose interrupt ID is 32+n. Pins 0 to 987.
    Gic,
}

#[cfg(target_arch = "aarch64")]
impl Chip {
    pub(crate) const ALL: [Self; 1] = [Self::Gic];

    /// KVM_IRQCHIP_NUM_PINS: interrupt IDs end at 1020, and the first 32 are no SPIs.
    pub(crate) fn pins(self) -> u32 {
        1020 - 32
    }

    /// KVM has one irqchip.
    pub(crate) fn number(self) -> u32 {
        0
    }
}

#[cfg(target_arch = "aarch64")]
impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GIC")
    }
}
