// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two ends of a connection.

use std::fmt;

use super::path::{ConsumerInfo, Path, ProducerInfo};
use crate::forward::GuestLine;
use crate::{Error, Gsi, Result};

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The device's.
    Producer,
    /// The guest's.
    Consumer,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        })
    }
}

/// The state of a producer's interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    /// The path that carries the interrupt; `None` while no path does.
    pub path: Option<Path>,
    /// Why the interrupt is held back, if it is: masked on the guest's behalf, or not enabled. When that ends, the
    /// interrupt takes the path that it was connected by.
    pub held: Option<String>,
    /// A mask holds the interrupt back.
    pub masked: bool,
    /// The guest has not ended the interrupt yet, as far as the producer can know.
    pub active: bool,
    /// The error of the path that failed after it was connected.
    pub failed: Option<String>,
}

/// The device's end of a connection: an interrupt. A [`Connection`](super::Connection) calls its methods one at a time,
/// under the connection's lock.
///
/// A change of path is a bracket: the connection stops the producer, then the consumer; it changes the path; it starts
/// the consumer, then the producer. What the device asserts between stop and start is not lost: the start signals a
/// level again.
pub trait Producer: fmt::Debug + Send + Sync {
    /// The interrupt's name, for people.
    fn label(&self) -> &str;

    /// What the interrupt can do now.
    fn info(&self) -> ProducerInfo;

    /// Where the interrupt is now.
    fn state(&self) -> ProducerState;

    /// Holds the interrupt back: after this, nothing more reaches the consumer until [`start`](Self::start). A second
    /// stop does nothing.
    ///
    /// # Errors
    /// When the device cannot be held back. The connection then calls [`start`](Self::start), and
    /// [`disconnect`](Self::disconnect) if that fails too.
    fn stop(&self) -> Result<()>;

    /// Leads the interrupt to `consumer` by `path`, from the next [`start`](Self::start) on, and away from the consumer
    /// before.
    ///
    /// # Errors
    /// When the path, the line or the device refuses. The producer is as it was, and still stopped.
    fn connect(&self, path: Path, consumer: &dyn Consumer) -> Result<()>;

    /// Leads the interrupt nowhere, and ends a stop. The producer reports a step that fails, and takes the next one.
    fn disconnect(&self);

    /// Lets the interrupt come by the path that it was connected by, and signals a level that the device holds.
    ///
    /// # Errors
    /// When the path cannot be had. The interrupt is then carried by another path or disabled at the device, and
    /// [`state`](Self::state) says which. The interrupt is never left masked for ever.
    fn start(&self) -> Result<()>;
}

/// The guest's end of a connection: a line. A [`Connection`](super::Connection) calls its methods one at a time, under
/// the connection's lock.
pub trait Consumer: fmt::Debug + Send + Sync {
    /// The line.
    fn line(&self) -> &GuestLine;

    /// What the line can do now.
    fn info(&self) -> ConsumerInfo;

    /// Makes ready for a change. The producer is stopped: nothing more comes from it. An interrupt that is under way on
    /// the line stays so; a producer that leaves the line lowers its contribution itself.
    ///
    /// # Errors
    /// When no change is possible now.
    fn stop(&self) -> Result<()>;

    /// Prepares for interrupts by `path`.
    ///
    /// # Errors
    /// When the path cannot be had; EAGAIN when it cannot be had while the interrupt is masked or active. Nothing has
    /// changed.
    fn connect(&self, path: Path, producer: &dyn Producer) -> Result<()>;

    /// Ends what [`connect`](Self::connect) prepared. Works at any time.
    fn disconnect(&self, path: Path);

    /// Takes interrupts again.
    ///
    /// # Errors
    /// When the line cannot.
    fn start(&self) -> Result<()>;
}

/// A line of an irqchip has nothing to stop, to prepare or to start: the wires are an irqfd and a subscription, and the
/// producer holds both. The bracket is for a consumer that has, as `kvm_irqfd::HostForwarded`.
impl Consumer for GuestLine {
    fn line(&self) -> &GuestLine {
        self
    }

    fn info(&self) -> ConsumerInfo {
        ConsumerInfo {
            irqchip: self.irqchip(),
            relay_only: self.relay_only().cloned(),
            trigger: self.source().trigger().is_some(),
            host_forward: Err("nothing here forwards by the host".into()),
        }
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }

    fn connect(&self, path: Path, _producer: &dyn Producer) -> Result<()> {
        match path {
            Path::HostForward => Err(unsupported(path, self.gsi())),
            Path::KernelLoop | Path::SplitKick | Path::Relay => Ok(()),
        }
    }

    fn disconnect(&self, _path: Path) {}

    fn start(&self) -> Result<()> {
        Ok(())
    }
}

fn unsupported(path: Path, gsi: Gsi) -> Error {
    Error::Unsupported {
        operation: "connect",
        gsi,
        reason: format!("{path} is not possible here"),
    }
}
