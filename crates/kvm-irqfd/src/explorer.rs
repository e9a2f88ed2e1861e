// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An explorer of failures: every sequence of operations up to a depth, with each step that the kernel can refuse
//! refused once, on the real books over a scripted kernel with real eventfds.
//!
//! `KVM_IRQFD_EXPLORE_DEPTH` is the number of operations; see [`DEPTH`].
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interrupt_core::{Delivery, EoiGuard, EoiScope, Gsi, Irqchip, Level, LevelSource, Listener, PinMask};
use kvm_bindings::{KVM_IRQ_ROUTING_IRQCHIP, KvmIrqRouting};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use vmm_sys_util::eventfd::EventFd;

use crate::books::{Binding, Books};
use crate::chip::Chip;
use crate::interrupts::routing::{Routing, set_pin};
use crate::interrupts::source::{self, EdgeIrqfd, IrqLineSource};
use crate::interrupts::subscribe::subscribe;
use crate::kernel::Kernel;
use crate::kernel::eventfd::{Eventfd, from_owned};
use crate::kind::BindingKind;
use crate::routes::{Route, Routes};

/// How many operations by default: some 10 seconds. One more takes some twenty times as long.
const DEPTH: usize = 3;

/// The line under test; another GSI that is routed to the same pin; the line of what callbacks own.
const A: Gsi = Gsi(18);
const B: Gsi = Gsi(16);
const OWNED: Gsi = Gsi(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Resample,
    /// With the eventfd that listens to the GSI as its trigger.
    ResampleWithListener,
    Line(Gsi),
    Edge,
    /// By GSI, as an eventfd and as a callback.
    ListenFd,
    ListenCallback,
    /// By the key of the last source.
    KeyFd,
    KeyCallback,
    DropSource,
    DropGuard,
    Mask,
    Unmask,
    Reroute,
    Assert,
    Withdraw,
    Eoi,
    /// Another thread makes a KVM_IRQ_LINE source, and drops one. Books and line have a lock each, so that anything can
    /// come between the two steps of each.
    Enter,
    Join,
    Leave,
    Left,
    /// The eventfd of a listener to a KVM_IRQ_LINE source takes no write any more.
    BreakListener,
    /// A level on the message of a userspace IOAPIC's pin.
    Split,
    /// The guest masks or unmasks that pin, and writes another message.
    Pin(bool),
    Message,
}

const OPS: [Op; 22] = [
    Op::Resample,
    Op::ResampleWithListener,
    Op::Line(A),
    Op::Line(B),
    Op::Edge,
    Op::ListenFd,
    Op::ListenCallback,
    Op::KeyFd,
    Op::KeyCallback,
    Op::DropSource,
    Op::DropGuard,
    Op::Mask,
    Op::Unmask,
    Op::Reroute,
    Op::Assert,
    Op::Withdraw,
    Op::Eoi,
    Op::Enter,
    Op::Join,
    Op::Leave,
    Op::Left,
    Op::BreakListener,
];

/// On a split irqchip.
const SPLIT_OPS: [Op; 10] = [
    Op::Split,
    Op::Edge,
    Op::DropSource,
    Op::Mask,
    Op::Unmask,
    Op::Assert,
    Op::Withdraw,
    Op::Pin(true),
    Op::Pin(false),
    Op::Message,
];

/// KVM as far as the books can tell: facts of its line model, and a counter of the steps that it can refuse.
#[derive(Default)]
struct Script {
    step: AtomicUsize,
    /// The step that is refused.
    refuse: AtomicUsize,
    kvm: Mutex<Kvm>,
}

#[derive(Default)]
struct Kvm {
    irqfds: Vec<Assigned>,
    pins: BTreeMap<Gsi, u32>,
    /// The levels of KVM_IRQ_LINE, by pin, and of resample irqfds, by GSI.
    user: BTreeMap<u32, bool>,
    resample: BTreeMap<Gsi, bool>,
    /// A deassign has lowered a line that was high.
    lowered: bool,
    /// Interrupts that the guest has not taken.
    pending: BTreeMap<Gsi, bool>,
}

