// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state machine: brings the wires from where they are to where [`decide`] says they are to be.
//!
//! Every change but one goes through one place, [`Wiring::Parked`]: the device signals the relay, which forwards nothing, and the
//! line is low. From there a device with a level is unmasked as the last step of every way out, so that whatever it asserted
//! meanwhile is signalled again, and the old wires have nothing more to say. QEMU's INTx code has the same order
//! (`hw/vfio/pci.c`: mask, lower, rewire, unmask). The one is a registry's change of path on one line, which goes through
//! [`Wiring::Held`] and leaves an interrupt that is under way alone.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::forward::{DeviceInterrupt, GuestLine, InterruptInfo};
use interrupt_core::forward::{DeviceIrq, Limits, Now, Path, ProducerInfo};
use interrupt_core::{EoiGuard, Listener};

use crate::decide::{Circumstances, Wiring, decide};
use crate::error::{Error, Result};
use crate::eventfd;
use crate::forward::{Failed, Forward, Trouble};
use crate::relay::Relay;
use crate::saved::IntxState;
use crate::state::{Because, Fallback, State, Status};

const EBUSY: i32 = 16;
const EINVAL: i32 = 22;

/// One step at the device or at the line.
type Step<T = ()> = std::result::Result<T, interrupt_core::Error>;

/// The INTx of one device, forwarded to a line of a guest.
///
/// It keeps apart what is wanted (enabled, which line, masked, in MSI mode) from how INTx is wired; each operation changes
/// the former, and returns the [`State`] that the latter came to. An operation that cannot be done leaves everything as it
/// was, whenever that is possible, and says where INTx is when it is not.
///
/// No operation leaves INTx masked with nobody to unmask it: a direct path that fails gives way to the relay, and when that
/// cannot be had either INTx is disabled at the device.
///
/// All methods may be called from any thread, one at a time takes effect. They make system calls, and those that change a
/// subscription may take as long as the notifier does; none is for the path of an interrupt. None may be called from within
/// a callback of the line.
///
/// Dropping it disables INTx.
pub struct Intx {
    shared: Arc<Shared>,
}

impl Intx {
    /// The INTx of `device`, disabled and without a line, and the relay that is to be run for it.
    ///
    /// # Errors
    /// [`Error::NoInterrupt`] when the device has no INTx (ENODEV), or one that cannot signal an eventfd (ENOTTY);
    /// [`Error::Os`] when the three eventfds cannot be had.
    pub fn new(device: Arc<dyn DeviceInterrupt>) -> Result<(Self, Relay)> {
        const OPERATION: &str = "use";
        let info = device.info().map_err(|source| Error::NoInterrupt {
            operation: OPERATION,
            device: device.label().to_owned(),
            source,
        })?;
        let forward = Forward::new(!info.automasked).map_err(|source| Error::Os {
            operation: OPERATION,
            device: device.label().to_owned(),
            step: "eventfd",
            source,
        })?;
        let shared = Arc::new(Shared {
            device,
            info,
            forward,
            ended: AtomicBool::new(false),
            control: Mutex::new(Control::new()),
        });
        let relay = Relay::new(Arc::clone(&shared));
        Ok((Self { shared }, relay))
    }

    /// What the device's interrupt can do.
    pub fn info(&self) -> InterruptInfo {
        self.shared.info
    }

    /// Enables INTx, on the fastest path that works. An enabled INTx that fell back tries its direct path once more.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody else has set INTx up; [`Error::NoRelay`]; [`Error::Step`] with the error of the
    /// subscription to the line or of the device's first trigger. INTx is disabled then.
    pub fn enable(&self) -> Result<State> {
        self.shared.change("enable", |control| {
            control.wanted.enabled = true;
            control.failed.clear();
        })
    }

    /// Disables INTx. When it returns the line is low and nothing of the device reaches it any more.
    ///
    /// # Errors
    /// None today: a step that fails is in [`Status::last_error`], and the next one is taken.
    pub fn disable(&self) -> Result<State> {
        self.shared.change("disable", |control| control.wanted.enabled = false)
    }

    /// Routes INTx to another line, or nowhere, which disables it until it is routed again. An interrupt that is pending or
    /// in service leaves the old line, and comes up on the new one if the device still asserts it.
    ///
    /// The same source again, as a line of another kind, changes the path under running interrupts.
    ///
    /// An `Intx` that is in a registry gets its line from there.
    ///
    /// # Errors
    /// As [`enable`](Self::enable). With a new line that refuses its subscription, or a device that refuses to be taken off
    /// the old one, INTx stays on the old line and works there.
    pub fn set_line(&self, line: Option<GuestLine>) -> Result<State> {
        self.shared.change("route", |control| {
            let same = match (&control.wanted.line, &line) {
                (Some(old), Some(new)) => old.is(new),
                _ => false,
            };
            if !same {
                control.failed.clear();
            }
            control.wanted.only = None;
            control.wanted.line = line;
        })
    }

