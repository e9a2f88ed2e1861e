// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that dispatches the EOIs of the kernel's irqchip.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_irqfd::KvmInterrupts;
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::vm::wake::Wake;

/// The thread that dispatches the EOIs that the kernel's irqchip reports. With a split irqchip the vCPU threads
/// dispatch an EOI at its exit.
#[derive(Debug)]
pub(super) struct EoiThread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<(AtomicBool, Wake)>,
}

impl EoiThread {
    pub(super) fn start(interrupts: KvmInterrupts) -> Result<Self> {
        let stop = Arc::new((AtomicBool::new(false), Wake::new()?));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("eois".to_owned())
            .spawn(move || {
                while !stopped.0.load(Ordering::Acquire) {
                    if is_ready(interrupts.as_fd(), stopped.1.as_fd()) {
                        // Ignore the error: only a listener fails, and these listeners cannot.
                        let _ = interrupts.dispatch(Some(Duration::ZERO));
                    }
                }
            })
            .map_err(|source| Error::System {
                step: "starting the EOIs' thread",
                source,
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }
}

/// Waits until one of the two is readable. Returns whether the first is.
fn is_ready(first: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(first, PollFlags::IN),
        PollFd::from_borrowed_fd(other, PollFlags::IN),
    ];
    poll(&mut fds, None).is_ok() && !fds[0].revents().is_empty()
}

impl Drop for EoiThread {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Release);
        self.stop.1.wake();
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic of the thread.
            let _ = thread.join();
        }
    }
}
