// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interface between the shared conformance rows and a backend: [`Rig`], an IOAPIC with a CPU's local APIC behind
//! it, and [`PicRig`], a pair of 8259s with a CPU behind it.
//!
//! GSI n is IOAPIC pin n and IRQ n. A backend hides it when its triggers are asynchronous (an irqfd goes through the
//! kernel's work queue): [`Rig::irr`], [`Rig::rte`], and a [`Rig::accept`] or [`PicRig::inta`] that finds no interrupt,
//! take all earlier triggers into account. `settle` only waits for these triggers.

use interrupt_core::Delivery;

/// Remote IRR, bit 14 of a redirection-table entry.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Level-triggered, bit 15 of a redirection-table entry.
pub const LEVEL: u64 = 1 << 15;
/// Masked, bit 16 of a redirection-table entry.
pub const MASKED: u64 = 1 << 16;

/// A level source that the EOI lowers and notifies. A drop removes the source from its GSI.
pub trait ResampleLine: Send + Sync {
    /// Asserts the line, until the next resample of the GSI.
    fn trigger(&self);
    /// Takes the number of resamples that this source was notified of since the last call.
    fn n(&self) -> u64;
}

/// An edge source. A drop removes the source from its GSI.
pub trait EdgeLine: Send + Sync {
    /// Raises and lowers the line.
    fn pulse(&self);
}

/// An IOAPIC, a local APIC, and sources to put on the IOAPIC's pins. Starts with every entry masked and the LAPIC
/// enabled.
pub trait Rig {
    /// Puts a level source on a GSI.
    fn bind_resample(&mut self, gsi: u32) -> Box<dyn ResampleLine>;

    /// Puts an edge source on a GSI.
    fn bind_edge(&mut self, gsi: u32) -> Box<dyn EdgeLine>;

    /// Drives the GSI's plain line. Only this call lowers the line. Returns `Delivered(1)` when at least one
    /// destination took the interrupt or the line is lowered, and `Pending` when no destination took it.
    fn set_line(&mut self, gsi: u32, high: bool) -> Delivery;

    /// Sends an edge MSI with this vector to the CPU.
    fn send_msi(&mut self, vector: u8);

    /// The guest writes the low half of a redirection-table entry.
    fn write_rte_low(&mut self, pin: u32, value: u32);

    /// The guest writes the high half of a redirection-table entry.
    fn write_rte_high(&mut self, pin: u32, value: u32);

    /// The redirection-table entry of a pin, remote IRR in bit 14.
    fn rte(&mut self, pin: u32) -> u64;

    /// The pin's bit in the IOAPIC's IRR: line high (level) or edge pending.
    fn irr(&mut self, pin: u32) -> bool;

    /// Moves the vector the CPU would take next into service and returns it; `None` when the CPU can take no vector.
    fn accept(&mut self) -> Option<u8>;

    /// The guest's EOI of the highest vector in service; with none in service, a stray EOI.
    fn eoi(&mut self);

    /// The guest sets or clears the LAPIC's software enable bit.
    fn set_lapic_enabled(&mut self, enabled: bool);

    /// Returns when every trigger and pulse made before the call has reached the IOAPIC.
    fn settle(&mut self);

    /// The guest writes a whole entry, high half first.
    fn set_rte(&mut self, pin: u32, entry: u64) {
        self.write_rte_high(pin, (entry >> 32) as u32);
        self.write_rte_low(pin, entry as u32);
    }

    /// Whether the pin's remote IRR bit is set.
    fn remote_irr(&mut self, pin: u32) -> bool {
        self.rte(pin) & REMOTE_IRR != 0
    }

    /// The guest masks a pin: one write of the low half.
    fn mask(&mut self, pin: u32) {
        let entry = self.rte(pin) | MASKED;
        self.write_rte_low(pin, entry as u32);
    }

    /// The guest unmasks a pin: one write of the low half.
    fn unmask(&mut self, pin: u32) {
        let entry = self.rte(pin) & !MASKED;
        self.write_rte_low(pin, entry as u32);
    }
}

/// A pair of 8259s at their usual ports, the CPU that takes their interrupts, and level sources to put on their pins.
pub trait PicRig {
    /// Puts a level source on IRQ 0-15.
    fn bind_resample(&mut self, irq: u32) -> Box<dyn ResampleLine>;

    /// The guest writes a port.
    fn outb(&mut self, port: u16, value: u8);

    /// The guest reads a port.
    fn inb(&mut self, port: u16) -> u8;

    /// The CPU acknowledges the pending interrupt and returns its vector; `None` when none is pending. Its handler does
    /// not run.
    fn inta(&mut self) -> Option<u8>;

    /// Returns when every trigger made before the call has reached the 8259s.
    fn settle(&mut self);
}
