// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The owner of an INTx's state: what is desired of INTx, how INTx is wired, and the steps between the wirings.
//!
//! [`StateMachine::target`] alone decides where INTx has to be; [`StateMachine::settle`] alone takes it there. Each
//! change but one goes through [`Wiring::Quiesced`]: the device signals the relay, which carries nothing, and the line
//! is low. A device with a level is unmasked as the last step of every way out, so that it signals again what it
//! asserted meanwhile. QEMU's INTx code has the same order (`hw/vfio/pci.c`: mask, lower, rewire, unmask). The
//! exception is a change of path on one line, which goes through [`Wiring::Held`] and leaves an interrupt that is under
//! way alone.
//!
//! [`Control::wiring`] always names the farthest place that the device may have reached: it is written before the first
//! step towards a wiring. Every step that fails therefore has one way out: quiesce, then the relay, or disabled (laws 7
//! and 15).

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use interrupt_core::forward::{
    DeviceInterrupt, DeviceIrq, GuestLine, InterruptInfo, Path, ProducerInfo, ProducerState,
};
use interrupt_core::{EoiGuard, EveryStep, Listener};

use crate::carrier::level::LevelRelay;
use crate::carrier::pulse::PulseRelay;
use crate::carrier::{AtEoi, Carrier, RelayError, RelayStep, Wires};
use crate::error::{Error, Result};
use crate::eventfd;
use crate::status::{Reason, State, Status};

const EBUSY: i32 = 16;
const EINVAL: i32 = 22;

/// One step at the device or at the line.
type Step<T = ()> = std::result::Result<T, interrupt_core::Error>;

/// See the [module](self).
pub(crate) struct StateMachine {
    pub(crate) device: Arc<dyn DeviceInterrupt>,
    pub(crate) info: InterruptInfo,
    relay: Arc<dyn Carrier>,
    /// The same relay, for a device with a level: only such a device has direct paths, and changes of path.
    level: Option<Arc<LevelRelay>>,
    ended: AtomicBool,
    control: Mutex<Control>,
}

/// How INTx is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wiring {
    /// Nothing is set up at the device, and the line has no listener of ours.
    Off,
    /// The device signals the relay, which carries nothing. The line is low.
    Quiesced,
    /// The device signals the relay, which carries.
    Relay,
    /// As `Relay`, until the EOI of the interrupt that is under way; `Direct` follows.
    HandOver(Path),
    /// The device signals the line, and the line's EOI the device.
    Direct(Path),
    /// The path changes on this line, from this one. The device signals the relay, which takes note and carries
    /// nothing. An interrupt that is under way on the line stays so, and its EOI is kept.
    Held(Path),
}

/// What the guest, the VMM and the connection have asked for.
#[derive(Clone, Default)]
pub(crate) struct Desired {
    pub(crate) enabled: bool,
    pub(crate) msi: bool,
    pub(crate) guest_mask: bool,
    pub(crate) disintx: bool,
    /// How many resets of the device are under way.
    pub(crate) resets: usize,
    /// The connection is between its stop and its start.
    pub(crate) stopped: bool,
    /// The line, and the path to it.
    pub(crate) line: Option<(GuestLine, Path)>,
}

pub(crate) struct Control {
    pub(crate) desired: Desired,
    /// The host's name of the interrupt.
    pub(crate) irq: Option<DeviceIrq>,
    /// The desired path has failed since something happened that makes another try worth it.
    pub(crate) failed: Option<Arc<interrupt_core::Error>>,
    wiring: Wiring,
    reason: Reason,
    /// The line that INTx is wired to, and the subscription of the EOI eventfd to its EOIs. One eventfd serves all
    /// paths, so that an EOI always finds its listener while the path changes.
    attached: Option<(GuestLine, EoiGuard)>,
    /// The device has a trigger of ours. It may have one although INTx is off, when it refused to give the trigger up.
    set_up: bool,
    /// The line that such a device may still signal: lowered once the device gives in.
    stale_trigger: Option<GuestLine>,
    /// An event loop runs the relay.
    has_relay: bool,
    fallbacks: u64,
    swaps: u64,
    last_error: Option<Arc<interrupt_core::Error>>,
    /// What the caller owns, to be dropped when the lock is free (law 14).
    discarded: Vec<Box<dyn Any + Send>>,
}

