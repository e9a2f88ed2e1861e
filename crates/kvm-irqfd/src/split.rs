// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split irqchip: LAPICs in the kernel, the IOAPIC in userspace, and what passes between them.

use interrupt_core::{Delivery, Gsi, Msi, MsiOutput, PinMask};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_msi};
use kvm_ioctls::VmFd;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::interrupts::KvmInterrupts;
use crate::interrupts::routing;
use crate::routes::{NO_DEVICE_ID, Route};

/// Gives a VM the LAPICs in the kernel, and reserves GSIs 0 to `pins`-1 for a userspace IOAPIC: for those, and for no
/// other, KVM raises KVM_EXIT_IOAPIC_EOI when a level-triggered vector is ended. Before the first vCPU is made.
///
/// # Errors
/// [`Reason::Os`](crate::Reason::Os): EINVAL when KVM has no split irqchip or takes no such number of pins, EEXIST when
/// there is an irqchip already. [`Reason::GicIsWhole`](crate::Reason::GicIsWhole) on aarch64.
pub fn enable_split_irqchip(vm: &VmFd, pins: u32) -> Result<()> {
    let operation = "KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)";
    enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, u64::from(pins), operation)
}

/// Whether a guest can keep its LAPIC's EOIs from being broadcast to the IOAPIC (directed EOI, bit 12 of the spurious
/// vector register). A guest that does so ends the interrupt at the IOAPIC's own EOI register, version 0x20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EoiBroadcast {
    /// The LAPIC offers suppression, and suppressing works: the userspace IOAPIC must have an EOI register.
    Suppressible,
    /// The LAPIC does not offer suppression. Every EOI of a level-triggered vector is an exit. For an IOAPIC of version
    /// 0x11.
    Always,
}

/// Chooses what a split irqchip does, and returns whether KVM has the choice. Without a choice KVM offers suppression
/// and then ignores it, which gives interrupt storms with guests that rely on suppression. After
/// [`enable_split_irqchip`] and before the first vCPU.
///
/// `false` is the answer of a kernel from before early 2026, of a GIC, and of an irqchip that is all in the kernel, which
/// cannot be made suppressible. The VM is then as it was: the userspace IOAPIC should be one of version 0x11.
///
/// The other flags of KVM_CAP_X2APIC_API stay as they are, since KVM adds the new flags to those it has.
///
/// # Errors
/// [`Reason::Os`](crate::Reason::Os) when KVM refuses for another reason.
pub fn set_eoi_broadcast(vm: &VmFd, broadcast: EoiBroadcast) -> Result<bool> {
    // KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST and KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST, which kvm-bindings does
    // not have yet.
    const ENABLE: u64 = 1 << 2;
    const DISABLE: u64 = 1 << 3;
    let flags = match broadcast {
        EoiBroadcast::Suppressible => ENABLE,
        EoiBroadcast::Always => DISABLE,
    };
    match enable_cap(vm, KVM_CAP_X2APIC_API, flags, "KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)") {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn enable_cap(_: &VmFd, _: u32, _: u64, operation: &'static str) -> Result<()> {
    Err(Error::of_vm(operation, crate::Reason::GicIsWhole))
}

/// On x86_64 alone: kvm-ioctls before 0.25.1 does not have the call on aarch64.
#[cfg(target_arch = "x86_64")]
fn enable_cap(vm: &VmFd, cap: u32, argument: u64, operation: &'static str) -> Result<()> {
    let mut cap = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    cap.args[0] = argument;
    vm.enable_cap(&cap).map_err(|error| Error::vm(operation, error))
}

/// The messages of a userspace IOAPIC go to the LAPICs in the kernel: the route of each pin is kept on the pin's own
/// GSI, where KVM looks for it at an EOI, and a message is sent by KVM_SIGNAL_MSI.
impl MsiOutput for KvmInterrupts {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> interrupt_core::Result<Delivery> {
        const OPERATION: &str = "KVM_SIGNAL_MSI";
        if cfg!(target_arch = "aarch64") {
            return Err(Error::new(OPERATION, gsi, NO_DEVICE_ID).into_core(OPERATION, gsi));
        }
        let message = message.for_kvm();
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        match self.vm().signal_msi(msi) {
            // The count of LAPICs, which is never negative here.
            Ok(taken) => Ok(Delivery::Delivered(taken.unsigned_abs())),
            // KVM returns -1, "nobody", where an error number belongs.
            Err(error) if error.errno() == Errno::PERM.raw_os_error() => Ok(Delivery::Delivered(0)),
            Err(error) => Err(Error::os(OPERATION, gsi, error).into_core(OPERATION, gsi)),
        }
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> interrupt_core::Result<()> {
        let route = message.map(|message| Route::Msi {
            address: message.for_kvm().address,
            data: message.data,
            device: None,
        });
        let programmed = routing::set_pin(&self.books, gsi, route, mask);
        programmed.map_err(|error| error.into_core("set pin", gsi))
    }
}
