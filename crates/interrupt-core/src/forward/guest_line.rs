// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end of a forwarder: the line that a device's interrupt goes to, and who can carry an EOI of it back.

use std::fmt;
use std::sync::Arc;

use crate::{EoiNotifier, EoiScope, Gsi, LevelSource};

/// Where a device's interrupt goes: its contribution to one line, and the notifier of that line's EOIs.
///
/// The source must be lowered by the EOI ([`LoweredBy::Eoi`](crate::LoweredBy::Eoi), as a resample irqfd is). With one that only
/// the device lowers, the line is still high when the controller looks again at the EOI, before anybody was told, and the
/// guest's handler runs once more than on hardware.
///
/// A kernel loop and a split kick are wired the same way: the device signals the source's trigger eventfd, and the notifier
/// signals the device's unmask eventfd. They differ in who the notifier is, and what it is asked for. Whoever puts a machine
/// together knows that, and says it by the constructor. Which path is then taken is for
/// [`forward::decide`](crate::forward::decide).
///
/// With KVM's in-kernel irqchip, `source` is a `kvm_irqfd::ResampleSource` and `notifier` the `kvm_irqfd::KvmInterrupts`; on a
/// split irqchip, a `kvm_irqfd::SplitSource` and the userspace IOAPIC.
#[derive(Clone)]
pub struct GuestLine {
    source: Arc<dyn LevelSource>,
    notifier: Arc<dyn EoiNotifier>,
    /// What to ask the notifier for.
    subject: EoiScope,
    end: LineEnd,
}

/// Where a line ends, and with it who could carry its interrupts and EOIs past this process's event loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// At an irqchip in the kernel, which signals eventfds at the EOI.
    Kernel,
    /// At an irqchip in this process that interrupts reach by irqfd, and that signals eventfds at the EOI: the IOAPIC of a split
    /// irqchip, with the LAPICs in the kernel.
    Split,
    /// At this process, for the stated reason: every interrupt and every EOI is carried.
    User(Arc<str>),
}

impl fmt::Display for LineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("irqchip in the kernel"),
            Self::Split => f.write_str("irqchip in this process, reached by irqfd"),
            Self::User(reason) => write!(f, "in this process: {reason}"),
        }
    }
}

impl GuestLine {
    /// A line of an in-kernel irqchip: the kernel signals the listener's eventfd itself, as it does a resamplefd. The
    /// notifier is asked for the EOIs of the source, by its key.
    pub fn kernel(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>) -> Self {
        Self {
            subject: source.key().into(),
            source,
            notifier,
            end: LineEnd::Kernel,
        }
    }

    /// A line of a split irqchip: the trigger eventfd is bound in the kernel, and the notifier, the userspace IOAPIC, signals
    /// the listener's eventfd. It is asked for the EOIs of the GSI, since the source is none of its own.
    pub fn split(source: Arc<dyn LevelSource>, ioapic: Arc<dyn EoiNotifier>) -> Self {
        Self {
            subject: source.gsi().into(),
            source,
            notifier: ioapic,
            end: LineEnd::Split,
        }
    }

    /// A line that this process takes every interrupt to and brings every EOI back from, for the stated reason. It works
    /// with any source of which the notifier knows the key, also without a trigger eventfd.
    pub fn relay(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>, reason: &str) -> Self {
        Self {
            subject: source.key().into(),
            source,
            notifier,
            end: LineEnd::User(reason.into()),
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
    pub fn subject(&self) -> EoiScope {
        self.subject
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.source.gsi()
    }

    /// Where it ends.
    pub fn end(&self) -> &LineEnd {
        &self.end
    }

    /// Whether a subscription made for `other` is one for this line too.
    pub fn shares_subscription(&self, other: &Self) -> bool {
        self.subject == other.subject && std::ptr::addr_eq(Arc::as_ptr(&self.notifier), Arc::as_ptr(&other.notifier))
    }

    /// Whether nothing at all changes when this line takes the place of `other`.
    pub fn is(&self, other: &Self) -> bool {
        self.source.key() == other.source.key() && self.shares_subscription(other) && self.end == other.end
    }
}

impl fmt::Display for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.gsi(), self.source.label())
    }
}

impl fmt::Debug for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}: {}", self.end)
    }
}
