// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An eventfd that can be bound: of known identity, and as a trigger no semaphore and with nothing pending.

use std::collections::HashMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use interrupt_core::{Delivery, Gsi};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use vmm_sys_util::eventfd::EventFd;

use crate::{Error, Result};

/// An eventfd, as this crate keeps it: vmm-sys-util's type is what kvm-ioctls takes, and std's `BorrowedFd` is what everybody
/// else takes.
#[derive(Debug)]
pub(crate) struct Event {
    fd: EventFd,
    /// The kernel's number of the eventfd itself. Duplicates share it, and a recycled fd number does not.
    pub(crate) id: u64,
    /// How often this process has asserted by it. Others that have the eventfd are not seen.
    asserted: AtomicU64,
}

impl Event {
    /// A new eventfd with nothing pending.
    pub(crate) fn new(gsi: Gsi) -> Result<Self> {
        let fd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| Error::os("eventfd", gsi, e))?;
        Self::from_owned(fd, "eventfd", gsi)
    }

    /// Takes over an eventfd that is to be signalled. What it counts stays as it is, for whoever reads it.
    /// `operation` and `gsi` are for the errors: not an eventfd, /proc not there.
    pub(crate) fn from_owned(fd: OwnedFd, operation: &'static str, gsi: Gsi) -> Result<Self> {
        let fd = crate::eventfd::from_owned(fd);
        let info = Info::of(&fd, gsi)?;
        Ok(Self {
            id: info.id(operation, gsi)?,
            asserted: AtomicU64::new(0),
            fd,
        })
    }

    /// Takes over a caller's eventfd that is to be a trigger. What it counts may be taken, as it is anyway before a trigger is
    /// bound. The errors are those of [`from_owned`](Self::from_owned), and that it is a semaphore.
    pub(crate) fn trigger(fd: EventFd, operation: &'static str, gsi: Gsi) -> Result<Self> {
        let info = Info::of(&fd, gsi)?;
        let event = Self {
            id: info.id(operation, gsi)?,
            asserted: AtomicU64::new(0),
            fd,
        };
        // With Linux 6.5.
        let semaphore = match info.field("eventfd-semaphore") {
            Some(semaphore) => semaphore != 0,
            None => event.counts_by_one().map_err(|e| Error::os("read(eventfd)", gsi, e))?,
        };
        if semaphore {
            return Err(Error::Semaphore { operation, gsi });
        }
        Ok(event)
    }

    /// Whether a read takes one count of several, found by trying. It leaves the counter at 0.
    fn counts_by_one(&self) -> io::Result<bool> {
        write(self, &2u64.to_ne_bytes())?;
        let semaphore = self.take()? == 1;
        while self.take()? > 0 {}
        Ok(semaphore)
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.fd
    }

    /// Adds 1. A counter that is full already is signalled already.
    pub(crate) fn signal(&self) -> io::Result<()> {
        match write(self, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// As a level source's trigger.
    pub(crate) fn assert(&self, gsi: Gsi) -> interrupt_core::Result<Delivery> {
        match self.signal() {
            Ok(()) => {
                // Beside a system call it costs nothing.
                self.asserted.fetch_add(1, Ordering::Relaxed);
                Ok(Delivery::Unknown)
            }
            Err(source) => Err(interrupt_core::Error::Os {
                operation: "write(trigger)",
                gsi,
                source,
            }),
        }
    }

    pub(crate) fn asserted(&self) -> u64 {
        self.asserted.load(Ordering::Relaxed)
    }

    /// Takes what is pending, without waiting whatever the eventfd's own flags say. 0 when nothing is.
    pub(crate) fn take(&self) -> io::Result<u64> {
        take(self.as_fd())
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self.fd` lives, which the borrow of `self` outlives.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }
    }
}

/// What /proc tells of an eventfd.
struct Info(String);

impl Info {
    fn of(fd: &EventFd, gsi: Gsi) -> Result<Self> {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let info = fs::read_to_string(path).map_err(|e| Error::os("read(/proc/self/fdinfo)", gsi, e))?;
        Ok(Self(info))
    }

    fn field(&self, name: &str) -> Option<u64> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().parse().ok()
    }

    /// Since Linux 5.2, and of an eventfd only.
    fn id(&self, operation: &'static str, gsi: Gsi) -> Result<u64> {
        self.field("eventfd-id").ok_or(Error::NotEventfd { operation, gsi })
    }
}

/// Reads an eventfd's counter without waiting; RWF_NOWAIT makes that independent of O_NONBLOCK, which belongs to whoever made
/// the eventfd. 0 when nothing is pending.
pub(crate) fn take(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = [0; 8];
    // u64::MAX is "no offset": an eventfd has none.
    match preadv2(fd, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Which eventfds of this process trigger an irqfd, in any VM. The kernel refuses a second binding to the same VM, and since
/// Linux 6.17 to any VM; before, the second VM would silently never be triggered.
static BOUND: Mutex<Option<HashMap<u64, Gsi>>> = Mutex::new(None);

fn bound() -> MutexGuard<'static, Option<HashMap<u64, Gsi>>> {
    BOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to bind one eventfd as a trigger, held for as long as it is bound.
#[derive(Debug)]
pub(crate) struct Claim {
    id: u64,
}

impl Claim {
    pub(crate) fn new(trigger: &Event, operation: &'static str, gsi: Gsi) -> Result<Self> {
        let mut bound = bound();
        let bound = bound.get_or_insert_default();
        if let Some(&bound) = bound.get(&trigger.id) {
            return Err(Error::AlreadyBound { operation, gsi, bound });
        }
        bound.insert(trigger.id, gsi);
        Ok(Self { id: trigger.id })
    }

    /// Whether the eventfd triggers an irqfd of this process.
    pub(crate) fn is_held(event: &Event) -> bool {
        bound().as_ref().is_some_and(|bound| bound.contains_key(&event.id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(bound) = bound().as_mut() {
            bound.remove(&self.id);
        }
    }
}
