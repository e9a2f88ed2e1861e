// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a run could not take place.

pub mod boot_error;
pub mod unusable;

use std::path::PathBuf;

use vmm_sys_util::errno;

/// The exit status of a program that Ctrl-C has ended, as a shell reports it.
pub const INTERRUPTED: u8 = 130;

/// An error of this VMM. Each is one line, and says the way out where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device.
    #[error("no KVM: {path} does not exist; load kvm_intel or kvm_amd, and enable virtualisation in the firmware")]
    NoKvm {
        /// The device that was tried.
        path: PathBuf,
    },
    /// The device may not be opened by this user.
    #[error("no permission for {path}; run as root, or as a member of the group that owns it (usually kvm)")]
    Permission {
        /// The device that was tried.
        path: PathBuf,
    },
    /// The device is there and does not speak KVM's API.
    #[error("{path} is no KVM device this program can use: {reason}; the usual one is /dev/kvm")]
    NotKvm {
        /// The device that was tried.
        path: PathBuf,
        /// What it answered.
        reason: String,
    },
    /// KVM has no interrupt controllers of its own to offer.
    #[error("KVM_CREATE_IRQCHIP: {0}; this kernel's KVM has no in-kernel 8259 and IOAPIC (CONFIG_KVM_IOAPIC)")]
    NoFullIrqchip(#[source] errno::Error),
    /// A KVM ioctl failed.
    #[error("{step}: {source}")]
    Kvm {
        /// The ioctl.
        step: &'static str,
        /// Its errno.
        source: errno::Error,
    },
    /// Guest memory could not be mapped or reached.
    #[error("guest memory: {0}")]
    Memory(String),
    /// The guest's program could not be assembled.
    #[error("assembling the guest: {0}")]
    Assemble(#[from] iced_x86::IcedError),
    /// A thread, a signal handler or an eventfd could not be made.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The guest does not behave as its program says.
    #[error("the guest failed: {0}")]
    Guest(String),
    /// Something was tried and is not there.
    #[error("{0}")]
    Absent(String),
    /// The parts do not fit together.
    #[error(transparent)]
    Impossible(#[from] crate::composition::check::Impossible),
    /// A device cannot be had by VFIO.
    #[error(transparent)]
    Unusable(#[from] unusable::Unusable),
    /// The forwarder of a device's interrupt refused.
    #[error(transparent)]
    Intx(#[from] vfio_intx::Error),
    /// The forwarder is not where it was asked to be.
    #[error("--forward {wanted} is not what happens: {status}; use --forward relay, or mend that")]
    Forward {
        /// What was asked for.
        wanted: String,
        /// Where it is, and why.
        status: String,
    },
    /// The connection of the device and the line refused.
    #[error(transparent)]
    Connection(#[from] interrupt_core::forward::Error),
    /// Such a device does not state its level again once the handler has acknowledged it, and would wait for ever for
    /// an EOI that it was told of before that.
    #[error(
        "this host ends interrupts at the LAPIC before the handler has run, and a forwarded device would not be told after it; \
         use --controller pic or --irqchip split"
    )]
    EndedTooEarly,
    /// There is one path only.
    #[error("--swap-every needs two paths, and there is one: {0}; use --irqchip kernel or split")]
    NothingToSwap(String),
    /// A Linux guest cannot be had.
    #[error(transparent)]
    Linux(#[from] boot_error::BootError),
    /// The KVM backend refused.
    #[error(transparent)]
    Irqfd(#[from] kvm_irqfd::Error),
    /// A doorbell could not be registered, signalled or removed.
    #[error(transparent)]
    Doorbell(#[from] ioevent::Error),
    /// An interrupt source or EOI notifier refused.
    #[error(transparent)]
    Interrupt(#[from] interrupt_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the name of the ioctl to its errno.
pub fn at(step: &'static str) -> impl Fn(errno::Error) -> Error {
    move |source| Error::Kvm { step, source }
}

impl From<vm_memory::GuestMemoryError> for Error {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::Memory(error.to_string())
    }
}
