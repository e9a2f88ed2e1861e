// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC's pins on the irqfds and routes that the VMM has.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::{
    Delivery, EoiScope, Error, EveryStep, Gsi, Irqfds, LevelSource, Msi, MsiOutput, PinMask, Result, SourceKey,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};

use crate::sync::{lock, try_lock};

/// The output of an [`Ioapic`](crate::Ioapic) on a split irqchip, over the VMM's own [`Irqfds`]: each pin's message is
/// the route of the pin's own GSI, the IOAPIC sends the message by an irqfd, and a device that signals once for each EOI
/// has an irqfd of its own on the pin ([`source`](Self::source)).
///
/// A pin that the guest masks has its irqfds taken off, and what is signalled meanwhile waits in the eventfds (law 16).
/// A pin that is masked keeps its route. At the unmask of a level-triggered pin whose GSI has listeners at the IOAPIC,
/// the signals of devices are dropped, and the listeners ask the devices for their levels: a guest that serves a device
/// behind the mask gets no interrupt for nothing.
///
/// A VMM without irqfds and routes of its own takes `kvm_irqfd::KvmInterrupts` as the output, which sends by
/// KVM_SIGNAL_MSI and knows when no processor takes a message.
///
/// What the hypervisor refuses is tried again at the next message or assertion on any of the pins, and by
/// [`retry`](Self::retry); signals wait meanwhile.
///
/// An irqfd does not say that no processor took its message. A level-triggered message of the IOAPIC that goes to a
/// local APIC that is absent or disabled leaves the entry in service (remote IRR) until the guest makes the entry
/// edge-triggered, as Linux does when it starts.
///
/// ```
/// use std::io;
/// use std::os::fd::BorrowedFd;
/// use std::sync::Arc;
/// use interrupt_core::{Gsi, Irqfds, Msi, forward::GuestLine};
/// use user_irqchip::{Ioapic, IrqfdPins};
///
/// struct Hypervisor; // the VMM's type, with its VmFd and its routing table
///
/// impl Irqfds for Hypervisor {
///     fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
///         Ok(()) // self.vm.register_irqfd(&BorrowedEventFd::from(trigger), gsi.0)
///     }
///     fn unbind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
///         Ok(()) // self.vm.unregister_irqfd(&BorrowedEventFd::from(trigger), gsi.0)
///     }
///     fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()> {
///         Ok(()) // an entry of the routing table, and KVM_SET_GSI_ROUTING
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pins = Arc::new(IrqfdPins::new(Arc::new(Hypervisor), Gsi(0), 24)?);
/// let ioapic = Arc::new(Ioapic::builder().pins(24).build(pins.clone())?);
/// // For a VFIO device's INTx:
/// let line = GuestLine::split(pins.source(Gsi(11), "vfio 0000:00:02.0")?, ioapic);
/// # Ok(())
/// # }
/// ```
pub struct IrqfdPins {
    irqfds: Arc<dyn Irqfds>,
    first_gsi: Gsi,
    pins: Box<[Pin]>,
    /// The number of pins whose wiring is refused.
    refused: AtomicUsize,
}

struct Pin {
    /// What the IOAPIC sends by.
    own: Arc<Trigger>,
    wiring: Mutex<Wiring>,
}

/// What the hypervisor knows of a pin.
struct Wiring {
    message: Option<Msi>,
    /// The guest lets the pin through, and the pin has a message.
    open: bool,
    /// What the hypervisor has refused, or is being asked.
    refused: Option<(Option<Msi>, PinMask)>,
    own: Irqfd,
    /// Of the sources.
    irqfds: Vec<Irqfd>,
}

struct Trigger {
    eventfd: OwnedFd,
    /// The hypervisor takes what is signalled. Written under the lock of the pin's wiring.
    bound: AtomicBool,
    /// The assertions of this process, counted before each is signalled.
    asserted: AtomicU64,
    /// The same, counted after.
    signalled: AtomicU64,
}

struct Irqfd {
    trigger: Arc<Trigger>,
    /// The assertions of this process that the hypervisor has surely sent.
    sent: u64,
    /// The source has gone, and the hypervisor has refused to end the binding.
    gone: bool,
}

