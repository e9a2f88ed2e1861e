// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An epoll loop over closures.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use interrupt_core::{EveryStep, Gsi};
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::line::irqfd::Told;

/// What to do when an eventfd is signalled.
type Action = Arc<dyn Fn() -> interrupt_core::Result<()> + Send + Sync>;

/// An epoll instance over eventfds that this process serves. They are watched edge-triggered: every signal is an edge,
/// so that none of them needs to be read.
pub(crate) struct Dispatcher {
    epoll: OwnedFd,
    /// Sorted by token.
    actions: ArcSwap<Vec<(u64, Action)>>,
    next: AtomicU64,
}

/// An eventfd that is served until this is dropped. Its action may still be running then, on another thread.
pub(crate) struct Watch {
    dispatcher: Arc<Dispatcher>,
    told: Arc<Told>,
    token: u64,
}

impl Dispatcher {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::vm("epoll_create", e))?,
            actions: ArcSwap::default(),
            next: AtomicU64::new(0),
        }))
    }

    pub(crate) fn watch(
        self: &Arc<Self>,
        kernel: &dyn Kernel,
        gsi: Gsi,
        told: Arc<Told>,
        action: Action,
    ) -> Result<Watch> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.actions.rcu(|actions| {
            let at = actions.partition_point(|(other, _)| *other < token);
            let mut actions = Vec::clone(actions);
            actions.insert(at, (token, Arc::clone(&action)));
            actions
        });
        // Made first, so that its drop takes the action away again if epoll refuses.
        let dispatcher = Arc::clone(self);
        let watch = Watch {
            dispatcher,
            told,
            token,
        };
        kernel
            .watch(self.epoll.as_fd(), watch.told.eventfd.as_fd(), token)
            .map_err(|e| Error::os("epoll_ctl(EPOLL_CTL_ADD)", gsi, e))?;
        Ok(watch)
    }

    /// Waits for signals and runs their actions. See `KvmInterrupts::dispatch`.
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
        let actions = self.actions.load();
        let mut outcome = Ok(events.len());
        // An edge that epoll has reported is not reported again: each is served, also after a callback has panicked.
        let mut steps = EveryStep::default();
        for event in events.iter() {
            let token = event.data.u64();
            // A token that is not found was taken away after the event was collected.
            let Ok(at) = actions.binary_search_by_key(&token, |(token, _)| *token) else {
                continue;
            };
            if let Some(done) = steps.take(|| actions[at].1()) {
                outcome = outcome.and_then(|n| done.map(|()| n));
            }
        }
        steps.end();
        outcome
    }
}

impl AsFd for Dispatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It fails only if the eventfd was never added, which is the case when `watch` failed half-way.
        let _ = epoll::delete(&self.dispatcher.epoll, &self.told.eventfd);
        self.dispatcher.actions.rcu(|actions| {
            let rest = actions.iter().filter(|(token, _)| *token != self.token);
            rest.cloned().collect::<Vec<_>>()
        });
    }
}
