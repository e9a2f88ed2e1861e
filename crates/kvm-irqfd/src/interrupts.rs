// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupts of one VM: its routing table, its lines, and whoever listens to them.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interrupt_core::{
    EoiGuard, EoiNotifier, EoiScope, Gsi, Line, LineCounts, Listener, Listeners, LoweredBy, SourceKey,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::dispatch::{Dispatcher, Served, Target};
use crate::event::{Claim, Event};
use crate::irq_line::{IrqLinePin, IrqLineSource};
use crate::irqfds::{GsiLine, Irqfd, Resample, Use};
use crate::routing::Routing;
use crate::{EdgeIrqfd, Error, Irqchip, ResampleSource, Result, Routes, SPLIT_PINS, SplitSource};

/// The interrupts of one VM. Everything that injects by GSI goes through it: it owns the routing table and the lines, because
/// KVM's own answers cannot be relied on (a deassign never fails, an assign checks no GSI).
///
/// Make one for each VM, after the irqchip; nothing else may then call KVM_IRQFD, KVM_IRQ_LINE or KVM_SET_GSI_ROUTING on that
/// VM. Clones are handles to the same. See the [crate documentation](crate) for an example.
#[derive(Clone)]
pub struct KvmInterrupts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    vm: Arc<VmFd>,
    irqchip: Irqchip,
    dispatcher: Arc<Dispatcher>,
    next_token: AtomicU64,
    state: Mutex<State>,
}

/// What has happened on one GSI since it came into use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GsiCounts {
    /// What this process has seen: assertions by its own sources, which a trigger that somebody else signals is none of, and the
    /// EOIs that [`KvmInterrupts::dispatch`] has served for KVM_IRQ_LINE sources, which those that KVM tells an eventfd are none of.
    pub line: LineCounts,
    /// How often the irqfds were taken off and put on again: for a new route, for one that went, for a level that was withdrawn.
    pub reassigned: u64,
}

/// What changes at configuration time, and is locked for it. Signals, EOIs and `dispatch` never take this lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) routes: Routes,
    pub(crate) lines: BTreeMap<Gsi, GsiLine>,
    /// The pins of a userspace IOAPIC that the guest has unmasked; as many as are reserved for it.
    unmasked: Vec<bool>,
    /// The resamplefds that serve lines which KVM_IRQ_LINE drives, with the irqfds they belong to.
    pumps: BTreeMap<Gsi, (u64, Served)>,
}

impl KvmInterrupts {
    /// Takes over a VM whose routing table is as KVM made it with the irqchip. A split irqchip is taken to have
    /// [`SPLIT_PINS`](crate::SPLIT_PINS) GSIs reserved, all of them masked.
    ///
    /// # Errors
    /// [`Error::Vm`] when KVM or epoll refuse for a reason that is not an answer, EMFILE say; on aarch64
    /// [`Error::NotInitialised`] when the vGIC is not initialised yet.
    pub fn new(vm: Arc<VmFd>) -> Result<Self> {
        let irqchip = Irqchip::probe(&vm)?;
        Self::build(vm, irqchip, SPLIT_PINS, Routes::initial(irqchip))
    }

    /// The same for a vGIC with `spis` shared interrupts, whose GSIs are 0 to `spis`-1; [`new`](Self::new) takes it to have
    /// [`GIC_SPIS`](crate::GIC_SPIS), which is what KVM gives it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(target_arch = "aarch64")]
    pub fn with_spis(vm: Arc<VmFd>, spis: u32) -> Result<Self> {
        let irqchip = Irqchip::probe(&vm)?;
        Self::build(vm, irqchip, 0, Routes::of_gic(spis))
    }

