// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end of a test, and one in software: controller pins with a mask and an in-service bit, and sources that
//! have a trigger eventfd, as an irqfd has.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use interrupt_core::forward::{GuestLine, Path};
use interrupt_core::{
    Delivery, EoiNotifier, Error, Gsi, Level, LevelSource, Line, LineSource, LoweredBy, Pin, Result, SourceKey, WiredOr,
};
use vfio_intx::State;

use super::{new_eventfd, signal, take};

/// One of the guest's two lines. The second one has the higher priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineId {
    A = 0,
    B = 1,
}

pub const LINES: [LineId; 2] = [LineId::A, LineId::B];

/// A guest with two level-triggered lines, on which the device under test has a source each. One thread moves it on.
pub trait Guest {
    /// The states that its lines lead to.
    fn states(&self) -> &'static [State];
    /// The line as the state machine sees it, so that INTx comes to `state` on it.
    fn line(&self, line: LineId, state: State) -> GuestLine;
    /// The same for another device on the line.
    fn sharer(&mut self, line: LineId, state: State) -> GuestLine;
    /// Whether the line is high.
    fn is_high(&self, line: LineId) -> bool;
    /// Whether an interrupt of the line waits for the processor. Not every one comes by the line's level.
    fn waits(&self, line: LineId) -> bool {
        self.is_high(line)
    }
    /// The processor takes the line's interrupt, if there is one to be taken.
    fn accept(&mut self, line: LineId) -> bool;
    /// The guest ends the interrupt that it has in service from the line; with none, an interrupt that is nobody's.
    fn eoi(&mut self, line: LineId);
    /// The guest masks or unmasks the pin.
    fn set_masked(&mut self, line: LineId, masked: bool);
    /// Whether an interrupt that has been sent to the processor, and not been taken yet, stays when its line falls, as
    /// it does in a LAPIC.
    fn keeps_what_was_sent(&self) -> bool;
    /// Whether an interrupt can be sent while the one before is in service, to be taken after it.
    fn sends_during_service(&self) -> bool {
        false
    }
    /// The kernel's part: what goes on without the guest.
    fn pump(&mut self);
    /// How long nothing must happen, to be called nothing.
    fn quiet(&self) -> Duration;
}

/// The guest in software.
pub struct SoftGuest {
    pub a: TestLine,
    pub b: TestLine,
    sharers: Vec<Arc<Irqfd>>,
}

impl SoftGuest {
    pub fn new() -> Self {
        Self {
            a: TestLine::new(10),
            b: TestLine::new(11),
            sharers: Vec::new(),
        }
    }

    pub fn on(&self, line: LineId) -> &TestLine {
        match line {
            LineId::A => &self.a,
            LineId::B => &self.b,
        }
    }
}

impl Guest for SoftGuest {
    fn states(&self) -> &'static [State] {
        &[
            State::Carried(Path::Relay),
            State::Carried(Path::KernelLoop),
            State::Carried(Path::SplitKick),
        ]
    }

    fn line(&self, line: LineId, state: State) -> GuestLine {
        self.on(line).leading_to(state)
    }

    fn sharer(&mut self, line: LineId, state: State) -> GuestLine {
        let sharer = TestLine::beside(self.on(line));
        self.sharers.push(Arc::clone(&sharer.irqfd));
        sharer.leading_to(state)
    }

    fn is_high(&self, line: LineId) -> bool {
        self.on(line).is_high()
    }

    fn accept(&mut self, line: LineId) -> bool {
        self.on(line).accept()
    }

    fn eoi(&mut self, line: LineId) {
        self.on(line).eoi();
    }

    fn set_masked(&mut self, line: LineId, masked: bool) {
        self.on(line).set_masked(masked);
    }

    fn keeps_what_was_sent(&self) -> bool {
        false
    }

    fn pump(&mut self) {
        for irqfd in [&self.a.irqfd, &self.b.irqfd].into_iter().chain(&self.sharers) {
            irqfd.poll();
        }
    }

    fn quiet(&self) -> Duration {
        Duration::ZERO
    }
}

/// A level-triggered pin, and the processor behind it.
#[derive(Debug)]
pub struct GuestPin(Mutex<PinState>);

#[derive(Debug)]
pub struct PinState {
    or: WiredOr,
    level: Level,
    masked: bool,
    in_service: bool,
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
            Level::High if pin.masked || pin.in_service => Delivery::Pending,
            Level::High => Delivery::Delivered(1),
            Level::Low => Delivery::Coalesced,
        })
    }

    fn deliver(&self, outcome: Delivery) -> Result<Delivery> {
        Ok(outcome)
    }
}

