// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two sides that a registry brings together.

use std::fmt;
use std::os::fd::RawFd;

use super::{ConsumerInfo, Path, ProducerInfo};
use crate::forward::GuestLine;
use crate::{Error, Gsi, Result};

/// What the host calls a device's interrupt: the coordinates of VFIO_DEVICE_SET_IRQS, and of the 2015 proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceIrq {
    /// The VFIO device's file descriptor. Whoever registers the interrupt keeps it open for as long.
    pub device: RawFd,
    /// The interrupt index: 0 is INTx, 1 MSI, 2 MSI-X.
    pub index: u32,
    /// Which interrupt of the index.
    pub sub: u32,
}

impl fmt::Display for DeviceIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device fd {}, index {}, interrupt {}",
            self.device, self.index, self.sub
        )
    }
}

/// Where a producer's interrupt is at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// What carries it; `None` while nothing does.
    pub path: Option<Path>,
    /// Why it is held back, if it is: masked on the guest's behalf, or not enabled. It takes the path that it has been connected by
    /// when that ends.
    pub held: Option<String>,
    /// It is held back by a mask.
    pub masked: bool,
    /// The guest has not ended it yet, as far as this side can know.
    pub active: bool,
    /// The last path that failed behind the registry's back, after it had been connected.
    pub failed: Option<String>,
}

/// The device's side of a pair: an interrupt. A [`Registry`](super::Registry) calls its methods, one at a time, and never from
/// within one of them.
///
/// A change of path is a bracket: the producer is stopped, then the consumer; the pair is changed; the consumer is started, then
/// the producer. What the device asserts between stop and start is not lost: a level is stated anew by the start.
pub trait Producer: fmt::Debug + Send + Sync {
    /// Who this is, for people.
    fn label(&self) -> &str;

    /// What it can do now.
    fn info(&self) -> ProducerInfo;

    /// Where it is now.
    fn now(&self) -> Now;

    /// Holds the interrupt back: when it returns nothing more reaches the consumer until [`start`](Self::start).
    ///
    /// # Errors
    /// When the device refuses. Nothing has changed then, and its interrupt comes as before.
    fn stop(&self) -> Result<()>;

    /// Leads the interrupt to `consumer` by `path`, from the next [`start`](Self::start) on, whatever it was connected to before.
    ///
    /// # Errors
    /// When the line or the device refuses. It is then as it was, and stopped still.
    fn connect(&self, path: Path, consumer: &dyn Consumer) -> Result<()>;

    /// Leads the interrupt nowhere, which ends a stop too. What a step leaves undone cannot be helped and is the producer's to report.
    fn disconnect(&self);

    /// Lets the interrupt come, by the path that it was connected by; a level that the device holds is signalled now.
    ///
    /// # Errors
    /// When the path cannot be had. The interrupt is then carried in another way, or disabled at the device, but is not masked with
    /// nobody to unmask it.
    fn start(&self) -> Result<()>;
}

/// The guest's side of a pair: a line. A [`Registry`](super::Registry) calls its methods, one at a time.
pub trait Consumer: fmt::Debug + Send + Sync {
    /// The line.
    fn line(&self) -> &GuestLine;

    /// What it can do now.
    fn info(&self) -> ConsumerInfo;

    /// Makes ready for a change. Called with the producer stopped, so that nothing more comes from it; an interrupt that is under way
    /// on the line stays so, and a producer that leaves the line takes it away itself.
    ///
    /// # Errors
    /// When there can be no change now.
    fn stop(&self) -> Result<()>;

    /// Prepares for interrupts by `path`. [`Path::HostForward`] is what there is something to prepare for.
    ///
    /// # Errors
    /// When the path cannot be had, EAGAIN when it cannot be had while the interrupt is masked or active. Nothing has changed.
    fn connect(&self, path: Path, producer: &dyn Producer) -> Result<()>;

    /// Ends what [`connect`](Self::connect) prepared. Works at any time.
    fn disconnect(&self, path: Path);

    /// Takes interrupts again.
    ///
    /// # Errors
    /// When it cannot.
    fn start(&self) -> Result<()>;
}

/// A line as such. There is nothing in it that could hold interrupts back, or that a path would have to be prepared in: the
/// wires are an irqfd's and a notifier's, and the producer holds their ends.
impl Consumer for GuestLine {
    fn line(&self) -> &GuestLine {
        self
    }

    fn info(&self) -> ConsumerInfo {
        ConsumerInfo {
            end: self.end().clone(),
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