impl IrqfdPins {
    /// The pins with the GSIs from `first_gsi`, all masked, as those of an [`Ioapic`](crate::Ioapic) with the same
    /// numbers. Makes an eventfd for each pin.
    ///
    /// # Errors
    /// EMFILE and what else eventfd(2) refuses with.
    pub fn new(irqfds: Arc<dyn Irqfds>, first_gsi: Gsi, pins: u8) -> io::Result<Self> {
        let pin = |_| {
            let own = Trigger::new()?;
            let wiring = Wiring {
                message: None,
                open: false,
                refused: None,
                own: Irqfd::new(&own),
                irqfds: Vec::new(),
            };
            Ok(Pin {
                own,
                wiring: Mutex::new(wiring),
            })
        };
        Ok(Self {
            irqfds,
            first_gsi,
            pins: (0..pins).map(pin).collect::<io::Result<_>>()?,
            refused: AtomicUsize::new(0),
        })
    }

    /// A level source with an irqfd of its own: the write of its trigger eventfd reaches the guest without this process,
    /// by the level-triggered message of the pin. While the pin is masked or has no message, a signal waits in the
    /// trigger.
    ///
    /// The signal passes the IOAPIC by, whose remote IRR stays clear: a signal during the guest's handler gives one more
    /// run of the handler. The source is for devices that signal once for each EOI, as an automasked VFIO INTx does; the
    /// other devices of the pin take theirs from [`Ioapic::source`](crate::Ioapic::source). The EOI notifier of the
    /// source is the IOAPIC, by GSI: a device that signals the trigger listens there, and signals again when it is told
    /// and its level lasts. What [`LevelSource::assert`] signals behind a mask is sent at the unmask in any case.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI, and [`Error::Os`] when the system or the hypervisor refuses an
    /// eventfd or an irqfd.
    pub fn source(self: &Arc<Self>, gsi: Gsi, label: impl Into<String>) -> Result<Arc<dyn LevelSource>> {
        let pin = self.pin(gsi)?;
        let source = IrqfdSource {
            pins: Arc::clone(self),
            key: SourceKey::new(gsi),
            label: label.into(),
            trigger: Trigger::new().map_err(|error| os("eventfd", gsi, error))?,
        };
        let mut wiring = lock(&pin.wiring);
        let mut irqfd = Irqfd::new(&source.trigger);
        let bound = irqfd.settle(&*self.irqfds, gsi, wiring.open);
        wiring.irqfds.push(irqfd);
        drop(wiring);
        // After a refusal the source's drop takes the irqfd out again.
        bound.map(|()| Arc::new(source) as _)
    }

    /// The eventfd by which the IOAPIC sends the pin's message: for a device of the VMM that only knows how to signal an
    /// edge. A signal waits while the pin is masked.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn trigger(&self, gsi: Gsi) -> Result<BorrowedFd<'_>> {
        self.pin(gsi).map(|pin| pin.own.eventfd.as_fd())
    }

    /// The number of pins that are not as the guest has programmed them, because the hypervisor has refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Tries again what the hypervisor has refused: for a VMM that sees [`refused`](Self::refused), or
    /// [`Counts::route_errors`](crate::ioapic::Counts::route_errors) of its IOAPIC, while no other device of the pins is
    /// active. Costs one load when nothing is refused.
    ///
    /// A level that waits at the IOAPIC is sent by [`Ioapic::reassert`](crate::Ioapic::reassert) after this, and otherwise
    /// at the chip's next EOI.
    ///
    /// # Errors
    /// [`Error::Os`] with the first refusal. All were tried.
    pub fn retry(&self) -> Result<()> {
        if self.refused() == 0 {
            return Ok(());
        }
        let retry = |tried: Result<()>, (gsi, pin): (Gsi, &Pin)| tried.and(self.retry_pin(gsi, lock(&pin.wiring)));
        self.by_gsi().fold(Ok(()), retry)
    }

    /// The same for a pin that is signalled, which does not wait for a pin that is being programmed.
    fn retry_free(&self, gsi: Gsi, pin: &Pin) -> Result<()> {
        let wiring = try_lock(&pin.wiring);
        wiring.map_or(Ok(()), |wiring| self.retry_pin(gsi, wiring))
    }

    fn retry_pin(&self, gsi: Gsi, mut wiring: MutexGuard<'_, Wiring>) -> Result<()> {
        let refused = wiring.refused;
        refused.map_or(Ok(()), |(message, mask)| self.program(gsi, &mut wiring, message, mask))
    }

    /// Programs a pin, and notes a refusal.
    fn program(&self, gsi: Gsi, wiring: &mut Wiring, message: Option<Msi>, mask: PinMask) -> Result<()> {
        // Noted beforehand, because a hypervisor that panics has refused. When this is tried again nobody is asked.
        let again = if mask.is_masked() { mask } else { PinMask::Unmasked };
        if wiring.refused.replace((message, again)).is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        wiring.program(&*self.irqfds, gsi, message, mask)?;
        wiring.refused = None;
        self.refused.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn by_gsi(&self) -> impl Iterator<Item = (Gsi, &Pin)> {
        (self.first_gsi.0..).map(Gsi).zip(&self.pins)
    }

    fn pin(&self, gsi: Gsi) -> Result<&Pin> {
        let pin = gsi.0.checked_sub(self.first_gsi.0);
        pin.and_then(|pin| self.pins.get(pin as usize)).ok_or(Error::NotFound {
            operation: "IOAPIC pin",
            subject: EoiScope::Gsi(gsi),
        })
    }
}