impl Control {
    pub(crate) fn state(&self) -> State {
        match self.wiring {
            Wiring::Off => State::Disabled,
            Wiring::Quiesced | Wiring::Held(_) => State::Masked,
            Wiring::Relay | Wiring::HandOver(_) => State::Carried(Path::Relay),
            Wiring::Direct(path) => State::Carried(path),
        }
    }

    /// Whether INTx is wired to the line that it has to be wired to.
    fn stays(&self) -> bool {
        match (&self.attached, &self.desired.line) {
            (Some((old, _)), Some((line, _))) => old.is(line),
            _ => false,
        }
    }

    /// Keeps the error of a step that decides nothing.
    fn note(&mut self, outcome: Step) {
        if let Err(error) = outcome {
            self.last_error = Some(Arc::new(error));
        }
    }

    fn discard(&mut self, what: impl Send + 'static) {
        self.discarded.push(Box::new(what));
    }
}

/// Why INTx could not be taken to where it has to be.
enum StepError {
    Step(Arc<interrupt_core::Error>),
    NoRelay,
}

impl From<interrupt_core::Error> for StepError {
    fn from(error: interrupt_core::Error) -> Self {
        Self::Step(Arc::new(error))
    }
}

impl StateMachine {
    pub(crate) fn new(device: Arc<dyn DeviceInterrupt>, info: InterruptInfo) -> io::Result<Self> {
        let level = info.automasked.then(LevelRelay::new).transpose()?.map(Arc::new);
        let relay: Arc<dyn Carrier> = match &level {
            Some(level) => Arc::<LevelRelay>::clone(level),
            None => Arc::new(PulseRelay::new()?),
        };
        Ok(Self {
            device,
            info,
            relay,
            level,
            ended: AtomicBool::new(false),
            control: Mutex::new(Control {
                desired: Desired::default(),
                irq: None,
                failed: None,
                wiring: Wiring::Off,
                reason: Reason::NotEnabled,
                attached: None,
                set_up: false,
                stale_trigger: None,
                has_relay: true,
                fallbacks: 0,
                swaps: 0,
                last_error: None,
                discarded: Vec::new(),
            }),
        })
    }

    pub(crate) fn relay(&self) -> &dyn Carrier {
        &*self.relay
    }

