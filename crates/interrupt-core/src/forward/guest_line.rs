// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end of a connection: the line that a device's interrupt goes to, and the notifier of the line's EOIs.

use std::fmt;
use std::sync::Arc;

use crate::{EoiNotifier, EoiScope, Gsi, Irqchip, LevelSource};

/// A line of the guest: a device's contribution to the line, and the notifier of the line's EOIs.
///
/// The source must be lowered by the EOI ([`LoweredBy::Eoi`](crate::LoweredBy::Eoi), as a resample irqfd is). A source
/// that only the device lowers is still high when the controller samples the line at the EOI, before any listener is
/// told, and the guest's handler runs once too often.
///
/// A kernel loop and a split kick have the same wires: the device signals the source's trigger eventfd, and the
/// notifier signals the device's unmask eventfd. The constructor says where the notifier is.
/// [`decide`](crate::forward::decide) chooses the path.
///
/// With KVM's in-kernel irqchip, `source` is a resample irqfd of `kvm_irqfd::KvmInterrupts`, which is the `notifier`;
/// on a split irqchip, `source` is an irqfd on the pin's GSI and `notifier` the userspace IOAPIC.
#[derive(Clone)]
pub struct GuestLine {
    source: Arc<dyn LevelSource>,
    notifier: Arc<dyn EoiNotifier>,
    /// The scope of the subscription at the notifier.
    scope: EoiScope,
    irqchip: Irqchip,
    relay_only: Option<Arc<str>>,
}

impl GuestLine {
    /// A line of an in-kernel irqchip. The kernel signals the listener's eventfd, as it does a resamplefd. The
    /// subscription is to the EOIs of the source, by its key.
    pub fn kernel(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>) -> Self {
        Self {
            scope: source.key().into(),
            source,
            notifier,
            irqchip: Irqchip::Kernel,
            relay_only: None,
        }
    }

    /// A line of a split irqchip. The trigger eventfd is an irqfd, and the userspace IOAPIC signals the listener's
    /// eventfd. The subscription is to the EOIs of the GSI, because the IOAPIC does not know the source.
    pub fn split(source: Arc<dyn LevelSource>, ioapic: Arc<dyn EoiNotifier>) -> Self {
        Self {
            scope: source.gsi().into(),
            source,
            notifier: ioapic,
            irqchip: Irqchip::Split,
            relay_only: None,
        }
    }

    /// A line to which this process carries every interrupt, and from which it carries every EOI, for the stated
    /// reason. It works with any source whose key the notifier knows, also without a trigger eventfd.
    pub fn relay(source: Arc<dyn LevelSource>, notifier: Arc<dyn EoiNotifier>, reason: &str) -> Self {
        Self {
            scope: source.key().into(),
            source,
            notifier,
            irqchip: Irqchip::User,
            relay_only: Some(reason.into()),
        }
    }

    /// The device's contribution to the line.
    pub fn source(&self) -> &Arc<dyn LevelSource> {
        &self.source
    }

    /// The notifier of the line's EOIs.
    pub fn notifier(&self) -> &Arc<dyn EoiNotifier> {
        &self.notifier
    }

    /// The scope of the subscription at the notifier.
    pub fn scope(&self) -> EoiScope {
        self.scope
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.source.gsi()
    }

    /// Where the line's interrupt controller is. [`Irqchip::User`] for a line that is only relayed.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    /// Why this process has to carry every interrupt and EOI of the line, if it has to.
    pub fn relay_only(&self) -> Option<&Arc<str>> {
        self.relay_only.as_ref()
    }

    /// Whether a subscription made for `other` serves this line too.
    pub fn shares_subscription(&self, other: &Self) -> bool {
        self.scope == other.scope && self.shares_notifier(other)
    }

    fn shares_notifier(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.notifier), Arc::as_ptr(&other.notifier))
    }

    /// Whether both lead to the same pin in the same way, perhaps by two sources: what a guest has changed that writes the
    /// same route again is nothing.
    pub fn has_route_of(&self, other: &Self) -> bool {
        self.gsi() == other.gsi()
            && self.shares_notifier(other)
            && self.irqchip == other.irqchip
            && self.relay_only == other.relay_only
    }

    /// Whether nothing changes when this line takes the place of `other`.
    pub fn is(&self, other: &Self) -> bool {
        self.source.key() == other.source.key()
            && self.shares_subscription(other)
            && self.irqchip == other.irqchip
            && self.relay_only == other.relay_only
    }
}

impl fmt::Display for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.gsi(), self.source.label())
    }
}

impl fmt::Debug for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}: {} irqchip", self.irqchip)
    }
}