/// One line of the guest, with the device's source on it.
pub struct TestLine {
    pub line: Arc<Line<GuestPin>>,
    pub irqfd: Arc<Irqfd>,
    /// A source without a trigger eventfd.
    pub plain: Arc<LineSource<GuestPin>>,
}

impl TestLine {
    pub fn new(gsi: u32) -> Self {
        let pin = GuestPin(Mutex::new(PinState {
            or: WiredOr::default(),
            level: Level::Low,
            masked: false,
            in_service: false,
        }));
        Self::of(Line::new(Gsi(gsi), pin))
    }

    /// The sources of another device on the same line.
    pub fn beside(other: &Self) -> Self {
        Self::of(Arc::clone(&other.line))
    }

    fn of(line: Arc<Line<GuestPin>>) -> Self {
        Self {
            irqfd: Arc::new(Irqfd {
                source: line.source("irqfd", LoweredBy::Eoi),
                trigger: new_eventfd(),
                refusal: Mutex::new((0, 0)),
                refused: AtomicUsize::new(0),
            }),
            plain: Arc::new(line.source("plain", LoweredBy::Eoi)),
            line,
        }
    }

    fn notifier(&self) -> Arc<dyn EoiNotifier> {
        self.line.clone()
    }

    pub fn kernel(&self) -> GuestLine {
        GuestLine::kernel(self.irqfd.clone(), self.notifier())
    }

    pub fn split(&self) -> GuestLine {
        GuestLine::split(self.irqfd.clone(), self.notifier())
    }

    pub fn relay(&self) -> GuestLine {
        GuestLine::relay(self.irqfd.clone(), self.notifier(), "the test wants a relay")
    }

    pub fn leading_to(&self, state: State) -> GuestLine {
        match state {
            State::Carried(Path::KernelLoop) => self.kernel(),
            State::Carried(Path::SplitKick) => self.split(),
            _ => self.relay(),
        }
    }

    /// Wants a kernel loop, and has no trigger eventfd for it.
    pub fn without_trigger(&self) -> GuestLine {
        GuestLine::kernel(self.plain.clone(), self.notifier())
    }

    /// Whether the line is high.
    pub fn is_high(&self) -> bool {
        self.line.level() == Level::High
    }

    /// The guest masks or unmasks the pin. As KVM does since Linux 6.3, an unmask with the line high is told to
    /// the listeners.
    pub fn set_masked(&self, masked: bool) {
        let mut pin = self.line.pin().0.lock().unwrap();
        pin.masked = masked;
        let resample = !masked && !pin.in_service && pin.level == Level::High;
        drop(pin);
        if resample {
            self.line.eoi().unwrap();
        }
    }

    /// The processor takes the interrupt, if there is one to be taken.
    pub fn accept(&self) -> bool {
        let mut pin = self.line.pin().0.lock().unwrap();
        let accepts = pin.level == Level::High && !pin.masked && !pin.in_service;
        pin.in_service |= accepts;
        accepts
    }

    /// The guest ends the interrupt in service: the line is lowered and sampled, and the pin is free again.
    pub fn eoi(&self) {
        self.line.eoi().unwrap();
        self.line.pin().0.lock().unwrap().in_service = false;
    }
}

/// A source whose trigger eventfd somebody else than the source's owner watches: the kernel's part is
/// [`poll`](Self::poll).
pub struct Irqfd {
    source: LineSource<GuestPin>,
    trigger: OwnedFd,
    /// After so many calls, so many fail.
    refusal: Mutex<(usize, usize)>,
    refused: AtomicUsize,
}

impl Irqfd {
    /// Makes `times` calls fail with EIO, after `skip` further ones.
    pub fn refuse(&self, skip: usize, times: usize) {
        *self.refusal.lock().unwrap() = (skip, times);
    }

    /// How many calls were refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        let mut refusal = self.refusal.lock().unwrap();
        match *refusal {
            (0, 0) => Ok(()),
            (0, times) => {
                *refusal = (0, times - 1);
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(Error::Os {
                    operation: "refused by the test",
                    gsi: self.source.gsi(),
                    source: std::io::Error::from_raw_os_error(5),
                })
            }
            (skip, times) => {
                *refusal = (skip - 1, times);
                Ok(())
            }
        }
    }

    /// Injects if the trigger has been signalled.
    pub fn poll(&self) -> bool {
        let signalled = take(&self.trigger) > 0;
        if signalled {
            self.source.assert().unwrap();
        }
        signalled
    }
}

impl LevelSource for Irqfd {
    fn key(&self) -> SourceKey {
        self.source.key()
    }

    fn label(&self) -> &str {
        self.source.label()
    }

    fn assert(&self) -> Result<Delivery> {
        self.check()?;
        signal(&self.trigger);
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> Result<()> {
        self.check()
    }

    fn force_deassert(&self) -> Result<()> {
        self.check()?;
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
