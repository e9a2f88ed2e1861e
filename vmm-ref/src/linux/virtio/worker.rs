// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that serves a device's queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use interrupt_core::LevelInterrupt;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::linux::virtio::backend::Backend;
use crate::linux::virtio::chain::{Chain, Malformed};

/// The state that the transport and the thread share.
#[derive(Debug)]
pub struct Shared {
    memory: Arc<GuestMemoryMmap>,
    interrupt: LevelInterrupt,
    kick: Arc<EventFd>,
    /// The queue, while the driver has it set up, and the device behind it.
    state: Mutex<State>,
    needs_reset: AtomicBool,
    stop: AtomicBool,
}

#[derive(Debug)]
struct State {
    queue: Option<Queue>,
    backend: Box<dyn Backend>,
    chain: Chain,
    trouble: Option<Malformed>,
}

impl Shared {
    /// A device without a queue yet. `kick` is a blocking eventfd that counts the guest's notifications.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        interrupt: LevelInterrupt,
        kick: Arc<EventFd>,
        backend: Box<dyn Backend>,
    ) -> Self {
        Self {
            memory,
            interrupt,
            kick,
            state: Mutex::new(State {
                queue: None,
                backend,
                chain: Chain::default(),
                trouble: None,
            }),
            needs_reset: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &LevelInterrupt {
        &self.interrupt
    }

    /// The eventfd that counts the guest's notifications.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Whether the device needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The last reason for a needed reset. A reset does not erase the reason.
    pub fn trouble(&self) -> Option<Malformed> {
        self.state().trouble.clone()
    }

    /// Starts serving the queue that the driver has set up. Requests already in the queue are served without a
    /// notification.
    pub fn start(&self, queue: Queue, features: u64) {
        let mut state = self.state();
        state.backend.negotiated(features);
        state.queue = Some(queue);
        drop(state);
        // The write fails only when the count is full. The thread is then awake.
        let _ = self.kick.write(1);
    }

    /// Removes the queue. After this returns, the device does not access the guest's memory.
    pub fn reset(&self) {
        self.state().queue = None;
        self.needs_reset.store(false, Ordering::Release);
        // `LevelInterrupt` counts a level that its source refuses, and retries at the next event. The calls below
        // ignore the error too.
        let _ = self.interrupt.clear(u32::MAX);
    }

    /// Records that the driver broke the rules, and tells the driver. The device serves nothing until the driver resets
    /// it.
    pub fn fail(&self, why: Malformed) {
        Self::fail_in(self, &mut self.state(), why);
    }

    fn fail_in(&self, state: &mut State, why: Malformed) {
        state.queue = None;
        state.trouble = Some(why);
        self.needs_reset.store(true, Ordering::Release);
        let _ = self.interrupt.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Serves the requests in the queue.
    pub fn serve(&self) {
        let state = &mut *self.state();
        if let Err(why) = state.serve(&self.memory, &self.interrupt) {
            self.fail_in(state, why);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn serve(&mut self, memory: &GuestMemoryMmap, interrupt: &LevelInterrupt) -> std::result::Result<(), Malformed> {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        // The addresses of the rings were checked at set-up, so only an invalid index fails here.
        let ring = |error: virtio_queue::Error| Malformed::Ring(error.to_string());
        loop {
            queue.disable_notification(memory).map_err(ring)?;
            while let Some(chain) = queue.iter(memory).map_err(ring)?.next() {
                let head = chain.head_index();
                self.chain.read(chain)?;
                let written = self.backend.serve(memory, &mut self.chain)?;
                queue.add_used(memory, head, written).map_err(ring)?;
                if queue.needs_notification(memory).map_err(ring)? {
                    let _ = interrupt.raise(VIRTIO_MMIO_INT_VRING);
                }
            }
            if !queue.enable_notification(memory).map_err(ring)? {
                return Ok(());
            }
        }
    }
}

/// The thread that serves the queue. A drop finishes the request in service and ends the thread.
#[derive(Debug)]
pub struct Worker {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Worker {
    /// Starts serving.
    ///
    /// # Errors
    /// [`Error::System`] when the thread cannot be started.
    pub fn start(name: String, shared: Arc<Shared>) -> Result<Self> {
        let serves = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                // The read fails only with EINTR, because the eventfd is open and blocking.
                while !serves.stop.load(Ordering::Acquire) {
                    if serves.kick.read().is_ok() {
                        serves.serve();
                    }
                }
            })
            .map_err(|source| Error::System {
                step: "starting a device's thread",
                source,
            })?;
        Ok(Self {
            thread: Some(thread),
            shared,
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // The write fails only when the count is full. The thread is then awake.
        let _ = self.shared.kick.write(1);
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic of the thread.
            let _ = thread.join();
        }
    }
}
