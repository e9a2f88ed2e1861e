// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The paths that an interrupt and its EOI can take, what each needs, and the one function that chooses.

use std::fmt;
use std::sync::Arc;

use super::DeviceIrq;
use crate::Error;
use crate::forward::{InterruptInfo, LineEnd};

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

/// What a device's side can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// The interrupt itself.
    pub interrupt: InterruptInfo,
    /// An event loop runs its relay.
    pub relay: bool,
    /// What the host calls it, if it is a device of the host's. Explicit forwarding goes by it, and host forwarding.
    pub irq: Option<DeviceIrq>,
}

/// What a guest's side can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Where the line ends.
    pub end: LineEnd,
    /// Its source has a trigger eventfd.
    pub trigger: bool,
    /// The host can forward interrupts to it, or why not.
    pub host_forward: Result<(), Arc<str>>,
}

/// Which paths are not to be taken, though they may be possible.
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
    /// The device pulses: it does not mask itself, and has no level that a loop past this process could restate.
    Pulse,
    /// The line ends elsewhere.
    End(LineEnd),
    /// The host does not forward, for this reason.
    Host(Arc<str>),
    /// The device is none of the host's: the host has no name for its interrupt.
    NotOfHost,
    /// The device takes no unmask eventfd.
    NoUnmaskEventfd,
    /// The source has no trigger eventfd that the device could signal.
    NoTriggerEventfd,
    /// Nobody runs a relay.
    NoRelay,
    /// It is not asked for: this one is.
    NotAskedFor(Path),
    /// It was tried, and has failed.
    Failed(Arc<Error>),
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulse => f.write_str("the device pulses and has no level to restate"),
            Self::End(LineEnd::User(reason)) => f.write_str(reason),
            Self::End(end) => write!(f, "the line ends at an {end}"),
            Self::Host(reason) => f.write_str(reason),
            Self::NotOfHost => f.write_str("the device is none of the host's"),
            Self::NoUnmaskEventfd => f.write_str("the device takes no unmask eventfd"),
            Self::NoTriggerEventfd => f.write_str("the source has no trigger eventfd"),
            Self::NoRelay => f.write_str("nobody runs a relay"),
            Self::NotAskedFor(path) => write!(f, "{path} is asked for"),
            Self::Failed(error) => write!(f, "it failed: {error}"),
        }
    }
}

/// The path to take, and for each better one why it is not taken.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The best that both sides can do; `None` when there is none at all.
    pub path: Option<Path>,
    /// One reason for each path that would be better, best first.
    pub why_not: Vec<(Path, WhyNot)>,
}

impl Decision {
    /// Why `path` is not taken, if it would be better than the one that is.
    pub fn why_not(&self, path: Path) -> Option<&WhyNot> {
        self.why_not
            .iter()
            .find(|(other, _)| *other == path)
            .map(|(_, why)| why)
    }
}

/// What a path needs of the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Where the line has to end; `None` when that does not matter.
    pub end: Option<LineEnd>,
    /// The host has to forward.
    pub host: bool,
    /// The device has to hold a level and mask itself.
    pub level: bool,
    /// The device has to take an unmask eventfd.
    pub unmask_fd: bool,
    /// The source has to have a trigger eventfd.
    pub trigger: bool,
    /// An event loop has to run the relay.
    pub relay: bool,
}

/// The table that [`decide`] goes by, best path first.
pub const TABLE: [(Path, Needs); 4] = [
    (Path::HostForward, direct(LineEnd::Kernel, true)),
    (Path::KernelLoop, direct(LineEnd::Kernel, false)),
    (Path::SplitKick, direct(LineEnd::Split, false)),
    (
        Path::Relay,
        Needs {
            end: None,
            host: false,
            level: false,
            unmask_fd: false,
            trigger: false,
            relay: true,
        },
    ),
];

const fn direct(end: LineEnd, host: bool) -> Needs {
    Needs {
        end: Some(end),
        host,
        level: true,
        unmask_fd: true,
        trigger: true,
        relay: false,
    }
}

/// Chooses the path of a pair: the first of [`TABLE`] whose needs are met and that `limits` let it take. A function of its
/// arguments and nothing else, and the only one that answers this question.
pub fn decide(producer: &ProducerInfo, consumer: &ConsumerInfo, limits: &Limits) -> Decision {
    let mut why_not = Vec::new();
    for (path, needs) in &TABLE {
        match stands_in_the_way(*path, needs, producer, consumer, limits) {
            None => {
                return Decision {
                    path: Some(*path),
                    why_not,
                };
            }
            Some(reason) => why_not.push((*path, reason)),
        }
    }
    Decision { path: None, why_not }
}

/// The first thing that does; what can never change comes first.
fn stands_in_the_way(
    path: Path,
    needs: &Needs,
    producer: &ProducerInfo,
    consumer: &ConsumerInfo,
    limits: &Limits,
) -> Option<WhyNot> {
    let interrupt = producer.interrupt;
    if needs.level && !interrupt.automasked {
        return Some(WhyNot::Pulse);
    }
    if needs.end.as_ref().is_some_and(|end| *end != consumer.end) {
        return Some(WhyNot::End(consumer.end.clone()));
    }
    if let (true, Err(reason)) = (needs.host, &consumer.host_forward) {
        return Some(WhyNot::Host(Arc::clone(reason)));
    }
    if needs.host && producer.irq.is_none() {
        return Some(WhyNot::NotOfHost);
    }
    if needs.unmask_fd && !interrupt.unmask_fd {
        return Some(WhyNot::NoUnmaskEventfd);
    }
    if needs.trigger && !consumer.trigger {
        return Some(WhyNot::NoTriggerEventfd);
    }
    if needs.relay && !producer.relay {
        return Some(WhyNot::NoRelay);
    }
    if let Some(only) = limits.only.filter(|only| ![*only, Path::Relay].contains(&path)) {
        return Some(WhyNot::NotAskedFor(only));
    }
    let failed = limits.failed.iter().find(|(failed, _)| *failed == path);
    failed.map(|(_, error)| WhyNot::Failed(Arc::clone(error)))
}
