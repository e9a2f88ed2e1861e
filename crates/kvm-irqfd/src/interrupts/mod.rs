// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupts of one VM, as a VMM uses them.

pub(crate) mod routing;
pub(crate) mod source;
pub(crate) mod subscribe;

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, Irqchip, LevelSource, Listener, SourceKey};
use kvm_bindings::kvm_irq_routing_entry;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::books::Books;
use crate::error::{Error, Reason, Result};
use crate::kernel::eventfd::Eventfd;
use crate::kernel::irqchip::{SPLIT_PINS, probe};
use crate::kernel::{Kernel, KvmVm, SetRoutes};
use crate::kind::BindingKind;
use crate::line::{GsiCounts, GsiLine};
use crate::routes::Routes;
use routing::Routing;
use source::EdgeIrqfd;

/// The interrupts of one VM. Everything that injects by GSI goes through this: it owns the routing table and the lines,
/// because KVM's own answers cannot be relied on (a deassign never fails, an assign checks no GSI).
///
/// Make one for each VM, after the irqchip; nothing else may then call KVM_IRQFD, KVM_IRQ_LINE or KVM_SET_GSI_ROUTING
/// on that VM, or for the GSIs that [`beside`](Self::beside) gives to this. Clones are handles to the same. See the [crate documentation](crate) for an example.
///
/// Where /proc is not mounted, as in the jail of a VMM, the kernel does not say which eventfd a descriptor stands for.
/// Each eventfd of the caller is then taken to be a different one:
/// [`Reason::AlreadyBound`](crate::Reason::AlreadyBound) and
/// [`Reason::TriggerIsResample`](crate::Reason::TriggerIsResample) are not found, KVM's EBUSY for a second irqfd
/// remains, and an fd that is no eventfd is EINVAL.
#[derive(Clone)]
pub struct KvmInterrupts {
    vm: Arc<VmFd>,
    pub(crate) books: Arc<Books>,
}

impl KvmInterrupts {
    /// Takes over a VM whose routing table is as KVM made it with the irqchip. A split irqchip is taken to have
    /// [`SPLIT_PINS`] GSIs reserved, all of them masked.
    ///
    /// KVM does not tell its routing table. Where the VMM has set routes before, see
    /// [`with_routes`](Self::with_routes), and where it goes on doing so, [`beside`](Self::beside).
    ///
    /// # Errors
    /// [`Reason::Os`](crate::Reason::Os) when KVM or epoll refuse, EMFILE say; on aarch64
    /// [`Reason::NotInitialised`](crate::Reason::NotInitialised) when the vGIC is not initialised yet.
    pub fn new(vm: Arc<VmFd>) -> Result<Self> {
        Self::build(vm, SPLIT_PINS, Routes::initial, None)
    }