    /// The same for a split irqchip with another number of reserved GSIs.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_split_pins(vm: Arc<VmFd>, pins: u32) -> Result<Self> {
        let irqchip = Irqchip::probe(&vm)?;
        Self::build(vm, irqchip, pins, Routes::initial(irqchip))
    }

    fn build(vm: Arc<VmFd>, irqchip: Irqchip, pins: u32, routes: Routes) -> Result<Self> {
        let pins = if irqchip == Irqchip::Split { pins as usize } else { 0 };
        let shared = Shared {
            vm,
            irqchip,
            dispatcher: Arc::new(Dispatcher::new()?),
            next_token: AtomicU64::new(0),
            state: Mutex::new(State {
                routes,
                lines: BTreeMap::new(),
                unmasked: vec![false; pins],
                pumps: BTreeMap::new(),
            }),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        self.shared.vm()
    }

    /// The controllers that the VM has in the kernel.
    pub fn irqchip(&self) -> Irqchip {
        self.shared.irqchip
    }

    /// The routing table as it is now.
    pub fn routes(&self) -> Routes {
        self.shared.state().routes.clone()
    }

    /// What has happened on `gsi`; `None` when nothing uses it. It waits for a change of configuration that is under way, and no
    /// signal waits for it.
    pub fn counts(&self, gsi: Gsi) -> Option<GsiCounts> {
        let (asserted, reassigned, irq_line) = {
            let state = self.shared.state();
            let line = state.lines.get(&gsi)?;
            (line.asserted(), line.reassigned(), line.irq_line())
        };
        // Without the lock: what drops the last reference to a line takes it.
        let mut line = irq_line.map(|line| line.counts()).unwrap_or_default();
        line.asserted += asserted;
        Some(GsiCounts { line, reassigned })
    }

    /// Begins a change of the routing table. Nothing else is configured until it is committed or dropped.
    pub fn routing(&self) -> Routing<'_> {
        Routing::new(&self.shared, self.shared.state())
    }

    /// A level source on a resample irqfd, with a trigger of its own.
    ///
    /// # Errors
    /// As [`resample_source_with`](Self::resample_source_with).
    pub fn resample_source(&self, gsi: Gsi, label: impl Into<String>) -> Result<ResampleSource> {
        self.add_resample_source(gsi, label.into(), Event::new(gsi)?)
    }

    /// A level source on a resample irqfd that is triggered by the caller's eventfd, which a device in another process, VFIO or
    /// vhost may signal. A count that is pending in it is discarded: make the device signal again after this, if it may have
    /// signalled before (VFIO does at an unmask).
    ///
    /// # Errors
    /// * [`Error::NoIrqchip`], [`Error::SplitIrqchip`]: the VM has no pins in the kernel.
    /// * [`Error::UnknownGsi`], [`Error::MsiRoute`], [`Error::ShadowedPin`]: the GSI leads to no pin that would report an EOI.
    /// * [`Error::MixedUse`]: the GSI has an edge irqfd or KVM_IRQ_LINE sources.
    /// * [`Error::AlreadyBound`], [`Error::NotEventfd`], [`Error::Semaphore`]: the eventfd cannot be a trigger.
    /// * [`Error::Os`]: the system refused.
    ///
    /// Nothing is left behind by a refusal; the eventfd can be used elsewhere at once.
    pub fn resample_source_with(&self, gsi: Gsi, label: impl Into<String>, trigger: EventFd) -> Result<ResampleSource> {
        let trigger = Event::trigger(trigger, "resample source", gsi)?;
        self.add_resample_source(gsi, label.into(), trigger)
    }

    fn add_resample_source(&self, gsi: Gsi, label: String, trigger: Event) -> Result<ResampleSource> {
        let (trigger, key) = (Arc::new(trigger), SourceKey::new(gsi));
        let mut irqfd = self
            .shared
            .irqfd(Use::Resample, gsi, Arc::clone(&trigger), Resample::Unheard)?;
        irqfd.key = Some(key);
        let token = self.shared.add(&mut self.shared.state(), gsi, irqfd)?;
        Ok(ResampleSource::new(
            Arc::clone(&self.shared),
            key,
            label,
            trigger,
            token,
        ))
    }

    /// A level source on a split irqchip that is triggered by an eventfd: see [`SplitSource`]. `trigger` is the caller's, or
    /// `None` for a new one. The EOI notifier of such a source is the userspace IOAPIC, by GSI.
    ///
    /// # Errors
    /// * [`Error::NotSplit`]: the irqchip is another, or the GSI is not one of those that are reserved for the userspace IOAPIC.
    /// * [`Error::MixedUse`]: the GSI has an edge irqfd.
    /// * [`Error::AlreadyBound`], [`Error::NotEventfd`], [`Error::Semaphore`]: the eventfd cannot be a trigger.
    /// * [`Error::Os`]: the system refused.
    pub fn split_source(&self, gsi: Gsi, label: impl Into<String>, trigger: Option<EventFd>) -> Result<SplitSource> {
        const OPERATION: &str = "split source";
        let trigger = Arc::new(match trigger {
            Some(trigger) => Event::trigger(trigger, OPERATION, gsi)?,
            None => Event::new(gsi)?,
        });
        let key = SourceKey::new(gsi);
        let irqfd = self
            .shared
            .irqfd(Use::Split, gsi, Arc::clone(&trigger), Resample::Never)?;
        let token = self.shared.add(&mut self.shared.state(), gsi, irqfd)?;
        Ok(SplitSource::new(
            Arc::clone(&self.shared),
            key,
            label.into(),
            trigger,
            token,
        ))
    }

    /// A level source over KVM_IRQ_LINE.
    ///
    /// # Errors
    /// * [`Error::NoIrqchip`], [`Error::SplitIrqchip`]: the VM has no pins in the kernel.
    /// * [`Error::UnknownGsi`], [`Error::MsiRoute`]: the GSI leads to no pin.
    /// * [`Error::MixedUse`]: the GSI has irqfds that assert it.
    /// * [`Error::Os`]: the system refused.
    pub fn irq_line_source(&self, gsi: Gsi, label: impl Into<String>) -> Result<IrqLineSource> {
        const OPERATION: &str = "KVM_IRQ_LINE";
        self.shared.needs_pins(OPERATION, gsi)?;
        let line = {
            let mut state = self.shared.state();
            match state.routes.check_resample(OPERATION, gsi) {
                // KVM_IRQ_LINE drives a pin whoever else is routed to it.
                Ok(()) | Err(Error::ShadowedPin { .. }) => {}
                Err(error) => return Err(error),
            }
            let gsi_line = state.lines.entry(gsi).or_default();
            gsi_line.check(gsi, Use::IrqLine)?;
            match gsi_line.irq_line() {
                Some(line) => line,
                None => {
                    let line = IrqLinePin::line(gsi, &self.shared);
                    gsi_line.set_irq_line(&line);
                    if gsi_line.has_resampler() {
                        self.shared.pump(&mut state, &line)?;
                    }
                    line
                }
            }
        };
        Ok(line.source(label, LoweredBy::Device))
    }

    /// An edge irqfd with a trigger of its own.
    ///
    /// # Errors
    /// As [`edge_irqfd_with`](Self::edge_irqfd_with).
    pub fn edge_irqfd(&self, gsi: Gsi) -> Result<EdgeIrqfd> {
        self.add_edge_irqfd(gsi, Event::new(gsi)?)
    }

    /// An edge irqfd, on a pin or on an MSI route, that is triggered by the caller's eventfd. A pending count is discarded.
    ///
    /// # Errors
    /// * [`Error::NoIrqchip`]: the VM has no irqchip in the kernel.
    /// * [`Error::UnknownGsi`]: the GSI leads nowhere.
    /// * [`Error::MixedUse`]: the GSI has level sources.
    /// * [`Error::AlreadyBound`], [`Error::NotEventfd`], [`Error::Semaphore`]: the eventfd cannot be a trigger.
    /// * [`Error::Os`]: the system refused.
    pub fn edge_irqfd_with(&self, gsi: Gsi, trigger: EventFd) -> Result<EdgeIrqfd> {
        self.add_edge_irqfd(gsi, Event::trigger(trigger, "edge irqfd", gsi)?)
    }

    fn add_edge_irqfd(&self, gsi: Gsi, trigger: Event) -> Result<EdgeIrqfd> {
        let trigger = Arc::new(trigger);
        let irqfd = self
            .shared
            .irqfd(Use::Edge, gsi, Arc::clone(&trigger), Resample::Never)?;
        let token = self.shared.add(&mut self.shared.state(), gsi, irqfd)?;
        Ok(EdgeIrqfd::new(Arc::clone(&self.shared), gsi, trigger, token))
    }

    /// Waits for EOIs that are this process's to serve, at most for `timeout` (or without a limit), serves those that there are,
    /// and returns how many it served. 0 says that the time was up or that a signal came.
    ///
    /// Callbacks are called here, and so are the levels of KVM_IRQ_LINE sources stated again where KVM may have forgotten them. A
    /// VM that uses neither, because its listeners are eventfds and its sources resample irqfds, need not call this. Otherwise a
    /// thread of the caller's does, in a loop, or whenever the fd of [`AsFd`] is readable, with a timeout of zero. Several threads
    /// may.
    ///
    /// # Errors
    /// [`interrupt_core::Error::Os`] from epoll, or the first error of a listener or of a level that could not be stated. All of
    /// them were served.
    pub fn dispatch(&self, timeout: Option<Duration>) -> interrupt_core::Result<usize> {
        self.shared.dispatcher.dispatch(timeout)
    }
}

