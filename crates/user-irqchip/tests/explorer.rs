// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An explorer of failures: every sequence of operations up to a depth, from every kind of device and every moment of an
//! interrupt, with each step that the hypervisor can refuse refused once. The IOAPIC and its irqfds are the real ones. The
//! hypervisor is a model with real eventfds, and forgets the processor that owes an EOI when the route changes, as KVM
//! before 6.2 does.
//!
//! After each sequence the guest does what a guest does anyway (it runs its handlers, and writes the entry again when a
//! message was lost), and then: no cause of the device is left, the line is low, and the next interrupt comes once.
//!
//! `EXPLORER_DEPTH` is the number of operations; see [`DEPTH`].
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, Gsi, Irqfds, Level, LevelSource, Listener, LoweredBy, Msi, MsiOutput,
};
use rustix::event::{EventfdFlags, eventfd};
use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, IrqfdPins};

/// How many operations by default: some 15 seconds. One more takes ten times as long.
const DEPTH: usize = 3;

const GSI: Gsi = Gsi(0);
const VECTOR: u8 = 0x31;
const LEVEL: u32 = 0x8000;
const MASKED: u32 = 0x1_0000;
const ENOMEM: i32 = 12;

/// How the device reaches its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An irqfd of its own on the pin's message, as a VFIO INTx has: masks itself at each signal until it is told of an EOI.
    Kick,
    /// A source of the IOAPIC that the device lowers.
    Line,
    /// A source that the EOI lowers, with a listener that states the level again.
    Resample,
    /// Events, by the pin's eventfd.
    Trigger,
    /// Events, by a call.
    Pulse,
}

/// The devices, and the trigger mode that the guest gives their pin. VFIO's INTx needs EOIs, so a level.
const DEVICES: [(Kind, u32); 9] = [
    (Kind::Kick, LEVEL),
    (Kind::Line, LEVEL),
    (Kind::Line, 0),
    (Kind::Resample, LEVEL),
    (Kind::Resample, 0),
    (Kind::Trigger, LEVEL),
    (Kind::Trigger, 0),
    (Kind::Pulse, LEVEL),
    (Kind::Pulse, 0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Raise,
    Accept,
    /// The handler looks at the device.
    Look,
    Eoi,
    /// The EOI of another pin with the same vector.
    OthersEoi,
    Mask(bool),
    /// The guest moves the entry to the other processor.
    Move,
    /// The guest disables the first processor's local APIC, or enables it.
    Apic(bool),
    /// The guest makes the pin an edge pin, or a level pin.
    Mode(u32),
    /// Another source on the line comes, asserts and goes.
    Sharer,
    /// Into another process. The device's cause stays, or has ended when the source states its level.
    Restore(bool),
    /// The device's part of the VMM goes, and comes again.
    Replug,
}

const OPS: [Op; 16] = [
    Op::Raise,
    Op::Accept,
    Op::Look,
    Op::Eoi,
    Op::OthersEoi,
    Op::Mask(true),
    Op::Mask(false),
    Op::Move,
    Op::Apic(false),
    Op::Apic(true),
    Op::Mode(0),
    Op::Mode(LEVEL),
    Op::Sharer,
    Op::Restore(true),
    Op::Restore(false),
    Op::Replug,
];

/// How far an interrupt has come when a sequence begins.
const MOMENTS: [&[Op]; 5] = [
    &[],
    &[Op::Raise],
    &[Op::Raise, Op::Accept],
    &[Op::Raise, Op::Accept, Op::Look],
    &[Op::Raise, Op::Accept, Op::Look, Op::Raise],
];

/// The hypervisor: irqfds that send the message of their route.
#[derive(Debug)]
struct Kvm {
    apics: Arc<LocalApics>,
    state: Mutex<State>,
    step: AtomicUsize,
    /// The step that is refused.
    refuse: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    bound: Vec<(RawFd, OwnedFd)>,
    routes: BTreeMap<Gsi, Msi>,
    /// A message went to a processor that takes none.
    lost: bool,
    sent: usize,
}

impl Kvm {
    fn refused(&self) -> io::Result<()> {
        if self.step.fetch_add(1, Ordering::Relaxed) == self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        Ok(())
    }

    /// Sends what was signalled.
    fn pump(&self) {
        let state = &mut *self.state.lock().unwrap();
        for (_, trigger) in &state.bound {
            if rustix::io::read(trigger, &mut [0; 8]).is_ok() {
                let taken = self.apics.send_msi(GSI, state.routes[&GSI]).unwrap();
                state.lost |= taken == Delivery::Delivered(0);
                state.sent += 1;
            }
        }
    }
}

impl Irqfds for Kvm {
    fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        self.refused()?;
        let mut state = self.state.lock().unwrap();
        assert!(state.routes.contains_key(&gsi), "law 3: route, then assign");
        let number = trigger.as_raw_fd();
        assert!(state.bound.iter().all(|(other, _)| *other != number), "bound twice");
        state.bound.push((number, trigger.try_clone_to_owned()?));
        Ok(())
    }

    fn unbind(&self, trigger: BorrowedFd<'_>, _: Gsi) -> io::Result<()> {
        self.refused()?;
        self.pump();
        let mut state = self.state.lock().unwrap();
        let at = state.bound.iter().position(|(other, _)| *other == trigger.as_raw_fd());
        state.bound.remove(at.unwrap());
        Ok(())
    }

    fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()> {
        self.refused()?;
        self.pump();
        self.state.lock().unwrap().routes.insert(gsi, message);
        Ok(())
    }
}

