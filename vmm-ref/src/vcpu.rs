// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread in which the guest's CPU runs, and how it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result, at};
use crate::guest::{ACKNOWLEDGE_PORT, FAULT_PORT};

const EINTR: i32 = 4;

/// How long a kick may take before the next one: much longer than a way out of KVM_RUN.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// What the guest wants of its VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The handler acknowledges its devices, before it ends the interrupt.
    Acknowledge,
}

/// A running vCPU. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub struct Vcpu {
    thread: Option<JoinHandle<Result<()>>>,
    stop: Arc<AtomicBool>,
}

impl Vcpu {
    /// Runs `fd` in a thread of its own until [`stop`](Self::stop), and calls `on_exit` there for what the guest wants.
    ///
    /// # Errors
    /// When the signal handler or the thread cannot be made.
    pub fn start(mut fd: VcpuFd, mut on_exit: impl FnMut(Exit) -> Result<()> + Send + 'static) -> Result<Self> {
        register_signal_handler(SIGRTMIN(), kicked).map_err(|source| Error::System {
            step: "sigaction(SIGRTMIN)",
            source: source.into(),
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("vcpu0".to_owned())
            .spawn(move || run(&mut fd, &stopped, &mut on_exit))
            .map_err(|source| Error::System {
                step: "starting the vCPU's thread",
                source,
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Whether the thread has ended, which it does by itself only when the guest fails.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the vCPU and returns when it no longer runs.
    ///
    /// # Errors
    /// What ended the thread before, if something did.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.store(true, Ordering::Release);
        // The signal only interrupts a KVM_RUN that is under way. One that hits the thread between its look at `stop` and
        // KVM_RUN is lost, hence the repetition; the alternative is to write to `kvm_run` behind kvm-ioctls' exclusive borrow.
        while !thread.is_finished() {
            // It fails when the thread has just ended.
            let _ = thread.kill(SIGRTMIN());
            thread::park_timeout(KICK_INTERVAL);
        }
        match thread.join() {
            Ok(ended) => ended,
            Err(_) => Err(Error::Guest("the vCPU's thread panicked".to_owned())),
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // Whoever wants the error calls `stop`.
        let _ = self.join();
    }
}

/// The kick has done its work by interrupting KVM_RUN.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run(fd: &mut VcpuFd, stop: &AtomicBool, on_exit: &mut impl FnMut(Exit) -> Result<()>) -> Result<()> {
    while !stop.load(Ordering::Acquire) {
        match fd.run() {
            Ok(VcpuExit::IoOut(ACKNOWLEDGE_PORT, _)) => on_exit(Exit::Acknowledge)?,
            Ok(VcpuExit::IoOut(FAULT_PORT, _)) => {
                return Err(Error::Guest("it took a vector that nothing here raises".to_owned()));
            }
            Ok(other) => return Err(Error::Guest(format!("unexpected exit {other:?}"))),
            Err(error) if error.errno() == EINTR => {}
            Err(error) => return Err(at("KVM_RUN")(error)),
        }
    }
    Ok(())
}
