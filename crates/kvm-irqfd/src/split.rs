// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split irqchip: LAPICs in the kernel, the IOAPIC in userspace, and what passes between them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use interrupt_core::{Delivery, Gsi, LevelSource, Msi, MsiOutput, SourceKey};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_enable_cap, kvm_msi};
use kvm_ioctls::VmFd;
use rustix::io::Errno;

use crate::event::Event;
use crate::interrupts::{KvmInterrupts, Shared};
use crate::{Error, Result, Route};

/// The pins of a PC's IOAPIC: what [`enable_split_irqchip`] is usually given, and what [`KvmInterrupts::new`] takes a split
/// irqchip to have.
pub const SPLIT_PINS: u32 = 24;

/// Gives a VM the LAPICs in the kernel, and reserves GSIs 0 to `pins`-1 for a userspace IOAPIC: for those, and for no other, KVM
/// raises KVM_EXIT_IOAPIC_EOI when a level-triggered vector is ended. Before the first vCPU is made.
///
/// # Errors
/// [`Error::Vm`]: EINVAL when KVM has no split irqchip or takes no such number of pins, EEXIST when there is an irqchip already.
pub fn enable_split_irqchip(vm: &VmFd, pins: u32) -> Result<()> {
    enable_cap(
        vm,
        KVM_CAP_SPLIT_IRQCHIP,
        u64::from(pins),
        "KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)",
    )
}

/// Whether a guest can keep its LAPIC's EOIs from being broadcast to the IOAPIC (directed EOI, bit 12 of the spurious vector
/// register). A guest that does so ends the interrupt at the IOAPIC's own EOI register, version 0x20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EoiBroadcast {
    /// The LAPIC offers it, and suppressing works: the userspace IOAPIC must have an EOI register.
    Suppressible,
    /// The LAPIC does not offer it. Every EOI of a level-triggered vector is an exit. For an IOAPIC of version 0x11.
    Always,
}

/// Chooses what a split irqchip does. Without a choice KVM offers suppression and then ignores it, which gives interrupt storms
/// with guests that rely on it. After [`enable_split_irqchip`] and before the first vCPU.
///
/// # Errors
/// [`Error::Vm`] with EINVAL: the kernel has no such choice (it came in early 2026), or the irqchip is all in the kernel.
pub fn set_eoi_broadcast(vm: &VmFd, broadcast: EoiBroadcast) -> Result<()> {
    // KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST and KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST, which kvm-bindings does not have
    // yet. The flags of the capability are set as a whole, so that the choice comes without those for x2APIC IDs of 32 bits;
    // a VMM that wants those too enables the capability itself.
    const ENABLE: u64 = 1 << 2;
    const DISABLE: u64 = 1 << 3;
    let flags = match broadcast {
        EoiBroadcast::Suppressible => ENABLE,
        EoiBroadcast::Always => DISABLE,
    };
    enable_cap(vm, KVM_CAP_X2APIC_API, flags, "KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)")
}

fn enable_cap(vm: &VmFd, cap: u32, argument: u64, operation: &'static str) -> Result<()> {
    let mut cap = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    cap.args[0] = argument;
    vm.enable_cap(&cap).map_err(|error| Error::vm(operation, error))
}

/// The userspace IOAPIC's messages go to the LAPICs in the kernel: the route of each pin is kept on the pin's own GSI, where KVM
/// looks for it at an EOI, and a message is sent by KVM_SIGNAL_MSI.
impl MsiOutput for KvmInterrupts {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> interrupt_core::Result<Delivery> {
        let message = for_kvm(message);
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        match self.shared().vm().signal_msi(msi) {
            // The count of LAPICs, which is never negative here.
            Ok(taken) => Ok(Delivery::Delivered(taken.unsigned_abs())),
            // KVM returns -1, "nobody", where an error number belongs.
            Err(error) if error.errno() == Errno::PERM.raw_os_error() => Ok(Delivery::Delivered(0)),
            Err(error) => Err(Error::os("KVM_SIGNAL_MSI", gsi, error).into_core("KVM_SIGNAL_MSI", gsi)),
        }
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, masked: bool) -> interrupt_core::Result<()> {
        let route = message.map(|message| Route::Msi {
            address: for_kvm(message).address,
            data: message.data,
            device: None,
        });
        let set_route = || {
            // A mask alone is no change of the routing table, and costs no copy of it.
            if self.shared().state().routes.get(gsi) == route.as_slice() {
                return Ok(());
            }
            let mut routing = self.routing();
            routing.set(gsi, route.as_slice())?;
            routing.commit().map(drop)
        };
        let set_masked = || self.shared().set_masked(gsi, masked);
        // A pin that is masked is held back before its route changes; one that is unmasked has its route first.
        let programmed = if masked {
            set_masked().and_then(|()| set_route())
        } else {
            set_route().and_then(|()| set_masked())
        };
        programmed.map_err(|error| error.into_core("set pin", gsi))
    }
}

/// The message as KVM reads it. An IOAPIC writes bits 14:8 of a destination to bits 11:5 of the address
/// (KVM_FEATURE_MSI_EXT_DEST_ID); KVM takes them from bits 46:40, if the VM has 32-bit APIC IDs (KVM_CAP_X2APIC_API).
fn for_kvm(message: Msi) -> Msi {
    const EXTENDED: u64 = 0x7f << 5;
    let extended = (message.address & EXTENDED) << 35; // 5 to 40
    Msi {
        address: message.address & !EXTENDED | extended,
        ..message
    }
}

/// A level source on a split irqchip whose trigger is an irqfd on the pin's own GSI: a signal reaches the guest without this process,
/// by the level-triggered message that the userspace IOAPIC has routed there. While the pin is masked or has no route, a
/// signal waits in the trigger.
///
/// It passes the IOAPIC by, whose remote IRR stays clear: a signal during the guest's handler gives one more run of the handler.
/// It is therefore for sources that signal once for each EOI, as an automasked VFIO INTx does. The EOI is told by the userspace
/// IOAPIC, to whoever listens to its GSI.
pub struct SplitSource {
    shared: Arc<Shared>,
    key: SourceKey,
    label: String,
    trigger: Arc<Event>,
    token: u64,
}

impl SplitSource {
    pub(crate) fn new(shared: Arc<Shared>, key: SourceKey, label: String, trigger: Arc<Event>, token: u64) -> Self {
        Self {
            shared,
            key,
            label,
            trigger,
            token,
        }
    }
}

impl LevelSource for SplitSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        self.trigger.assert(self.gsi())
    }

    fn deassert(&self) -> interrupt_core::Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        let lowered = self.shared.lower(self.gsi(), self.token);
        lowered.map_err(|error| error.into_core("force_deassert", self.gsi()))
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}

impl Drop for SplitSource {
    fn drop(&mut self) {
        // There is nobody to report to, and KVM's deassign fails only for an fd that is not open.
        drop(self.shared.remove(self.gsi(), self.token));
    }
}

impl fmt::Debug for SplitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: irqfd on a level MSI", self.label, self.gsi())
    }
}