    pub(crate) fn wires(&self) -> &Wires {
        self.relay.wires()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Runs `act` on the state. This is the only place that takes the lock; what `act` discards is dropped after it.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Control) -> R) -> R {
        let (result, discarded) = {
            // A holder panics only when a line, a notifier or a device does. The wiring is written down as it is
            // reached, and the next operation goes on from there.
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut control);
            (result, std::mem::take(&mut control.discarded))
        };
        drop(discarded);
        result
    }

    /// Changes what is desired, and takes INTx to where that puts it. When that fails and INTx still works as before,
    /// the desire is as before, too. When INTx is disabled the desire stands, and the next operation tries again.
    pub(crate) fn change(&self, operation: &'static str, change: impl FnOnce(&mut Control)) -> Result<State> {
        self.with(|control| {
            let mut desired = control.desired.clone();
            change(control);
            let outcome = self.settle(control);
            if outcome.is_err() && control.wiring != Wiring::Off {
                std::mem::swap(&mut control.desired, &mut desired);
            }
            control.discard(desired);
            match outcome {
                Ok(()) => Ok(control.state()),
                Err(fault) => Err(self.error(operation, fault, control)),
            }
        })
    }

    /// Disables INTx for good.
    pub(crate) fn end(&self) {
        self.with(|control| {
            // Nothing that comes later, such as the end of the relay, sets INTx up again.
            let desired = std::mem::take(&mut control.desired);
            control.discard(desired);
            self.off(control, Reason::NotEnabled);
        });
        self.ended.store(true, Ordering::Release);
        if let Err(error) = eventfd::signal(&self.wires().changed) {
            log::error!("tell the relay of {}: {error}", self.device.label());
        }
    }

    // ---- what others ask ----

    pub(crate) fn status(&self) -> Status {
        self.with(|control| Status {
            device: self.device.label().to_owned(),
            state: control.state(),
            reason: match control.wiring {
                Wiring::HandOver(path) => Reason::HandingOver(path),
                _ => control.reason.clone(),
            },
            line: control
                .attached
                .as_ref()
                .map(|(line, _)| (line.gsi(), line.source().label().to_owned())),
            fallbacks: control.fallbacks,
            swaps: control.swaps,
            last_error: control.last_error.clone(),
        })
    }

    pub(crate) fn producer_info(&self) -> ProducerInfo {
        self.with(|control| ProducerInfo {
            interrupt: self.info,
            relay: control.has_relay,
            irq: control.irq,
        })
    }

    pub(crate) fn producer_state(&self) -> ProducerState {
        self.with(|control| {
            let path = match control.wiring {
                Wiring::Off | Wiring::Quiesced | Wiring::Held(_) => None,
                Wiring::Relay => Some(Path::Relay),
                Wiring::HandOver(path) | Wiring::Direct(path) => Some(path),
            };
            ProducerState {
                path,
                held: path.is_none().then(|| control.reason.to_string()),
                masked: control.desired.guest_mask || control.desired.disintx,
                active: control.state() == State::Carried(Path::Relay) && self.relay.is_pending(),
                failed: control.failed.as_ref().map(ToString::to_string),
            }
        })
    }

    fn error(&self, operation: &'static str, fault: StepError, control: &mut Control) -> Error {
        let device = self.device.label().to_owned();
        match fault {
            StepError::NoRelay => Error::NoRelay { operation, device },
            StepError::Step(source) => {
                // For those who ask later.
                if control.wiring == Wiring::Off {
                    control.reason = Reason::Failed(Arc::clone(&source));
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

    // ---- the decision ----

    /// Where INTx has to be, and why. By which path an enabled INTx goes is the connection's decision.
    fn target(&self, control: &Control) -> (Wiring, Reason) {
        let desired = &control.desired;
        if desired.resets > 0 {
            return (Wiring::Off, Reason::Reset);
        }
        if !desired.enabled {
            return (Wiring::Off, Reason::NotEnabled);
        }
        if desired.msi {
            return (Wiring::Off, Reason::Msi);
        }
        let Some((_, path)) = desired.line else {
            return (Wiring::Off, Reason::NoLine);
        };
        if desired.stopped {
            let wiring = match (path, control.wiring) {
                // The host forwards an interrupt that is not masked or not set up yet: so it is not set up.
                (Path::HostForward, _) => Wiring::Off,
                _ if !control.stays() || self.level.is_none() => Wiring::Quiesced,
                (_, Wiring::Relay | Wiring::HandOver(_)) => Wiring::Held(Path::Relay),
                (_, Wiring::Direct(path) | Wiring::Held(path)) => Wiring::Held(path),
                (_, Wiring::Off | Wiring::Quiesced) => Wiring::Quiesced,
            };
            return (wiring, Reason::Changing);
        }
        if desired.guest_mask {
            return (Wiring::Quiesced, Reason::GuestMask);
        }
        if desired.disintx {
            return (Wiring::Quiesced, Reason::DisIntx);
        }
        match (&control.failed, path) {
            (None, Path::HostForward | Path::KernelLoop | Path::SplitKick) => (Wiring::Direct(path), Reason::Connected),
            _ if !control.has_relay => (Wiring::Off, Reason::NoRelay),
            (Some(error), from) => {
                let error = Arc::clone(error);
                (Wiring::Relay, Reason::FellBack { from, error })
            }
            (None, Path::Relay) => (Wiring::Relay, Reason::Connected),
        }
    }

    /// Takes INTx to where it has to be. On an error INTx is where it was, or off.
    fn settle(&self, control: &mut Control) -> std::result::Result<(), StepError> {
        let (target, reason) = self.target(control);
        let line = match &control.desired.line {
            Some((line, _)) if target != Wiring::Off => line.clone(),
            _ => {
                let no_relay = matches!(reason, Reason::NoRelay);
                self.off(control, reason);
                return if no_relay { Err(StepError::NoRelay) } else { Ok(()) };
            }
        };
        let settled = self.settle_on(control, &line, target, reason);
        control.discard(line);
        settled
    }

    fn settle_on(
        &self,
        control: &mut Control,
        line: &GuestLine,
        target: Wiring,
        reason: Reason,
    ) -> std::result::Result<(), StepError> {
        if control.stays() {
            match self.change_path(control, line, target) {
                None => {}
                Some(Ok(())) => {
                    control.reason = reason;
                    return Ok(());
                }
                Some(Err(error)) => match target {
                    Wiring::Direct(path) => return self.fall_back(control, path, error),
                    // The long way, as if the line were new.
                    _ => control.note(Err(error)),
                },
            }
        }
        // First what can be refused while nothing has been disturbed yet.
        let subscription = self.subscribe(control, line)?;
        if let Err(fault) = self.quiesce(control) {
            control.discard(subscription);
            return Err(fault);
        }
        Self::attach(control, line.clone(), subscription);
        control.reason = reason;
        match target {
            Wiring::Off | Wiring::Quiesced | Wiring::Held(_) => Ok(()),
            Wiring::Relay | Wiring::HandOver(_) => self.open_relay(control, line),
            Wiring::Direct(path) => self
                .direct(control, line, path)
                .or_else(|error| self.fall_back(control, path, error)),
        }
    }

    /// The direct path has failed. Knowing that, the relay is the target.
    fn fall_back(
        &self,
        control: &mut Control,
        path: Path,
        error: interrupt_core::Error,
    ) -> std::result::Result<(), StepError> {
        log::warn!("INTx of {}: {path} failed: {error}", self.device.label());
        let error = Arc::new(error);
        control.fallbacks += 1;
        control.last_error = Some(Arc::clone(&error));
        control.failed = Some(error);
        self.settle(control)
    }

    // ---- the line ----

    /// Subscribes the EOI eventfd to the line, unless it is subscribed already.
    fn subscribe(&self, control: &Control, line: &GuestLine) -> Step<Option<EoiGuard>> {
        let attached = control.attached.as_ref().map(|(attached, _)| attached);
        if attached.is_some_and(|attached| attached.shares_subscription(line)) {
            return Ok(None);
        }
        let eoi = self
            .wires()
            .eoi
            .try_clone()
            .map_err(|error| os("dup(EOI eventfd)", line, error))?;
        match line.notifier().subscribe(line.scope(), Listener::fd(eoi)) {
            // Another handle of the notifier that has the subscription.
            Err(interrupt_core::Error::Busy { .. }) if attached.is_some_and(|old| old.scope() == line.scope()) => {
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Makes `line` the one that INTx is wired to, keeping the subscription when there is no new one. The old
    /// subscription ends after the new one has begun.
    fn attach(control: &mut Control, line: GuestLine, subscription: Option<EoiGuard>) {
        match (subscription, control.attached.take()) {
            (Some(guard), old) => {
                control.attached = Some((line, guard));
                control.discard(old);
            }
            (None, Some((old, guard))) => {
                control.attached = Some((line, guard));
                control.discard(old);
            }
            (None, None) => {}
        }
    }

    fn force_deassert(&self, control: &mut Control) {
        if let Some((line, _)) = &control.attached {
            let lowered = line.source().force_deassert();
            control.note(lowered);
        }
    }

    /// The device signals the relay now, or nothing.
    fn lower_stale(control: &mut Control) {
        if let Some(line) = control.stale_trigger.take() {
            control.note(line.source().force_deassert());
            control.discard(line);
        }
    }

    fn close(&self, control: &mut Control) {
        let line = self.wires().close();
        control.discard(line);
    }

    // ---- the steps between the wirings ----

    /// Any -> Quiesced. On an error Off.
    fn quiesce(&self, control: &mut Control) -> std::result::Result<(), StepError> {
        let quiesced = match control.wiring {
            Wiring::Quiesced => return Ok(()),
            Wiring::Off => self.set_up(control).and_then(|()| self.silence()),
            Wiring::Relay | Wiring::HandOver(_) | Wiring::Held(_) => {
                self.close(control);
                self.silence()
            }
            Wiring::Direct(_) => self
                .silence()
                .and_then(|()| self.device.set_unmask(None))
                .and_then(|()| self.signal_relay()),
        };
        let quiesced = quiesced.or_else(|error| {
            control.note(Err(error));
            self.set_up_afresh(control)
        });
        if let Err(error) = quiesced {
            let error = Arc::new(error);
            self.off(control, Reason::Failed(Arc::clone(&error)));
            return Err(StepError::Step(error));
        }
        self.force_deassert(control);
        control.wiring = Wiring::Quiesced;
        Ok(())
    }

    fn set_up(&self, control: &mut Control) -> Step {
        self.signal_relay()?;
        control.set_up = true;
        Self::lower_stale(control);
        Ok(())
    }

    fn signal_relay(&self) -> Step {
        self.device.set_trigger(Some(self.wires().trigger.as_fd()))
    }

    /// Disables INTx at the device and sets it up again, which takes the mask and the unmask eventfd away.
    fn set_up_afresh(&self, control: &mut Control) -> Step {
        self.tear_down(control)?;
        self.set_up(control)
    }

    /// Masks the device; of one that cannot be masked, asks whether it is still there.
    fn silence(&self) -> Step {
        match self.info.automasked && self.info.maskable {
            true => self.device.mask(),
            false => self.device.info().map(drop),
        }
    }

    /// Disables INTx at the device. EINVAL: a reset or a switch to MSI behind our back has done it.
    fn tear_down(&self, control: &mut Control) -> Step {
        match self.device.set_trigger(None) {
            Err(error) if error.errno() != Some(EINVAL) => Err(error),
            _ => {
                control.set_up = false;
                Self::lower_stale(control);
                Ok(())
            }
        }
    }

    /// Quiesced -> Relay, unmasked. On an error Off.
    fn open_relay(&self, control: &mut Control, line: &GuestLine) -> std::result::Result<(), StepError> {
        control.wiring = Wiring::Relay;
        control.swaps += 1;
        let opened = self
            .wires()
            .watch_eoi(true)
            .and_then(|()| self.relay.open(Arc::clone(line.source())));
        opened
            .map_err(|error| os("eventfd of the relay", line, error))
            .and_then(|()| self.unmask_relayed(control))
            .map_err(|error| self.give_up(control, error))
    }

    fn give_up(&self, control: &mut Control, error: interrupt_core::Error) -> StepError {
        let error = Arc::new(error);
        self.off(control, Reason::Failed(Arc::clone(&error)));
        StepError::Step(error)
    }

    /// Unmasks a device that signals the relay, at any price: a device that has just been set up is not masked.
    fn unmask_relayed(&self, control: &mut Control) -> Step {
        let unmasked = match self.info.automasked {
            true => self.device.unmask(),
            false => self.device.info().map(drop),
        };
        unmasked.or_else(|error| {
            control.note(Err(error));
            self.set_up_afresh(control)
        })
    }

    /// Quiesced -> Direct, unmasked.
    fn direct(&self, control: &mut Control, line: &GuestLine, path: Path) -> Step {
        let Some(trigger) = line.source().trigger() else {
            // It had one a moment ago, when the path was decided.
            return Err(interrupt_core::Error::Unsupported {
                operation: "signal the line directly",
                gsi: line.gsi(),
                reason: "the source has lost its trigger eventfd".to_owned(),
            });
        };
        self.wires()
            .watch_eoi(false)
            .and_then(|()| eventfd::drain(&self.wires().eoi))
            .map_err(|error| os("eventfd of the relay", line, error))?;
        control.wiring = Wiring::Direct(path);
        // In this order: without a trigger there is nothing to unmask, and VFIO says EINVAL.
        self.device.set_trigger(Some(trigger))?;
        match self.arm() {
            // An unmask eventfd that the device would not give up earlier, most likely this one. Only the device knows.
            Err(error) if error.errno() == Some(EBUSY) => {
                self.device.set_unmask(None)?;
                self.arm()?;
            }
            armed => armed?,
        }
        self.device.unmask()?;
        control.swaps += 1;
        Ok(())
    }

    /// Lets the line's EOI unmask the device.
    fn arm(&self) -> Step {
        self.device.set_unmask(Some(self.wires().eoi.as_fd()))
    }

    /// Any -> Off. It cannot fail: a step that fails is noted, and the next one is taken.
    fn off(&self, control: &mut Control, reason: Reason) {
        self.close(control);
        if let Err(error) = self.wires().watch_eoi(false) {
            log::error!("tell the relay of {}: {error}", self.device.label());
        }
        if control.set_up {
            let torn_down = self.tear_down(control);
            if torn_down.is_err() && matches!(control.wiring, Wiring::Direct(_)) {
                // Then it has to signal the relay, which carries nothing, and not a line that is not INTx's any more.
                let taken_off = self.signal_relay();
                if taken_off.is_err() {
                    control.stale_trigger = control.attached.as_ref().map(|(line, _)| line.clone());
                }
                control.note(taken_off);
            }
            control.note(torn_down);
        }
        // What the device has pulsed is still to be served when INTx comes back.
        if !matches!(reason, Reason::NoLine | Reason::NoRelay | Reason::Changing) {
            self.relay.forget();
        }
        self.force_deassert(control);
        let attached = control.attached.take();
        control.discard(attached);
        control.wiring = Wiring::Off;
        if let Reason::Failed(error) = &reason {
            log::error!("INTx of {} is disabled: {error}", self.device.label());
            control.last_error = Some(Arc::clone(error));
        }
        control.reason = reason;
    }

    // A change of path on one line. Nothing is lowered, masked or signalled again that need not be: an interrupt that
    // is under way stays under way, and its EOI unmasks the device by whichever path there is when it comes. That makes
    // the change cheap, since lowering a resample irqfd takes it away and puts it back; and exact, since an assertion
    // on top of an interrupt that the guest is about to end would run the guest's handler for nothing.

    /// Takes INTx to `target` on the line that it is wired to, if there is a short way. On an error INTx is somewhere
    /// on it.
    fn change_path(&self, control: &mut Control, line: &GuestLine, target: Wiring) -> Option<Step> {
        if control.wiring == target {
            return Some(Ok(()));
        }
        let level = self.level.as_deref()?;
        Some(match (control.wiring, target) {
            (Wiring::HandOver(to), Wiring::Direct(path)) if to == path && control.has_relay => Ok(()),
            (_, Wiring::Held(from)) => self.hold(control, level, line, from),
            (Wiring::Held(Path::Relay), Wiring::Relay) => self.resume_relay(control, level, line),
            (Wiring::Held(Path::Relay), Wiring::Direct(path)) => self.relay_to_direct(control, level, line, path),
            (Wiring::Held(_), Wiring::Relay) => self.direct_to_relay(control, level, line),
            (Wiring::Held(_), Wiring::Direct(path)) => self.direct_to_direct(control, level, line, path),
            _ => return None,
        })
    }

    /// Relay or Direct -> Held.
    fn hold(&self, control: &mut Control, level: &LevelRelay, line: &GuestLine, from: Path) -> Step {
        if from == Path::Relay {
            let closed = level.pause();
            control.discard(closed);
        } else {
            let prepared = level.prepare();
            prepared.map_err(|error| os("read(relay's eventfd)", line, error))?;
            // Not masked first: what the device signals now has not been on the line, and what it signalled before is.
            // A mask would hide which.
            self.signal_relay()?;
            self.device.set_unmask(None)?;
        }
        control.wiring = Wiring::Held(from);
        Ok(())
    }

    /// Held(Relay) -> Relay.
    fn resume_relay(&self, control: &mut Control, level: &LevelRelay, line: &GuestLine) -> Step {
        control.wiring = Wiring::Relay;
        let told = level.go_on(Arc::clone(line.source()), false);
        if !told.map_err(|error| os("eventfd of the relay", line, error))? {
            return Ok(());
        }
        if level.end_interrupt() {
            control.note(line.source().deassert());
        }
        self.unmask_relayed(control)
    }

    /// Held(Relay) -> Direct, or HandOver while an interrupt is under way.
    fn relay_to_direct(&self, control: &mut Control, level: &LevelRelay, line: &GuestLine, path: Path) -> Step {
        if control.has_relay && level.may_be_under_way() && !self.wires().take_missed() {
            control.wiring = Wiring::HandOver(path);
            let told = level.go_on(Arc::clone(line.source()), true);
            if !told.map_err(|error| os("eventfd of the relay", line, error))? {
                return Ok(());
            }
            let closed = level.pause();
            control.discard(closed);
        }
        if level.end_interrupt() {
            control.note(line.source().deassert());
        }
        // Nothing of the device is on the line. From here on it signals its level once.
        self.silence()?;
        self.direct(control, line, path)
    }

    /// Held(direct) -> Direct, by another path on the same wires.
    fn direct_to_direct(&self, control: &mut Control, level: &LevelRelay, line: &GuestLine, path: Path) -> Step {
        control.wiring = Wiring::Direct(path);
        self.device.set_trigger(line.source().trigger())?;
        self.arm()?;
        let signalled = level.has_signalled();
        match signalled.map_err(|error| os("read(relay's eventfd)", line, error))? {
            true => self.device.unmask(),
            false => Ok(()),
        }
    }

    /// Held(direct) -> Relay.
    fn direct_to_relay(&self, control: &mut Control, level: &LevelRelay, line: &GuestLine) -> Step {
        control.wiring = Wiring::Relay;
        let taken = level
            .take_over(Arc::clone(line.source()))
            .and_then(|signalled| self.wires().watch_eoi(true).map(|()| signalled));
        match taken.map_err(|error| os("eventfd of the relay", line, error))? {
            // The device has masked itself, and the signal has not been carried.
            true => self.unmask_relayed(control),
            false => Ok(()),
        }
    }

    // ---- what the event loop reports ----

    /// The device has signalled.
    pub(crate) fn on_trigger(&self) -> Result<()> {
        self.relay.on_trigger().map_err(|failed| {
            let (error, panic) = self.relay_failed(failed);
            panic.end();
            error
        })
    }

    /// The line has been sampled.
    pub(crate) fn on_eoi(&self) -> Result<()> {
        let (then, outcome) = self.relay.on_eoi(&*self.device);
        let failed = outcome.map_err(|failed| self.relay_failed(failed)).err();
        let handed_over = match then {
            AtEoi::Nothing => Ok(()),
            AtEoi::HandOver => self.hand_over(failed.is_none()),
        };
        let reported = failed.map_or(Ok(()), |(error, panic)| {
            panic.end();
            Err(error)
        });
        handed_over.and(reported)
    }

    /// The interrupt that the change to a direct path was waiting for has ended; the device is masked.
    fn hand_over(&self, lowered: bool) -> Result<()> {
        self.with(|control| {
            let handed_over = match (control.wiring, control.attached.as_ref().map(|(line, _)| line.clone())) {
                (Wiring::HandOver(path), Some(line)) => {
                    self.close(control);
                    control.wiring = Wiring::Quiesced;
                    if !lowered {
                        self.force_deassert(control);
                    }
                    let direct = self.silence().and_then(|()| self.direct(control, &line, path));
                    let carried = direct.or_else(|error| self.fall_back(control, path, error));
                    control.discard(line);
                    carried
                }
                (Wiring::Relay, _) => self
                    .unmask_relayed(control)
                    .map_err(|error| self.give_up(control, error)),
                (Wiring::Held(_), _) => {
                    self.wires().note_missed();
                    Ok(())
                }
                // All of these have the device signal its level again.
                _ => Ok(()),
            };
            handed_over.map_err(|fault| self.error("relay", fault, control))
        })
    }

    /// Deals with a signal that could not be carried. The panic that kept it from that, if any, is to be ended.
    fn relay_failed(&self, failed: RelayError) -> (Error, EveryStep) {
        let error = self.with(|control| {
            // Wires that have been changed since are not the ones that failed, and their change ended with an unmask.
            let current = matches!(control.wiring, Wiring::Relay | Wiring::HandOver(_))
                && failed.opening == self.wires().opening();
            let error = Arc::new(failed.error);
            control.last_error = Some(Arc::clone(&error));
            let lost = match failed.step {
                // Unmasking would only have the device signal again at once, and fail again.
                RelayStep::Assert => true,
                // A set-up from scratch takes the mask away too.
                RelayStep::Unmask => current && self.set_up_afresh(control).is_err(),
                RelayStep::Lower => false,
            };
            if current && lost {
                self.off(control, Reason::Failed(Arc::clone(&error)));
            }
            self.error("relay", StepError::Step(error), control)
        });
        (error, failed.panic)
    }

    /// The relay has ended: a direct path that INTx is connected by gets another try.
    pub(crate) fn relay_has_gone(&self) {
        self.with(|control| {
            control.has_relay = false;
            control.failed = None;
            if self.settle(control).is_err() {
                log::error!("INTx of {} is disabled: its relay is gone", self.device.label());
            }
        });
    }
}

fn os(operation: &'static str, line: &GuestLine, source: io::Error) -> interrupt_core::Error {
    interrupt_core::Error::Os {
        operation,
        gsi: line.gsi(),
        source,
    }
}
