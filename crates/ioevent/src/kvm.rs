// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's ioeventfds.
//!
//! The ioctl is issued here and not through `VmFd::register_ioevent`, because kvm-ioctls (0.25) takes the length from
//! the type of the datamatch, and so has no way to say "a store of 4 bytes with any value": its only registration
//! without a datamatch is the one of any length.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::backend::{Backend, Refusal};
use crate::matching::{Match, Space};

ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
const DATAMATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;

/// Registers with KVM (`KVM_IOEVENTFD`), with or without an in-kernel irqchip.
///
/// A vCPU thread whose seccomp filter forbids `KVM_IOEVENTFD` cannot register, remove or relocate (firecracker #6094);
/// a guest's BAR write arrives on such a thread.
#[derive(Debug)]
pub struct Kvm {
    vm: Arc<VmFd>,
}

impl Kvm {
    /// Registers on `vm`, and keeps it open.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    fn ioctl(&self, at: &Match, event: &EventFd, operation: u32) -> Result<(), Errno> {
        let datamatch = if at.datamatch.is_some() { DATAMATCH } else { 0 };
        let space = match at.space {
            Space::Pio => PIO,
            Space::Mmio => 0,
        };
        let request = kvm_ioeventfd {
            datamatch: at.datamatch.unwrap_or(0),
            addr: at.address,
            len: at.length.bytes(),
            fd: event.as_raw_fd(),
            flags: operation | datamatch | space,
            ..Default::default()
        };
        // SAFETY: KVM_IOEVENTFD reads one `kvm_ioeventfd`, which `request` is, and writes nothing to our memory.
        let result = unsafe { ioctl_with_ref(self.vm.as_ref(), KVM_IOEVENTFD(), &request) };
        if result == 0 { Ok(()) } else { Err(Errno::last()) }
    }
}

impl Backend for Kvm {
    fn assign(&self, at: &Match, event: &EventFd) -> Result<(), Refusal> {
        self.ioctl(at, event, 0).map_err(Refusal::Kernel)
    }

    fn deassign(&self, at: &Match, event: &EventFd) -> Result<(), Errno> {
        self.ioctl(at, event, DEASSIGN)
    }
}
