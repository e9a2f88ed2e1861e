// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's INTx forwarded to the guest's line: the connection of device and line, and the thread of the relay.

use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use interrupt_core::forward::{Connection, Consumer, DeviceInterrupt, DeviceIrq, Explanation, Path};
use vfio_intx::{Intx, Relay};

use crate::composition::check::Impossible;
use crate::composition::options::{Forward, name};
use crate::error::{Error, Result};

/// A device's INTx, enabled. Dropping it disables INTx and ends the thread.
pub struct Forwarding {
    wanted: Forward,
    /// `None` during drop. The connection is dropped first, because it holds INTx too.
    parts: Option<(Arc<Connection>, Arc<Intx>)>,
    /// The relay's thread. It ends when INTx is dropped, and returns the relay's first error.
    relay: Option<JoinHandle<vfio_intx::Result<()>>>,
}

impl Forwarding {
    /// Forwards `interrupt` to `line` by the path `wanted`. `irq` is the host's number of the interrupt.
    ///
    /// # Errors
    /// [`Error::Intx`], [`Error::Connection`], [`Error::System`] when the thread cannot be started, and
    /// [`Error::Forward`] when INTx takes another path than `wanted`.
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
        let connection = Connection::new(Arc::<Intx>::clone(&intx));
        // Set the wish before the line is registered, so that the ends are connected once.
        connection.restrict(only)?;
        connection.set_consumer(Some(line))?;
        intx.enable()?;
        let forwarding = Self {
            wanted,
            parts: Some((Arc::new(connection), intx)),
            relay: Some(thread),
        };
        forwarding.check()?;
        Ok(forwarding)
    }

    /// The connection of the device and the line. A clone that outlives this value keeps INTx alive.
    pub fn connection(&self) -> Option<&Arc<Connection>> {
        self.parts.as_ref().map(|(connection, _)| connection)
    }

    /// INTx, for the guest's configuration accesses. The handle does not keep INTx alive.
    pub fn intx(&self) -> Weak<Intx> {
        self.parts
            .as_ref()
            .map_or(Weak::new(), |(_, intx)| Arc::downgrade(intx))
    }

    /// Whether the device pulses. With an irqfd a pulse may run the guest's handler once more than needed.
    pub fn pulses(&self) -> bool {
        let parts = self.parts.as_ref();
        parts.is_some_and(|(_, intx)| !intx.info().automasked)
    }

    /// The path of INTx, and the reason for it.
    pub fn explanation(&self) -> Option<Explanation> {
        self.connection().map(|connection| connection.explain())
    }

    /// Checks that INTx still takes the path that was asked for. INTx can fall back to another path at any time.
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
    /// As [`check`](Self::check), and the relay's first error.
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
            // The panic hook has reported a panic.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

/// The relay's thread. It continues after an error that the state machine has handled.
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
        // A caller that wants the error calls `stop`.
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
