// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The INTx of a device behind vfio-user, over the client of the crate `vfio_user` that the VMM has.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Error, Result};
use vfio_user::Client;

use super::irq_set::{Data, INTX, IrqInfo, IrqSet};

/// The INTx of the device behind a `vfio_user::Client`, which the VMM keeps for the regions and for DMA. Each request
/// takes the client's lock.
///
/// The client has faults that [`VfioUserIntx`](crate::VfioUserIntx) has not: it waits for a reply without a limit, and
/// takes a refusal of SET_IRQS for a success (`upstream/` has the patches). Where the server is not trusted, use
/// `VfioUserIntx`.
pub struct ClientIntx {
    label: String,
    client: Arc<Mutex<Client>>,
}

impl ClientIntx {
    /// The INTx of the client's device. Errors name the device by `label`.
    pub fn new(label: impl Into<String>, client: Arc<Mutex<Client>>) -> Self {
        let label = label.into();
        Self { label, client }
    }

    fn set_irqs(&self, request: &IrqSet<'_>) -> Result<()> {
        // A request without its descriptor removes the eventfd.
        let fd: Option<RawFd> = match request.data {
            Data::Eventfd(fd) => fd.map(|fd| fd.as_raw_fd()),
            Data::None | Data::Bool(_) => None,
        };
        let IrqSet {
            index,
            flags,
            start,
            count,
            ..
        } = *request;
        let outcome = self.with(|client| client.set_irqs(index, flags, start, count, fd.as_slice()));
        request.outcome(&self.label, outcome)
    }

    fn with<R>(&self, request: impl FnOnce(&mut Client) -> std::result::Result<R, vfio_user::Error>) -> io::Result<R> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        request(&mut client).map_err(io::Error::other)
    }
}

impl DeviceInterrupt for ClientIntx {
    fn label(&self) -> &str {
        &self.label
    }

    fn info(&self) -> Result<InterruptInfo> {
        let info = self.with(|client| client.get_irq_info(INTX));
        let info = info.map_err(|source| Error::Device {
            operation: "VFIO_USER_DEVICE_GET_IRQ_INFO(INTx)",
            device: self.label.clone(),
            source,
        })?;
        let (flags, count) = (info.flags, info.count);
        IrqInfo { flags, count }.interrupt(&self.label)
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_irqs(&IrqSet::set_trigger(fd))
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_irqs(&IrqSet::unmask_eventfd(fd))
    }

    fn mask(&self) -> Result<()> {
        self.set_irqs(&IrqSet::mask())
    }

    fn unmask(&self) -> Result<()> {
        self.set_irqs(&IrqSet::unmask())
    }
}

impl fmt::Debug for ClientIntx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTx of {}", self.label)
    }
}
