// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt of an 8259 in this process, on its way into a vCPU without an irqchip in the kernel.

use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use user_irqchip::Pic;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use crate::error::{Result, at};

mod request {
    use super::{KVMIO, ioctl_iow_nr, kvm_interrupt};

    // kvm-ioctls has no KVM_INTERRUPT, which is for VMs without an irqchip in the kernel.
    ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

/// Injects the 8259's interrupt, or asks KVM for an exit when the CPU can take an interrupt. A request that arrives
/// while the guest runs waits for the next exit: this guest halts, and so exits, after each interrupt.
///
/// # Errors
/// As [`interrupt`].
pub fn inject(fd: &mut VcpuFd, pic: &Pic) -> Result<()> {
    let run = fd.get_kvm_run();
    if !pic.intr() {
        run.request_interrupt_window = 0;
        return Ok(());
    }
    if run.ready_for_interrupt_injection == 0 || run.if_flag == 0 {
        run.request_interrupt_window = 1;
        return Ok(());
    }
    run.request_interrupt_window = 0;
    interrupt(fd, pic.acknowledge())
}

/// Makes the CPU take an interrupt, of that vector, as soon as it enters the guest.
///
/// # Errors
/// The error of KVM_INTERRUPT: EEXIST when an interrupt is already queued, ENXIO with an irqchip in the kernel.
pub fn interrupt(fd: &VcpuFd, vector: u8) -> Result<()> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: the fd is a vCPU's, and the argument is the structure that this ioctl reads.
    if unsafe { ioctl_with_ref(fd, request::KVM_INTERRUPT(), &interrupt) } < 0 {
        return Err(at("KVM_INTERRUPT")(errno::Error::last()));
    }
    Ok(())
}