/// The device, and its handle.
struct Device {
    kind: Kind,
    cause: AtomicBool,
    /// It has masked itself.
    masked: AtomicBool,
    handle: Handle,
}

enum Handle {
    Source(Arc<dyn LevelSource>),
    Trigger(OwnedFd),
    Pulse(Arc<Ioapic>),
}

impl Device {
    fn has_cause(&self) -> bool {
        self.cause.load(Ordering::Relaxed)
    }

    fn raise(&self) {
        self.cause.store(true, Ordering::Relaxed);
        self.state();
    }

    /// States the level, or the event.
    fn state(&self) {
        // A refusal is an error that the next operation has to make up for.
        match &self.handle {
            Handle::Source(source) if self.has_cause() => {
                if self.kind != Kind::Kick || !self.masked.swap(true, Ordering::Relaxed) {
                    drop(source.assert());
                }
            }
            Handle::Source(source) => drop(source.deassert()),
            Handle::Trigger(trigger) if self.has_cause() => {
                rustix::io::write(trigger, &1u64.to_ne_bytes()).unwrap();
            }
            Handle::Pulse(ioapic) if self.has_cause() => drop(ioapic.pulse(GSI)),
            Handle::Trigger(_) | Handle::Pulse(_) => {}
        }
    }

    /// The guest's handler serves the device. Returns whether there was a cause.
    fn serve(&self) -> bool {
        let had_cause = self.cause.swap(false, Ordering::Relaxed);
        match &self.handle {
            Handle::Source(source) if self.kind == Kind::Line => drop(source.deassert()),
            _ => {}
        }
        had_cause
    }

    fn told(&self) {
        self.masked.store(false, Ordering::Relaxed);
        if self.has_cause() {
            self.state();
        }
    }
}

/// What a processor's handler is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    None,
    Entered,
    Looked,
}

struct World {
    // First, so that no listener leads to the device any more.
    guard: Option<EoiGuard>,
    device: Arc<Device>,
    ioapic: Arc<Ioapic>,
    pins: Arc<IrqfdPins>,
    kvm: Arc<Kvm>,
    apics: Arc<LocalApics>,
    /// An IOAPIC that is told of EOIs that the real one is not told of.
    nobody: Ioapic,
    service: [Service; 2],
    entry: u32,
    /// The pin was an edge pin.
    was_edge: bool,
    processor: u32,
    enabled: bool,
    served: usize,
    spurious: usize,
    /// A step was refused.
    failed: bool,
}