impl Trigger {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            bound: AtomicBool::new(false),
            asserted: AtomicU64::new(0),
            signalled: AtomicU64::new(0),
        }))
    }

    fn is_bound(&self) -> bool {
        self.bound.load(Ordering::Relaxed)
    }

    /// Adds 1. A counter that is full is signalled already.
    fn signal(&self) -> io::Result<()> {
        // The hypervisor empties the counter of a bound eventfd. The holder of a duplicate can fill another one, and can
        // have made it blocking.
        if !self.is_bound() && !has_room(&self.eventfd)? {
            return Ok(());
        }
        match rustix::io::write(&self.eventfd, &1u64.to_ne_bytes()) {
            // EINTR: somebody took the last room at this moment, and the write waited for room.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Irqfd {
    fn new(trigger: &Arc<Trigger>) -> Self {
        Self {
            trigger: Arc::clone(trigger),
            sent: 0,
            gone: false,
        }
    }

    /// Drops what a device has signalled while the irqfd was off: the device is asked for its level, and signals again if
    /// the level lasts. What this process has asserted stays, because a pulse is not asserted again.
    fn drop_waiting(&self) -> io::Result<()> {
        let waits = !self.trigger.is_bound() && take(&self.trigger.eventfd)?;
        if waits && self.trigger.asserted.load(Ordering::SeqCst) != self.sent {
            self.trigger.signal()
        } else {
            Ok(())
        }
    }

    /// Binds or unbinds the irqfd, if it is not so.
    fn settle(&mut self, irqfds: &dyn Irqfds, gsi: Gsi, bound: bool) -> Result<()> {
        let signalled = self.trigger.signalled.load(Ordering::SeqCst);
        match (self.trigger.is_bound(), bound) {
            (false, true) => {
                self.bind(irqfds, gsi).map_err(|error| os("bind irqfd", gsi, error))?;
            }
            (true, false) => {
                let unbound = irqfds.unbind(self.trigger.eventfd.as_fd(), gsi);
                unbound.map_err(|error| os("unbind irqfd", gsi, error))?;
            }
            _ => return Ok(()),
        }
        self.sent = signalled;
        self.trigger.bound.store(bound, Ordering::Relaxed);
        Ok(())
    }

    /// Binds the irqfd, which injects what was signalled while it was off (law 16).
    fn bind(&self, irqfds: &dyn Irqfds, gsi: Gsi) -> io::Result<()> {
        // KVM would inject a pending count too, but from a work queue, after this has returned.
        let eventfd = &self.trigger.eventfd;
        let pending = take(eventfd)?;
        // A hypervisor that panics has refused.
        let mut steps = EveryStep::default();
        let bound = steps.take(|| irqfds.bind(eventfd.as_fd(), gsi));
        if !matches!(bound, Some(Ok(()))) && pending {
            self.trigger.signal()?;
        }
        steps.end();
        bound.unwrap_or(Ok(()))?;
        // What was signalled since the read above was sent, but may be left in the counter.
        take(eventfd)?;
        if pending { self.trigger.signal() } else { Ok(()) }
    }
}

impl Wiring {
    /// Binds or unbinds all irqfds. Goes through all, and returns the first error.
    fn settle(&mut self, irqfds: &dyn Irqfds, gsi: Gsi, open: bool) -> Result<()> {
        self.open = open;
        let settle =
            |settled: Result<()>, irqfd: &mut Irqfd| settled.and(irqfd.settle(irqfds, gsi, open && !irqfd.gone));
        let settled = std::iter::once(&mut self.own)
            .chain(&mut self.irqfds)
            .fold(Ok(()), settle);
        self.irqfds.retain(|irqfd| irqfd.trigger.is_bound() || !irqfd.gone);
        settled
    }

    fn drop_waiting(&self, gsi: Gsi) -> Result<()> {
        let drop = |dropped: io::Result<()>, irqfd: &Irqfd| dropped.and(irqfd.drop_waiting());
        let dropped = self.irqfds.iter().fold(Ok(()), drop);
        dropped.map_err(|error| os("read(trigger)", gsi, error))
    }

    fn program(&mut self, irqfds: &dyn Irqfds, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()> {
        let open = message.is_some() && !mask.is_masked();
        if !open {
            self.settle(irqfds, gsi, false)?;
        }
        if mask == PinMask::Asked {
            self.drop_waiting(gsi)?;
        }
        // A pin without a message keeps its route, which nothing uses.
        if let Some(message) = message.filter(|message| self.message != Some(*message)) {
            if let Err(error) = irqfds.route(gsi, message) {
                drop(self.settle(irqfds, gsi, false));
                return Err(os("route", gsi, error));
            }
            self.message = Some(message);
        }
        if open { self.settle(irqfds, gsi, true) } else { Ok(()) }
    }
}

impl MsiOutput for IrqfdPins {
    fn send_msi(&self, gsi: Gsi, _message: Msi) -> Result<Delivery> {
        if self.refused() > 0 {
            for (gsi, pin) in self.by_gsi() {
                // A pin that stays refused stays counted.
                drop(self.retry_free(gsi, pin));
            }
        }
        let sent = self.pin(gsi)?.own.signal();
        sent.map_err(|error| os("write(irqfd)", gsi, error))?;
        Ok(Delivery::Unknown)
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()> {
        let mut wiring = lock(&self.pin(gsi)?.wiring);
        self.program(gsi, &mut wiring, message.map(Msi::for_kvm), mask)
    }
}

impl Drop for IrqfdPins {
    fn drop(&mut self) {
        // The sources keep the pins, so that only the pins' own irqfds are left.
        for (gsi, pin) in self.by_gsi() {
            drop(lock(&pin.wiring).settle(&*self.irqfds, gsi, false));
        }
    }
}

impl fmt::Debug for IrqfdPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pins, refused) = (self.pins.len(), self.refused());
        write!(f, "{pins} pins from {} by irqfd, {refused} refused", self.first_gsi)
    }
}

