// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The irqfds and routes of a hypervisor, as the VMM has them.

use std::io;
use std::os::fd::BorrowedFd;

use crate::gsi::Gsi;
use crate::msi::Msi;

/// What a VMM's own interface to its hypervisor does with an irqfd: binds an eventfd to a GSI, takes it off again, and
/// sets the message of a GSI. A userspace IOAPIC's pins stand on this, so that the VMM keeps its routing table, its
/// allocator of GSIs and its `VmFd`.
///
/// The GSIs are the pins' own, below the number that the split irqchip reserves: KVM reports the EOI of no other
/// (law 11). The calls are made with a lock of the pins held: an implementation must not call back into the pins.
pub trait Irqfds: Send + Sync {
    /// Has each signal of `trigger` send the message of `gsi` from now on (KVM_IRQFD). `trigger` is a non-blocking
    /// eventfd, no semaphore, and not bound. It stays open until after [`unbind`](Self::unbind).
    ///
    /// A signal that comes during this call must not be lost: KVM and mshv send the message for a count that they find.
    ///
    /// # Errors
    /// The hypervisor's. `trigger` is then not bound.
    fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()>;

    /// Ends the binding of the same descriptor (KVM_IRQFD with KVM_IRQFD_FLAG_DEASSIGN). When this returns, a signal sends
    /// nothing any more and stays in the eventfd.
    ///
    /// # Errors
    /// The hypervisor's. `trigger` is then taken to be bound still.
    fn unbind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()>;

    /// Sets the message that `gsi` sends (KVM_SET_GSI_ROUTING), also while eventfds are bound to the GSI. The message is
    /// as KVM takes it, see [`Msi::for_kvm`].
    ///
    /// # Errors
    /// The hypervisor's. The GSI then sends the message that it sent before, if it had one.
    fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()>;
}
