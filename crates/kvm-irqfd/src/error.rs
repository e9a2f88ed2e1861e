// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this crate refuses, what the kernel refuses, and the errno of each.

use std::fmt;
use std::io;

use interrupt_core::Gsi;
use rustix::io::Errno;

use crate::chip::Chip;
use crate::kind::BindingKind;

/// A refusal. What KVM would accept and then get wrong is refused here, before KVM is asked: the KVM_IRQFD ioctl checks
/// neither the GSI nor the route, and its deassign always succeeds.
///
/// Nothing is left behind by a refusal, with one exception: [`Reason::Refused`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub struct Error {
    /// What was tried: the ioctl or the system call, or this crate's function.
    pub operation: &'static str,
    /// The line, if the operation is about one line.
    pub gsi: Option<Gsi>,
    /// Why it was refused.
    pub reason: Reason,
}

/// Why an operation was refused. The errno of each is what [`Error::errno`] returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The VM has no interrupt controller in the kernel, so that KVM injects nothing by GSI. EINVAL.
    #[error("the VM has no in-kernel irqchip; create one first (KVM_CREATE_IRQCHIP)")]
    NoIrqchip,
    /// The VM has no vGIC, or its vGIC is not initialised yet (aarch64). EAGAIN.
    #[error("the vGIC is not initialised; do that first (KVM_DEV_ARM_VGIC_CTRL_INIT), with all vCPUs made")]
    NotInitialised,
    /// The irqchip is split: the IOAPIC is in userspace, and KVM refuses resample irqfds and has no pins to drive.
    /// EINVAL.
    #[error("the irqchip is split, so the line and its EOI belong to the userspace IOAPIC")]
    SplitIrqchip,
    /// A GIC cannot be split: KVM has all of it in the kernel or none of it (aarch64). EINVAL.
    #[error("a GIC cannot be split; make a vGIC (GicV3::create) and use resample sources")]
    GicIsWhole,
    /// The irqchip is not split, or the GSI is not reserved for the userspace IOAPIC, so that KVM would not report its
    /// EOI. EINVAL.
    #[error("not a pin of a userspace IOAPIC; KVM reports the EOI of reserved GSIs only")]
    NotSplit,
    /// The GSI has no route: KVM would accept the GSI and swallow every signal. EINVAL.
    #[error("the GSI has no route; add one with KvmInterrupts::routing first")]
    UnknownGsi,
    /// The GSI is routed to an MSI: an MSI has no level to hold and no EOI to report. EINVAL.
    #[error("the GSI is routed to an MSI, which has neither a level nor an EOI")]
    MsiRoute,
    /// A later GSI is routed to the same pin, and KVM reports the pin's EOI to the later GSI only: a resample irqfd
    /// here would never fire and its line would stay high. EINVAL.
    #[error(
        "the GSI reports no EOI: {by} is routed to the same pin {pin} of the {chip}, and KVM tells only the last one"
    )]
    ShadowedPin {
        /// The controller.
        chip: Chip,
        /// Its pin.
        pin: u32,
        /// The line that KVM tells.
        by: Gsi,
    },
    /// Another GSI is routed to the same pin and drives the pin. The pin has one state for both, so that one GSI would
    /// lower the level of the other. EBUSY.
    #[error("pin {pin} of the {chip} is driven by {by}, which is routed there too")]
    SharedPin {
        /// The controller.
        chip: Chip,
        /// Its pin.
        pin: u32,
        /// The line that drives the pin.
        by: Gsi,
    },
    /// The GSI is used in a way that excludes the new use: KVM keeps one assertion for all edge irqfds and KVM_IRQ_LINE
    /// of a GSI, so that an edge would destroy a held level. EBUSY.
    #[error("the GSI is used by {has}, which excludes {wants} on it")]
    MixedUse {
        /// What is there.
        has: BindingKind,
        /// What was to be added.
        wants: BindingKind,
    },
    /// An edge irqfd and a listener on one GSI of a GIC: KVM reports the EOI of a level-triggered SPI only, so that the
    /// listener would never be told (aarch64). EINVAL.
    #[error("a GIC reports no EOI of an edge-triggered SPI, so a listener beside an edge irqfd would never be told")]
    EdgeSpi,
    /// The eventfd is the trigger of an irqfd already, here or in another VM of this process. EBUSY.
    #[error("the eventfd is bound to {bound} already; drop that binding first")]
    AlreadyBound {
        /// The line that the eventfd is bound to.
        bound: Gsi,
    },
    /// The GSI is not one of those that [`KvmInterrupts::beside`](crate::KvmInterrupts::beside) was given. EINVAL.
    #[error("the GSI belongs to another owner of the VM's interrupts")]
    NotOwned,
    /// The call is made from within the VMM's function that sets the routes, see
    /// [`KvmInterrupts::beside`](crate::KvmInterrupts::beside). EDEADLK.
    #[error("called by the function that sets the routes, which is part of another change")]
    Reentrant,
    /// The fd is not an eventfd. EINVAL.
    #[error("the fd is not an eventfd")]
    NotEventfd,
    /// The eventfd was made with EFD_SEMAPHORE: KVM would consume one count a wake-up and leave the rest. EINVAL.
    #[error("the eventfd is a semaphore (EFD_SEMAPHORE), of which KVM would leave counts behind")]
    Semaphore,
    /// The eventfd would be both the trigger of an irqfd and told of EOIs: each EOI would raise the next interrupt.
    /// EINVAL.
    #[error("the eventfd would be a trigger and be told of EOIs; every EOI would raise an interrupt")]
    TriggerIsResample,
    /// The route is one that KVM would refuse, or take and get wrong. EINVAL.
    #[error("{0}")]
    Route(&'static str),
    /// The routing table is full: KVM takes 4096 entries. ENOSPC.
    #[error("the table would have {entries} entries, and KVM takes 4096")]
    TableFull {
        /// How many entries there would be.
        entries: usize,
    },
    /// A request to forward that is malformed. EINVAL.
    #[error("{0}")]
    Request(Box<interrupt_core::forward::Error>),
    /// The system refused, and everything is as before. The errno is the system's.
    #[error("{0}")]
    Os(io::Error),
    /// The operation is done, but KVM refused to take back an irqfd or a level that was taken off the line for it. What
    /// is signalled meanwhile waits in the trigger. The next assertion by this process and the next change of the line
    /// try again; [`GsiCounts::refused`](crate::GsiCounts::refused) says how many irqfds are off. The errno is the
    /// system's.
    #[error("done, but the line is not back yet, which the next assertion tries: {0}")]
    Refused(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if let Some(gsi) = self.gsi {
            write!(f, " on {gsi}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl Error {
    pub(crate) fn new(operation: &'static str, gsi: Gsi, reason: Reason) -> Self {
        Self {
            operation,
            gsi: Some(gsi),
            reason,
        }
    }

    pub(crate) fn os(operation: &'static str, gsi: Gsi, error: impl Into<io::Error>) -> Self {
        Self::new(operation, gsi, Reason::Os(error.into()))
    }

    /// An error that is about no line in particular.
    pub(crate) fn of_vm(operation: &'static str, reason: Reason) -> Self {
        Self {
            operation,
            gsi: None,
            reason,
        }
    }

    pub(crate) fn vm(operation: &'static str, error: impl Into<io::Error>) -> Self {
        Self::of_vm(operation, Reason::Os(error.into()))
    }

    /// The errno that says the same.
    pub fn errno(&self) -> Option<i32> {
        let errno = match &self.reason {
            Reason::MixedUse { .. } | Reason::AlreadyBound { .. } | Reason::SharedPin { .. } => Errno::BUSY,
            Reason::NotInitialised => Errno::AGAIN,
            Reason::Reentrant => Errno::DEADLK,
            Reason::TableFull { .. } => Errno::NOSPC,
            Reason::Request(error) => return error.errno(),
            Reason::Os(error) | Reason::Refused(error) => return error.raw_os_error(),
            _ => Errno::INVAL,
        };
        Some(errno.raw_os_error())
    }

    /// The error as the traits of interrupt-core return it.
    pub(crate) fn into_core(self, operation: &'static str, gsi: Gsi) -> interrupt_core::Error {
        match self {
            Self {
                operation,
                gsi: Some(gsi),
                reason: Reason::Os(source),
            } => interrupt_core::Error::Os { operation, gsi, source },
            other => interrupt_core::Error::Backend {
                operation,
                gsi,
                errno: other.errno(),
                source: Box::new(other),
            },
        }
    }
}

/// An error travels in every result, and in the enums of those who use this crate (clippy's `result_large_err`).
const _: () = assert!(size_of::<Error>() <= 64);

/// The result of this crate's own functions.
pub type Result<T> = std::result::Result<T, Error>;