    /// Masks INTx on the guest's behalf, or on the VMM's own: the line goes low and stays low. What the device asserts
    /// meanwhile comes up at the unmask, if it still asserts it then; a pulse is kept. The mask is a flag and not a count.
    ///
    /// # Errors
    /// [`Error::Step`] when the device will not be taken off a direct path; INTx is then not masked, and works.
    pub fn mask(&self) -> Result<State> {
        self.shared.change("mask", |control| control.wanted.guest_mask = true)
    }

    /// Ends [`mask`](Self::mask).
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn unmask(&self) -> Result<State> {
        self.shared
            .change("unmask", |control| control.wanted.guest_mask = false)
    }

    /// Follows the guest's write of Interrupt Disable in the command register. The write itself is for the VMM to
    /// pass on to the device, before or after. While it is set the line is low, as that of a PCI device is.
    ///
    /// # Errors
    /// As [`mask`](Self::mask) and [`unmask`](Self::unmask).
    pub fn set_disintx(&self, disable: bool) -> Result<State> {
        self.shared
            .change("set Interrupt Disable for", |control| control.wanted.disintx = disable)
    }

    /// Disables INTx because the device is to use MSI or MSI-X: VFIO sets up one kind at a time. Enable those after this.
    ///
    /// # Errors
    /// As [`disable`](Self::disable).
    pub fn enter_msi(&self) -> Result<State> {
        self.shared
            .change("hand over to MSI from", |control| control.wanted.msi = true)
    }

    /// Ends [`enter_msi`](Self::enter_msi), after MSI and MSI-X have been disabled or could not be enabled.
    ///
    /// # Errors
    /// As [`enable`](Self::enable), with EINVAL while MSI is still enabled. INTx is disabled then, and a later
    /// [`enable`](Self::enable) tries again.
    pub fn leave_msi(&self) -> Result<State> {
        self.shared.change("return from MSI to", |control| {
            control.wanted.msi = false;
            control.failed.clear();
        })
    }

    /// Resets the device by calling `reset`, with INTx disabled meanwhile, so that no interrupt from before is seen after.
    /// Interrupt Disable is clear afterwards, as the reset leaves it; a [`mask`](Self::mask) stays. `reset` must not call
    /// any method of this `Intx`.
    ///
    /// # Errors
    /// As [`enable`](Self::enable), when INTx cannot be set up again. `reset` has been called all the same.
    pub fn reset<R>(&self, reset: impl FnOnce() -> R) -> Result<R> {
        let mut control = self.shared.control();
        self.shared.off(&mut control, Because::Reset);
        let outcome = reset();
        control.wanted.disintx = false;
        control.failed.clear();
        self.shared
            .settle(&mut control)
            .map_err(|fault| self.shared.error("reset", fault, &mut control))?;
        Ok(outcome)
    }

    /// Says what the host calls this interrupt, so that it can be forwarded explicitly
    /// ([`Registry::forward`](interrupt_core::forward::Registry::forward)), or by the host. Before it is registered.
    pub fn set_irq(&self, irq: Option<DeviceIrq>) {
        self.shared.control().irq = irq;
    }

    /// What a snapshot keeps. Nothing is disturbed; the vCPUs should be paused, and the relay not be run meanwhile.
    pub fn save(&self) -> IntxState {
        let control = self.shared.control();
        // Whoever adds something that is wanted decides here whether it is part of a snapshot.
        let Wanted {
            enabled,
            msi,
            guest_mask,
            disintx,
            stopped: _,
            line: _,
            only: _,
        } = control.wanted;
        IntxState {
            version: IntxState::VERSION,
            enabled,
            msi,
            masked: guest_mask,
            disintx,
            pulse_pending: self.shared.forward.pulse_pending(),
        }
    }

