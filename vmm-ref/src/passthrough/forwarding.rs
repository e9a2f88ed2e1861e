// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's INTx on its way to the guest's line: both are in a registry, which connects them by the best path that they have, or by
//! the one that is asked for; and the thread that runs INTx's relay.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::forward::{Consumer, DeviceIrq, EventfdId, Explanation, Path, Registration, Registry};
use rustix::event::{EventfdFlags, eventfd};
use vfio_intx::{Intx, Relay};

use crate::composition::check::Impossible;
use crate::composition::options::{Forward, name};
use crate::error::{Error, Result};

/// A device's INTx, enabled. Dropping it disables INTx and ends the thread.
pub struct Forwarding {
    wanted: Forward,
    registry: Registry,
    id: EventfdId,
    /// `None` once it is dropped. The registrations go first: they hold INTx too.
    parts: Option<([Registration; 2], Arc<Intx>)>,
    /// Ends when INTx is dropped, with the first thing that went wrong.
    relay: Option<JoinHandle<vfio_intx::Result<()>>>,
    /// What the two sides are known by when the source has no eventfd of its own.
    _identity: Option<OwnedFd>,
}

impl Forwarding {
    /// Forwards `interrupt`, which the host calls `irq`, to `line`, in the way that is `wanted`.
    ///
    /// # Errors
    /// [`Error::Intx`], [`Error::Registry`], [`Error::System`] when there is no thread or no eventfd to be had, and
    /// [`Error::Forward`] when INTx works, but in another way than the one that is wanted.
    pub fn start(
        interrupt: Arc<dyn DeviceInterrupt>,
        irq: Option<DeviceIrq>,
        wanted: Forward,
        line: Arc<dyn Consumer>,
    ) -> Result<Self> {
        let only = match wanted {
            Forward::None => return Err(Impossible::NotForwarded.into()),
            Forward::Auto => None,
            Forward::Relay => Some(Path::Relay),
            Forward::Kernel => Some(Path::KernelLoop),
            Forward::SplitKick => Some(Path::SplitKick),
        };
        let (id, identity) = identity(&*line)?;
        let (intx, relay) = Intx::new(interrupt)?;
        intx.set_irq(irq);
        let intx = Arc::new(intx);
        let thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || run(relay))
            .map_err(|source| Error::System {
                step: "starting the relay's thread",
                source,
            })?;
        let registry = Registry::default();
        let device = registry.add_producer(id, Arc::<Intx>::clone(&intx))?;
        // Before the line is there, so that it is not connected twice.
        registry.restrict(id, only)?;
        let line = registry.add_consumer(id, line)?;
        intx.enable()?;
        let forwarding = Self {
            wanted,
            registry,
            id,
            parts: Some(([device, line], intx)),
            relay: Some(thread),
            _identity: identity,
        };
        forwarding.check()?;
        Ok(forwarding)
    }

    /// The registry that the two sides are in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What they are known by there.
    pub fn id(&self) -> EventfdId {
        self.id
    }

    /// By which path INTx goes, and why.
    pub fn explanation(&self) -> Option<Explanation> {
        // There is one pair.
        self.registry.explain().pop()
    }

    /// Whether INTx is forwarded in the way that was wanted. It can have fallen back since it was set up.
    ///
    /// # Errors
    /// [`Error::Forward`].
    pub fn check(&self) -> Result<()> {
        let Some(explanation) = self.explanation() else {
            return Ok(());
        };
        let as_wanted = match self.wanted {
            Forward::None => true,
            Forward::Auto => explanation.path.is_some(),
            Forward::Relay => explanation.path == Some(Path::Relay),
            Forward::Kernel => explanation.path == Some(Path::KernelLoop),
            Forward::SplitKick => explanation.path == Some(Path::SplitKick),
        };
        if as_wanted && explanation.held.is_none() {
            return Ok(());
        }
        Err(Error::Forward {
            wanted: name(&self.wanted),
            status: explanation.to_string(),
        })
    }

    /// Disables INTx.
    ///
    /// # Errors
    /// As [`check`](Self::check), and what went wrong in the relay.
    pub fn stop(mut self) -> Result<()> {
        let as_wanted = self.check();
        let relayed = self.end();
        as_wanted?;
        Ok(relayed?)
    }

    fn end(&mut self) -> vfio_intx::Result<()> {
        drop(self.parts.take());
        match self.relay.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            // A panic has said so itself.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

/// What a device and its line have in common: the line's trigger eventfd, or one that is made for the purpose.
fn identity(line: &dyn Consumer) -> Result<(EventfdId, Option<OwnedFd>)> {
    let at = |step| move |source| Error::System { step, source };
    if let Some(trigger) = line.line().source().trigger() {
        return Ok((EventfdId::of(trigger).map_err(at("read(/proc/self/fdinfo)"))?, None));
    }
    let made = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| at("eventfd")(errno.into()))?;
    let id = EventfdId::of(&made).map_err(at("read(/proc/self/fdinfo)"))?;
    Ok((id, Some(made)))
}

/// The relay's thread. It goes on after an error that the state machine has dealt with.
fn run(mut relay: Relay) -> vfio_intx::Result<()> {
    let mut outcome = Ok(());
    loop {
        match relay.wait(None) {
            Ok(true) => {}
            Ok(false) => return outcome,
            Err(error @ vfio_intx::Error::Os { .. }) => return outcome.and(Err(error)),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // Whoever wants the error calls `stop`.
        let _ = self.end();
    }
}

impl fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parts {
            Some((_, intx)) => intx.fmt(f),
            None => f.write_str("ended"),
        }
    }
}
