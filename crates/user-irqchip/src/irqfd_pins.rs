// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC's pins on the irqfds and routes that the VMM has.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use interrupt_core::{
    Delivery, EoiScope, Error, EveryStep, Gsi, Irqfds, LevelSource, Msi, MsiOutput, Result, SourceKey,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::sync::lock;

/// The output of an [`Ioapic`](crate::Ioapic) on a split irqchip, over the VMM's own [`Irqfds`]: each pin's message is
/// the route of the pin's own GSI, the IOAPIC sends the message by an irqfd, and a device that signals once for each EOI
/// has an irqfd of its own on the pin ([`source`](Self::source)).
///
/// A pin that the guest masks has its irqfds taken off, and what is signalled meanwhile waits in the eventfds (law 16).
/// A pin that is masked keeps its route.
///
/// An irqfd does not say whether a processor took its message. A level-triggered message of the IOAPIC that goes to a
/// local APIC that is absent or disabled leaves the entry in service (remote IRR) until the guest makes the entry
/// edge-triggered, as Linux does when it starts. An output that is told, as KVM_SIGNAL_MSI tells, has no such entries.
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
}

struct Pin {
    /// What the IOAPIC sends by.
    own: Arc<OwnedFd>,
    wiring: Mutex<Wiring>,
}

/// What the hypervisor knows of a pin.
struct Wiring {
    message: Option<Msi>,
    /// The guest lets the pin through, and the pin has a message.
    open: bool,
    irqfds: Vec<Irqfd>,
}

struct Irqfd {
    trigger: Arc<OwnedFd>,
    bound: bool,
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
            let own = Arc::new(new_eventfd()?);
            let irqfd = Irqfd {
                trigger: Arc::clone(&own),
                bound: false,
                gone: false,
            };
            let wiring = Wiring {
                message: None,
                open: false,
                irqfds: vec![irqfd],
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
        })
    }

    /// A level source with an irqfd of its own: the write of its trigger eventfd reaches the guest without this process,
    /// by the level-triggered message of the pin. While the pin is masked or has no message, a signal waits in the
    /// trigger.
    ///
    /// The signal passes the IOAPIC by, whose remote IRR stays clear: a signal during the guest's handler gives one more
    /// run of the handler. The source is for devices that signal once for each EOI, as an automasked VFIO INTx does; the
    /// other devices of the pin take theirs from [`Ioapic::source`](crate::Ioapic::source). The EOI notifier of the
    /// source is the IOAPIC, by GSI.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI, and [`Error::Os`] when the system or the hypervisor refuses an
    /// eventfd or an irqfd.
    pub fn source(self: &Arc<Self>, gsi: Gsi, label: impl Into<String>) -> Result<Arc<dyn LevelSource>> {
        let pin = self.pin(gsi)?;
        let trigger = new_eventfd().map_err(|error| os("eventfd", gsi, error))?;
        let source = IrqfdSource {
            pins: Arc::clone(self),
            key: SourceKey::new(gsi),
            label: label.into(),
            trigger: Arc::new(trigger),
        };
        let mut wiring = lock(&pin.wiring);
        let mut irqfd = Irqfd {
            trigger: Arc::clone(&source.trigger),
            bound: false,
            gone: false,
        };
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
        self.pin(gsi).map(|pin| pin.own.as_fd())
    }

    fn pin(&self, gsi: Gsi) -> Result<&Pin> {
        let pin = gsi.0.checked_sub(self.first_gsi.0);
        pin.and_then(|pin| self.pins.get(pin as usize)).ok_or(Error::NotFound {
            operation: "IOAPIC pin",
            subject: EoiScope::Gsi(gsi),
        })
    }
}

impl Irqfd {
    /// Binds or unbinds the irqfd, if it is not so.
    fn settle(&mut self, irqfds: &dyn Irqfds, gsi: Gsi, bound: bool) -> Result<()> {
        match (self.bound, bound) {
            (false, true) => {
                self.bind(irqfds, gsi).map_err(|error| os("bind irqfd", gsi, error))?;
            }
            (true, false) => {
                let unbound = irqfds.unbind(self.trigger.as_fd(), gsi);
                unbound.map_err(|error| os("unbind irqfd", gsi, error))?;
            }
            _ => {}
        }
        self.bound = bound;
        Ok(())
    }

