// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which interrupt controllers the VM has in the kernel, found by trying (law 8).

use interrupt_core::{Gsi, Irqchip};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result};
use crate::kernel::Kernel;
use crate::kernel::eventfd::Eventfd;

/// The pins of a PC's IOAPIC: what [`enable_split_irqchip`](crate::enable_split_irqchip) is usually given, and what
/// [`KvmInterrupts::new`](crate::KvmInterrupts::new) takes a split irqchip to have.
pub const SPLIT_PINS: u32 = 24;

/// Assigns an irqfd that is never triggered, with and without a resamplefd, and deassigns the irqfd again.
///
/// KVM_CAP_IRQFD_RESAMPLE says 1 on a split irqchip, which refuses the flag (since Linux 5.2, 654f1f13ea56), and newer
/// kernels can be built without an IOAPIC; only the answer to the real request tells. GSI 0 is used because an irqfd on
/// a GSI beyond the routing table could bring down older kernels on AMD hosts (cloud-hypervisor #3827).
pub(crate) fn probe(kernel: &dyn Kernel) -> Result<Irqchip> {
    const GSI: Gsi = Gsi(0);
    // The probe is about no line of the caller's.
    let eventfd = || Eventfd::new(kernel, GSI).map_err(|error| Error { gsi: None, ..error });
    let (trigger, resamplefd) = (eventfd()?, eventfd()?);
    for (resamplefd, found) in [(Some(resamplefd.fd()), Irqchip::Kernel), (None, Irqchip::Split)] {
        match kernel.assign(trigger.fd(), resamplefd, GSI) {
            Ok(()) => {
                kernel.deassign(trigger.fd(), GSI);
                return Ok(found);
            }
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                return Err(Error::of_vm("KVM_IRQFD", Reason::NotInitialised));
            }
            Err(error) => return Err(Error::vm("KVM_IRQFD", error)),
        }
    }
    Ok(Irqchip::User)
}