impl World {
    fn new(kind: Kind, mode: u32) -> Self {
        let apics = LocalApics::new(2);
        let (kvm, pins, ioapic) = Self::chip(&apics, 0, usize::MAX);
        let nobody = Ioapic::builder().pins(1).build(apics.clone()).unwrap();
        let (device, guard) = Self::plug(kind, &pins, &ioapic, false);
        let mut world = Self {
            guard,
            device,
            ioapic,
            pins,
            kvm,
            apics,
            nobody,
            service: [Service::None; 2],
            entry: mode | u32::from(VECTOR),
            was_edge: mode == 0,
            processor: 0,
            enabled: true,
            served: 0,
            spurious: 0,
            failed: false,
        };
        world.write_entry();
        world
    }

    fn chip(apics: &Arc<LocalApics>, step: usize, refuse: usize) -> (Arc<Kvm>, Arc<IrqfdPins>, Arc<Ioapic>) {
        let kvm = Arc::new(Kvm {
            apics: Arc::clone(apics),
            state: Mutex::default(),
            step: AtomicUsize::new(step),
            refuse: AtomicUsize::new(refuse),
        });
        let pins = Arc::new(IrqfdPins::new(kvm.clone(), GSI, 1).unwrap());
        let ioapic = Ioapic::builder().pins(1).build(pins.clone()).unwrap();
        (kvm, pins, Arc::new(ioapic))
    }

    /// The device's part of the VMM. It states its level.
    fn plug(kind: Kind, pins: &Arc<IrqfdPins>, ioapic: &Arc<Ioapic>, cause: bool) -> (Arc<Device>, Option<EoiGuard>) {
        let source = |lowered_by| ioapic.source(GSI, "device", lowered_by).unwrap();
        let handle = match kind {
            // A refusal is told to the VMM, which tries again.
            Kind::Kick => Handle::Source(
                pins.source(GSI, "device")
                    .or_else(|_| pins.source(GSI, "device"))
                    .unwrap(),
            ),
            Kind::Line => Handle::Source(source(LoweredBy::Device)),
            Kind::Resample => Handle::Source(source(LoweredBy::Eoi)),
            Kind::Trigger => Handle::Trigger(pins.trigger(GSI).unwrap().try_clone_to_owned().unwrap()),
            Kind::Pulse => Handle::Pulse(Arc::clone(ioapic)),
        };
        let device = Arc::new(Device {
            kind,
            cause: AtomicBool::new(cause),
            masked: AtomicBool::new(false),
            handle,
        });
        let subject = match &device.handle {
            Handle::Source(_) if kind == Kind::Kick => Some(GSI.into()),
            Handle::Source(source) if kind == Kind::Resample => Some(source.key().into()),
            _ => None,
        };
        let told = Arc::clone(&device);
        let guard = subject.map(|subject| {
            let listener = Listener::callback(move |_| told.told());
            ioapic.subscribe(subject, listener).unwrap()
        });
        device.state();
        (device, guard)
    }

    fn write(&self, register: u32, value: u32) {
        self.ioapic.write(0, &register.to_le_bytes());
        self.ioapic.write(0x10, &value.to_le_bytes());
    }

    fn write_entry(&mut self) {
        self.write(0x10, self.entry);
        self.kvm.pump();
    }

    fn is_masked(&self) -> bool {
        self.entry & MASKED != 0
    }

    fn is_edge(&self) -> bool {
        self.entry & LEVEL == 0
    }

    fn applies(&self, op: Op) -> bool {
        let at = |service| self.service.contains(&service);
        match op {
            Op::Raise => !self.device.has_cause(),
            Op::Accept => self.acceptor().is_some(),
            Op::Look => at(Service::Entered),
            Op::Eoi => at(Service::Looked),
            Op::Mask(masked) => self.is_masked() != masked,
            Op::Apic(enabled) => self.enabled != enabled,
            Op::Mode(mode) => self.entry & LEVEL != mode && self.device.kind != Kind::Kick,
            Op::OthersEoi | Op::Move | Op::Sharer | Op::Restore(_) | Op::Replug => true,
        }
    }

    fn acceptor(&self) -> Option<usize> {
        (0..2).find(|cpu| {
            let enabled = *cpu == 1 || self.enabled;
            enabled && self.service[*cpu] == Service::None && self.apics.registers(*cpu as u8).irr.contains(VECTOR)
        })
    }

    fn processor_at(&self, service: Service) -> Option<usize> {
        self.service.iter().position(|at| *at == service)
    }

