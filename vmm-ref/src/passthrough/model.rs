// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that needs no hardware: `vfio-intx`'s model, and a thread that plays the part of the host's kernel.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Delivery, Gsi, LevelSource, SourceKey};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use vfio_intx::ModelIntx;

use crate::error::{Error, Result};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves no half-made change under the locks of this module.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_eventfd() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| Error::System {
        step: "eventfd",
        source: errno.into(),
    })
}

fn signal(fd: &OwnedFd) -> io::Result<()> {
    match rustix::io::write(fd, &1u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Resets the eventfd's count, and returns whether it was above 0.
fn take(fd: &OwnedFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

/// A model device, and the thread that plays the kernel for it. Dropping it ends the thread.
pub struct Model {
    host: Arc<Host>,
    thread: Option<JoinHandle<()>>,
}

/// The state that the thread serves.
struct Host {
    device: ModelIntx,
    /// The unmask eventfd. For a real device, vfio-pci waits on it in the kernel.
    unmask: Mutex<Option<OwnedFd>>,
    /// The source whose trigger the thread watches in place of a KVM irqfd.
    irqfd: Option<Arc<PinIrqfd>>,
    /// Wakes the thread when `unmask` or `ended` has changed.
    changed: OwnedFd,
    ended: AtomicBool,
}

impl Model {
    /// Starts a device that asserts nothing. The thread also serves `irqfd`, the trigger of a pin in this process.
    ///
    /// # Errors
    /// [`Error::System`] when an eventfd or the thread cannot be made.
    pub fn start(irqfd: Option<Arc<PinIrqfd>>) -> Result<Self> {
        let host = Arc::new(Host {
            device: ModelIntx::new("model"),
            unmask: Mutex::new(None),
            irqfd,
            changed: new_eventfd()?,
            ended: AtomicBool::new(false),
        });
        let looked_after = Arc::clone(&host);
        let thread = thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || looked_after.run())
            .map_err(|source| Error::System {
                step: "starting the model's host",
                source,
            })?;
        Ok(Self {
            host,
            thread: Some(thread),
        })
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::new(ModelInterrupt(Arc::clone(&self.host)))
    }

    /// The device's interrupt pin, which the device asserts on command.
    pub fn pin(&self, gsi: Gsi) -> ModelPin {
        ModelPin {
            key: SourceKey::new(gsi),
            host: Arc::clone(&self.host),
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.host.ended.store(true, Ordering::Release);
        // If the write to our eventfd fails, the thread is not joined. A drop cannot report that.
        if signal(&self.host.changed).is_ok() {
            // The panic hook has reported a panic.
            drop(self.thread.take().map(JoinHandle::join));
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.device.fmt(f)
    }
}

impl Host {
    fn run(&self) {
        loop {
            let unmask = lock(&self.unmask).as_ref().and_then(|fd| fd.try_clone().ok());
            if self.ended.load(Ordering::Acquire) || self.wait_until_changed(unmask.as_ref()).is_err() {
                return;
            }
        }
    }

    /// Plays the kernel's part until `changed` is signalled.
    fn wait_until_changed(&self, unmask: Option<&OwnedFd>) -> rustix::io::Result<()> {
        const CHANGED: usize = 0;
        let irqfd = self.irqfd.as_ref().map(|irqfd| &irqfd.trigger);
        let mut fds: Vec<_> = [Some(&self.changed), unmask, irqfd]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            // Serve both without asking which was signalled: serving an eventfd with a count of 0 has no effect.
            self.device.poll_unmask();
            if let Some(irqfd) = &self.irqfd {
                irqfd.inject();
            }
            if !fds[CHANGED].revents().is_empty() {
                take(&self.changed);
                return Ok(());
            }
        }
    }
}

/// The model's interrupt, for a forwarder.
struct ModelInterrupt(Arc<Host>);

impl DeviceInterrupt for ModelInterrupt {
    fn label(&self) -> &str {
        self.0.device.label()
    }

    fn info(&self) -> interrupt_core::Result<InterruptInfo> {
        self.0.device.info()
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> interrupt_core::Result<()> {
        self.0.device.set_trigger(fd)
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> interrupt_core::Result<()> {
        let refused = |source| interrupt_core::Error::Device {
            operation: "set unmask eventfd",
            device: self.label().to_owned(),
            source,
        };
        let kept = fd.map(|fd| fd.try_clone_to_owned()).transpose().map_err(refused)?;
        self.0.device.set_unmask(fd)?;
        *lock(&self.0.unmask) = kept;
        signal(&self.0.changed).map_err(refused)
    }

    fn mask(&self) -> interrupt_core::Result<()> {
        self.0.device.mask()
    }

    fn unmask(&self) -> interrupt_core::Result<()> {
        self.0.device.unmask()
    }
}

impl fmt::Debug for ModelInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.device.fmt(f)
    }
}

/// The model's own interrupt pin. The forwarder carries the interrupt on.
pub struct ModelPin {
    key: SourceKey,
    host: Arc<Host>,
}

impl LevelSource for ModelPin {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        self.host.device.label()
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        self.host.device.raise(1);
        Ok(Delivery::Unknown)
    }

    /// The guest's handler has acknowledged.
    fn deassert(&self) -> interrupt_core::Result<()> {
        self.force_deassert()
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        self.host.device.acknowledge(u32::MAX);
        Ok(())
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl fmt::Debug for ModelPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin of {:?}", self.host.device)
    }
}

/// A pin of a controller in this process with a trigger eventfd, as KVM's irqfds have one: the model's host asserts the
/// pin when it is signalled.
#[derive(Debug)]
pub struct PinIrqfd {
    pin: Arc<dyn LevelSource>,
    trigger: OwnedFd,
    /// Held from taking a count until the pin is asserted, so that no EOI lowers the line in between.
    injecting: Mutex<()>,
}

impl PinIrqfd {
    /// A trigger for `pin`.
    ///
    /// # Errors
    /// [`Error::System`] when the eventfd cannot be made.
    pub fn new(pin: Arc<dyn LevelSource>) -> Result<Self> {
        Ok(Self {
            pin,
            trigger: new_eventfd()?,
            injecting: Mutex::default(),
        })
    }

    fn inject(&self) {
        let _injecting = lock(&self.injecting);
        if take(&self.trigger) {
            // The error is dropped, as KVM drops a failed injection of an irqfd.
            let _ = self.pin.assert();
        }
    }
}

impl LevelSource for PinIrqfd {
    fn key(&self) -> SourceKey {
        self.pin.key()
    }

    fn label(&self) -> &str {
        self.pin.label()
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        signal(&self.trigger).map_err(|source| interrupt_core::Error::Os {
            operation: "write(trigger)",
            gsi: self.gsi(),
            source,
        })?;
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> interrupt_core::Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        let _injecting = lock(&self.injecting);
        take(&self.trigger);
        self.pin.force_deassert()
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}
