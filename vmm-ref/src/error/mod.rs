// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The errors that keep a run from taking place.

pub mod boot_error;
pub mod unusable;

use std::path::PathBuf;

use vmm_sys_util::errno;

/// The exit status of a program that Ctrl-C has ended, as a shell reports it.
pub const INTERRUPTED: u8 = 130;

/// An error of this VMM. The message is one line and names a remedy where one exists.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The KVM device does not exist.
    #[error("no KVM: {path} does not exist; load kvm_intel or kvm_amd, and enable virtualisation in the firmware")]
    NoKvm {
        /// The path of the KVM device.
        path: PathBuf,
    },
    /// This user may not open the KVM device.
    #[error("no permission for {path}; run as root, or as a member of the group that owns it (usually kvm)")]
    Permission {
        /// The path of the KVM device.
        path: PathBuf,
    },
    /// The path exists, but is no KVM device with a usable API.
    #[error("{path} is no KVM device this program can use: {reason}; the usual one is /dev/kvm")]
    NotKvm {
        /// The path of the KVM device.
        path: PathBuf,
        /// Why it is unusable.
        reason: String,
    },
    /// This kernel's KVM has no in-kernel 8259 and IOAPIC.
    #[error("KVM_CREATE_IRQCHIP: {0}; this kernel's KVM has no in-kernel 8259 and IOAPIC (CONFIG_KVM_IOAPIC)")]
    NoFullIrqchip(#[source] errno::Error),
    /// A KVM ioctl failed.
    #[error("{step}: {source}")]
    Kvm {
        /// The ioctl.
        step: &'static str,
        /// The ioctl's errno.
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
        /// The operation.
        step: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The guest deviates from its program, or failed.
    #[error("the guest failed: {0}")]
    Guest(String),
    /// The host lacks a capability.
    #[error("{0}")]
    Absent(String),
    /// The parts do not fit together.
    #[error(transparent)]
    Impossible(#[from] crate::composition::check::Impossible),
    /// A VFIO or vfio-user device cannot be used.
    #[error(transparent)]
    Unusable(#[from] unusable::Unusable),
    /// The forwarder of a device's interrupt refused.
    #[error(transparent)]
    Intx(#[from] vfio_intx::Error),
    /// The interrupt takes another path than the one that was asked for.
    #[error("--forward {wanted} is not what happens: {status}; use --forward relay, or mend that")]
    Forward {
        /// The path that was asked for.
        wanted: String,
        /// The path in use, and the reason.
        status: String,
    },
    /// The connection of the device and the line refused.
    #[error(transparent)]
    Connection(#[from] interrupt_core::forward::Error),
    /// The host ends interrupts at the LAPIC, before the handler acknowledges the device. The forwarder hears of that
    /// early EOI and of no later one, so the run would wait for ever.
    #[error(
        "this host ends interrupts at the LAPIC before the handler has run, and a forwarded device would not be told after it; \
         use --controller pic or --irqchip split"
    )]
    EndedTooEarly,
    /// `--swap-every` found a single path.
    #[error("--swap-every needs two paths, and there is one: {0}; use --irqchip kernel or split")]
    NothingToSwap(String),
    /// A Linux guest cannot be booted.
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