    fn act(&mut self, op: Op) {
        let sent = self.sent();
        let was_masked = self.is_masked();
        match op {
            Op::Raise => self.device.raise(),
            Op::Accept => {
                let cpu = self.acceptor().unwrap();
                assert_eq!(self.apics.accept(cpu as u8), Some(VECTOR));
                self.service[cpu] = Service::Entered;
            }
            Op::Look => {
                let cpu = self.processor_at(Service::Entered).unwrap();
                self.service[cpu] = Service::Looked;
                match self.device.serve() {
                    true => self.served += 1,
                    false => self.spurious += 1,
                }
            }
            Op::Eoi => self.eoi(),
            Op::OthersEoi => self.ioapic.eoi(VECTOR),
            Op::Mask(masked) => {
                self.entry = self.entry & !MASKED | if masked { MASKED } else { 0 };
                self.write_entry();
            }
            Op::Move => {
                self.processor = 1 - self.processor;
                self.write(0x11, self.processor << 24);
            }
            Op::Apic(enabled) => {
                self.enabled = enabled;
                self.apics.set_enabled(0, enabled);
            }
            Op::Mode(mode) => {
                self.entry = self.entry & !LEVEL | mode;
                self.was_edge = true;
                self.write_entry();
            }
            Op::Sharer => {
                let sharer = self.ioapic.source(GSI, "sharer", LoweredBy::Device).unwrap();
                drop(sharer.assert());
                drop(sharer.deassert());
            }
            Op::Restore(keeps_cause) => self.restore(keeps_cause && self.device.has_cause()),
            Op::Replug => self.replug(),
        }
        self.kvm.pump();
        self.failed |= self.kvm.step.load(Ordering::Relaxed) > self.kvm.refuse.load(Ordering::Relaxed);
        if was_masked && self.is_masked() && !self.failed {
            assert_eq!(self.sent(), sent, "the guest has masked the pin");
        }
    }

    fn sent(&self) -> usize {
        self.kvm.state.lock().unwrap().sent
    }

    /// The guest ends the interrupt. KVM tells of a level-triggered one, and before 6.2 only the processor that the
    /// message goes to.
    fn eoi(&mut self) {
        let cpu = self.processor_at(Service::Looked).unwrap();
        self.service[cpu] = Service::None;
        let is_level = self.apics.registers(cpu as u8).tmr.contains(VECTOR);
        assert_eq!(self.apics.eoi(cpu as u8, &self.nobody), Some(VECTOR));
        let route = self.kvm.state.lock().unwrap().routes.get(&GSI).copied();
        let tells = route.is_some_and(|route| route.address >> 12 & 0xff == cpu as u64 && route.data & LEVEL != 0);
        if is_level && tells {
            self.ioapic.eoi(VECTOR);
        }
    }

    /// Everything but the guest goes, and comes in another process.
    fn restore(&mut self, cause: bool) {
        let saved = self.ioapic.save();
        let (step, refuse) = (&self.kvm.step, &self.kvm.refuse);
        let (step, refuse) = (step.load(Ordering::Relaxed), refuse.load(Ordering::Relaxed));
        let kind = self.device.kind;
        self.guard = None;
        let (kvm, pins, ioapic) = Self::chip(&self.apics, step, refuse);
        // A refusal is told to the VMM, which tries again.
        ioapic.restore(&saved).or_else(|_| ioapic.restore(&saved)).unwrap();
        let (device, guard) = Self::plug(kind, &pins, &ioapic, cause);
        // The old ones go without a failure.
        self.kvm.refuse.store(usize::MAX, Ordering::Relaxed);
        {
            let (mut new, old) = (kvm.state.lock().unwrap(), self.kvm.state.lock().unwrap());
            new.sent += old.sent;
            new.lost |= old.lost;
        }
        (self.device, self.guard) = (device, guard);
        (self.ioapic, self.pins, self.kvm) = (ioapic, pins, kvm);
    }

    fn replug(&mut self) {
        let cause = self.device.has_cause();
        let kind = self.device.kind;
        self.guard = None;
        (self.device, self.guard) = Self::plug(kind, &self.pins, &self.ioapic, cause);
    }

