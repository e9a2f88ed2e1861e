// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this crate refuses, what the kernel refuses, and the errno of each.

use std::io;

use interrupt_core::Gsi;
use rustix::io::Errno;

use crate::{Chip, Use};

/// A refusal. Everything that KVM would accept and then get wrong is refused here, before KVM is asked: the ioctl checks
/// neither the GSI nor the route, and its deassign always succeeds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The VM has no interrupt controller in the kernel, so nothing can be injected through KVM. EINVAL.
    #[error("{operation} on {gsi}: the VM has no in-kernel irqchip; create one first (KVM_CREATE_IRQCHIP)")]
    NoIrqchip {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The VM has no vGIC, or one that is not initialised yet (aarch64). EAGAIN.
    #[error("KVM_IRQFD: the vGIC is not initialised; do that first (KVM_DEV_ARM_VGIC_CTRL_INIT), with all vCPUs made")]
    NotInitialised,
    /// The irqchip is split: the IOAPIC is in userspace, and KVM refuses resample irqfds and has no pins to drive. EINVAL.
    #[error("{operation} on {gsi}: the irqchip is split, so the line and its EOI belong to the userspace IOAPIC")]
    SplitIrqchip {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The irqchip is not split, or the GSI is not reserved for the userspace IOAPIC, so that KVM would not report its EOI. EINVAL.
    #[error("{operation} on {gsi}: not a pin of a userspace IOAPIC; KVM reports the EOI of reserved GSIs only")]
    NotSplit {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The GSI has no route: KVM would accept it and swallow every signal. EINVAL.
    #[error("{operation} on {gsi}: the GSI has no route; add one with KvmInterrupts::routing first")]
    UnknownGsi {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The GSI is routed to an MSI only: an MSI has no level to hold and no EOI to report. EINVAL.
    #[error("{operation} on {gsi}: the GSI is routed to an MSI, which has neither a level nor an EOI")]
    MsiRoute {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// A later GSI is routed to the same pin, and KVM reports the pin's EOI to that one only: a resample irqfd here would
    /// never fire and its line would stay high. EINVAL.
    #[error(
        "{gsi} reports no EOI: {by} is routed to the same pin {pin} of the {chip}, and KVM tells only the last one"
    )]
    ShadowedPin {
        /// The line that would not be told.
        gsi: Gsi,
        /// The controller.
        chip: Chip,
        /// Its pin.
        pin: u32,
        /// The line that is told.
        by: Gsi,
    },
    /// The GSI is in use in a way that excludes the new one: KVM keeps one assertion for all irqfds and KVM_IRQ_LINE of a GSI,
    /// so that an edge would destroy a held level. EBUSY.
    #[error("{gsi} is used by {has}, which excludes {wants} on it")]
    MixedUse {
        /// The line.
        gsi: Gsi,
        /// What is there.
        has: Use,
        /// What was to be added.
        wants: Use,
    },
    /// The eventfd is the trigger of an irqfd already, here or in another VM of this process. EBUSY.
    #[error("{operation} on {gsi}: the eventfd is bound to {bound} already; drop that binding first")]
    AlreadyBound {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
        /// The line it is bound to.
        bound: Gsi,
    },
    /// The fd is not an eventfd. EINVAL.
    #[error("{operation} on {gsi}: the fd is not an eventfd")]
    NotEventfd {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The eventfd was made with EFD_SEMAPHORE: KVM would consume one count a wake-up and leave the rest. EINVAL.
    #[error("{operation} on {gsi}: the eventfd is a semaphore (EFD_SEMAPHORE), of which KVM would leave counts behind")]
    Semaphore {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// The trigger and the resamplefd are one eventfd: each EOI would raise the next interrupt. EINVAL.
    #[error("{operation} on {gsi}: the resamplefd is an irqfd's trigger; every EOI would raise an interrupt")]
    TriggerIsResample {
        /// What was tried.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
    },
    /// A routing table that KVM would refuse, or take and get wrong. EINVAL.
    #[error("routing of {gsi}: {reason}")]
    Route {
        /// The line.
        gsi: Gsi,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The routing table is full: KVM takes 4096 entries. ENOSPC.
    #[error("routing of {gsi}: the table has {entries} entries, and KVM takes 4096")]
    TableFull {
        /// The line whose routes do not fit any more.
        gsi: Gsi,
        /// How many entries there would be.
        entries: usize,
    },
    /// The system refused.
    #[error("{operation} on {gsi}: {source}")]
    Os {
        /// The ioctl or system call.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
        /// What it said.
        source: io::Error,
    },
    /// A request to forward that is malformed. EINVAL.
    #[error("{operation}: {source}")]
    Request {
        /// The ioctl.
        operation: &'static str,
        /// What is wrong with it.
        source: interrupt_core::forward::Error,
    },
    /// The system refused something that is about no line in particular.
    #[error("{operation}: {source}")]
    Vm {
        /// The ioctl or system call.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl Error {
    /// The errno that says the same.
    pub fn errno(&self) -> Option<i32> {
        let errno = match self {
            Self::MixedUse { .. } | Self::AlreadyBound { .. } => Errno::BUSY,
            Self::NotInitialised => Errno::AGAIN,
            Self::TableFull { .. } => Errno::NOSPC,
            Self::Request { source, .. } => return source.errno(),
            Self::Os { source, .. } | Self::Vm { source, .. } => return source.raw_os_error(),
            Self::NoIrqchip { .. }
            | Self::SplitIrqchip { .. }
            | Self::NotSplit { .. }
            | Self::UnknownGsi { .. }
            | Self::MsiRoute { .. }
            | Self::ShadowedPin { .. }
            | Self::NotEventfd { .. }
            | Self::Semaphore { .. }
            | Self::TriggerIsResample { .. }
            | Self::Route { .. } => Errno::INVAL,
        };
        Some(errno.raw_os_error())
    }

    pub(crate) fn os(operation: &'static str, gsi: Gsi, source: impl Into<io::Error>) -> Self {
        Self::Os {
            operation,
            gsi,
            source: source.into(),
        }
    }

    pub(crate) fn vm(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Vm {
            operation,
            source: source.into(),
        }
    }

    /// As the traits of interrupt-core return it.
    pub(crate) fn into_core(self, operation: &'static str, gsi: Gsi) -> interrupt_core::Error {
        match self {
            Self::Os { operation, gsi, source } => interrupt_core::Error::Os { operation, gsi, source },
            other => interrupt_core::Error::Backend {
                operation,
                gsi,
                errno: other.errno(),
                source: Box::new(other),
            },
        }
    }
}

/// The result of this crate's own functions.
pub type Result<T> = std::result::Result<T, Error>;
