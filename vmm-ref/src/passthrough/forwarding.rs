// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's INTx on its way to the guest's line: the state machine of `vfio-intx`, and the thread that runs its relay.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use interrupt_core::{EoiGuard, EoiNotifier, LevelSource, Listener, Subject};
use vfio_intx::{GuestLine, Intx, Relay, State};

use super::Edu;
use crate::composition::{Forward, Impossible, name};
use crate::error::{Error, Result};

/// A device's INTx, enabled. Dropping it disables INTx and ends the thread.
pub struct Forwarding {
    wanted: Forward,
    /// `None` once it is dropped.
    intx: Option<Intx>,
    /// Ends when `intx` is dropped, with the first thing that went wrong.
    relay: Option<JoinHandle<vfio_intx::Result<()>>>,
}

impl Forwarding {
    /// Forwards the INTx of `edu` to `source`, whose EOIs `notifier` tells, in the way that is `wanted`.
    ///
    /// # Errors
    /// [`Error::Intx`], [`Error::System`] when there is no thread to be had, and [`Error::Forward`] when INTx works, but in
    /// another way.
    pub fn start(
        edu: &Edu,
        wanted: Forward,
        source: Arc<dyn LevelSource>,
        notifier: Arc<dyn EoiNotifier>,
    ) -> Result<Self> {
        let line = match wanted {
            Forward::None => return Err(Impossible::NotForwarded.into()),
            Forward::Relay => GuestLine::relay(source, notifier, "--forward relay"),
            Forward::Kernel => GuestLine::kernel(source, notifier),
            Forward::SplitKick => GuestLine::split(source, notifier),
        };
        let (intx, relay) = Intx::new(Arc::clone(edu.interrupt()))?;
        let thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || run(relay))
            .map_err(|source| Error::System {
                step: "starting the relay's thread",
                source,
            })?;
        let forwarding = Self {
            wanted,
            intx: Some(intx),
            relay: Some(thread),
        };
        if let Some(intx) = &forwarding.intx {
            intx.set_line(Some(line))?;
            intx.enable()?;
        }
        forwarding.check()?;
        Ok(forwarding)
    }

    /// Whether INTx is forwarded in the way that was wanted. It can have fallen back since it was set up.
    ///
    /// # Errors
    /// [`Error::Forward`].
    pub fn check(&self) -> Result<()> {
        let wanted = match self.wanted {
            Forward::None => State::Disabled,
            Forward::Relay => State::Relay,
            Forward::Kernel => State::KernelLoop,
            Forward::SplitKick => State::SplitKick,
        };
        match self.intx.as_ref().map(Intx::status) {
            Some(status) if status.state != wanted => Err(Error::Forward {
                wanted: name(&self.wanted),
                status: status.to_string(),
            }),
            _ => Ok(()),
        }
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
        drop(self.intx.take());
        match self.relay.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            // A panic has said so itself.
            Some(Err(_)) | None => Ok(()),
        }
    }
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
        match &self.intx {
            Some(intx) => write!(f, "{}", intx.status()),
            None => f.write_str("ended"),
        }
    }
}

/// The EOIs of a userspace IOAPIC for a source that it does not know, because that source's irqfd passes it by: they are told by
/// the GSI, whoever drives it.
#[derive(Debug)]
pub(crate) struct ByGsi(pub(crate) Arc<dyn EoiNotifier>);

impl EoiNotifier for ByGsi {
    fn subscribe(&self, subject: Subject, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        self.0.subscribe(subject.gsi().into(), listener)
    }
}
