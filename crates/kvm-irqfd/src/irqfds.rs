// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's irqfds and routes for the pins of a userspace IOAPIC that binds eventfds of its own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use interrupt_core::{Gsi, Irqfds, Msi};

use crate::error::{Error, Reason, Result};
use crate::interrupts::{KvmInterrupts, routing};
use crate::kernel::eventfd::{Eventfd, from_owned};
use crate::kind::BindingKind;
use crate::line::irqfd::{Irqfd, ResampleFd};
use crate::routes::Route;

const OPERATION: &str = "KVM_IRQFD";

/// The GSIs are those that the split irqchip reserves. A GSI whose eventfds are bound here takes neither
/// [`KvmInterrupts::edge_irqfd`] nor, by `set_pin`, the messages of another IOAPIC.
impl Irqfds for KvmInterrupts {
    fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        self.bind_trigger(trigger, gsi).map_err(into_io)
    }

    fn unbind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        let bound = (gsi, trigger.as_raw_fd());
        let token = self.books.with(|state| state.bound.remove(&bound));
        let token = token.ok_or_else(|| into_io(Error::new(OPERATION, gsi, Reason::NotBound)))?;
        self.books.remove(gsi, token);
        Ok(())
    }

    fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()> {
        let route = Route::Msi {
            address: message.address,
            data: message.data,
            device: None,
        };
        routing::set_pin(&self.books, gsi, Some(route), false).map_err(into_io)
    }
}

impl KvmInterrupts {
    fn bind_trigger(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> Result<()> {
        let bound = (gsi, trigger.as_raw_fd());
        let duplicate = trigger.try_clone_to_owned();
        let duplicate = duplicate.map_err(|error| Error::os("fcntl(F_DUPFD_CLOEXEC)", gsi, error))?;
        let eventfd = Eventfd::adopt_with_count(from_owned(duplicate), OPERATION, gsi)?;
        let mut irqfd = Irqfd::new(BindingKind::Split, gsi, None, Arc::new(eventfd), ResampleFd::None)?;
        irqfd.keeps_count = true;
        let token = self.books.add(gsi, irqfd)?;
        self.books.with(|state| state.bound.insert(bound, token));
        Ok(())
    }
}

fn into_io(error: Error) -> io::Error {
    match error.reason {
        Reason::Os(source) => source,
        _ => io::Error::other(error),
    }
}
