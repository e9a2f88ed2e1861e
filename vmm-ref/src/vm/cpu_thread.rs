// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread in which a guest's CPU runs, and how it is stopped.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};

pub(crate) const EINTR: i32 = 4;

/// The interval between two kicks: much longer than an exit from KVM_RUN takes.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A thread that plays a processor. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub struct Cpu {
    thread: Option<JoinHandle<Result<()>>>,
    stop: Arc<AtomicBool>,
}

impl Cpu {
    /// Runs `body` in a thread of its own, until its flag becomes true. A kick interrupts KVM_RUN by a signal, and
    /// unparks the thread.
    ///
    /// # Errors
    /// When the signal handler or the thread cannot be made.
    pub fn start(name: &str, body: impl FnOnce(&AtomicBool) -> Result<()> + Send + 'static) -> Result<Self> {
        register_signal_handler(SIGRTMIN(), kicked).map_err(|source| Error::System {
            step: "sigaction(SIGRTMIN)",
            source: source.into(),
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&stopped))
            .map_err(|source| Error::System {
                step: "starting a processor's thread",
                source,
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Whether the thread has ended. Before [`stop`](Self::stop), the thread ends only when the guest fails.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the vCPU and returns when it no longer runs.
    ///
    /// # Errors
    /// The error that ended the thread, if any.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.store(true, Ordering::Release);
        // The signal only interrupts a KVM_RUN that is under way. A signal between the thread's check of `stop` and
        // KVM_RUN is lost, so the kick is repeated. The alternative is a write to `kvm_run` behind kvm-ioctls'
        // exclusive borrow.
        while !thread.is_finished() {
            thread.thread().unpark();
            // The kick fails when the thread has just ended.
            let _ = thread.kill(SIGRTMIN());
            thread::park_timeout(KICK_INTERVAL);
        }
        match thread.join() {
            Ok(ended) => ended,
            Err(_) => Err(Error::Guest("the vCPU's thread panicked".to_owned())),
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // A caller that wants the error calls `stop`.
        let _ = self.join();
    }
}

/// The kick has done its work by interrupting KVM_RUN.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The thread that plays a processor, for controllers in this process that interrupt the processor.
///
/// A thread that has nothing to do parks. A wake that comes before the thread parks is kept: the park then returns at
/// once.
#[derive(Clone, Default)]
pub struct Processor(Arc<OnceLock<Thread>>);

impl Processor {
    /// The calling thread is the processor from now on. A second call has no effect.
    pub fn is_this_thread(&self) {
        let _ = self.0.set(thread::current());
    }

    /// Wakes the processor, so that it looks for interrupts. A processor that has not started looks when it starts.
    pub fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }

    /// Parks the calling thread, which plays the processor, until `condition` holds. It is checked after each wake.
    pub fn wait_until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            thread::park();
        }
    }
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() {
            "started"
        } else {
            "not started"
        })
    }
}