    /// The same for a VM whose routing table the VMM has set to `routes`. KVM is not asked to set it again.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_routes(vm: Arc<VmFd>, routes: Routes) -> Result<Self> {
        Self::build(vm, SPLIT_PINS, |_| routes, None)
    }

    /// The same beside other owners of the VM's interrupts, an allocator of MSIs say: this has `gsis` and no other, whose
    /// routes are `routes` so far. KVM takes the routing table as a whole, so that the VMM keeps the table: `set_routes`
    /// is given all entries for `gsis` whenever one of them changes, and calls KVM_SET_GSI_ROUTING with these and those of
    /// the others. The call is part of a change: the lines whose routes change are off and low until it returns, and
    /// [`routes`](Self::routes) are the new ones. It may read these interrupts, assert, mask, and drop what it has of
    /// them; a change of routes or pins, a new source and a new listener are refused with
    /// [`Reason::Reentrant`](crate::Reason::Reentrant). It must not wait for another thread that makes such a change,
    /// because that thread waits for this one. An entry that it sets may not lead to a
    /// pin that an entry of these GSIs leads to.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Reason::NotOwned`](crate::Reason::NotOwned) when `routes` has another GSI.
    pub fn beside(
        vm: Arc<VmFd>,
        gsis: Range<Gsi>,
        routes: Routes,
        set_routes: impl Fn(&[kvm_irq_routing_entry]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        if let Some((gsi, _)) = routes.iter().find(|(gsi, _)| !gsis.contains(gsi)) {
            return Err(Error::new("use routes", gsi, Reason::NotOwned));
        }
        Self::build(vm, SPLIT_PINS, |_| routes, Some((gsis, Box::new(set_routes))))
    }

    /// The same for a vGIC with `spis` shared interrupts, whose GSIs are 0 to `spis`-1; [`new`](Self::new) takes the
    /// vGIC to have [`GIC_SPIS`](crate::GIC_SPIS), which is what KVM gives it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(target_arch = "aarch64")]
    pub fn with_spis(vm: Arc<VmFd>, spis: u32) -> Result<Self> {
        Self::build(vm, 0, |_| Routes::of_gic(spis), None)
    }

    /// The same for a split irqchip with another number of reserved GSIs.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_split_pins(vm: Arc<VmFd>, pins: u32) -> Result<Self> {
        Self::build(vm, pins, Routes::initial, None)
    }

    fn build(
        vm: Arc<VmFd>,
        pins: u32,
        routes: impl FnOnce(Irqchip) -> Routes,
        others: Option<(Range<Gsi>, SetRoutes)>,
    ) -> Result<Self> {
        let (owned, set_routes) = others.unzip();
        let kernel: Arc<dyn Kernel> = Arc::new(KvmVm::new(Arc::clone(&vm), set_routes));
        let irqchip = probe(&*kernel)?;
        let books = Books::new(kernel, irqchip, pins, routes(irqchip), owned)?;
        Ok(Self { vm, books })
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Where the VM has its controllers. [`Irqchip::User`]: the kernel has none, and injects nothing by GSI.
    pub fn irqchip(&self) -> Irqchip {
        self.books.irqchip
    }

    /// The routing table as it is now.
    pub fn routes(&self) -> Routes {
        self.books.with(|state| state.routes.clone())
    }

    /// What has happened on `gsi`; `None` when nothing uses it. This waits for a change of configuration that is under
    /// way, and no signal waits for this.
    pub fn counts(&self, gsi: Gsi) -> Option<GsiCounts> {
        self.books.with(|state| state.lines.get(&gsi).map(GsiLine::counts))
    }

    /// Begins a change of the routing table.
    pub fn routing(&self) -> Routing<'_> {
        Routing::new(&self.books)
    }

    /// A level source on a resample irqfd (KVM_IRQFD_FLAG_RESAMPLE), with a trigger of its own: asserting is one write
    /// to an eventfd, by anybody who has it, and KVM lowers the line at the EOI. The write is asynchronous for a pin:
    /// KVM drives the pin from a work queue.
    ///
    /// Dropping the source deassigns the irqfd and lowers what it asserts. Other sources of the line are asked for
    /// their levels then, because KVM keeps one assertion for all resample irqfds of a GSI.
    ///
    /// # Errors
    /// As [`resample_source_with`](Self::resample_source_with).
    pub fn resample_source(&self, gsi: Gsi, label: impl Into<String>) -> Result<Arc<dyn LevelSource>> {
        let trigger = self.trigger(gsi, None)?;
        source::irqfd(&self.books, BindingKind::Resample, gsi, label.into(), trigger)
    }

    /// The same with the caller's eventfd as the trigger, which a device in another process, VFIO or vhost may signal.
    /// A count that is pending in the eventfd is discarded: make the device signal again after this, if it may have
    /// signalled before (VFIO does at an unmask).
    ///
    /// # Errors
    /// See [`Reason`](crate::Reason):
    /// * `NoIrqchip`, `SplitIrqchip`: the VM has no pins in the kernel.
    /// * `UnknownGsi`, `MsiRoute`, `ShadowedPin`: the GSI leads to no pin that would report an EOI.
    /// * `MixedUse`: the GSI has an edge irqfd or KVM_IRQ_LINE sources. `SharedPin`: another GSI drives the pin.
    /// * `AlreadyBound`, `TriggerIsResample`, `NotEventfd`, `Semaphore`: the eventfd cannot be a trigger.
    /// * `Os`: the system refused.
    ///
    /// Nothing is left behind by a refusal; the eventfd can be used elsewhere at once.
    pub fn resample_source_with(
        &self,
        gsi: Gsi,
        label: impl Into<String>,
        trigger: EventFd,
    ) -> Result<Arc<dyn LevelSource>> {
        let trigger = self.trigger(gsi, Some(trigger))?;
        source::irqfd(&self.books, BindingKind::Resample, gsi, label.into(), trigger)
    }

    /// A level source on a split irqchip whose trigger is an irqfd on the pin's own GSI: a signal reaches the guest
    /// without this process, by the level-triggered message that the userspace IOAPIC has routed there. While the pin
    /// is masked or has no route, a signal waits in the trigger.
    ///
    /// The signal passes the IOAPIC by, whose remote IRR stays clear: a signal during the guest's handler gives one
    /// more run of the handler. The source is therefore for devices that signal once for each EOI, as an automasked
    /// VFIO INTx does. The EOI notifier of the source is the userspace IOAPIC, by GSI.
    ///
    /// A signal that waits behind a mask is dropped at an unmask after which the IOAPIC asks the listeners of the GSI
    /// ([`PinMask::Asked`](interrupt_core::PinMask::Asked)), so a device that signals the trigger listens there, and
    /// signals again when it is told and its level lasts. Otherwise a guest that serves the device behind the mask (Linux
    /// does so for a threaded handler with IRQF_ONESHOT) would get an interrupt for nothing each time. What
    /// [`LevelSource::assert`] signals behind a mask, and a signal that nobody is asked for, is injected at the unmask.
    ///
    /// # Errors
    /// As [`split_source_with`](Self::split_source_with).
    pub fn split_source(&self, gsi: Gsi, label: impl Into<String>) -> Result<Arc<dyn LevelSource>> {
        let trigger = self.trigger(gsi, None)?;
        source::irqfd(&self.books, BindingKind::Split, gsi, label.into(), trigger)
    }

    /// The same with the caller's eventfd as the trigger. A count that is pending in the eventfd is discarded.
    ///
    /// # Errors
    /// See [`Reason`](crate::Reason):
    /// * `NotSplit`: the irqchip is another, or the GSI is not reserved for the userspace IOAPIC.
    /// * `MixedUse`: the GSI has an edge irqfd.
    /// * `AlreadyBound`, `TriggerIsResample`, `NotEventfd`, `Semaphore`: the eventfd cannot be a trigger.
    /// * `Os`: the system refused.
    pub fn split_source_with(
        &self,
        gsi: Gsi,
        label: impl Into<String>,
        trigger: EventFd,
    ) -> Result<Arc<dyn LevelSource>> {
        let trigger = self.trigger(gsi, Some(trigger))?;
        source::irqfd(&self.books, BindingKind::Split, gsi, label.into(), trigger)
    }

    fn trigger(&self, gsi: Gsi, trigger: Option<EventFd>) -> Result<Eventfd> {
        match trigger {
            Some(trigger) => Eventfd::adopt(trigger, "KVM_IRQFD", gsi),
            None => Eventfd::new(&*self.books.assigner.kernel, gsi),
        }
    }

    /// A level source over KVM_IRQ_LINE: synchronous, and lowered by the device alone. An assertion answers what became
    /// of the level. All such sources of a GSI share one [`Line`](interrupt_core::Line), whose OR the ioctl states.
    ///
    /// # Errors
    /// See [`Reason`](crate::Reason):
    /// * `NoIrqchip`, `SplitIrqchip`: the VM has no pins in the kernel.
    /// * `UnknownGsi`, `MsiRoute`: the GSI leads to no pin. `Route`: it leads to an SPI of another number (aarch64), and
    ///   KVM_IRQ_LINE would drive the SPI of the GSI's own number.
    /// * `MixedUse`: the GSI has irqfds that assert it. `SharedPin`: another GSI drives the pin.
    /// * `Os`: the system refused the irqfd that a listener of the GSI makes necessary.
    pub fn irq_line_source(&self, gsi: Gsi, label: impl Into<String>) -> Result<Arc<dyn LevelSource>> {
        source::irq_line(&self.books, gsi, label.into())
    }

    /// An edge irqfd with a trigger of its own.
    ///
    /// # Errors
    /// As [`edge_irqfd_with`](Self::edge_irqfd_with).
    pub fn edge_irqfd(&self, gsi: Gsi) -> Result<EdgeIrqfd> {
        EdgeIrqfd::new(&self.books, gsi, self.trigger(gsi, None)?)
    }

    /// An edge irqfd, on a pin or on an MSI route, that is triggered by the caller's eventfd. A count that is pending
    /// in the eventfd is discarded.
    ///
    /// # Errors
    /// See [`Reason`](crate::Reason):
    /// * `NoIrqchip`: the VM has no irqchip in the kernel.
    /// * `UnknownGsi`: the GSI leads nowhere, and is no pin of a userspace IOAPIC.
    /// * `MixedUse`: the GSI has level sources. `SharedPin`: another GSI drives the pin.
    /// * `AlreadyBound`, `TriggerIsResample`, `NotEventfd`, `Semaphore`: the eventfd cannot be a trigger.
    /// * `Os`: the system refused.
    pub fn edge_irqfd_with(&self, gsi: Gsi, trigger: EventFd) -> Result<EdgeIrqfd> {
        EdgeIrqfd::new(&self.books, gsi, self.trigger(gsi, Some(trigger))?)
    }

    /// Waits for EOIs that this process is to serve, at most for `timeout` (or without a limit), serves them, and
    /// returns how many it served. 0 says that the time was up or that a signal came.
    ///
    /// Callbacks are called here, and the levels of KVM_IRQ_LINE sources are driven again here where KVM may have
    /// forgotten them. A VM that uses neither, because its listeners are eventfds and its sources irqfds, need not call
    /// this. Otherwise a thread of the caller calls this, in a loop, or whenever the fd of [`AsFd`] is readable, with a
    /// timeout of zero. Several threads may.
    ///
    /// # Errors
    /// [`interrupt_core::Error::Os`] from epoll, or the first error of a listener or of a level that could not be
    /// driven. All EOIs were served.
    pub fn dispatch(&self, timeout: Option<Duration>) -> interrupt_core::Result<usize> {
        self.books.dispatcher.dispatch(timeout)
    }
}

