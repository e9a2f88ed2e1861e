// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The message that an interrupt is on the way to a processor, and where a controller sends it.

use std::fmt;

use crate::{Delivery, Gsi, Result};

/// A message-signalled interrupt: what a device writes to memory, and what an IOAPIC sends for one of its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msi {
    /// Where it is written; on x86 0xFEE0_0000 with the destination in bits 19:12.
    pub address: u64,
    /// What is written; on x86 the vector in bits 7:0 and the trigger mode in bit 15.
    pub data: u32,
}

impl fmt::Display for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}={:#x}", self.address, self.data)
    }
}

/// Where a userspace IOAPIC sends its messages: the kernel's local APICs on a split irqchip, or a model of them.
///
/// It is here and not beside the IOAPIC, so that a hypervisor's backend can be one without knowing the IOAPIC. `gsi` is
/// always the pin's own: on a split irqchip KVM raises the EOI exit for no other.
pub trait MsiOutput: fmt::Debug + Send + Sync {
    /// Sends the interrupt of `gsi` now. `message` is what [`set_route`](Self::set_route) was told last, so that an output
    /// whose routes are programmed beforehand only pulls the trigger. Called without a lock; the receiver may end the
    /// interrupt before this returns.
    ///
    /// [`Delivery::Delivered`] with 0 says that no processor took it; the IOAPIC then does not wait for an EOI.
    ///
    /// # Errors
    /// Whatever kept the message from being sent; it counts as taken by nobody.
    fn send_msi(&self, gsi: Gsi, message: Msi) -> Result<Delivery>;

    /// The interrupt of `gsi` is this message from now on, or none. Called when the address or the data has changed and the
    /// pin is unmasked, and not for a mask, an unmask or an entry that is written again. No message of `gsi` is sent
    /// meanwhile: what comes up waits until this returns. It must not access the IOAPIC's registers.
    ///
    /// # Errors
    /// Whatever kept the route from being changed. The pin then sends nothing until its entry is written again and this
    /// succeeds.
    fn set_route(&self, gsi: Gsi, message: Option<Msi>) -> Result<()>;

    /// The guest has masked the pin of `gsi`, or unmasked it. Called when the mask changes, after [`set_route`](Self::set_route)
    /// when one write of the entry does both. The IOAPIC sends nothing for a masked pin in any case; this is for an output that
    /// lets others send the pin's message without the IOAPIC (an irqfd on the pin's GSI), and that has to hold them back now.
    ///
    /// # Errors
    /// Whatever kept those others from being held back or let through.
    fn set_masked(&self, gsi: Gsi, masked: bool) -> Result<()>;
}