    /// Binds the irqfd, which injects what was signalled while it was off (law 16).
    fn bind(&self, irqfds: &dyn Irqfds, gsi: Gsi) -> io::Result<()> {
        // KVM would inject a pending count too, but from a work queue, after this has returned.
        let pending = take(&self.trigger)?;
        // A hypervisor that panics has refused.
        let mut steps = EveryStep::default();
        let bound = steps.take(|| irqfds.bind(self.trigger.as_fd(), gsi));
        if !matches!(bound, Some(Ok(()))) && pending {
            signal(&self.trigger)?;
        }
        steps.end();
        bound.unwrap_or(Ok(()))?;
        // What was signalled since the read above was sent, but may be left in the counter.
        take(&self.trigger)?;
        if pending { signal(&self.trigger) } else { Ok(()) }
    }
}

impl Wiring {
    /// Binds or unbinds all irqfds. Goes through all, and returns the first error.
    fn settle(&mut self, irqfds: &dyn Irqfds, gsi: Gsi, open: bool) -> Result<()> {
        self.open = open;
        let settle =
            |settled: Result<()>, irqfd: &mut Irqfd| settled.and(irqfd.settle(irqfds, gsi, open && !irqfd.gone));
        let settled = self.irqfds.iter_mut().fold(Ok(()), settle);
        self.irqfds.retain(|irqfd| irqfd.bound || !irqfd.gone);
        settled
    }
}

impl MsiOutput for IrqfdPins {
    fn send_msi(&self, gsi: Gsi, _message: Msi) -> Result<Delivery> {
        let sent = signal(&self.pin(gsi)?.own);
        sent.map_err(|error| os("write(irqfd)", gsi, error))?;
        Ok(Delivery::Unknown)
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, masked: bool) -> Result<()> {
        let mut wiring = lock(&self.pin(gsi)?.wiring);
        let message = message.map(Msi::for_kvm);
        let open = message.is_some() && !masked;
        if !open {
            wiring.settle(&*self.irqfds, gsi, false)?;
        }
        // A pin without a message keeps its route, which nothing uses.
        if let Some(message) = message.filter(|message| wiring.message != Some(*message)) {
            if let Err(error) = self.irqfds.route(gsi, message) {
                drop(wiring.settle(&*self.irqfds, gsi, false));
                return Err(os("route", gsi, error));
            }
            wiring.message = Some(message);
        }
        if open {
            wiring.settle(&*self.irqfds, gsi, true)
        } else {
            Ok(())
        }
    }
}

impl Drop for IrqfdPins {
    fn drop(&mut self) {
        // The sources keep the pins, so that only the pins' own irqfds are left.
        for (gsi, pin) in (self.first_gsi.0..).map(Gsi).zip(&self.pins) {
            drop(lock(&pin.wiring).settle(&*self.irqfds, gsi, false));
        }
    }
}

impl fmt::Debug for IrqfdPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pins from {} by irqfd", self.pins.len(), self.first_gsi)
    }
}

struct IrqfdSource {
    pins: Arc<IrqfdPins>,
    key: SourceKey,
    label: String,
    trigger: Arc<OwnedFd>,
}

impl LevelSource for IrqfdSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> Result<Delivery> {
        signal(&self.trigger).map_err(|error| os("write(trigger)", self.gsi(), error))?;
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> Result<()> {
        // Only what a mask holds back is still there.
        take(&self.trigger)
            .map(drop)
            .map_err(|error| os("read(trigger)", self.gsi(), error))
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
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

fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Adds 1. A counter that is full is signalled already.
fn signal(eventfd: &OwnedFd) -> io::Result<()> {
    match rustix::io::write(eventfd, &1u64.to_ne_bytes()) {
        // EINTR: the holder of a duplicate has made the eventfd blocking, and the write waited for room.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
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