/// As in "kernel irqchip; gsi 5: a resample irqfd; gsi 11: timer low".
impl fmt::Debug for KvmInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.books.with(|state| {
            let lines = state.lines.iter();
            lines
                .map(|(gsi, line)| (*gsi, line.describe(), line.irq_line().cloned()))
                .collect()
        });
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
        self.books.dispatcher.as_fd()
    }
}

/// An eventfd becomes KVM's own resamplefd, so that an EOI reaches the eventfd without this process; binding it neither
/// lowers the line nor makes an interrupt. The one exception is an eventfd by the key of a KVM_IRQ_LINE source, which
/// [`dispatch`](KvmInterrupts::dispatch) signals, and which therefore becomes non-blocking ([`Listener::fd`]). A
/// callback is called by `dispatch`.
///
/// A listener by GSI hears of the EOIs of every source of the GSI, whichever come and go. A GSI without a listener has
/// none.
///
/// A listener is asked for its level, as at an EOI, also when irqfds of its line were taken off together: at
/// [`LevelSource::force_deassert`], when one of several sources goes, and when the route changes. Who counts EOIs
/// counts those too.
impl EoiNotifier for KvmInterrupts {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        subscribe::subscribe(&self.books, subject, listener)
    }

    fn exchange(&self, key: SourceKey, listener: Listener) -> interrupt_core::Result<EoiGuard> {
        subscribe::exchange(&self.books, key, listener)
    }
}
