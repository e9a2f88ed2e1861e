// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The message that an interrupt is on the way to a processor, and where a controller sends it.

use std::fmt;

use crate::{Delivery, Gsi, Result};

/// A message-signalled interrupt: what a device writes to memory, and what an IOAPIC sends for one of its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msi {
    /// The address it is written to. On x86: 0xFEE0_0000, the destination's bits 7:0 in bits 19:12, and its bits 14:8 in
    /// bits 11:5 (KVM_FEATURE_MSI_EXT_DEST_ID).
    pub address: u64,
    /// What is written; on x86 the vector in bits 7:0 and the trigger mode in bit 15.
    pub data: u32,
}

impl Msi {
    /// The message as KVM's routes and KVM_SIGNAL_MSI take it. An IOAPIC writes bits 14:8 of a destination to bits 11:5 of
    /// the address (KVM_FEATURE_MSI_EXT_DEST_ID); KVM reads them from bits 46:40, if the VM has 32-bit APIC IDs
    /// (KVM_X2APIC_API_USE_32BIT_IDS of KVM_CAP_X2APIC_API), and ignores them otherwise.
    #[must_use]
    pub fn for_kvm(self) -> Self {
        const EXTENDED: u64 = 0x7f << 5;
        let extended = (self.address & EXTENDED) << 35; // 5 to 40
        Self {
            address: self.address & !EXTENDED | extended,
            ..self
        }
    }
}

impl fmt::Display for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}={:#x}", self.address, self.data)
    }
}

/// Whether a guest lets the interrupts of a pin through, and what becomes of the signals that others left for the pin
/// behind the mask (an irqfd on the pin's GSI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinMask {
    /// The guest masks the pin: the signals wait.
    Masked,
    /// The guest lets the pin through: the signals that have waited are sent.
    Unmasked,
    /// The guest lets the pin through, and the IOAPIC asks the listeners of the GSI for their levels after the call, also
    /// after an error. The signals of devices that signal again when they are asked are dropped: their levels may have
    /// ended behind the mask.
    Asked,
}

impl PinMask {
    /// Whether the guest masks the pin.
    pub fn is_masked(self) -> bool {
        self == Self::Masked
    }
}

/// Where a userspace IOAPIC sends its messages: the kernel's local APICs on a split irqchip, or a model of local APICs.
///
/// The trait is in this crate, so that a hypervisor's backend can implement the trait without knowing the IOAPIC. `gsi` is
/// always the pin's own: on a split irqchip KVM raises the EOI exit for no other.
pub trait MsiOutput: fmt::Debug + Send + Sync {
    /// Sends the interrupt of `gsi` now. `message` is the one of the last [`set_pin`](Self::set_pin), so that an output whose
    /// routes are programmed beforehand only pulls the trigger. Called without a lock; the receiver may end the interrupt
    /// before this returns.
    ///
    /// [`Delivery::Delivered`] with 0 says that no processor took the message; the IOAPIC then does not wait for an EOI.
    ///
    /// # Errors
    /// The error that kept the message from being sent; no processor is taken to have it.
    fn send_msi(&self, gsi: Gsi, message: Msi) -> Result<Delivery>;

    /// Programs the pin of `gsi`: its message (or none), and whether the guest masks it. The IOAPIC calls this when one of
    /// the two changes, and not for an entry that is written again. It sends no message of `gsi` until this returns; an
    /// interrupt that comes up meanwhile waits. This must not access the IOAPIC's registers, and must not end an interrupt.
    ///
    /// A masked pin keeps the message that it had, because the interrupt in service was sent by that message. The IOAPIC
    /// sends nothing for a masked pin in any case: `mask` is for an output that lets others send the pin's message without
    /// the IOAPIC (an irqfd on the pin's GSI). Such an output holds those others back behind the mask, see [`PinMask`].
    ///
    /// # Errors
    /// The error that kept the pin from being programmed. The pin then sends nothing until this succeeds: the IOAPIC calls
    /// it again when the pin's line rises, at the next write of an entry, and at the next EOI.
    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()>;
}