    /// Restores what was saved, on an `Intx` that is not enabled. The line comes from [`set_line`](Self::set_line), before or
    /// after. A device that asserts its level comes up on it at once.
    ///
    /// # Errors
    /// [`Error::Saved`] for a state of another version, a pending pulse of a device with a level, or when INTx is enabled
    /// already; and those of [`enable`](Self::enable).
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
                device: self.shared.device.label().to_owned(),
                reason,
            })
        };
        if version != IntxState::VERSION {
            return refuse(format!(
                "version {version}, and only {} can be read",
                IntxState::VERSION
            ));
        }
        if pulse_pending && self.shared.info.automasked {
            return refuse("a pending pulse, and the device has a level".to_owned());
        }
        if self.shared.control().wanted.enabled {
            return refuse("it is enabled already".to_owned());
        }
        if pulse_pending {
            self.shared.forward.restore_pulse();
        }
        self.shared.change("restore", |control| {
            control.wanted.enabled = enabled;
            control.wanted.msi = msi;
            control.wanted.guest_mask = masked;
            control.wanted.disintx = disintx;
            control.failed.clear();
        })
    }

    /// Where INTx is, why, and what the last fallback was about.
    pub fn status(&self) -> Status {
        let control = self.shared.control();
        Status {
            device: self.shared.device.label().to_owned(),
            state: control.state(),
            because: control.because.clone(),
            line: control
                .attached
                .as_ref()
                .map(|(line, _)| (line.gsi(), line.source().label().to_owned())),
            fallback: control.fallback.clone(),
            fallbacks: control.fallbacks,
            swaps: control.swaps,
            last_error: control.last_error.clone(),
        }
    }
}

/// What [`Producer`](interrupt_core::forward::Producer) needs.
impl Intx {
    pub(crate) fn device_label(&self) -> &str {
        self.shared.device.label()
    }

    pub(crate) fn producer_info(&self) -> ProducerInfo {
        self.shared.producer(&self.shared.control())
    }

    pub(crate) fn producer_now(&self) -> Now {
        let control = self.shared.control();
        let path = match control.wiring {
            Wiring::Off | Wiring::Parked | Wiring::Held(_) => None,
            Wiring::Relay => Some(control.handing_over.unwrap_or(Path::Relay)),
            Wiring::Direct(path) => Some(path),
        };
        let failed = control.failed.last();
        Now {
            path,
            held: path.is_none().then(|| control.because.to_string()),
            masked: control.wanted.guest_mask || control.wanted.disintx,
            active: control.wiring == Wiring::Relay && self.shared.forward.is_pending(),
            failed: failed.map(|(_, error)| error.to_string()),
        }
    }

    /// Holds INTx back until [`start`](Self::start).
    pub(crate) fn stop(&self) -> Result<State> {
        self.shared.change("stop", |control| control.wanted.stopped = true)
    }

    /// Leads INTx to this line, and nowhere.
    pub(crate) fn lead_to(&self, line: Option<GuestLine>, only: Option<Path>) -> Result<State> {
        self.shared.change("connect", |control| {
            // With no line there is nothing to start.
            control.wanted.stopped &= line.is_some();
            control.wanted.line = line;
            control.wanted.only = only;
            control.failed.clear();
        })
    }

    /// Ends [`stop`](Self::stop). The path that was asked for may have failed; INTx is on another one then.
    pub(crate) fn start(&self) -> Result<Option<Arc<interrupt_core::Error>>> {
        self.shared.change("start", |control| control.wanted.stopped = false)?;
        let control = self.shared.control();
        let failed = control
            .failed
            .iter()
            .find(|(path, _)| Some(*path) == control.wanted.only);
        Ok(failed.map(|(_, error)| Arc::clone(error)))
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        self.shared.off(&mut self.shared.control(), Because::NotEnabled);
        self.shared.ended.store(true, Ordering::Release);
        if let Err(error) = eventfd::signal(&self.shared.forward.changed) {
            log::error!("tell the relay of {}: {error}", self.shared.device.label());
        }
    }
}

impl fmt::Debug for Intx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTx of {}", self.status())
    }
}

/// What `Intx` and `Relay` share.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn DeviceInterrupt>,
    info: InterruptInfo,
    pub(crate) forward: Forward,
    ended: AtomicBool,
    control: Mutex<Control>,
}

/// What the guest and the VMM have asked for.
#[derive(Clone)]
struct Wanted {
    enabled: bool,
    msi: bool,
    guest_mask: bool,
    disintx: bool,
    /// A registry is between its stop and its start.
    stopped: bool,
    line: Option<GuestLine>,
    /// The path that a registry has chosen; without one, the best is chosen here.
    only: Option<Path>,
}

