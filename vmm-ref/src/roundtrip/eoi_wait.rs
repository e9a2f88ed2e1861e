// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The waits of the devices' thread for EOIs. The composition chooses how to wait. The devices do not depend on the
//! choice.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, Listeners};
use kvm_irqfd::{KvmInterrupts, Waiter};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::{Error, Result};

/// How long a blocking `dispatch` sleeps before it checks whether the wait is stopped.
const DISPATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Waits in one thread for the EOIs of one line. A drop ends the subscriptions.
pub struct EoiWait {
    path: Path,
    waiter: Waiter,
    stop: Stop,
    listeners: LineListeners,
    _guards: Vec<EoiGuard>,
}

enum Path {
    /// KVM adds 1 to one eventfd for each listener. Every listener of a line is notified of each EOI, so one EOI adds
    /// as many counts as there are listeners.
    Eventfd {
        fd: Arc<OwnedFd>,
        listeners: u64,
        counts: u64,
    },
    /// A callback counts. It runs on the thread that calls `dispatch`, which is the waiting thread.
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

/// Stops the waits, from another thread.
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
    /// The error of the write to the eventfd.
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
    /// Subscribes one eventfd to each of `subjects`, which are sources of `gsi` or `gsi` itself. KVM uses the eventfd
    /// as the resamplefd of each subject.
    ///
    /// # Errors
    /// The errors of the notifier, and of making an eventfd.
    pub fn by_eventfd(notifier: &dyn EoiNotifier, gsi: Gsi, subjects: &[EoiScope], waiter: Waiter) -> Result<Self> {
        // The eventfd is blocking, so that a sleeping wait needs no poll.
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
    /// The errors of the notifier.
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

    /// The notifier that the line's devices subscribe to. The waiting thread notifies them by [`tell`](Self::tell).
    pub fn listeners(&self) -> &LineListeners {
        &self.listeners
    }

    /// Notifies the devices of an EOI. Each device answers with its level.
    ///
    /// # Errors
    /// The error of a listener's eventfd.
    pub fn tell(&self) -> Result<()> {
        self.listeners.list.notify(self.listeners.gsi)?;
        Ok(())
    }

    /// A handle that stops the waits of this value.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits for EOIs as the waiter is configured. Returns the number of EOIs: at least 1, or 0 after a stop.
    ///
    /// # Errors
    /// The error of the read of the eventfd, or of the dispatch.
    pub fn wait(&mut self) -> Result<u64> {
        // Check the flag before each wait, because `try_wait` may have taken the count of `Stop`.
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

    /// Takes the EOIs so far without waiting. Returns 0 when there were none, and after a stop.
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

    /// Takes the complete EOIs out of the counts. Returns 0 after a stop, because the count of `Stop` is no EOI.
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
