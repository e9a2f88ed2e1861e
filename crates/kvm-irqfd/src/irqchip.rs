// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which interrupt controllers the VM has in the kernel, found by trying.

use std::fmt;

use interrupt_core::Gsi;
use kvm_ioctls::VmFd;
use rustix::io::Errno;

use crate::event::Event;
use crate::{Error, Result};

/// The interrupt controllers that a VM has in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Irqchip {
    /// None: KVM injects nothing by GSI.
    None,
    /// The LAPICs only (KVM_CAP_SPLIT_IRQCHIP): GSIs route to MSIs, and the IOAPIC is in userspace.
    Split,
    /// All of them: pins, levels and resample irqfds work. On aarch64, a vGIC.
    Full,
}

impl fmt::Display for Irqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Split => "split",
            Self::Full => "kernel",
        })
    }
}

impl Irqchip {
    /// Finds out by assigning an irqfd that is never triggered, with and without a resamplefd, and taking it away again.
    ///
    /// KVM_CAP_IRQFD_RESAMPLE says 1 on a split irqchip, which refuses it (since Linux 5.2, 654f1f13ea56), and newer kernels
    /// can be built without an IOAPIC; only the answer to the real request is worth something. GSI 0 is used because an
    /// irqfd on a GSI beyond the routing table could bring down older kernels on AMD hosts (cloud-hypervisor #3827).
    pub(crate) fn probe(vm: &VmFd) -> Result<Self> {
        const GSI: Gsi = Gsi(0);
        let (trigger, resample) = (Event::new(GSI)?, Event::new(GSI)?);
        let with_resample = vm.register_irqfd_with_resample(trigger.eventfd(), resample.eventfd(), GSI.0);
        let plain = match with_resample {
            Ok(()) => {
                deassign(vm, &trigger)?;
                return Ok(Self::Full);
            }
            Err(error) if error.errno() == Errno::INVAL.raw_os_error() => vm.register_irqfd(trigger.eventfd(), GSI.0),
            Err(error) if error.errno() == Errno::AGAIN.raw_os_error() => return Err(Error::NotInitialised),
            Err(error) => return Err(Error::vm("KVM_IRQFD(resample)", error)),
        };
        match plain {
            Ok(()) => {
                deassign(vm, &trigger)?;
                Ok(Self::Split)
            }
            Err(error) if error.errno() == Errno::INVAL.raw_os_error() => Ok(Self::None),
            Err(error) => Err(Error::vm("KVM_IRQFD", error)),
        }
    }
}

fn deassign(vm: &VmFd, trigger: &Event) -> Result<()> {
    vm.unregister_irqfd(trigger.eventfd(), 0)
        .map_err(|error| Error::vm("KVM_IRQFD(deassign)", error))
}