impl KvmInterrupts {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// As in "kernel irqchip; gsi 5: a resample irqfd; gsi 11: timer low".
impl fmt::Debug for KvmInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken out of the lock: what drops the last reference to a line takes it.
        let lines: Vec<_> = {
            let state = self.shared.state();
            let lines = state.lines.iter();
            lines
                .map(|(gsi, line)| (*gsi, line.describe(), line.irq_line()))
                .collect()
        };
        write!(f, "{} irqchip", self.irqchip())?;
        for (gsi, irqfds, irq_line) in lines {
            let comma = if irqfds.is_empty() { "" } else { ", " };
            match irq_line {
                Some(line) => write!(f, "; {line:?}{comma}")?,
                None => write!(f, "; {gsi}: ")?,
            }
            f.write_str(&irqfds.join(", "))?;
        }
        Ok(())
    }
}

impl AsFd for KvmInterrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.dispatcher.as_fd()
    }
}

impl EoiNotifier for KvmInterrupts {
    /// An eventfd becomes KVM's own resamplefd, so that an EOI reaches it without this process. A callback is called by
    /// [`dispatch`](KvmInterrupts::dispatch).
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        self.shared.subscribe(subject, listener)
    }
}

impl State {
    /// Whether what triggers a pin of a userspace IOAPIC has to wait.
    fn is_held_back(&self, gsi: Gsi) -> bool {
        let unmasked = self.unmasked.get(gsi.0 as usize).is_some_and(|unmasked| *unmasked);
        !unmasked || self.routes.get(gsi).is_empty()
    }

