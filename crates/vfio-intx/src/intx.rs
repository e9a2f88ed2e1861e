// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM's handle of a device's INTx, which is the producer's end of a connection.

use std::fmt;
use std::sync::Arc;

use interrupt_core::Gsi;
use interrupt_core::forward::{
    Consumer, DeviceInterrupt, DeviceIrq, InterruptInfo, Path, Producer, ProducerInfo, ProducerState,
};

use crate::error::{Error, Result};
use crate::relay::Relay;
use crate::saved::IntxState;
use crate::state_machine::{Desired, StateMachine};
use crate::status::{State, Status};

/// The INTx of one device: a [`Producer`], which a [`Connection`](interrupt_core::forward::Connection) leads to a
/// line of the guest.
///
/// The VMM says what it wants of INTx (enabled, masked, in MSI mode), the connection which line and path; each
/// operation returns the [`State`] that follows. When a direct path fails, INTx falls to its relay, and is disabled
/// when the relay cannot be had. INTx is never left masked for ever, and [`status`](Self::status) says where
/// it is and why. While INTx is disabled because a step failed, each operation tries again, and can return the errors
/// of [`enable`](Self::enable).
///
/// All methods may be called from any thread; one at a time takes effect. They make system calls, and some wait for the
/// line's notifier: none is for the path of an interrupt. None may be called from within a callback of the line, or a
/// method of the line or the device.
///
/// A VMM that wants the direct path and no event loop uses a [`DirectIntx`](crate::DirectIntx).
///
/// Dropping it disables INTx. Use one `Intx` for a device: VFIO gives the interrupt to the last trigger that is set.
pub struct Intx {
    machine: Arc<StateMachine>,
}

impl Intx {
    /// The INTx of `device`, disabled and not connected, and the relay that an event loop has to run for it.
    ///
    /// # Errors
    /// [`Error::NoInterrupt`] when the device has no INTx (ENODEV), or one that cannot signal an eventfd (ENOTTY);
    /// [`Error::Os`] when the three eventfds and the epoll instance cannot be had.
    pub fn new(device: Arc<dyn DeviceInterrupt>) -> Result<(Self, Relay)> {
        const OPERATION: &str = "use";
        let info = device.info().map_err(|source| Error::NoInterrupt {
            operation: OPERATION,
            device: device.label().to_owned(),
            source: Box::new(source),
        })?;
        let label = device.label().to_owned();
        let made = StateMachine::new(device, info).and_then(|machine| {
            let machine = Arc::new(machine);
            let relay = Relay::new(Arc::clone(&machine))?;
            Ok((Self { machine }, relay))
        });
        made.map_err(|source| Error::Os {
            operation: OPERATION,
            device: label,
            step: "eventfd or epoll_create",
            source,
        })
    }

    /// What the device's interrupt can do.
    pub fn info(&self) -> InterruptInfo {
        self.machine.info
    }

    /// Enables INTx. An enabled INTx that fell back to the relay tries its direct path once more.
    ///
    /// # Errors
    /// [`Error::NoRelay`]; [`Error::Step`] with the error of the subscription to the line or of the device. INTx is
    /// disabled then.
    pub fn enable(&self) -> Result<State> {
        self.machine.change("enable", |control| {
            control.desired.enabled = true;
            control.failed = None;
        })
    }

    /// Disables INTx. When it returns the line is low and nothing of the device reaches it any more.
    ///
    /// # Errors
    /// None today: a step that fails is in [`Status::last_error`], and the next step is taken.
    pub fn disable(&self) -> Result<State> {
        self.machine
            .change("disable", |control| control.desired.enabled = false)
    }

    /// Masks INTx on the guest's behalf, or on the VMM's own: the line goes low and stays low. What the device asserts
    /// meanwhile comes up at the unmask, if the device still asserts it then; a pulse is kept. The mask is a flag and
    /// not a count.
    ///
    /// # Errors
    /// [`Error::Step`] when the device is gone, or refuses all that would hold it back. INTx is disabled then.
    pub fn mask(&self) -> Result<State> {
        self.machine.change("mask", |control| control.desired.guest_mask = true)
    }

