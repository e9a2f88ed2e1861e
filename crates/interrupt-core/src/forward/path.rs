// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The paths that an interrupt and its EOI can take, and the one function that chooses.

use std::fmt;
use std::sync::Arc;

use super::device_interrupt::DeviceIrq;
use crate::forward::InterruptInfo;
use crate::{Error, Irqchip};

/// A way from a device's interrupt to a guest's line, and of the line's EOI back to the device. Best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// The host's interrupt controller hands the interrupt over, and the guest's EOI ends it there
    /// (`KVM_DEV_VFIO_DEVICE_FORWARD_IRQ`).
    HostForward,
    /// The kernel carries both: the device signals an irqfd, whose resamplefd unmasks the device.
    KernelLoop,
    /// The kernel carries the interrupt, and the userspace IOAPIC signals the device's unmask eventfd.
    SplitKick,
    /// This process's event loop carries both.
    Relay,
}

impl Path {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::HostForward, Self::KernelLoop, Self::SplitKick, Self::Relay];
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostForward => "host forward",
            Self::KernelLoop => "kernel loop",
            Self::SplitKick => "split kick",
            Self::Relay => "relay",
        })
    }
}

/// What a producer can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// The interrupt itself.
    pub interrupt: InterruptInfo,
    /// An event loop runs its relay.
    pub relay: bool,
    /// The host's name of the interrupt, for a device of the host. Explicit forwarding and host forwarding need the
    /// name.
    pub irq: Option<DeviceIrq>,
}

/// What a consumer can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Where the line's interrupt controller is.
    pub irqchip: Irqchip,
    /// Why this process has to carry every interrupt and EOI of the line, if it has to.
    pub relay_only: Option<Arc<str>>,
    /// The line's source has a trigger eventfd.
    pub trigger: bool,
    /// The host can forward interrupts to the line, or why not.
    pub host_forward: Result<(), Arc<str>>,
}

/// Which paths must not be taken although they may be possible.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Only this path, and the relay if it fails.
    pub only: Option<Path>,
    /// Paths that were tried, and have failed.
    pub failed: Vec<(Path, Arc<Error>)>,
}

/// Why a path is not taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WhyNot {
    /// The device pulses: it does not mask itself, and has no level to signal again at an unmask.
    Pulse,
    /// The line's interrupt controller is not where the path needs it.
    Irqchip(Irqchip),
    /// This process has to carry every interrupt of the line, for this reason.
    RelayOnly(Arc<str>),
    /// The host does not forward, for this reason.
    Host(Arc<str>),
    /// The host has no name for the interrupt: the device is not one of the host's.
    NotOfHost,
    /// The device takes no unmask eventfd.
    NoUnmaskEventfd,
    /// The source has no trigger eventfd that the device could signal.
    NoTriggerEventfd,
    /// No event loop runs the relay.
    NoRelay,
    /// Another path is asked for: this one.
    NotAskedFor(Path),
    /// The path was tried, and has failed.
    Failed(Arc<Error>),
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulse => f.write_str("the device pulses and has no level to restate"),
            Self::Irqchip(irqchip) => write!(f, "the line is of a {irqchip} irqchip"),
            Self::RelayOnly(reason) | Self::Host(reason) => f.write_str(reason),
            Self::NotOfHost => f.write_str("the host has no name for the interrupt"),
            Self::NoUnmaskEventfd => f.write_str("the device takes no unmask eventfd"),
            Self::NoTriggerEventfd => f.write_str("the source has no trigger eventfd"),
            Self::NoRelay => f.write_str("no event loop runs the relay"),
            Self::NotAskedFor(path) => write!(f, "{path} is asked for"),
            Self::Failed(error) => write!(f, "it failed: {error}"),
        }
    }
}

/// The path to take, and for each better path the reason why it is not taken.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The best path that both ends can do; `None` when there is none.
    pub path: Option<Path>,
    /// One reason for each path that would be better, best first.
    pub why_not: Vec<(Path, WhyNot)>,
}

impl Decision {
    /// Why `path` is not taken, if it is better than the path that is.
    pub fn why_not(&self, path: Path) -> Option<&WhyNot> {
        self.why_not
            .iter()
            .find(|(other, _)| *other == path)
            .map(|(_, why)| why)
    }
}

/// Chooses the path of a connection: the best that both ends can do and that `limits` allow. The answer depends on the
/// arguments alone, and nothing else in the workspace answers this question.
pub fn decide(producer: &ProducerInfo, consumer: &ConsumerInfo, limits: &Limits) -> Decision {
    let mut why_not = Vec::new();
    for path in Path::ALL {
        match obstacle(path, producer, consumer, limits) {
            None => {
                return Decision {
                    path: Some(path),
                    why_not,
                };
            }
            Some(reason) => why_not.push((path, reason)),
        }
    }
    Decision { path: None, why_not }
}

/// The irqchip that a path past this process needs; the relay needs none.
fn direct(path: Path) -> Option<Irqchip> {
    match path {
        Path::HostForward | Path::KernelLoop => Some(Irqchip::Kernel),
        Path::SplitKick => Some(Irqchip::Split),
        Path::Relay => None,
    }
}

/// The first reason against a path. A reason that can never change comes first.
fn obstacle(path: Path, producer: &ProducerInfo, consumer: &ConsumerInfo, limits: &Limits) -> Option<WhyNot> {
    if let Some(irqchip) = direct(path) {
        if !producer.interrupt.automasked {
            return Some(WhyNot::Pulse);
        }
        if let Some(reason) = &consumer.relay_only {
            return Some(WhyNot::RelayOnly(Arc::clone(reason)));
        }
        if irqchip != consumer.irqchip {
            return Some(WhyNot::Irqchip(consumer.irqchip));
        }
        if let (Path::HostForward, Err(reason)) = (path, &consumer.host_forward) {
            return Some(WhyNot::Host(Arc::clone(reason)));
        }
        if path == Path::HostForward && producer.irq.is_none() {
            return Some(WhyNot::NotOfHost);
        }
        if !producer.interrupt.unmask_fd {
            return Some(WhyNot::NoUnmaskEventfd);
        }
        if !consumer.trigger {
            return Some(WhyNot::NoTriggerEventfd);
        }
    } else if !producer.relay {
        return Some(WhyNot::NoRelay);
    }
    if let Some(only) = limits.only.filter(|only| ![*only, Path::Relay].contains(&path)) {
        return Some(WhyNot::NotAskedFor(only));
    }
    let failed = limits.failed.iter().find(|(failed, _)| *failed == path);
    failed.map(|(_, error)| WhyNot::Failed(Arc::clone(error)))
}