    /// The guest runs its handlers until nothing moves.
    fn settle(&mut self) {
        for _ in 0..32 {
            let mut ops = [Op::Look, Op::Eoi, Op::Accept].into_iter();
            match ops.find(|op| self.applies(*op)) {
                Some(op) => self.act(op),
                None => return,
            }
        }
        panic!("the interrupt comes again and again");
    }

    fn set_masked(&mut self, masked: bool) {
        if self.is_masked() != masked {
            self.act(Op::Mask(masked));
        }
    }

    fn check(&mut self) {
        // Nothing is refused from here on.
        self.kvm.refuse.store(usize::MAX, Ordering::Relaxed);
        let was_edge = self.was_edge;
        self.settle();
        if !self.enabled {
            self.act(Op::Apic(true));
        }
        // What a guest does that misses an interrupt.
        let lost = std::mem::take(&mut self.kvm.state.lock().unwrap().lost) || self.ioapic.counts().route_errors > 0;
        if lost {
            self.set_masked(true);
            // An irqfd does not say that nobody has taken its message: the entry stays in service until the guest
            // makes it an edge and a level again, as Linux does when it starts.
            if !self.is_edge() {
                self.act(Op::Mode(0));
                self.act(Op::Mode(LEVEL));
            }
        }
        self.set_masked(false);
        self.settle();
        if was_edge || matches!(self.device.kind, Kind::Trigger | Kind::Pulse) {
            // An edge that nobody took has gone.
            self.device.serve();
        }
        assert!(!self.device.has_cause(), "lost");
        for _ in 0..2 {
            let (served, spurious) = (self.served, self.spurious);
            self.act(Op::Raise);
            self.settle();
            assert_eq!(
                (self.served, self.spurious),
                (served + 1, spurious),
                "the next interrupt"
            );
            assert_eq!(self.ioapic.level(GSI).unwrap(), Level::Low);
        }
    }
}

fn lowest_fd() -> RawFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap().as_raw_fd()
}

/// Runs one sequence with one step refused. Returns whether the sequence has that step, and `None` if it cannot be run.
fn explore((kind, mode): (Kind, u32), moment: &[Op], ops: &[Op], refuse: usize) -> Option<bool> {
    let before = lowest_fd();
    let mut world = World::new(kind, mode);
    for op in moment {
        if !world.applies(*op) {
            return None;
        }
        world.act(*op);
    }
    let first = world.kvm.step.load(Ordering::Relaxed);
    world.kvm.refuse.store(refuse.saturating_add(first), Ordering::Relaxed);
    for op in ops {
        if world.applies(*op) {
            world.act(*op);
        } else if refuse == usize::MAX {
            return None;
        }
    }
    let steps = world.kvm.step.load(Ordering::Relaxed) - first;
    world.check();
    drop(world);
    assert_eq!(lowest_fd(), before, "an fd is left");
    Some(refuse < steps)
}

/// All sequences that begin with `ops` and go on for `depth` operations. Returns how many runs that took.
fn below(device: (Kind, u32), moment: &[Op], ops: &mut Vec<Op>, depth: usize) -> usize {
    let run = |refuse| {
        let _named = Named(|| println!("with {device:?}, {moment:?}; {ops:?}, step {refuse} refused"));
        explore(device, moment, ops, refuse)
    };
    if run(usize::MAX).is_none() {
        return 0;
    }
    let mut runs = 1 + (0..).take_while(|refuse| run(*refuse) == Some(true)).count();
    if depth > 0 {
        for op in OPS {
            ops.push(op);
            runs += below(device, moment, ops, depth - 1);
            ops.pop();
        }
    }
    runs
}

/// Names what was run when that panics.
struct Named<F: Fn()>(F);

impl<F: Fn()> Drop for Named<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0();
        }
    }
}

#[test]
fn every_sequence_with_every_step_refused() {
    let depth = std::env::var("EXPLORER_DEPTH").map_or(DEPTH, |depth| depth.parse().unwrap());
    let mut runs = 0;
    for device in DEVICES {
        for moment in MOMENTS {
            runs += below(device, moment, &mut Vec::new(), depth);
        }
    }
    println!("{runs} runs of up to {depth} operations");
}