    /// Ends [`mask`](Self::mask).
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn unmask(&self) -> Result<State> {
        self.machine
            .change("unmask", |control| control.desired.guest_mask = false)
    }

    /// Follows a write of Interrupt Disable in the command register, by the guest or by the VMM. The VMM passes the
    /// write on to the device itself, before or after. While the bit is set the line is low, as that of a PCI device
    /// is.
    ///
    /// # Errors
    /// As [`mask`](Self::mask) and [`unmask`](Self::unmask).
    pub fn set_disintx(&self, disable: bool) -> Result<State> {
        self.machine.change("set Interrupt Disable for", |control| {
            control.desired.disintx = disable;
        })
    }

    /// Disables INTx because the device is to use MSI or MSI-X: VFIO sets up one kind at a time. Enable those after
    /// this.
    ///
    /// # Errors
    /// As [`disable`](Self::disable).
    pub fn enter_msi(&self) -> Result<State> {
        self.machine
            .change("hand over to MSI from", |control| control.desired.msi = true)
    }

    /// Ends [`enter_msi`](Self::enter_msi), after MSI and MSI-X have been disabled or could not be enabled.
    ///
    /// # Errors
    /// As [`enable`](Self::enable), with EINVAL while MSI is still enabled. INTx is disabled then, and a later
    /// [`enable`](Self::enable) tries again.
    pub fn leave_msi(&self) -> Result<State> {
        self.machine.change("return from MSI to", |control| {
            control.desired.msi = false;
            control.failed = None;
        })
    }

    /// Resets the device by calling `reset`, with INTx disabled meanwhile, so that no interrupt from before is seen
    /// after.
    ///
    /// Interrupt Disable and a [`mask`](Self::mask) stay as they are: VFIO_DEVICE_RESET restores the command register.
    /// A VMM that clears Interrupt Disable in the register, as QEMU does before a reset, says so by
    /// [`set_disintx`](Self::set_disintx), within `reset` or around it. Of several resets at once, the last one to end
    /// sets INTx up again.
    ///
    /// # Errors
    /// As [`enable`](Self::enable), when INTx cannot be set up again. `reset` has been called all the same.
    pub fn reset<R>(&self, reset: impl FnOnce() -> R) -> Result<R> {
        self.machine.change("reset", |control| control.desired.resets += 1)?;
        let resetting = Resetting(&self.machine);
        let outcome = reset();
        let ended = resetting.end();
        // An end that has failed is not tried again behind the caller's back.
        std::mem::forget(resetting);
        ended.map(|_| outcome)
    }

    /// Sets the host's name of this interrupt, for explicit forwarding
    /// ([`Registry::forward`](interrupt_core::forward::Registry::forward)) and for forwarding by the host. Before INTx
    /// is connected.
    pub fn set_irq(&self, irq: Option<DeviceIrq>) {
        self.machine.with(|control| control.irq = irq);
    }

    /// What a snapshot keeps. Nothing is disturbed, and the relay can go on. The vCPUs should be paused, and the device
    /// stopped: a pulse that comes later is not in the snapshot.
    pub fn save(&self) -> IntxState {
        self.machine.with(|control| {
            // A new desire does not compile before it is decided here whether a snapshot holds it.
            let Desired {
                enabled,
                msi,
                guest_mask,
                disintx,
                resets: _,
                stopped: _,
                line: _,
            } = control.desired;
            IntxState {
                version: IntxState::VERSION,
                enabled,
                msi,
                masked: guest_mask,
                disintx,
                pulse_pending: self.machine.relay().has_unserved_pulse(),
            }
        })
    }

