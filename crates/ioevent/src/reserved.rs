// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Address ranges where an ioeventfd does harm.
//!
//! KVM accepts an ioeventfd anywhere. Over guest RAM and over the LAPIC page it never fires, because the store never
//! reaches the I/O bus. Over the in-kernel IOAPIC and 8259s it fires *instead of* the controller: the guest's write to
//! its interrupt controller is swallowed. Both were observed on Linux 6.18. The bus cannot see where a VMM put its RAM
//! or whether it created an in-kernel controller, so the VMM reserves these ranges.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use crate::matching::{Match, Space};

/// What occupies a [`ReservedRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Owner {
    /// Guest RAM, or any other memory slot: stores go to memory and never exit.
    Ram,
    /// The in-kernel IOAPIC.
    Ioapic,
    /// The in-kernel pair of 8259s, or its ELCR.
    Pic,
    /// The in-kernel local APIC's page.
    Lapic,
}

/// An address range in which [`IoeventBus`](crate::IoeventBus) rejects registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedRange {
    /// The address space.
    pub space: Space,
    /// The first address.
    pub first: u64,
    /// The last address, inclusive. A range with `last < first` is empty and keeps nothing out.
    pub last: u64,
    /// What is there.
    pub owner: Owner,
}

impl ReservedRange {
    /// The ranges of x86's in-kernel interrupt controllers (`KVM_CREATE_IRQCHIP`) at their reset addresses: IOAPIC,
    /// both 8259s with their ELCR, LAPIC.
    ///
    /// With a split irqchip only the LAPIC is in the kernel: reserve [`ReservedRange::LAPIC`] alone then.
    pub const X86_IRQCHIP: [Self; 5] = [
        Self::new(Space::Mmio, 0xfec0_0000, 0xfec0_00ff, Owner::Ioapic),
        Self::new(Space::Pio, 0x20, 0x21, Owner::Pic),
        Self::new(Space::Pio, 0xa0, 0xa1, Owner::Pic),
        Self::new(Space::Pio, 0x4d0, 0x4d1, Owner::Pic),
        Self::LAPIC,
    ];

    /// The local APIC's page at its reset address.
    pub const LAPIC: Self = Self::new(Space::Mmio, 0xfee0_0000, 0xfee0_0fff, Owner::Lapic);

    /// A range of guest RAM, by guest physical address.
    pub const fn ram(range: RangeInclusive<u64>) -> Self {
        Self::new(Space::Mmio, *range.start(), *range.end(), Owner::Ram)
    }

    const fn new(space: Space, first: u64, last: u64, owner: Owner) -> Self {
        Self {
            space,
            first,
            last,
            owner,
        }
    }

    /// Whether a store that `at` matches certainly touches the range.
    pub(crate) fn touches(&self, at: &Match) -> bool {
        self.space == at.space
            && self.first <= self.last
            && at.address <= self.last
            && at.last().is_none_or(|last| last >= self.first)
    }
}

impl Display for ReservedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match self.owner {
            Owner::Ram => "RAM",
            Owner::Ioapic => "in-kernel IOAPIC",
            Owner::Pic => "in-kernel 8259",
            Owner::Lapic => "in-kernel LAPIC",
        };
        let space = match self.space {
            Space::Pio => "PIO",
            Space::Mmio => "MMIO",
        };
        write!(f, "{owner} at {space} {:#x} to {:#x}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::Length;

    #[test]
    fn a_range_is_touched_from_both_sides() {
        let ram = ReservedRange::ram(0x1000..=0x1fff);
        assert!(!ram.touches(&Match::mmio(0xffc, Length::Bytes4)));
        assert!(ram.touches(&Match::mmio(0xffd, Length::Bytes4)));
        assert!(ram.touches(&Match::mmio(0x1800, Length::Any)));
        assert!(ram.touches(&Match::mmio(0x1fff, Length::Bytes1)));
        assert!(!ram.touches(&Match::mmio(0x2000, Length::Bytes1)));
        assert!(!ram.touches(&Match::pio(0x1800, Length::Any)));
    }

    #[test]
    fn an_empty_range_keeps_nothing_out() {
        let empty = ReservedRange {
            first: 0x2000,
            last: 0x1fff,
            ..ReservedRange::ram(0..=0)
        };
        assert!(!empty.touches(&Match::mmio(0x1fff, Length::Bytes8)));
    }
}