struct IrqfdSource {
    pins: Arc<IrqfdPins>,
    key: SourceKey,
    label: String,
    trigger: Arc<Trigger>,
}

impl LevelSource for IrqfdSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> Result<Delivery> {
        self.trigger.asserted.fetch_add(1, Ordering::SeqCst);
        let signalled = self.trigger.signal();
        self.trigger.signalled.fetch_add(1, Ordering::SeqCst);
        signalled.map_err(|error| os("write(trigger)", self.gsi(), error))?;
        if self.pins.refused() > 0 {
            self.pins.retry_free(self.gsi(), self.pins.pin(self.gsi())?)?;
        }
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> Result<()> {
        // Only what a mask holds back is still there.
        take(&self.trigger.eventfd)
            .map(drop)
            .map_err(|error| os("read(trigger)", self.gsi(), error))
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.eventfd.as_fd())
    }
}

impl Drop for IrqfdSource {
    fn drop(&mut self) {
        let gsi = self.gsi();
        if let Ok(pin) = self.pins.pin(gsi) {
            let mut wiring = lock(&pin.wiring);
            let own = |irqfd: &Irqfd| Arc::ptr_eq(&irqfd.trigger, &self.trigger);
            if let Some(at) = wiring.irqfds.iter().position(own) {
                // If the hypervisor refuses, the next change of the pin tries it again: who holds a duplicate of the
                // eventfd would go on signalling.
                wiring.irqfds[at].gone = true;
                if wiring.irqfds[at].settle(&*self.pins.irqfds, gsi, false).is_ok() {
                    wiring.irqfds.remove(at);
                }
            }
        }
    }
}

impl fmt::Debug for IrqfdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: irqfd", self.label, self.gsi())
    }
}

fn has_room(eventfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(eventfd, PollFlags::OUT)];
    // A signal that is pending makes even a poll that does not wait answer EINTR.
    Ok(retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? > 0)
}

/// Takes the count, and says whether there was one. Does not wait, also when the holder of a duplicate has made the
/// eventfd blocking.
fn take(eventfd: &OwnedFd) -> io::Result<bool> {
    // u64::MAX is "no offset": an eventfd has none.
    let mut count = [0; 8];
    match preadv2(
        eventfd,
        &mut [IoSliceMut::new(&mut count)],
        u64::MAX,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn os(operation: &'static str, gsi: Gsi, source: io::Error) -> Error {
    Error::Os { operation, gsi, source }
}