    /// Restores what was saved, on an `Intx` that is not enabled. It can be connected before or after. A device that
    /// asserts its level signals it at once.
    ///
    /// # Errors
    /// [`Error::Saved`] for a state of another version, a pending pulse of a device with a level, or when INTx is
    /// enabled already; [`Error::Os`] when the pulse cannot be signalled again; and those of [`enable`](Self::enable).
    pub fn restore(&self, saved: &IntxState) -> Result<State> {
        let IntxState {
            version,
            enabled,
            msi,
            masked,
            disintx,
            pulse_pending,
        } = *saved;
        let refuse = |reason: String| {
            Err(Error::Saved {
                device: self.machine.device.label().to_owned(),
                reason,
            })
        };
        if version != IntxState::VERSION {
            return refuse(format!(
                "version {version}, and only {} can be read",
                IntxState::VERSION
            ));
        }
        if pulse_pending && self.machine.info.automasked {
            return refuse("a pending pulse, and the device has a level".to_owned());
        }
        if self.machine.with(|control| control.desired.enabled) {
            return refuse("it is enabled already".to_owned());
        }
        if pulse_pending {
            self.machine.relay().restore_pulse().map_err(|source| Error::Os {
                operation: "restore",
                device: self.machine.device.label().to_owned(),
                step: "write(relay's eventfd)",
                source,
            })?;
        }
        self.machine.change("restore", |control| {
            control.desired.enabled = enabled;
            control.desired.msi = msi;
            control.desired.guest_mask = masked;
            control.desired.disintx = disintx;
            control.failed = None;
        })
    }

    /// Where INTx is, why, and what has failed.
    pub fn status(&self) -> Status {
        self.machine.status()
    }

    fn gsi(&self) -> Gsi {
        // There is a line whenever something can fail.
        self.status().line.map_or(Gsi(u32::MAX), |(gsi, _)| gsi)
    }

    fn backend(&self, operation: &'static str, error: Error) -> interrupt_core::Error {
        interrupt_core::Error::Backend {
            operation,
            gsi: self.gsi(),
            errno: error.errno(),
            source: Box::new(error),
        }
    }
}

/// The time in which a device is reset. Dropping it ends that time, as when the closure that resets the device panics.
struct Resetting<'a>(&'a StateMachine);

impl Resetting<'_> {
    fn end(&self) -> Result<State> {
        self.0.change("reset", |control| {
            control.desired.resets = control.desired.resets.saturating_sub(1);
            control.failed = None;
        })
    }
}

impl Drop for Resetting<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{error}");
        }
    }
}

/// A stop on the line that INTx is on leaves an interrupt that is under way alone. What is asked of INTx between stop
/// and start (enable, mask, Interrupt Disable) is kept and holds after the start.
///
/// A path that fails at the start leaves INTx on the relay and is reported; the connection then tries the next path. A
/// path that fails later, when INTx is unmasked say, leaves it on the relay as well, and the connection notices when it
/// is next asked.
impl Producer for Intx {
    fn label(&self) -> &str {
        self.machine.device.label()
    }

    fn info(&self) -> ProducerInfo {
        self.machine.producer_info()
    }

    fn state(&self) -> ProducerState {
        self.machine.producer_state()
    }

    fn stop(&self) -> interrupt_core::Result<()> {
        let stopped = self.machine.change("stop", |control| control.desired.stopped = true);
        stopped.map(drop).map_err(|error| self.backend("stop", error))
    }

    fn connect(&self, path: Path, consumer: &dyn Consumer) -> interrupt_core::Result<()> {
        let line = consumer.line().clone();
        if path != Path::Relay && !self.machine.info.automasked {
            return Err(interrupt_core::Error::Unsupported {
                operation: "connect",
                gsi: line.gsi(),
                reason: format!("{path} needs a device that masks itself"),
            });
        }
        let connected = self.machine.change("connect", |control| {
            control.desired.line = Some((line, path));
            control.failed = None;
        });
        connected.map(drop).map_err(|error| self.backend("connect", error))
    }

    fn disconnect(&self) {
        let disconnected = self.machine.change("disconnect", |control| {
            control.desired.stopped = false;
            control.desired.line = None;
            control.failed = None;
        });
        if let Err(error) = disconnected {
            log::error!("{error}");
        }
    }

    fn start(&self) -> interrupt_core::Result<()> {
        let started = self.machine.change("start", |control| control.desired.stopped = false);
        started.map_err(|error| self.backend("start", error))?;
        match self.machine.with(|control| control.failed.clone()) {
            None => Ok(()),
            Some(failed) => Err(interrupt_core::Error::Backend {
                operation: "start",
                gsi: self.gsi(),
                errno: failed.errno(),
                source: Box::new(failed),
            }),
        }
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        self.machine.end();
    }
}

impl fmt::Debug for Intx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTx of {}", self.status())
    }
}
