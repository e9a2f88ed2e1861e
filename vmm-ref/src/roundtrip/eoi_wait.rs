// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the devices' thread waits for EOIs. The composition chooses the way; the devices do not know it.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, Listeners};
use kvm_irqfd::{KvmInterrupts, Waiter};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::{Error, Result};

/// How long a blocking `dispatch` sleeps before it looks whether it is to end.
const DISPATCH_INTERVAL: Duration = Duration::from_millis(50);

/// The EOIs of one line, as one thread waits for them. Dropping it ends the subscriptions.
pub struct EoiWait {
    path: Path,
    waiter: Waiter,
    stop: Stop,
    listeners: LineListeners,
    _guards: Vec<EoiGuard>,
}

enum Path {
    /// KVM adds 1 to one eventfd for each listener. All listeners of a line are told of each of its EOIs, so that one
    /// EOI is as many counts as there are listeners.
    Eventfd {
        fd: Arc<OwnedFd>,
        listeners: u64,
        counts: u64,
    },
    /// A callback counts, on whichever thread runs `dispatch`: this one.
    Dispatch {
        interrupts: KvmInterrupts,
        told: Arc<AtomicU64>,
        seen: u64,
    },
}

/// The devices of one line, as listeners for its EOIs.
#[derive(Debug)]
pub struct LineListeners {
    gsi: Gsi,
    list: Listeners,
}

impl LineListeners {
    fn new(gsi: Gsi) -> Self {
        let list = Listeners::new();
        Self { gsi, list }
    }
}

impl EoiNotifier for LineListeners {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        self.list.subscribe(subject, listener)
    }
}

/// Ends a wait early, from another thread.
#[derive(Clone, Debug)]
pub struct Stop {
    stopped: Arc<AtomicBool>,
    fd: Option<Arc<OwnedFd>>,
}

impl Stop {
    /// Makes this and every later wait return 0. The flag is set first, so that a thread that sees the count sees
    /// the flag.
    ///
    /// # Errors
    /// That of writing the eventfd.
    pub fn stop(&self) -> Result<()> {
        self.stopped.store(true, Ordering::Release);
        match &self.fd {
            Some(fd) => rustix::io::write(fd, &1u64.to_ne_bytes())
                .map(drop)
                .map_err(system("write(eventfd)")),
            None => Ok(()),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

impl EoiWait {
    /// Subscribes to each of `subjects`, which are of `gsi`, with the same eventfd, which KVM makes the resamplefd of
    /// each of them.
    ///
    /// # Errors
    /// Those of the notifier, and of making an eventfd.
    pub fn by_eventfd(notifier: &dyn EoiNotifier, gsi: Gsi, subjects: &[EoiScope], waiter: Waiter) -> Result<Self> {
        // Blocking, which saves the sleeping wait a poll.
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(system("eventfd"))?);
        let guards = subjects
            .iter()
            .map(|&subject| {
                let listener = fd.try_clone().map_err(|source| Error::System {
                    step: "dup(eventfd)",
                    source,
                })?;
                Ok(notifier.subscribe(subject, Listener::fd(listener))?)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            waiter,
            stop: Stop {
                stopped: Arc::default(),
                fd: Some(Arc::clone(&fd)),
            },
            path: Path::Eventfd {
                fd,
                listeners: subjects.len() as u64,
                counts: 0,
            },
            listeners: LineListeners::new(gsi),
            _guards: guards,
        })
    }

    /// Subscribes to `gsi` with a callback, and waits by running the interrupts' dispatch loop.
    ///
    /// # Errors
    /// Those of the notifier.
    pub fn by_dispatch(interrupts: &KvmInterrupts, gsi: Gsi, waiter: Waiter) -> Result<Self> {
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let guard = interrupts.subscribe(
            gsi.into(),
            Listener::callback(move |_| {
                count.fetch_add(1, Ordering::Release);
            }),
        )?;
        Ok(Self {
            waiter,
            stop: Stop {
                stopped: Arc::default(),
                fd: None,
            },
            path: Path::Dispatch {
                interrupts: interrupts.clone(),
                told,
                seen: 0,
            },
            listeners: LineListeners::new(gsi),
            _guards: vec![guard],
        })
    }

    /// Where the devices of the line subscribe. The thread that waits tells them, by [`tell`](Self::tell).
    pub fn listeners(&self) -> &LineListeners {
        &self.listeners
    }

    /// Tells the devices of an EOI. They answer with their levels.
    ///
    /// # Errors
    /// That of a listener's eventfd.
    pub fn tell(&self) -> Result<()> {
        self.listeners.list.notify(self.listeners.gsi)?;
        Ok(())
    }

    /// What ends the waits of this.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits in the waiter's way for EOIs, and returns how many there were: at least 1, or 0 once it is stopped.
    ///
    /// # Errors
    /// That of reading the eventfd, or of the dispatch.
    pub fn wait(&mut self) -> Result<u64> {
        // Looked at before each wait, because `try_wait` may have taken the count of `Stop`.
        while !self.stop.is_stopped() {
            let stop = &self.stop;
            match &mut self.path {
                Path::Eventfd { fd, counts, .. } => {
                    *counts += self.waiter.wait(fd.as_fd()).map_err(|source| Error::System {
                        step: "read(resamplefd)",
                        source,
                    })?;
                }
                Path::Dispatch { interrupts, .. } => {
                    let try_now = || match interrupts.dispatch(Some(Duration::ZERO))? {
                        0 if !stop.is_stopped() => Ok(None),
                        served => Ok(Some(served)),
                    };
                    let sleep = || interrupts.dispatch(Some(DISPATCH_INTERVAL));
                    self.waiter.wait_with::<_, interrupt_core::Error>(try_now, sleep)?;
                }
            }
            match self.take() {
                0 => {}
                eois => return Ok(eois),
            }
        }
        Ok(0)
    }

    /// The EOIs that there have been by now; 0 when none, and once it is stopped.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<u64> {
        match &mut self.path {
            Path::Eventfd { fd, counts, .. } => {
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                if poll(&mut fds, Some(&now)).map_err(system("poll(resamplefd)"))? > 0 {
                    let mut count = [0; 8];
                    rustix::io::read(&**fd, &mut count).map_err(system("read(resamplefd)"))?;
                    *counts += u64::from_ne_bytes(count);
                }
            }
            Path::Dispatch { interrupts, .. } => {
                interrupts.dispatch(Some(Duration::ZERO))?;
            }
        }
        Ok(self.take())
    }

    /// Whether [`Stop::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Takes the whole EOIs out of what has been counted; none once it is stopped, because the count of `Stop` is not
    /// an EOI.
    fn take(&mut self) -> u64 {
        if self.stop.is_stopped() {
            return 0;
        }
        match &mut self.path {
            Path::Eventfd { listeners, counts, .. } => {
                let eois = *counts / *listeners;
                *counts %= *listeners;
                eois
            }
            Path::Dispatch { told, seen, .. } => {
                let told = told.load(Ordering::Acquire);
                told - std::mem::replace(seen, told)
            }
        }
    }
}

impl fmt::Debug for EoiWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match &self.path {
            Path::Eventfd { listeners, .. } => format!("eventfd of {listeners} listeners"),
            Path::Dispatch { .. } => "dispatch".to_owned(),
        };
        write!(f, "EoiWait({path}, {:?})", self.waiter.mode())
    }
}

fn system(step: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::System {
        step,
        source: errno.into(),
    }
}

/// The subjects of a line's sources.
pub fn keys(sources: &[Arc<dyn LevelSource>]) -> Vec<EoiScope> {
    sources.iter().map(|source| source.key().into()).collect()
}