struct Control {
    wanted: Wanted,
    wiring: Wiring,
    because: Because,
    /// The line that INTx is wired to, and the subscription of the EOI eventfd to its EOIs. The same eventfd serves the relay
    /// and the direct paths, so that no EOI finds nobody while the path changes.
    attached: Option<(GuestLine, EoiGuard)>,
    /// The device has a trigger from here. It may have one still when it refused to give it up.
    set_up: bool,
    /// The line that such a device may still signal, to be lowered when it has been taken off it after all.
    astray: Option<GuestLine>,
    relay: bool,
    /// The paths that have failed since something happened that would make another try worth it.
    failed: Vec<(Path, Arc<interrupt_core::Error>)>,
    /// What the host calls the interrupt.
    irq: Option<DeviceIrq>,
    /// The direct path that the relay changes to when the interrupt under way has ended.
    handing_over: Option<Path>,
    fallback: Option<Fallback>,
    fallbacks: u64,
    swaps: u64,
    last_error: Option<Arc<interrupt_core::Error>>,
}

impl Control {
    fn new() -> Self {
        Self {
            wanted: Wanted {
                enabled: false,
                msi: false,
                guest_mask: false,
                disintx: false,
                stopped: false,
                line: None,
                only: None,
            },
            wiring: Wiring::Off,
            because: Because::NotEnabled,
            attached: None,
            set_up: false,
            astray: None,
            relay: true,
            failed: Vec::new(),
            irq: None,
            handing_over: None,
            fallback: None,
            fallbacks: 0,
            swaps: 0,
            last_error: None,
        }
    }

    fn state(&self) -> State {
        match self.wiring {
            Wiring::Off => State::Disabled,
            Wiring::Parked | Wiring::Held(_) => State::Masked,
            Wiring::Relay => State::Relay,
            Wiring::Direct(direct) => direct.into(),
        }
    }

    /// Whether INTx is on the line that it is to be on.
    fn stays(&self) -> bool {
        match (&self.attached, &self.wanted.line) {
            (Some((old, _)), Some(line)) => old.is(line),
            _ => false,
        }
    }

    fn carried_by(&self) -> Option<Path> {
        match self.wiring {
            _ if !self.stays() => None,
            Wiring::Relay => Some(Path::Relay),
            Wiring::Direct(path) | Wiring::Held(path) => Some(path),
            Wiring::Off | Wiring::Parked => None,
        }
    }

    /// Keeps the error of a step that changes nothing in what is done next.
    fn note(&mut self, outcome: Step) {
        if let Err(error) = outcome {
            self.last_error = Some(Arc::new(error));
        }
    }
}

/// Why the wires could not be brought to where they are to be.
enum Fault {
    Step(Arc<interrupt_core::Error>),
    InUse,
    NoRelay,
}

impl From<interrupt_core::Error> for Fault {
    fn from(error: interrupt_core::Error) -> Self {
        Self::Step(Arc::new(error))
    }
}

