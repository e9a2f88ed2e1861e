// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An INTx on the direct path to its line, without a relay.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::forward::{Connection, DeviceInterrupt, GuestLine, Producer};

use crate::error::{Error, Result};
use crate::intx::Intx;

/// An [`Intx`] and its connection, for a VMM whose device and line have a direct path: the kernel carries the interrupt,
/// and the kernel or the userspace IOAPIC carries the EOI. There is no relay, so that no event loop and no thread runs for
/// it; where only a relay would do, [`new`](Self::new) says so.
///
/// When the path fails later, INTx is disabled and [`Intx::status`] says why; each operation tries again.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use interrupt_core::{Gsi, forward::GuestLine, EoiNotifier, LevelSource};
/// # fn example(device: std::fs::File, source: Arc<dyn LevelSource>, ioapic: Arc<dyn EoiNotifier>) -> vfio_intx::Result<()> {
/// use vfio_intx::{DirectIntx, VfioIntx};
///
/// let line = GuestLine::split(source, ioapic);
/// let intx = DirectIntx::new(Arc::new(VfioIntx::new("0000:00:02.0", device)), line)?;
/// intx.enable()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DirectIntx {
    // First: the connection lets go of both ends before INTx ends.
    connection: Connection,
    intx: Arc<Intx>,
    known: Mutex<Known>,
}

/// The line that INTx is on, as far as it is known: of two changes at once nobody knows which was the last.
#[derive(Debug, Default)]
struct Known {
    line: Option<GuestLine>,
    under_way: usize,
    overlapped: bool,
}

impl DirectIntx {
    /// The INTx of `device` on `line`, disabled.
    ///
    /// # Errors
    /// Those of [`Intx::new`]; [`Error::NoDirectPath`] when a device that does not mask itself, or takes no unmask eventfd,
    /// or a line without a trigger eventfd leaves only a relay. Give those an [`Intx`].
    pub fn new(device: Arc<dyn DeviceInterrupt>, line: GuestLine) -> Result<Self> {
        let (intx, relay) = Intx::new(device)?;
        drop(relay);
        let intx = Arc::new(intx);
        let connection = Connection::new(intx.clone());
        let direct = Self {
            connection,
            intx,
            known: Mutex::default(),
        };
        direct.connect("connect", line)?;
        Ok(direct)
    }

    /// Leads INTx to another line: the guest has routed the pin elsewhere. The route that it has already costs nothing:
    /// the wires stay as they are, and `line` is dropped.
    ///
    /// # Errors
    /// [`Error::NoDirectPath`]: INTx stays on the line that it is on.
    pub fn set_line(&self, line: GuestLine) -> Result<()> {
        let has_failed = Producer::state(&*self.intx).failed.is_some();
        if !has_failed && self.is_on(&line) {
            return Ok(());
        }
        self.connect("set the line of", line)
    }

    fn connect(&self, operation: &'static str, line: GuestLine) -> Result<()> {
        {
            let mut known = self.known();
            known.overlapped |= known.under_way > 0;
            known.under_way += 1;
        }
        let connected = self.connection.set_consumer(Some(Arc::new(line.clone())));
        let before = {
            let mut known = self.known();
            known.under_way -= 1;
            if known.overlapped {
                known.overlapped = known.under_way > 0;
                known.line.take()
            } else if connected.is_ok() {
                known.line.replace(line)
            } else {
                None
            }
        };
        drop(before);
        connected.map(drop).map_err(|source| Error::NoDirectPath {
            operation,
            source: Box::new(source),
        })
    }

    /// Whether this is where INTx is. The rewiring of a change that is under way costs less than a wrong answer.
    fn is_on(&self, line: &GuestLine) -> bool {
        let known = self.known();
        known.under_way == 0 && known.line.as_ref().is_some_and(|on| on.has_route_of(line))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, which explains the path.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Deref for DirectIntx {
    type Target = Intx;

    fn deref(&self) -> &Intx {
        &self.intx
    }
}
