// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end: the line that a device's INTx is routed to, and who can carry an EOI of it back.

use std::fmt;
use std::sync::Arc;

use interrupt_core::{EoiNotifier, Gsi, LevelSource, Subject};

use crate::state::Direct;

/// Where a device's INTx goes: its contribution to one line, and the notifier of that line's EOIs.
///
/// The source must be lowered by the EOI ([`LoweredBy::Eoi`](interrupt_core::LoweredBy::Eoi), as a resample irqfd is). With
/// one that only the device lowers, the line is still high when the controller looks again at the EOI, before anybody was
/// told, and the guest's handler runs once more than on hardware.
///
/// A kernel loop and a split kick are wired the same way: the device signals the source's trigger eventfd, and the notifier
/// signals the device's unmask eventfd. They differ in who the notifier is, and what it is asked for. Whoever puts a machine
/// together knows that, and says it by the constructor.
///
/// With KVM's in-kernel irqchip (`interrupts` is a `kvm_irqfd::KvmInterrupts`, of the crate beside this one):
///
/// ```no_run
/// use std::sync::Arc;
/// use interrupt_core::Gsi;
/// use vfio_intx::GuestLine;
///
/// # fn line(interrupts: kvm_irqfd::KvmInterrupts) -> Result<GuestLine, kvm_irqfd::Error> {
/// let source = interrupts.resample_source(Gsi(11), "0000:00:02.0")?;
/// let line = GuestLine::kernel(Arc::new(source), Arc::new(interrupts));
/// # Ok(line)
/// # }
/// ```
#[derive(Clone)]
pub struct GuestLine {
    source: Arc<dyn LevelSource>,
    notifier: Arc<dyn EoiNotifier>,
    /// What to ask the notifier for.
    subject: Subject,
    direct: Result<Direct, Arc<str>>,
}

impl GuestLine {
    /// A line of an in-kernel irqchip: the kernel signals the listener's eventfd itself, as it does a resamplefd. The
    /// notifier is asked for the EOIs of the source, by its key.
    pub fn kernel(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>) -> Self {
        Self {
            subject: source.key().into(),
            source,
            notifier,
            direct: Ok(Direct::KernelLoop),
        }
    }

    /// A line of a split irqchip: the trigger eventfd is bound in the kernel, and the notifier, the userspace IOAPIC, signals
    /// the listener's eventfd. It is asked for the EOIs of the GSI, since the source is none of its own.
    pub fn split(source: Arc<dyn LevelSource>, ioapic: Arc<dyn EoiNotifier>) -> Self {
        Self {
            subject: source.gsi().into(),
            source,
            notifier: ioapic,
            direct: Ok(Direct::SplitKick),
        }
    }

    /// A line that this process takes every interrupt to and brings every EOI back from, for the stated reason. It works
    /// with any source of which the notifier knows the key, also without a trigger eventfd.
    pub fn relay(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>, reason: &str) -> Self {
        Self {
            subject: source.key().into(),
            source,
            notifier,
            direct: Err(reason.into()),
        }
    }

    /// The device's contribution to the line.
    pub fn source(&self) -> &Arc<dyn LevelSource> {
        &self.source
    }

    /// Who tells of the line's EOIs.
    pub fn notifier(&self) -> &Arc<dyn EoiNotifier> {
        &self.notifier
    }

    /// What the notifier is asked for.
    pub(crate) fn subject(&self) -> Subject {
        self.subject
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.source.gsi()
    }

    /// The path that bypasses this process, or why there is none.
    pub(crate) fn direct(&self) -> Result<Direct, Arc<str>> {
        self.direct.clone()
    }

    /// Whether a subscription made for `other` is one for this line too.
    pub(crate) fn shares_subscription(&self, other: &Self) -> bool {
        self.subject == other.subject && std::ptr::addr_eq(Arc::as_ptr(&self.notifier), Arc::as_ptr(&other.notifier))
    }

    /// Whether nothing at all changes when this line takes the place of `other`.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.source.key() == other.source.key() && self.shares_subscription(other) && self.direct == other.direct
    }
}

impl fmt::Display for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.gsi(), self.source.label())
    }
}

impl fmt::Debug for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}: ")?;
        match &self.direct {
            Ok(direct) => write!(f, "{direct} possible"),
            Err(reason) => write!(f, "relay only: {reason}"),
        }
    }
}