struct Assigned {
    /// The number of the caller's fd, by which the books deassign.
    number: i32,
    trigger: OwnedFd,
    resamplefd: Option<OwnedFd>,
    gsi: Gsi,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, Kvm> {
        // A check that fails while it looks leaves nothing half written.
        self.kvm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, errno: Errno) -> io::Result<()> {
        if self.step.fetch_add(1, Ordering::Relaxed) == self.refuse.load(Ordering::Relaxed) {
            return Err(errno.into());
        }
        Ok(())
    }

    /// Lets KVM see what was written to triggers.
    fn pump(&self) {
        let mut kvm = self.lock();
        let signalled = |irqfd: &&Assigned| crate::kernel::eventfd::take(irqfd.trigger.as_fd()).unwrap() > 0;
        let signalled: Vec<_> = kvm
            .irqfds
            .iter()
            .filter(signalled)
            .map(|i| (i.gsi, i.resamplefd.is_some()))
            .collect();
        for (gsi, resample) in signalled {
            kvm.inject(gsi, resample);
        }
    }

    /// The guest takes what is pending and ends it.
    fn eoi(&self, gsi: Gsi) {
        let mut kvm = self.lock();
        kvm.resample.insert(gsi, false);
        kvm.pending.insert(gsi, false);
        for irqfd in kvm.irqfds.iter().filter(|irqfd| irqfd.gsi == gsi) {
            if let Some(resamplefd) = &irqfd.resamplefd {
                // As KVM's own, it does not wait for room.
                let _ = rustix::io::write(resamplefd, &1u64.to_ne_bytes());
            }
        }
    }

    fn is_pending(&self, gsi: Gsi) -> bool {
        self.pump();
        let kvm = self.lock();
        kvm.pending.get(&gsi) == Some(&true)
    }
}

impl Kvm {
    fn inject(&mut self, gsi: Gsi, resample: bool) {
        self.pending.insert(gsi, true);
        if resample {
            self.resample.insert(gsi, true);
        }
    }
}

impl Kernel for Script {
    fn eventfd(&self) -> io::Result<OwnedFd> {
        self.refused(Errno::MFILE)?;
        Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    fn watch(&self, epoll: BorrowedFd<'_>, eventfd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.refused(Errno::NOSPC)?;
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(epoll, eventfd, EventData::new_u64(token), flags)?)
    }

