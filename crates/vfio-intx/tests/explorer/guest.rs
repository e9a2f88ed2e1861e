// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end: a level-triggered pin, the sources on it, and the processor behind it, moved on one step at a time.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::forward::GuestLine;
use interrupt_core::{Delivery, Gsi, Level, LevelSource, Line, LineSource, LoweredBy, Pin, Result, SourceKey, WiredOr};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::faults::{Faults, FaultyNotifier, FaultySource};

pub fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn take(fd: &OwnedFd) -> bool {
    match rustix::io::read(fd, &mut [0; 8]) {
        Ok(_) => true,
        Err(Errno::AGAIN) => false,
        Err(errno) => panic!("read(eventfd): {errno}"),
    }
}

/// What the guest's handler is doing with the interrupt of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    None,
    /// It has been taken.
    Entered,
    /// The handler has looked at the device, and found a cause or none.
    Looked {
        found: bool,
    },
}

#[derive(Debug)]
pub struct GuestPin(Mutex<PinState>);

#[derive(Debug)]
pub struct PinState {
    or: WiredOr,
    level: Level,
    service: Service,
}

impl Pin for GuestPin {
    type State = PinState;
    type Outcome = Delivery;

    fn lock(&self) -> MutexGuard<'_, PinState> {
        self.0.lock().unwrap()
    }

    fn wired_or<'a>(&self, pin: &'a mut PinState) -> &'a mut WiredOr {
        &mut pin.or
    }

    fn drive(&self, pin: &mut PinState, level: Level) -> Result<Delivery> {
        pin.level = level;
        Ok(match level {
            Level::High if pin.service != Service::None => Delivery::Pending,
            Level::High => Delivery::Delivered(1),
            Level::Low => Delivery::Coalesced,
        })
    }

    fn deliver(&self, outcome: Delivery) -> Result<Delivery> {
        Ok(outcome)
    }
}

/// One of the guest's lines, with two sources for the device under test.
pub struct TestLine {
    line: Arc<Line<GuestPin>>,
    /// Has a trigger eventfd, as an irqfd has.
    irqfd: Arc<FaultySource<Irqfd>>,
    /// Has none.
    plain: Arc<FaultySource<LineSource<GuestPin>>>,
    notifier: Arc<FaultyNotifier>,
}

impl TestLine {
    pub fn new(gsi: u32, faults: &Arc<Faults>) -> Self {
        let pin = PinState {
            or: WiredOr::default(),
            level: Level::Low,
            service: Service::None,
        };
        let line = Line::new(Gsi(gsi), GuestPin(Mutex::new(pin)));
        let irqfd = Irqfd {
            source: line.source("irqfd", LoweredBy::Eoi),
            trigger: new_eventfd(),
        };
        let plain = line.source("plain", LoweredBy::Eoi);
        Self {
            irqfd: Arc::new(FaultySource {
                source: irqfd,
                faults: Arc::clone(faults),
            }),
            plain: Arc::new(FaultySource {
                source: plain,
                faults: Arc::clone(faults),
            }),
            notifier: Arc::new(FaultyNotifier {
                notifier: line.clone(),
                faults: Arc::clone(faults),
            }),
            line,
        }
    }

    /// As a line of an irqchip in the kernel.
    pub fn kernel(&self) -> GuestLine {
        GuestLine::kernel(self.irqfd.clone(), self.notifier.clone())
    }

    /// As a line of a split irqchip.
    pub fn split(&self) -> GuestLine {
        GuestLine::split(self.irqfd.clone(), self.notifier.clone())
    }

    /// Without a trigger eventfd.
    pub fn plain(&self) -> GuestLine {
        GuestLine::kernel(self.plain.clone(), self.notifier.clone())
    }

    pub fn is_high(&self) -> bool {
        self.line.level() == Level::High
    }

    pub fn service(&self) -> Service {
        self.pin().service
    }

    pub fn can_accept(&self) -> bool {
        let pin = self.pin();
        pin.level == Level::High && pin.service == Service::None
    }

    /// The processor takes the interrupt.
    pub fn accept(&self) {
        self.pin().service = Service::Entered;
    }

    pub fn looked(&self, found: bool) {
        self.pin().service = Service::Looked { found };
    }

    /// The guest ends the interrupt: the line is lowered and sampled, and the pin is free again.
    pub fn eoi(&self) {
        self.line.eoi().unwrap();
        self.pin().service = Service::None;
    }

    /// The kernel's part of an irqfd: takes the trigger's signal to the line. Says whether there was one.
    pub fn inject(&self) -> bool {
        let signalled = take(&self.irqfd.source.trigger);
        if signalled {
            self.irqfd.source.source.assert().unwrap();
        }
        signalled
    }

    fn pin(&self) -> MutexGuard<'_, PinState> {
        self.line.pin().lock()
    }
}

/// A source whose trigger eventfd the harness watches in the kernel's place, in [`TestLine::inject`].
pub struct Irqfd {
    source: LineSource<GuestPin>,
    trigger: OwnedFd,
}

impl LevelSource for Irqfd {
    fn key(&self) -> SourceKey {
        self.source.key()
    }

    fn label(&self) -> &str {
        self.source.label()
    }

    fn assert(&self) -> Result<Delivery> {
        rustix::io::write(&self.trigger, &1u64.to_ne_bytes()).unwrap();
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> Result<()> {
        take(&self.trigger);
        self.source.force_deassert()
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}

impl fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "irqfd of {:?}", self.source)
    }
}
