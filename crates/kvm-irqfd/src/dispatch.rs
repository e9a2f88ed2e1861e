// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What has to happen in this process at an EOI: callbacks, and levels that KVM may have forgotten.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use interrupt_core::{Gsi, Level, Line, Listeners};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::event::Event;
use crate::irq_line::IrqLinePin;
use crate::{Error, Result};

/// What to do when a resamplefd is signalled.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Tell listeners.
    Listeners(Gsi, Listeners),
    /// Tell the listeners of a line that KVM_IRQ_LINE drives, and drive its level again: a resampler on the GSI makes KVM's
    /// IOAPIC forget a pending level at an unmask (since Linux 6.4).
    Line(Weak<Line<IrqLinePin>>),
}

impl Target {
    fn run(&self) -> interrupt_core::Result<()> {
        match self {
            Self::Listeners(gsi, listeners) => listeners.notify(*gsi).map(drop),
            Self::Line(line) => match line.upgrade() {
                Some(line) if line.eoi()? == Level::High => line.reassert().map(drop),
                _ => Ok(()),
            },
        }
    }
}

/// An epoll instance over the resamplefds that this process serves. They are watched edge-triggered: every signal is an edge, so
/// that none of them needs to be read.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    epoll: OwnedFd,
    /// Sorted by token.
    targets: ArcSwap<Vec<(u64, Target)>>,
    next: AtomicU64,
}

/// A resamplefd that is being served, until this is dropped. A target may still be running then, on another thread;
/// `Listeners` has its own means to wait for that.
#[derive(Debug)]
pub(crate) struct Served {
    dispatcher: Arc<Dispatcher>,
    event: Arc<Event>,
    token: u64,
}

impl Dispatcher {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::vm("epoll_create", e))?,
            targets: ArcSwap::default(),
            next: AtomicU64::new(0),
        })
    }

    pub(crate) fn serve(self: &Arc<Self>, gsi: Gsi, event: Arc<Event>, target: Target) -> Result<Served> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.targets.rcu(|targets| {
            let mut targets = Vec::clone(targets);
            let at = targets.partition_point(|(other, _)| *other < token);
            targets.insert(at, (token, target.clone()));
            targets
        });
        // Made first, so that its drop takes the target away again if epoll refuses.
        let served = Served {
            dispatcher: Arc::clone(self),
            event,
            token,
        };
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &*served.event, EventData::new_u64(token), flags)
            .map_err(|e| Error::os("epoll_ctl(EPOLL_CTL_ADD)", gsi, e))?;
        Ok(served)
    }

    /// Waits for EOIs and does what they ask for. See `KvmInterrupts::dispatch`.
    pub(crate) fn dispatch(&self, timeout: Option<Duration>) -> interrupt_core::Result<usize> {
        let timeout = timeout.map(|timeout| Timespec {
            // A timeout of 2^63 seconds is as good as one of 2^64.
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [const { MaybeUninit::uninit() }; 32];
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(0),
            Err(error) => {
                return Err(interrupt_core::Error::Os {
                    operation: "epoll_wait",
                    gsi: Gsi(0),
                    source: error.into(),
                });
            }
        };
        let targets = self.targets.load();
        let mut outcome = Ok(events.len());
        for event in events.iter() {
            let token = event.data.u64();
            // One that is not found was taken away after the event was collected.
            let Ok(at) = targets.binary_search_by_key(&token, |(token, _)| *token) else {
                continue;
            };
            let done = targets[at].1.run();
            outcome = outcome.and_then(|n| done.map(|()| n));
        }
        outcome
    }
}

impl AsFd for Dispatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It fails only if the eventfd was never added, which is the case when `serve` failed half-way.
        let _ = epoll::delete(&self.dispatcher.epoll, &*self.event);
        self.dispatcher.targets.rcu(|targets| {
            let rest = targets.iter().filter(|(token, _)| *token != self.token);
            rest.cloned().collect::<Vec<_>>()
        });
    }
}