    fn assign(&self, trigger: &EventFd, resamplefd: Option<&EventFd>, gsi: Gsi) -> io::Result<()> {
        self.refused(Errno::NOMEM)?;
        let mut kvm = self.lock();
        let number = trigger.as_raw_fd();
        assert!(kvm.irqfds.iter().all(|other| other.number != number), "assigned twice");
        let dup = |fd: &EventFd| crate::kernel::eventfd::into_owned(fd.try_clone().unwrap());
        let irqfd = Assigned {
            number,
            trigger: dup(trigger),
            resamplefd: resamplefd.map(dup),
            gsi,
        };
        // A pending count is injected and stays: the books take it.
        let mut fds = [rustix::event::PollFd::new(&irqfd.trigger, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() > 0 {
            kvm.inject(gsi, resamplefd.is_some());
        }
        kvm.irqfds.push(irqfd);
        Ok(())
    }

    fn deassign(&self, trigger: &EventFd, gsi: Gsi) {
        self.pump();
        let mut kvm = self.lock();
        let number = trigger.as_raw_fd();
        kvm.irqfds.retain(|irqfd| (irqfd.number, irqfd.gsi) != (number, gsi));
        if !kvm
            .irqfds
            .iter()
            .any(|irqfd| irqfd.gsi == gsi && irqfd.resamplefd.is_some())
        {
            kvm.lowered |= kvm.resample.insert(gsi, false) == Some(true);
        }
    }

    fn set_routing(&self, table: &KvmIrqRouting) -> io::Result<()> {
        self.refused(Errno::NOMEM)?;
        let mut kvm = self.lock();
        let entries = table
            .as_slice()
            .iter()
            .filter(|entry| entry.type_ == KVM_IRQ_ROUTING_IRQCHIP);
        // SAFETY: the type says which member of the union was written, and all members are integers.
        let pins = entries.map(|entry| (Gsi(entry.gsi), unsafe { entry.u.irqchip.pin }));
        let pins: BTreeMap<_, _> = pins.collect();
        for (gsi, pin) in &kvm.pins {
            if pins.get(gsi) != Some(pin) {
                assert!(
                    kvm.resample.get(gsi) != Some(&true),
                    "row 67: {gsi} re-routed while high"
                );
                assert!(
                    kvm.irqfds.iter().all(|irqfd| irqfd.gsi != *gsi),
                    "law 3: {gsi} is assigned"
                );
            }
        }
        kvm.pins = pins;
        Ok(())
    }

    fn set_irq_line(&self, gsi: Gsi, level: Level) -> io::Result<Delivery> {
        self.refused(Errno::IO)?;
        let mut kvm = self.lock();
        let pin = kvm.pins[&gsi];
        kvm.user.insert(pin, level == Level::High);
        if level == Level::High {
            kvm.pending.insert(gsi, true);
        }
        Ok(Delivery::Delivered(1))
    }
}

enum Source {
    Level(Arc<dyn LevelSource>, bool),
    Line(IrqLineSource, bool),
    Edge(EdgeIrqfd, bool),
}

impl Source {
    fn gsi(&self) -> Gsi {
        match self {
            Source::Edge(edge, _) => edge.gsi(),
            Source::Level(source, _) => source.gsi(),
            Source::Line(source, _) => source.gsi(),
        }
    }

    /// The source, if it has a level.
    fn level(&self) -> Option<&dyn LevelSource> {
        match self {
            Source::Level(source, _) => Some(&**source),
            Source::Line(source, _) => Some(source),
            Source::Edge(..) => None,
        }
    }

    /// The source, if KVM_IRQ_LINE drives it.
    fn line(&self) -> Option<&IrqLineSource> {
        match self {
            Source::Line(source, _) => Some(source),
            Source::Level(..) | Source::Edge(..) => None,
        }
    }

    /// What the owner wants: a level that is high, or an edge that is masked.
    fn state(&mut self) -> &mut bool {
        match self {
            Source::Level(_, state) | Source::Line(_, state) | Source::Edge(_, state) => state,
        }
    }

    fn is_high(&self) -> bool {
        matches!(self, Source::Level(_, true) | Source::Line(_, true))
    }

    fn assert(&self) -> bool {
        match self {
            Source::Edge(edge, _) => edge.signal().is_ok(),
            Source::Level(source, _) => source.assert().is_ok(),
            Source::Line(source, _) => source.assert().is_ok(),
        }
    }
}

/// What is told, and how often.
enum Told {
    /// And the number of the listener's own.
    Fd(OwnedFd, i32),
    Callback(Arc<AtomicU32>),
}

impl Told {
    fn take(&self) -> u64 {
        match self {
            Told::Fd(fd, _) => crate::kernel::eventfd::take(fd.as_fd()).unwrap(),
            Told::Callback(calls) => calls.swap(0, Ordering::Relaxed).into(),
        }
    }
}

struct Run {
    script: Arc<Script>,
    books: Arc<Books>,
    sources: Vec<Source>,
    guards: Vec<(EoiGuard, Told)>,
    /// The eventfd of the last listener by GSI.
    listener: OwnedFd,
    elsewhere: bool,
    /// The sources of other threads that are in the books and not on their line: before, and after.
    entered: Option<Box<dyn FnOnce(String) -> IrqLineSource>>,
    left: Option<Binding>,
    /// The key of a source whose listener cannot be told.
    broken: Option<EoiScope>,
    /// Whether the guest masks the pin of a userspace IOAPIC. `None` when KVM has refused to let the pin through: the
    /// pin's next write tries again, and an irqfd's next signal.
    pin: Option<bool>,
    /// Whether the pin's message is the other one.
    moved: bool,
    /// Whether the source that a callback owns was dropped, for each callback that was made.
    owned: Vec<std::sync::Weak<dyn LevelSource>>,
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Run {
    fn new(irqchip: Irqchip, refuse: usize) -> Self {
        let script = Arc::new(Script::default());
        script.refuse.store(usize::MAX, Ordering::Relaxed);
        let kernel: Arc<dyn Kernel> = script.clone();
        let books = Books::new(kernel, irqchip, 24, Routes::initial(irqchip), None).unwrap();
        if irqchip == Irqchip::Split {
            set_pin(&books, A, Some(message(0)), PinMask::Unmasked).unwrap();
        } else {
            script.lock().pins = (0..24).map(|pin| (Gsi(pin), pin)).collect();
            // Listed before A, so that KVM tells A.
            let mut routing = Routing::new(&books);
            routing.set(B, &pin(A.0)).unwrap();
            routing.commit().unwrap();
        }
        let step = script.step.load(Ordering::Relaxed);
        script.refuse.store(refuse.saturating_add(step), Ordering::Relaxed);
        script.step.store(step, Ordering::Relaxed);
        Self {
            script,
            books,
            sources: Vec::new(),
            guards: Vec::new(),
            listener: new_eventfd(),
            elsewhere: false,
            entered: None,
            left: None,
            broken: None,
            pin: Some(false),
            moved: false,
            owned: Vec::new(),
        }
    }

    /// Whether an operation can be tried now.
    fn applies(&self, op: Op) -> bool {
        let edge = |wanted: bool| {
            self.sources
                .iter()
                .any(|s| matches!(s, Source::Edge(_, masked) if *masked == wanted))
        };
        let level = |wanted: bool| {
            let last = self.sources.last();
            last.is_some_and(|last| last.level().is_some() && last.is_high() == wanted)
        };
        match op {
            Op::DropSource => !self.sources.is_empty(),
            Op::DropGuard => !self.guards.is_empty(),
            Op::KeyFd | Op::KeyCallback => level(false) || level(true),
            Op::Mask => edge(false),
            Op::Unmask => edge(true),
            Op::Assert => !self.sources.is_empty(),
            Op::Withdraw => level(true),
            Op::Eoi => !self.guards.is_empty() || !self.sources.is_empty(),
            Op::Enter => self.entered.is_none(),
            Op::Join => self.entered.is_some(),
            Op::Leave => self.left.is_none() && self.sources.iter().any(|source| source.line().is_some()),
            Op::Left => self.left.is_some(),
            Op::BreakListener => self.broken.is_none() && self.listener_of_line().is_some(),
            Op::Pin(masked) => self.pin != Some(masked),
            _ => true,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Resample => self.resample(None),
            Op::ResampleWithListener => self.resample(Some(from_owned(self.listener.try_clone().unwrap()))),
            Op::Line(gsi) => {
                let made = IrqLineSource::enter(&self.books, gsi);
                let made = made.ok().map(|join| Source::Line(join("line".into()), false));
                self.sources.extend(made);
            }
            Op::Edge => {
                let trigger = Eventfd::new(&*self.script, A);
                let made = trigger.and_then(|trigger| EdgeIrqfd::new(&self.books, A, trigger));
                self.sources.extend(made.ok().map(|edge| Source::Edge(edge, false)));
            }
            Op::ListenFd => {
                self.listener = new_eventfd();
                self.listen_fd(A.into(), self.listener.try_clone().unwrap());
            }
            Op::ListenCallback => self.listen_callback(A.into()),
            Op::KeyFd => {
                let key = self.key();
                self.listen_fd(key, new_eventfd());
            }
            Op::KeyCallback => {
                let key = self.key();
                self.listen_callback(key);
            }
            Op::DropSource => drop(self.sources.remove(0)),
            Op::DropGuard => {
                let (guard, told) = self.guards.remove(0);
                drop(guard);
                if let Told::Callback(calls) = &told {
                    calls.store(0, Ordering::Relaxed);
                    self.script.eoi(A);
                    self.dispatch();
                    assert_eq!(calls.load(Ordering::Relaxed), 0, "told after the guard was dropped");
                }
            }
            Op::Mask | Op::Unmask => {
                for source in &mut self.sources {
                    if let Source::Edge(edge, masked) = source {
                        if op == Op::Mask {
                            edge.mask();
                        } else {
                            drop(edge.unmask());
                        }
                        *masked = op == Op::Mask;
                    }
                }
            }
            Op::Reroute => {
                let mut routing = Routing::new(&self.books);
                let to = if self.elsewhere { A.0 } else { 19 };
                routing.set(Gsi(19), &[]).unwrap();
                routing.set(A, &pin(to)).unwrap();
                let changed = routing.commit();
                if self.books.with(|state| state.routes.get(A)) == pin(to) {
                    self.elsewhere = !self.elsewhere;
                } else {
                    assert!(changed.is_err());
                }
            }
            Op::Assert => {
                let last = self.sources.last_mut().unwrap();
                let asserted = last.assert();
                if last.level().is_some() {
                    *last.state() = asserted;
                }
            }
            Op::Withdraw => {
                let last = self.sources.last_mut().unwrap();
                drop(last.level().map(LevelSource::force_deassert));
                *last.state() = false;
            }
            Op::Eoi => {
                self.script.pump();
                self.script.eoi(A);
                self.dispatch();
            }
            Op::Enter => {
                let entered = IrqLineSource::enter(&self.books, A);
                self.entered = entered.ok().map(|join| Box::new(join) as _);
            }
            Op::Join => {
                let join = self.entered.take().unwrap();
                self.sources.push(Source::Line(join("late".into()), false));
            }
            Op::Leave => {
                let at = self.sources.iter().position(|source| source.line().is_some());
                if let Source::Line(IrqLineSource { source, binding }, _) = self.sources.remove(at.unwrap()) {
                    drop(source);
                    self.left = Some(binding);
                }
            }
            Op::Left => self.left = None,
            Op::BreakListener => {
                let (scope, fd) = self.listener_of_line().unwrap();
                let unwritable = std::fs::File::open("/dev/null").unwrap();
                // SAFETY: the listener's own number, which is open while its guard is: it keeps its owner.
                let mut theirs = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
                rustix::io::dup2(&unwritable, &mut theirs).unwrap();
                self.broken = Some(scope);
            }
            Op::Split => {
                let trigger = Eventfd::new(&*self.script, A);
                let made = trigger.and_then(|t| source::irqfd(&self.books, BindingKind::Split, A, "split".into(), t));
                self.sources
                    .extend(made.ok().map(|source| Source::Level(source, false)));
            }
            Op::Pin(masked) => self.write_pin(masked, self.moved),
            Op::Message => self.write_pin(self.pin == Some(true), !self.moved),
        }
        self.script.pump();
    }

    /// The guest writes the entry of a userspace IOAPIC's pin, after it has taken what was pending.
    fn write_pin(&mut self, masked: bool, moved: bool) {
        self.script.pump();
        self.script.lock().pending.clear();
        let mask = if masked { PinMask::Masked } else { PinMask::Unmasked };
        let written = set_pin(&self.books, A, Some(message(moved.into())), mask);
        self.moved = moved;
        self.pin = (masked || written.is_ok()).then_some(masked);
    }

    /// The subject and the eventfd of the last listener of a KVM_IRQ_LINE source.
    fn listener_of_line(&self) -> Option<(EoiScope, i32)> {
        self.guards.iter().rev().find_map(|(guard, told)| match told {
            Told::Fd(_, number) => {
                let mut lines = self.sources.iter().filter_map(Source::line);
                lines
                    .any(|line| guard.subject() == line.key().into())
                    .then_some((guard.subject(), *number))
            }
            Told::Callback(_) => None,
        })
    }

    fn resample(&mut self, trigger: Option<EventFd>) {
        let trigger = match trigger {
            Some(trigger) => Eventfd::adopt(trigger, "test", A),
            None => Eventfd::new(&*self.script, A),
        };
        let made = trigger.and_then(|t| source::irqfd(&self.books, BindingKind::Resample, A, "resample".into(), t));
        self.sources
            .extend(made.ok().map(|source| Source::Level(source, false)));
    }

    fn key(&self) -> EoiScope {
        self.sources.last().and_then(Source::level).unwrap().key().into()
    }

    fn listen_fd(&mut self, scope: EoiScope, fd: OwnedFd) {
        let told = Told::Fd(fd.try_clone().unwrap(), fd.as_raw_fd());
        let guard = subscribe(&self.books, scope, Listener::fd(fd));
        self.guards.extend(guard.ok().map(|guard| (guard, told)));
    }

    /// The callback owns a source, whose drop takes the lock of the books.
    fn listen_callback(&mut self, scope: EoiScope) {
        let calls = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&calls);
        let owned = source::irq_line(&self.books, OWNED, "owned".into()).unwrap();
        self.owned.push(Arc::downgrade(&owned));
        let listener = Listener::callback(move |_| {
            let _ = &owned;
            count.fetch_add(1, Ordering::Relaxed);
        });
        let guard = subscribe(&self.books, scope, listener);
        match guard {
            Ok(guard) => self.guards.push((guard, Told::Callback(calls))),
            Err(_) => assert!(
                self.owned.pop().unwrap().upgrade().is_none(),
                "a refused callback is dropped"
            ),
        }
    }

    fn dispatch(&self) {
        while self.books.dispatcher.dispatch(Some(Duration::ZERO)).unwrap_or(1) > 0 {}
    }

    fn refused(&self, gsi: Gsi) -> usize {
        self.books
            .with(|state| state.lines.get(&gsi).map_or(0, |line| line.counts().refused))
    }

    /// What must hold after the last operation, before anything that could mend it.
    fn check(&mut self) {
        // Nothing is refused from here on.
        let failed = self.script.step.load(Ordering::Relaxed) > self.script.refuse.load(Ordering::Relaxed);
        self.script.refuse.store(usize::MAX, Ordering::Relaxed);
        // A pin that KVM_IRQ_LINE drives is the OR of its sources.
        if !failed {
            let kvm = self.script.lock();
            for pin in [18, 19] {
                let mut lines = self.sources.iter().filter(|source| source.line().is_some());
                let high = lines.any(|line| line.is_high() && kvm.pins[&line.gsi()] == pin);
                assert_eq!(
                    kvm.user.get(&pin).copied().unwrap_or(false),
                    high,
                    "the level of pin {pin}"
                );
            }
        }
        // An EOI tells everyone, unless the books say that KVM has refused.
        for gsi in [A, B] {
            self.hear(gsi, |run| run.refused(gsi) > 0);
        }
        // An EOI by itself raises nothing.
        self.withdraw();
        self.script.eoi(A);
        assert!(!self.script.is_pending(A), "an interrupt that nobody raised");
        if self.pin == Some(true) {
            assert!(!self.script.is_pending(A), "the guest has masked the pin");
        }
        // Each source works; asserting is what brings back an irqfd that KVM had refused.
        for n in 0..self.sources.len() {
            let gsi = self.sources[n].gsi();
            self.script.eoi(gsi);
            self.dispatch();
            assert!(self.sources[n].assert());
            if let Source::Edge(edge, true) = &self.sources[n] {
                assert!(!self.script.is_pending(gsi), "masked");
                edge.unmask().unwrap();
            }
            if self.pin != Some(false) {
                assert!(
                    self.pin.is_none() || !self.script.is_pending(gsi),
                    "the guest has masked the pin"
                );
                set_pin(&self.books, A, Some(message(0)), PinMask::Unmasked).unwrap();
                self.pin = Some(false);
            }
            assert!(self.script.is_pending(gsi), "source {n} does not reach the guest");
            self.others_come_and_go(n);
            self.forget_at_an_unmask(n);
            assert_eq!(self.refused(gsi), 0);
            if self.books.irqchip == Irqchip::Kernel {
                self.take_a_listener(n);
            }
            self.hear(gsi, |_| false);
            self.withdraw();
        }
    }

    fn withdraw(&self) {
        for source in &self.sources {
            if let Some(source) = source.level() {
                source.force_deassert().unwrap();
            }
        }
        self.dispatch();
    }

    /// No other source takes the level of a KVM_IRQ_LINE source away.
    fn others_come_and_go(&self, n: usize) {
        let Some(source) = self.sources[n].line() else {
            return;
        };
        let lines = self.sources.iter().filter_map(Source::line);
        for other in lines.filter(|other| other.key() != source.key()) {
            other.assert().unwrap();
            other.deassert().unwrap();
        }
        let kvm = self.script.lock();
        assert!(
            kvm.user[&kvm.pins[&source.gsi()]],
            "another source took the level of source {n}"
        );
    }

    /// An unmask with a resampler on the line (since Linux 6.3): KVM forgets the level and asks for it.
    fn forget_at_an_unmask(&self, n: usize) {
        let Some(source) = self.sources[n].line() else {
            return;
        };
        let resampler = |irqfd: &Assigned| irqfd.gsi == source.gsi() && irqfd.resamplefd.is_some();
        if self.script.lock().irqfds.iter().any(resampler) {
            self.script.eoi(source.gsi());
            self.dispatch();
            assert!(
                self.script.is_pending(source.gsi()),
                "row 63: the level is driven again"
            );
        }
    }

    /// A source that lives is in the books, where a listener finds it. Where KVM tells another GSI, none is taken.
    fn take_a_listener(&mut self, n: usize) {
        let Some(source) = self.sources[n].level() else { return };
        let (scope, fd) = (source.key().into(), new_eventfd());
        let told = Told::Fd(fd.try_clone().unwrap(), fd.as_raw_fd());
        match subscribe(&self.books, scope, Listener::fd(fd)) {
            Ok(guard) => self.guards.push((guard, told)),
            Err(error) => assert_ne!(error.errno(), Some(Errno::NOENT.raw_os_error()), "source {n}: {error}"),
        }
    }

    fn hear(&self, gsi: Gsi, excused: impl Fn(&Self) -> bool) {
        self.forget();
        self.script.eoi(gsi);
        self.assert_told(gsi, excused);
    }

    fn forget(&self) {
        self.dispatch();
        for (_, told) in &self.guards {
            told.take();
        }
    }

    fn assert_told(&self, gsi: Gsi, excused: impl Fn(&Self) -> bool) {
        self.dispatch();
        for (n, (guard, told)) in self.guards.iter().enumerate() {
            let gone = match guard.subject() {
                EoiScope::Gsi(_) => false,
                // The guard of a source that has gone guards nothing.
                EoiScope::Source(key) => {
                    let mut levels = self.sources.iter().filter_map(Source::level);
                    !levels.any(|source| source.key() == key)
                }
            };
            let gone = gone || self.broken == Some(guard.subject());
            if guard.subject().gsi() == gsi && !gone && !excused(self) {
                assert!(told.take() > 0, "listener {n} of {} is not told", guard.subject());
            }
        }
    }

    /// Takes all apart, and checks that nothing is left.
    fn end(mut self, sources_first: bool) {
        if sources_first {
            self.sources.clear();
        }
        (self.entered, self.left) = (None, None);
        self.guards.clear();
        self.sources.clear();
        for owned in &self.owned {
            assert!(owned.upgrade().is_none(), "a callback is left");
        }
        assert!(self.books.with(|state| state.lines.is_empty()), "a line is left");
        let kvm = self.script.lock();
        assert!(kvm.irqfds.is_empty(), "an irqfd is left");
        assert!(
            !kvm.user.values().chain(kvm.resample.values()).any(|high| *high),
            "a level is left"
        );
    }
}

fn pin(pin: u32) -> [Route; 1] {
    [Route::Pin {
        chip: Chip::Ioapic,
        pin,
    }]
}

fn message(destination: u64) -> Route {
    Route::Msi {
        address: 0xfee0_0000 | destination << 12,
        data: 0x8031,
        device: None,
    }
}

/// Runs one sequence with one step refused. Returns whether the sequence has that step, and `None` if it cannot be run.
fn explore(irqchip: Irqchip, ops: &[Op], refuse: usize) -> Option<bool> {
    let lowest_fd = || new_eventfd().as_raw_fd();
    let before = lowest_fd();
    let mut run = Run::new(irqchip, refuse);
    let first = run.script.step.load(Ordering::Relaxed);
    for op in ops {
        if !run.applies(*op) {
            if refuse == usize::MAX {
                return None;
            }
            // What the operation is for was refused.
            continue;
        }
        run.forget();
        run.script.lock().lowered = false;
        run.run(*op);
        // A line that was taken down with all its irqfds: KVM keeps one assertion for all, so that each is asked.
        if run.script.lock().lowered {
            run.assert_told(A, |run| run.refused(A) > 0);
        }
    }
    let steps = run.script.step.load(Ordering::Relaxed) - first;
    run.check();
    run.end(refuse % 2 == 0);
    assert_eq!(lowest_fd(), before, "an fd is left");
    Some(refuse < steps)
}

#[test]
fn every_sequence_with_every_step_refused() {
    search(Irqchip::Kernel, &[&[], &[Op::Line(A), Op::Enter]], &OPS);
}

#[test]
fn every_sequence_on_a_split_irqchip() {
    search(Irqchip::Split, &[&[], &[Op::Split], &[Op::Edge]], &SPLIT_OPS);
}

/// Tries every sequence of operations that begins with one of `starts`.
fn search(irqchip: Irqchip, starts: &'static [&'static [Op]], all: &'static [Op]) {
    let depth = std::env::var("KVM_IRQFD_EXPLORE_DEPTH").map_or(DEPTH, |depth| depth.parse().unwrap());
    let (progress, seen) = channel();
    let current = Arc::new(Mutex::new(String::new()));
    let at = Arc::clone(&current);
    let explorer = std::thread::spawn(move || {
        // SAFETY: the thread gets a table of fds of its own, and uses no fd that another thread opens or closes
        // meanwhile.
        unsafe { unshare_unsafe(UnshareFlags::FILES) }.unwrap();
        let (mut sequences, mut runs) = (0, 0);
        let mut left: Vec<_> = starts.iter().map(|start| (start.to_vec(), depth)).collect();
        while let Some((ops, depth)) = left.pop() {
            let mut refuse = usize::MAX;
            loop {
                *at.lock().unwrap() = format!("{ops:?}, step {refuse} refused");
                match explore(irqchip, &ops, refuse) {
                    None => break,
                    Some(_) if refuse == usize::MAX => {
                        sequences += 1;
                        refuse = 0;
                        if depth > 0 {
                            let longer = |op: &Op| (ops.iter().copied().chain([*op]).collect(), depth - 1);
                            left.extend(all.iter().map(longer));
                        }
                    }
                    Some(true) => refuse += 1,
                    Some(false) => break,
                }
                runs += 1;
                if runs % 256 == 0 {
                    progress.send(()).unwrap();
                }
            }
        }
        (sequences, runs)
    });
    // A lock that is held for ever is seen by no progress: 256 runs take some milliseconds.
    loop {
        match seen.recv_timeout(Duration::from_secs(60)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("hangs: {}", current.lock().unwrap()),
        }
    }
    match explorer.join() {
        Ok((sequences, runs)) => println!("{sequences} sequences of up to {depth} operations, {runs} runs"),
        Err(_) => panic!("with {}", current.lock().unwrap()),
    }
}