    /// Assigns the irqfds of a GSI again, as far as its mask and its route allow.
    pub(crate) fn put_on(&mut self, vm: &VmFd, gsi: Gsi) -> Result<()> {
        let held_back = self.is_held_back(gsi);
        match self.lines.get_mut(&gsi) {
            Some(line) => {
                line.set_held_back(held_back);
                line.assign_all(vm, gsi)
            }
            None => Ok(()),
        }
    }
}

impl Shared {
    pub(crate) fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    pub(crate) fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole at every point where a panic could come from: only std's collections are called under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn needs_pins(&self, operation: &'static str, gsi: Gsi) -> Result<()> {
        match self.irqchip {
            Irqchip::Full => Ok(()),
            Irqchip::Split => Err(Error::SplitIrqchip { operation, gsi }),
            Irqchip::None => Err(Error::NoIrqchip { operation, gsi }),
        }
    }

    fn irqfd(&self, purpose: Use, gsi: Gsi, trigger: Arc<Event>, resample: Resample) -> Result<Irqfd> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        Irqfd::new(token, purpose, gsi, trigger, resample)
    }

    /// Checks everything that KVM does not, assigns the irqfd, and returns its token.
    fn add(&self, state: &mut State, gsi: Gsi, irqfd: Irqfd) -> Result<u64> {
        const OPERATION: &str = "KVM_IRQFD";
        let operation = OPERATION;
        let mut held_back = false;
        if irqfd.purpose == Use::Split {
            // Law of the split irqchip: KVM raises the EOI exit for the reserved GSIs and for no other.
            if gsi.0 as usize >= state.unmasked.len() {
                return Err(Error::NotSplit { operation, gsi });
            }
            held_back = state.is_held_back(gsi);
        } else if matches!(irqfd.resample, Resample::Never) {
            if self.irqchip == Irqchip::None {
                return Err(Error::NoIrqchip { operation, gsi });
            }
            if state.routes.get(gsi).is_empty() {
                return Err(Error::UnknownGsi { operation, gsi });
            }
        } else {
            self.needs_pins(operation, gsi)?;
            state.routes.check_resample(operation, gsi)?;
        }
        check_resamplefd(&irqfd.resample, gsi)?;
        let token = irqfd.token;
        let line = state.lines.entry(gsi).or_default();
        line.check(gsi, irqfd.purpose)?;
        line.add(&self.vm, gsi, irqfd, held_back)?;
        Ok(token)
    }

    /// Takes an irqfd away with what it asserts.
    pub(crate) fn remove(&self, gsi: Gsi, token: u64) -> Result<()> {
        let mut state = self.state();
        let Some(line) = state.lines.get_mut(&gsi) else {
            return Ok(());
        };
        let removed = line.remove(&self.vm, gsi, token);
        if line.is_unused() {
            state.lines.remove(&gsi);
        }
        removed
    }

    /// The guest has masked or unmasked a pin of the userspace IOAPIC.
    pub(crate) fn set_masked(&self, gsi: Gsi, masked: bool) -> Result<()> {
        let mut state = self.state();
        let Some(unmasked) = state.unmasked.get_mut(gsi.0 as usize) else {
            return Ok(());
        };
        if std::mem::replace(unmasked, !masked) != masked {
            return Ok(());
        }
        let assigned = match state.lines.get(&gsi) {
            Some(line) if line.has_split_source() => line
                .deassign_all(&self.vm, gsi)
                .and_then(|()| state.put_on(&self.vm, gsi)),
            _ => Ok(()),
        };
        // After an error the next call tries again.
        if let (Err(_), Some(unmasked)) = (&assigned, state.unmasked.get_mut(gsi.0 as usize)) {
            *unmasked = masked;
        }
        assigned
    }

    /// Lowers what an irqfd asserts.
    pub(crate) fn lower(&self, gsi: Gsi, token: u64) -> Result<()> {
        match self.state().lines.get_mut(&gsi) {
            Some(line) => line.lower(&self.vm, gsi, token),
            None => Ok(()),
        }
    }

    fn subscribe(self: &Arc<Self>, subject: EoiScope, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        const OPERATION: &str = "subscribe";
        let gsi = subject.gsi();
        let mut state = self.state();
        let Some(line) = state.lines.get(&gsi) else {
            return match subject {
                EoiScope::Gsi(_) => self.notify(&mut state, subject, listener),
                EoiScope::Source(_) => Err(not_found(subject)),
            };
        };
        if let Some(line) = line.irq_line() {
            // Its listeners are told by `dispatch`, together with the restating of the level.
            let pumped = self.pump(&mut state, &line);
            drop(state);
            pumped.map_err(|error| error.into_core(OPERATION, gsi))?;
            return line.subscribe(subject, listener);
        }
        let EoiScope::Source(key) = subject else {
            return self.notify(&mut state, subject, listener);
        };
        match line.find_key(key) {
            None => Err(not_found(subject)),
            Some(irqfd) if irqfd.has_listener => Err(interrupt_core::Error::Busy {
                operation: OPERATION,
                subject,
            }),
            Some(irqfd) => {
                let token = irqfd.token;
                let hearing = self.hear(subject, listener)?;
                self.bind(&mut state, gsi, token, &hearing.event)
                    .map_err(|error| error.into_core(OPERATION, gsi))?;
                drop(state);
                let shared = Arc::downgrade(self);
                Ok(EoiGuard::new(subject, move || {
                    if let Some(shared) = shared.upgrade() {
                        shared.unbind(gsi, token);
                    }
                    hearing.end();
                }))
            }
        }
    }

    /// Makes `event` the resamplefd of a level source.
    fn bind(&self, state: &mut State, gsi: Gsi, token: u64, event: &Arc<Event>) -> Result<()> {
        let resample = Resample::Heard(Arc::clone(event));
        check_resamplefd(&resample, gsi)?;
        let Some(line) = state.lines.get_mut(&gsi) else {
            return Ok(());
        };
        line.set_resample(&self.vm, gsi, token, resample)?;
        if let Some(irqfd) = line.find(token) {
            irqfd.has_listener = true;
        }
        Ok(())
    }

    /// Undoes [`bind`](Self::bind), if the source is still there.
    fn unbind(&self, gsi: Gsi, token: u64) {
        let mut state = self.state();
        if let Some(line) = state.lines.get_mut(&gsi) {
            // A guard's drop has nobody to report to. If KVM refuses, the old resamplefd goes on being signalled, unheard.
            drop(line.set_resample(&self.vm, gsi, token, Resample::Unheard));
            if let Some(irqfd) = line.find(token) {
                irqfd.has_listener = false;
            }
        }
    }

    /// Notify-only: a resample irqfd whose trigger nobody has.
    fn notify(
        self: &Arc<Self>,
        state: &mut State,
        subject: EoiScope,
        listener: Listener,
    ) -> interrupt_core::Result<EoiGuard> {
        let gsi = subject.gsi();
        let hearing = self.hear(subject, listener)?;
        let token = self
            .add_notify(state, gsi, &hearing.event)
            .map_err(|error| error.into_core("subscribe", gsi))?;
        let shared = Arc::downgrade(self);
        Ok(EoiGuard::new(subject, move || {
            if let Some(shared) = shared.upgrade() {
                // As for `unbind`.
                drop(shared.remove(gsi, token));
            }
            hearing.end();
        }))
    }

    fn add_notify(&self, state: &mut State, gsi: Gsi, event: &Arc<Event>) -> Result<u64> {
        let trigger = Arc::new(Event::new(gsi)?);
        let irqfd = self.irqfd(Use::Notify, gsi, trigger, Resample::Heard(Arc::clone(event)))?;
        self.add(state, gsi, irqfd)
    }

    /// Turns a listener into an eventfd that KVM can signal.
    fn hear(self: &Arc<Self>, subject: EoiScope, listener: Listener) -> interrupt_core::Result<Hearing> {
        const OPERATION: &str = "subscribe";
        let gsi = subject.gsi();
        let core = |error: Error| error.into_core(OPERATION, gsi);
        match listener.into_fd() {
            Ok(fd) => Ok(Hearing {
                event: Arc::new(Event::from_owned(fd, OPERATION, gsi).map_err(core)?),
                served: None,
            }),
            Err(callback) => {
                let event = Arc::new(Event::new(gsi).map_err(core)?);
                let listeners = Listeners::new();
                let guard = listeners.subscribe(subject, callback)?;
                let target = Target::Listeners(gsi, listeners);
                let served = self.dispatcher.serve(gsi, Arc::clone(&event), target).map_err(core)?;
                Ok(Hearing {
                    event,
                    served: Some((served, guard)),
                })
            }
        }
    }

    /// Makes sure that EOIs of a line which KVM_IRQ_LINE drives come through `dispatch`.
    fn pump(self: &Arc<Self>, state: &mut State, line: &Arc<Line<IrqLinePin>>) -> Result<()> {
        let gsi = line.gsi();
        if state.pumps.contains_key(&gsi) {
            return Ok(());
        }
        let event = Arc::new(Event::new(gsi)?);
        let target = Target::Line(Arc::downgrade(line));
        let served = self.dispatcher.serve(gsi, Arc::clone(&event), target)?;
        let token = self.add_notify(state, gsi, &event)?;
        state.pumps.insert(gsi, (token, served));
        Ok(())
    }

    /// The last KVM_IRQ_LINE source of a GSI has gone.
    pub(crate) fn irq_line_gone(&self, gsi: Gsi) {
        let mut state = self.state();
        let pump = state.pumps.remove(&gsi);
        let Some(line) = state.lines.get_mut(&gsi) else {
            return;
        };
        if let Some((token, _)) = &pump {
            // As for `unbind`.
            drop(line.remove(&self.vm, gsi, *token));
        }
        if line.is_unused() {
            state.lines.remove(&gsi);
        }
    }
}

/// An eventfd that KVM signals for a listener: the listener's own, or one that `dispatch` watches.
struct Hearing {
    event: Arc<Event>,
    served: Option<(Served, EoiGuard)>,
}

impl Hearing {
    /// Ends it: no more events, then no more calls.
    fn end(self) {
        if let Some((served, guard)) = self.served {
            drop(served);
            drop(guard);
        }
    }
}

fn not_found(subject: EoiScope) -> interrupt_core::Error {
    interrupt_core::Error::NotFound {
        operation: "subscribe",
        subject,
    }
}

/// A resamplefd that triggers an irqfd would raise an interrupt at every EOI.
fn check_resamplefd(resample: &Resample, gsi: Gsi) -> Result<()> {
    match resample {
        Resample::Heard(event) if Claim::is_held(event) => Err(Error::TriggerIsResample {
            operation: "KVM_IRQFD",
            gsi,
        }),
        _ => Ok(()),
    }
}