impl Shared {
    /// What the registry, and its deciding function, are told of this side.
    fn producer(&self, control: &Control) -> ProducerInfo {
        ProducerInfo {
            interrupt: self.info,
            relay: control.relay,
            irq: control.irq,
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // A holder panics only when a line, a notifier or a device does, or the caller's reset; what is wired is
        // written down as it is done, and the next operation goes on from there.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Changes what is wanted, and brings the wires to where that puts them. When that fails and INTx is as it was
    /// before, so is what is wanted.
    fn change(&self, operation: &'static str, change: impl FnOnce(&mut Control)) -> Result<State> {
        let mut control = self.control();
        let wanted = control.wanted.clone();
        let was_off = control.wiring == Wiring::Off;
        change(&mut control);
        match self.settle(&mut control) {
            Ok(()) => Ok(control.state()),
            Err(fault) => {
                if was_off || control.wiring != Wiring::Off {
                    control.wanted = wanted;
                }
                Err(self.error(operation, fault, &mut control))
            }
        }
    }

    /// The fault for the caller, and for those who ask later why INTx is disabled.
    fn error(&self, operation: &'static str, fault: Fault, control: &mut Control) -> Error {
        let device = self.device.label().to_owned();
        match fault {
            Fault::InUse => Error::InUse { operation, device },
            Fault::NoRelay => Error::NoRelay { operation, device },
            Fault::Step(source) => {
                if control.wiring == Wiring::Off {
                    control.because = Because::Failed(Arc::clone(&source));
                }
                Error::Step {
                    operation,
                    device,
                    state: control.state(),
                    source,
                }
            }
        }
    }

    /// Brings the wires to where they are to be. On an error they are where they were before, or off.
    fn settle(&self, control: &mut Control) -> std::result::Result<(), Fault> {
        let limits = Limits {
            only: control.wanted.only,
            failed: control.failed.clone(),
        };
        let (target, because) = decide(&Circumstances {
            enabled: control.wanted.enabled,
            msi: control.wanted.msi,
            guest_mask: control.wanted.guest_mask,
            disintx: control.wanted.disintx,
            stopped: control.wanted.stopped,
            carried_by: control.carried_by(),
            line: control.wanted.line.as_ref(),
            producer: self.producer(control),
            limits: &limits,
        });
        let line = match (target, &control.wanted.line) {
            (Wiring::Off, _) | (_, None) => {
                let no_relay = matches!(because, Because::NoRelay);
                self.off(control, because);
                return if no_relay { Err(Fault::NoRelay) } else { Ok(()) };
            }
            (_, Some(line)) => line.clone(),
        };
        if control.stays() {
            let handing_over = control.handing_over.map(Wiring::Direct);
            if control.wiring == target || handing_over == Some(target) {
                control.because = because;
                return Ok(());
            }
            match (control.wiring, target) {
                (_, Wiring::Held(path)) => {
                    control.because = because;
                    return self.hold(control, &line, path);
                }
                (Wiring::Held(from), Wiring::Relay | Wiring::Direct(_)) => {
                    control.because = because;
                    return self.resume(control, &line, from, target);
                }
                _ => {}
            }
        }
        // First what can be refused while nothing has been disturbed yet.
        let subscription = self.subscribe(control, &line)?;
        match control.wiring {
            Wiring::Off => self.set_up(control)?,
            _ => self.park(control)?,
        }
        Self::attach(control, line.clone(), subscription);
        control.because = because;
        match target {
            // `Off` has been dealt with above, and so has `Held`.
            Wiring::Off | Wiring::Parked | Wiring::Held(_) => Ok(()),
            Wiring::Relay => self.relay(control, &line),
            Wiring::Direct(direct) => match self.direct(control, &line, direct) {
                Ok(()) => Ok(()),
                Err(error) => self.fall_back(control, direct, error),
            },
        }
    }

    /// Subscribes the EOI eventfd to the line, unless it is subscribed already.
    fn subscribe(&self, control: &Control, line: &GuestLine) -> Step<Option<EoiGuard>> {
        let attached = control.attached.as_ref().map(|(attached, _)| attached);
        if attached.is_some_and(|attached| attached.shares_subscription(line)) {
            return Ok(None);
        }
        let eoi = self
            .forward
            .eoi
            .try_clone()
            .map_err(|error| os("dup(EOI eventfd)", line, error))?;
        match line.notifier().subscribe(line.subject(), Listener::fd(eoi)) {
            // Another handle of the notifier that has the subscription.
            Err(interrupt_core::Error::Busy { .. }) if attached.is_some_and(|old| old.subject() == line.subject()) => {
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Makes `line` the one that INTx is wired to, keeping the subscription when there is no new one. The old
    /// subscription ends after the new one has begun.
    fn attach(control: &mut Control, line: GuestLine, subscription: Option<EoiGuard>) {
        let old = control.attached.take();
        match (subscription, old) {
            (Some(guard), old) => {
                control.attached = Some((line, guard));
                drop(old);
            }
            (None, old) => control.attached = old.map(|(_, guard)| (line, guard)),
        }
    }

    // ---- the steps between the wirings ----

    /// Off -> Parked. The device is masked if it can be.
    fn set_up(&self, control: &mut Control) -> std::result::Result<(), Fault> {
        // An INTx that nobody has set up refuses to be unmasked. One that does not is somebody else's, whom a trigger of
        // ours would silently rob; being unmasked makes their device state its level, and no more.
        if !control.set_up && self.info.automasked && self.device.unmask().is_ok() {
            return Err(Fault::InUse);
        }
        self.device.set_trigger(Some(self.forward.trigger.as_fd()))?;
        control.set_up = true;
        Self::lower_the_astray(control);
        control.wiring = Wiring::Parked;
        self.mask(control);
        Ok(())
    }

    /// Any but Off -> Parked. The device is masked if it can be, and the line is low. On an error the wires are back where
    /// they were, or off.
    fn park(&self, control: &mut Control) -> std::result::Result<(), Fault> {
        control.handing_over = None;
        match control.wiring {
            Wiring::Off | Wiring::Parked => return Ok(()),
            Wiring::Relay | Wiring::Held(_) => {
                self.forward.close();
                self.mask(control);
            }
            Wiring::Direct(_) => {
                self.mask(control);
                control.note(self.device.set_unmask(None));
                if let Err(error) = self.device.set_trigger(Some(self.forward.trigger.as_fd())) {
                    let error = Arc::new(error);
                    if let Err(worse) = self.arm() {
                        control.note(Err(worse));
                        self.off(control, Because::Failed(Arc::clone(&error)));
                    }
                    return Err(Fault::Step(error));
                }
            }
        }
        self.force_deassert(control);
        control.wiring = Wiring::Parked;
        Ok(())
    }

    // A change of path on one line. Nothing is lowered, masked or stated again that need not be: an interrupt that is under way stays
    // under way, and its EOI unmasks the device by whichever path there is when it comes. That makes the change cheap, since a resample
    // irqfd is lowered by taking it away and putting it back; and exact, since an assertion on top of one that the guest is about to
    // end, and that reaches the line after that, would run the guest's handler for nothing.

    /// Relay or Direct -> Held. On an error nothing has changed.
    fn hold(&self, control: &mut Control, line: &GuestLine, path: Path) -> std::result::Result<(), Fault> {
        if control.wiring == Wiring::Relay {
            control.handing_over = None;
            self.forward.pause();
            control.wiring = Wiring::Held(Path::Relay);
            return Ok(());
        }
        let prepared = self.forward.prepare();
        prepared.map_err(|error| os("read(relay's eventfd)", line, error))?;
        // Not masked first: what it signals now has not been on the line, and what it signalled before is. A mask would hide which.
        self.device.set_trigger(Some(self.forward.trigger.as_fd()))?;
        if let Err(error) = self.device.set_unmask(None) {
            let back = self.device.set_trigger(line.source().trigger());
            control.note(back.and_then(|()| self.device.unmask()));
            return Err(error.into());
        }
        control.wiring = Wiring::Held(path);
        Ok(())
    }

    /// Held -> Relay or Direct, on the same line.
    fn resume(
        &self,
        control: &mut Control,
        line: &GuestLine,
        from: Path,
        target: Wiring,
    ) -> std::result::Result<(), Fault> {
        let resumed = match (from, target) {
            (Path::Relay, Wiring::Direct(path)) => self.resume_by_direct(control, line, path),
            (Path::Relay, _) => self.resume_by_relay(control, line, false),
            (_, Wiring::Direct(path)) => self.rearm(control, line, path),
            _ => self.take_over(control, line),
        };
        match (resumed, target) {
            (Ok(()), _) => Ok(()),
            (Err(error), Wiring::Direct(path)) => {
                self.park(control)?;
                self.fall_back(control, path, error)
            }
            // From here it is set up as if the line were new.
            (Err(error), _) => {
                control.note(Err(error));
                self.park(control)?;
                self.relay(control, line)
            }
        }
    }

    /// Held(Relay) -> Relay.
    fn resume_by_relay(&self, control: &mut Control, line: &GuestLine, hand_over: bool) -> Step {
        let told = self.forward.go_on(Arc::clone(line.source()), hand_over);
        control.wiring = Wiring::Relay;
        if !told {
            return Ok(());
        }
        if self.forward.is_pulse() {
            return eventfd::signal(&self.forward.trigger).map_err(|error| os("eventfd of the relay", line, error));
        }
        if self.forward.end_pending() {
            control.note(line.source().deassert().map(drop));
        }
        self.unmask_relayed(control)
    }

    /// Held(Relay) -> Direct, or Relay until the interrupt that is under way has ended.
    fn resume_by_direct(&self, control: &mut Control, line: &GuestLine, path: Path) -> Step {
        if self.forward.may_be_under_way() && !self.forward.take_missed() {
            if !self.forward.go_on(Arc::clone(line.source()), true) {
                control.wiring = Wiring::Relay;
                control.handing_over = Some(path);
                return Ok(());
            }
            self.forward.pause();
        }
        if self.forward.end_pending() {
            control.note(line.source().deassert().map(drop));
        }
        // Nothing of the device's is on the line. From `direct` on it states its level once.
        self.mask(control);
        self.direct(control, line, path)
    }

    /// Held(direct) -> Direct, by another path on the same wires.
    fn rearm(&self, control: &mut Control, line: &GuestLine, path: Path) -> Step {
        self.device.set_trigger(line.source().trigger())?;
        self.device.set_unmask(Some(self.forward.eoi.as_fd()))?;
        control.wiring = Wiring::Direct(path);
        let signalled = self.forward.has_signalled();
        match signalled.map_err(|error| os("read(relay's eventfd)", line, error))? {
            true => self.device.unmask(),
            false => Ok(()),
        }
    }

    /// Held(direct) -> Relay.
    fn take_over(&self, control: &mut Control, line: &GuestLine) -> Step {
        let taken = self
            .forward
            .take_over(Arc::clone(line.source()))
            .and_then(|signalled| self.forward.watch_eoi(true).map(|()| signalled));
        control.wiring = Wiring::Relay;
        match taken.map_err(|error| os("eventfd of the relay", line, error))? {
            // It has masked itself, and nobody has forwarded it.
            true => self.unmask_relayed(control),
            false => Ok(()),
        }
    }

    /// The relay has come to the end of an interrupt that the change to a direct path was waiting for; the device is masked.
    pub(crate) fn hand_over(&self) -> Result<()> {
        let mut control = self.control();
        let handed_over = match (control.wiring, control.handing_over.take(), control.wanted.line.clone()) {
            (Wiring::Relay, Some(path), Some(line)) => {
                self.forward.pause();
                self.mask(&mut control);
                match self.direct(&mut control, &line, path) {
                    Ok(()) => Ok(()),
                    Err(error) => self.fall_back(&mut control, path, error),
                }
            }
            (Wiring::Relay, _, _) => self.unmask_relayed(&mut control).map_err(Fault::from),
            (Wiring::Held(_), _, _) => {
                self.forward.note_missed();
                Ok(())
            }
            // All of these state the level again.
            (Wiring::Off | Wiring::Parked | Wiring::Direct(_), _, _) => Ok(()),
        };
        handed_over.map_err(|fault| self.error("relay", fault, &mut control))
    }

    /// Parked -> Relay, unmasked.
    fn relay(&self, control: &mut Control, line: &GuestLine) -> std::result::Result<(), Fault> {
        let opened = self
            .forward
            .watch_eoi(true)
            .and_then(|()| self.forward.open(Arc::clone(line.source())));
        control.wiring = Wiring::Relay;
        control.swaps += 1;
        let unmasked = match opened {
            Err(error) => Err(os("eventfd of the relay", line, error)),
            Ok(()) => self.unmask_relayed(control),
        };
        unmasked.map_err(|error| {
            let error = Arc::new(error);
            self.off(control, Because::Failed(Arc::clone(&error)));
            Fault::Step(error)
        })
    }

    /// Unmasks a device that signals the relay, at any price: one that has just been set up is not masked.
    fn unmask_relayed(&self, control: &mut Control) -> Step {
        if !self.info.automasked {
            return Ok(());
        }
        let Err(error) = self.device.unmask() else {
            return Ok(());
        };
        control.note(Err(error));
        self.set_up_afresh(control)
    }

    fn set_up_afresh(&self, control: &mut Control) -> Step {
        self.tear_down(control)?;
        self.device.set_trigger(Some(self.forward.trigger.as_fd()))?;
        control.set_up = true;
        Ok(())
    }

    /// Parked -> Direct, unmasked. On an error Parked still, or off.
    fn direct(&self, control: &mut Control, line: &GuestLine, direct: Path) -> Step {
        let Some(trigger) = line.source().trigger() else {
            // It had one a moment ago, when the path was decided.
            return Err(interrupt_core::Error::Unsupported {
                operation: "signal the line directly",
                gsi: line.gsi(),
                reason: "the source has lost its trigger eventfd".to_owned(),
            });
        };
        self.forward
            .watch_eoi(false)
            .and_then(|()| eventfd::drain(&self.forward.eoi))
            .map_err(|error| os("eventfd of the relay", line, error))?;
        // In this order: without a trigger there is nothing to unmask, and VFIO says EINVAL.
        self.device.set_trigger(Some(trigger))?;
        match self.arm() {
            Ok(()) => {
                control.wiring = Wiring::Direct(direct);
                control.swaps += 1;
                Ok(())
            }
            Err(error) => {
                control.note(self.device.set_unmask(None));
                let back = self
                    .device
                    .set_trigger(Some(self.forward.trigger.as_fd()))
                    .or_else(|_| self.set_up_afresh(control));
                // What was signalled meanwhile is on the line; the relay is to find it low.
                self.force_deassert(control);
                if let Err(worse) = back {
                    self.off(control, Because::Failed(Arc::new(worse)));
                }
                Err(error)
            }
        }
    }

    /// Lets the line's EOI unmask the device, and unmasks it once, now.
    fn arm(&self) -> Step {
        match self.device.set_unmask(Some(self.forward.eoi.as_fd())) {
            // One that it would not give up earlier, most likely this very one. Only the device knows.
            Err(error) if error.errno() == Some(EBUSY) => {
                self.device.set_unmask(None)?;
                self.device.set_unmask(Some(self.forward.eoi.as_fd()))?;
            }
            outcome => outcome?,
        }
        self.device.unmask()
    }

    /// Disables INTx at the device. EINVAL: a reset or a switch to MSI behind our back has done it.
    fn tear_down(&self, control: &mut Control) -> Step {
        match self.device.set_trigger(None) {
            Err(error) if error.errno() != Some(EINVAL) => Err(error),
            _ => {
                control.set_up = false;
                Self::lower_the_astray(control);
                Ok(())
            }
        }
    }

    /// The direct path has failed. Knowing that, it is decided again.
    fn fall_back(
        &self,
        control: &mut Control,
        wanted: Path,
        error: interrupt_core::Error,
    ) -> std::result::Result<(), Fault> {
        let error = Arc::new(error);
        log::warn!("INTx of {}: {wanted} failed: {error}", self.device.label());
        control.failed.push((wanted, Arc::clone(&error)));
        control.fallbacks += 1;
        control.fallback = Some(Fallback {
            wanted,
            error: Arc::clone(&error),
        });
        match control.wiring {
            Wiring::Off => Err(Fault::Step(error)),
            _ => self.settle(control),
        }
    }

    /// Any -> Off. It cannot fail: what a step leaves undone is noted, and the next one is taken.
    fn off(&self, control: &mut Control, because: Because) {
        control.handing_over = None;
        self.forward.close();
        if let Err(error) = self.forward.watch_eoi(false) {
            log::error!("tell the relay of {}: {error}", self.device.label());
        }
        if control.set_up {
            let torn_down = self.tear_down(control);
            if torn_down.is_err() && matches!(control.wiring, Wiring::Direct(_)) {
                // Then it is to signal the relay, which does not forward, and not a line that is not its own any more.
                let taken_off = self.device.set_trigger(Some(self.forward.trigger.as_fd()));
                if taken_off.is_err() {
                    control.astray = control.attached.as_ref().map(|(line, _)| line.clone());
                }
                control.note(taken_off);
            }
            control.note(torn_down);
        }
        if !matches!(because, Because::NoRoute | Because::NoRelay | Because::Changing) {
            self.forward.forget();
        }
        self.force_deassert(control);
        control.attached = None;
        control.wiring = Wiring::Off;
        if let Because::Failed(error) = &because {
            log::error!("INTx of {} is disabled: {error}", self.device.label());
        }
        control.because = because;
    }

    fn mask(&self, control: &mut Control) {
        if self.info.automasked && self.info.maskable {
            control.note(self.device.mask());
        }
    }

    /// The device signals the relay, or nobody.
    fn lower_the_astray(control: &mut Control) {
        if let Some(line) = control.astray.take() {
            control.note(line.source().force_deassert());
        }
    }

    fn force_deassert(&self, control: &mut Control) {
        if let Some((line, _)) = &control.attached {
            let withdrawn = line.source().force_deassert();
            control.note(withdrawn);
        }
    }

    // ---- what the relay reports ----

    /// Deals with a signal that could not be forwarded.
    pub(crate) fn trouble(&self, trouble: Trouble) -> Error {
        let mut control = self.control();
        // Wires that have been changed since are not the ones that made the trouble, and their change ended with an unmask.
        let current = control.wiring == Wiring::Relay && trouble.opening == self.forward.opening();
        let error = Arc::new(trouble.error);
        control.last_error = Some(Arc::clone(&error));
        let lost = match trouble.what {
            // Unmasking would only have it signal again at once, and fail again.
            Failed::Assert => true,
            // A set-up from scratch takes the mask away too.
            Failed::Unmask => current && self.set_up_afresh(&mut control).is_err(),
            Failed::Lower => false,
        };
        if current && lost {
            self.off(&mut control, Because::Failed(Arc::clone(&error)));
        }
        self.error("relay", Fault::Step(error), &mut control)
    }

    /// Nobody runs the relay any more.
    pub(crate) fn relay_has_gone(&self) {
        let mut control = self.control();
        control.relay = false;
        if control.wiring == Wiring::Relay {
            self.off(&mut control, Because::NoRelay);
        }
    }
}

fn os(operation: &'static str, line: &GuestLine, source: io::Error) -> interrupt_core::Error {
    interrupt_core::Error::Os {
        operation,
        gsi: line.gsi(),
        source,
    }
}
