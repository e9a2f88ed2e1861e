// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx in a registry: what a change of path leaves alone, what comes in the middle of one, and every part replaced
//! while interrupts flow on threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::guest::LineId::A;
use common::guest::{Guest as _, SoftGuest, TestLine};
use common::model_rig::level;
use common::rows::{MOMENTS, Moment};
use common::world::World;
use common::{PATIENCE, new_eventfd};
use interrupt_core::Gsi;
use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{
    Connection, Consumer, ConsumerInfo, DeviceIrq, EventfdId, ForwardIrq, Path, Policy, Producer, Registration,
    Registry,
};
use vfio_intx::{Intx, ModelIntx, Reason, State};

const ID: EventfdId = EventfdId(1);

type Hook = Box<dyn Fn() + Send>;

/// A line, with something that happens at one step of a change.
struct Hooked {
    line: GuestLine,
    /// Which of stop, connect and start, and what.
    hook: Mutex<Option<(&'static str, Hook)>>,
}

impl Hooked {
    fn at(&self, step: &'static str) {
        let mut hook = self.hook.lock().unwrap();
        if hook.as_ref().is_some_and(|(at, _)| *at == step) {
            let (_, act) = hook.take().unwrap();
            act();
        }
    }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.line.fmt(f)
    }
}

impl Consumer for Hooked {
    fn line(&self) -> &GuestLine {
        &self.line
    }
    fn info(&self) -> ConsumerInfo {
        self.line.info()
    }
    fn stop(&self) -> interrupt_core::Result<()> {
        self.at("stop");
        self.line.stop()
    }
    fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
        self.at("connect");
        self.line.connect(path, producer)
    }
    fn disconnect(&self, path: Path) {
        self.line.disconnect(path);
    }
    fn start(&self) -> interrupt_core::Result<()> {
        self.at("start");
        self.line.start()
    }
}

struct Bed {
    world: World<Arc<ModelIntx>>,
    registry: Registry,
    line: Arc<Hooked>,
    _registrations: [Registration; 2],
}

impl Bed {
    fn new(path: Path) -> Self {
        let world = World::new(level(), SoftGuest::new());
        let registry = Registry::default();
        let line = Arc::new(Hooked {
            line: world.guest.a.kernel(),
            hook: Mutex::default(),
        });
        let device = registry.add_producer(ID, world.intx.clone()).unwrap();
        let there = registry.add_consumer(ID, line.clone()).unwrap();
        registry.connection(ID).unwrap().restrict(Some(path)).unwrap();
        world.intx.enable().unwrap();
        Self {
            world,
            registry,
            line,
            _registrations: [device, there],
        }
    }

    fn connection(&self) -> Arc<Connection> {
        self.registry.connection(ID).unwrap()
    }

    fn change_to(&self, path: Path) {
        assert_eq!(
            self.registry.connection(ID).unwrap().restrict(Some(path)).unwrap(),
            Some(path)
        );
    }
}

const BOTH: [(Path, Path); 2] = [(Path::Relay, Path::KernelLoop), (Path::KernelLoop, Path::Relay)];

#[test]
fn what_is_under_way_is_neither_lowered_nor_signalled_again() {
    for (from, to) in BOTH {
        for moment in [Moment::Pending, Moment::InService] {
            let mut bed = Bed::new(from);
            moment.bring_about(&mut bed.world);
            let signals = bed.world.rig.signals();
            bed.change_to(to);
            bed.change_to(from);
            bed.change_to(to);
            assert!(bed.world.guest.is_high(A), "{from} to {to}, {moment:?}");
            assert_eq!(bed.world.rig.signals(), signals, "{from} to {to}, {moment:?}");
        }
    }
}

#[test]
fn what_comes_in_the_middle_of_a_change_is_delivered_once() {
    for (from, to) in BOTH {
        for step in ["stop", "connect", "start"] {
            for moment in MOMENTS {
                let mut bed = Bed::new(from);
                moment.bring_about(&mut bed.world);
                let (device, line) = (bed.world.rig.clone(), bed.world.guest.a.line.clone());
                // The guest is served and ends its interrupt, if there is one, and then the device asserts.
                let ends = bed.world.guest.is_high(A) || moment.in_service();
                *bed.line.hook.lock().unwrap() = Some((
                    step,
                    Box::new(move || {
                        if ends {
                            device.acknowledge(u32::MAX);
                            line.eoi().unwrap();
                        }
                        device.raise(1);
                    }),
                ));
                let what = format!("{from} to {to}, at {step}, {moment:?}");
                bed.change_to(to);
                let served = bed.world.served;
                if moment.in_service() {
                    // The handler whose EOI was made up above has still to return.
                    bed.world.settle();
                    bed.world.guest.eoi(A);
                }
                bed.world.serve_all();
                assert_eq!(bed.world.served, served + 1, "{what}");
                bed.world.works(2);
                assert_eq!(bed.world.intx.status().state, State::Carried(to), "{what}");
            }
        }
    }
}

#[test]
fn a_change_waits_for_the_end_of_what_the_relay_has_under_way_and_can_be_called_off() {
    let mut bed = Bed::new(Path::Relay);
    Moment::InService.bring_about(&mut bed.world);
    bed.change_to(Path::KernelLoop);
    assert_eq!(bed.world.intx.status().state, State::Carried(Path::Relay));
    // The registry's answer is where it goes.
    assert_eq!(bed.registry.connection(ID).unwrap().path(), Some(Path::KernelLoop));
    bed.change_to(Path::Relay);
    bed.world.serve();
    bed.world.guest.eoi(A);
    bed.world.works(2);
    assert_eq!(bed.world.intx.status().state, State::Carried(Path::Relay));

    Moment::InService.bring_about(&mut bed.world);
    bed.change_to(Path::KernelLoop);
    bed.world.serve();
    bed.world.guest.eoi(A);
    bed.world.until("it is handed over", |world| {
        world.intx.status().state == State::Carried(Path::KernelLoop)
    });
    bed.world.works(2);

    // A mask in between ends the wait as well, and nothing is left masked after it.
    bed.change_to(Path::Relay);
    bed.world.works(1);
    Moment::Pending.bring_about(&mut bed.world);
    bed.change_to(Path::KernelLoop);
    bed.world.intx.mask().unwrap();
    assert!(!bed.world.guest.is_high(A));
    assert_eq!(bed.world.intx.unmask().unwrap(), State::Carried(Path::KernelLoop));
    bed.world.serve_all();
    bed.world.works(2);
}

#[test]
fn a_path_that_fails_gives_way_and_the_explanation_says_so() {
    const ENOMEM: i32 = 12;
    for step in 0.. {
        let mut bed = Bed::new(Path::Relay);
        bed.world.works(1);
        bed.world.rig.refuse(step, 1, ENOMEM);
        let path = bed
            .registry
            .connection(ID)
            .unwrap()
            .restrict(Some(Path::KernelLoop))
            .unwrap();
        let said = bed.registry.explain()[0].to_string();
        if path == Some(Path::KernelLoop) && step > 3 {
            break;
        }
        if path == Some(Path::Relay) {
            assert!(
                said.contains("not kernel loop: it failed") && said.contains("os error 12"),
                "{said}"
            );
        }
        assert!(step < 20, "{said}");
        bed.world.rig.refuse(0, 0, 0);
        bed.world.works(2);
        assert_eq!(
            bed.registry.connection(ID).unwrap().changed().unwrap(),
            Some(Path::KernelLoop),
            "{step}"
        );
        bed.world.works(2);
    }
}

/// Row 132. One step fails, of the device or of the line, at any moment of an interrupt, in a change of path or at the
/// EOI that the change waits for. Nobody calls INTx or the connection after that: the interrupt is served, the next one
/// too, and the status says where INTx is.
#[test]
fn any_failing_step_of_a_change_mends_itself() {
    const ENOMEM: i32 = 12;
    let mut failed = 0;
    for (from, to) in BOTH {
        for moment in MOMENTS {
            for of_line in [false, true] {
                for (step, times) in (0..16).flat_map(|step| [(step, 1), (step, 2)]) {
                    let mut bed = Bed::new(from);
                    bed.world.works(1);
                    moment.bring_about(&mut bed.world);
                    bed.world.tolerates_errors = true;
                    match of_line {
                        true => bed.world.guest.a.irqfd.refuse(step, times),
                        false => bed.world.rig.refuse(step, times, ENOMEM),
                    }
                    let what = format!("{from} to {to}, {moment:?}, line {of_line}, step {step}, {times} times");
                    let came = bed.connection().restrict(Some(to));
                    if moment == Moment::InService {
                        bed.world.serve();
                    }
                    if moment.in_service() {
                        bed.world.settle();
                        bed.world.guest.eoi(A);
                    }
                    bed.world.settle();
                    while bed.world.guest_step() {
                        bed.world.settle();
                    }
                    let status = bed.world.intx.status();
                    let refused = bed.world.rig.refused() + bed.world.guest.a.irqfd.refused();
                    failed += refused;
                    assert!(
                        !bed.world.rig.is_masked(),
                        "{what}: {status} {:?} {came:?}",
                        bed.world.rig
                    );
                    bed.world.rig.refuse(0, 0, 0);
                    bed.world.guest.a.irqfd.refuse(0, 0);
                    match status.state {
                        State::Disabled => {
                            assert!(refused > 0 && !bed.world.rig.is_enabled(), "{what}: {status}");
                            let why = matches!(status.reason, Reason::Failed(_) | Reason::NoLine);
                            assert!(why && !bed.world.guest.is_high(A), "{what}: {status}");
                            // One refusal of the device costs the direct path at most.
                            assert!(of_line || times > 1, "{what}: {status}");
                        }
                        State::Masked => panic!("{what}: {status}"),
                        State::Carried(path) => {
                            assert_eq!(bed.world.rig.status(), 0, "{what}: lost: {status}");
                            assert!([from, to, Path::Relay].contains(&path), "{what}: {status}");
                            assert!(!matches!(status.reason, Reason::Changing), "{what}: {status}");
                            bed.world.works(2);
                        }
                    }
                }
            }
        }
    }
    assert!(failed > 100, "{failed} steps failed");
}

#[test]
fn a_path_that_fails_behind_the_registrys_back_is_found() {
    const EIO: i32 = 5;
    let mut bed = Bed::new(Path::KernelLoop);
    bed.world.intx.mask().unwrap();
    let said = bed.registry.explain()[0].to_string();
    assert!(said.contains("held back: masked on the guest's behalf"), "{said}");
    // Setting the trigger of the line, at the unmask.
    bed.world.rig.refuse(0, 1, EIO);
    assert_eq!(bed.world.intx.unmask().unwrap(), State::Carried(Path::Relay));
    let said = bed.registry.explain()[0].to_string();
    assert!(said.contains(": relay, ") && said.contains("not kernel loop"), "{said}");
    assert_eq!(
        bed.registry.connection(ID).unwrap().changed().unwrap(),
        Some(Path::KernelLoop)
    );
    bed.world.works(3);
}

/// A line that the host forwards to, as the proposal of 2015 would have it: not what is masked or active.
#[derive(Debug)]
struct Host {
    line: GuestLine,
    device: Arc<ModelIntx>,
    refuses: AtomicBool,
    forwarded: AtomicBool,
}

impl Consumer for Host {
    fn line(&self) -> &GuestLine {
        &self.line
    }
    fn info(&self) -> ConsumerInfo {
        ConsumerInfo {
            host_forward: Ok(()),
            ..self.line.info()
        }
    }
    fn stop(&self) -> interrupt_core::Result<()> {
        self.line.stop()
    }
    fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
        if path != Path::HostForward {
            return self.line.connect(path, producer);
        }
        if self.device.is_masked() || self.refuses.load(Ordering::Relaxed) {
            return Err(interrupt_core::Error::Os {
                operation: "forward",
                gsi: self.line.gsi(),
                source: std::io::Error::from_raw_os_error(11),
            });
        }
        self.forwarded.store(true, Ordering::Relaxed);
        Ok(())
    }
    fn disconnect(&self, path: Path) {
        if path == Path::HostForward {
            self.forwarded.store(false, Ordering::Relaxed);
        }
    }
    fn start(&self) -> interrupt_core::Result<()> {
        self.line.start()
    }
}

#[test]
fn the_host_is_asked_before_signalling_is_set_up_and_the_kernel_loop_is_next() {
    let mut world = World::new(level(), SoftGuest::new());
    world.intx.set_irq(Some(DeviceIrq {
        device: 33,
        index: 0,
        sub: 0,
    }));
    let registry = Registry::default();
    let host = Arc::new(Host {
        line: world.guest.a.kernel(),
        device: world.rig.clone(),
        refuses: AtomicBool::new(false),
        forwarded: AtomicBool::new(false),
    });
    let is_forwarded = || host.forwarded.load(Ordering::Relaxed);
    let _device = registry.add_producer(ID, world.intx.clone()).unwrap();
    let line = registry.add_consumer(ID, host.clone()).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::HostForward));
    assert!(is_forwarded());
    world.works(3);
    // Away and back, with an interrupt of which the host would say EAGAIN, if it were asked while INTx is set up.
    for moment in MOMENTS {
        assert_eq!(
            registry.connection(ID).unwrap().restrict(Some(Path::Relay)).unwrap(),
            Some(Path::Relay)
        );
        assert!(!is_forwarded());
        world.works(1);
        moment.bring_about(&mut world);
        assert_eq!(
            registry.connection(ID).unwrap().restrict(None).unwrap(),
            Some(Path::HostForward),
            "{moment:?}"
        );
        assert!(is_forwarded());
        if moment.in_service() {
            world.serve();
            world.settle();
            world.guest.eoi(A);
        }
        world.serve_all();
        assert_eq!(world.intx.status().state, State::Carried(Path::HostForward));
        world.works(2);
    }
    // It refuses all the same.
    registry.connection(ID).unwrap().restrict(Some(Path::Relay)).unwrap();
    host.refuses.store(true, Ordering::Relaxed);
    assert_eq!(
        registry.connection(ID).unwrap().restrict(None).unwrap(),
        Some(Path::KernelLoop)
    );
    let said = registry.explain()[0].to_string();
    assert!(
        said.contains("kernel loop, ") && said.contains("not host forward: it failed") && said.contains("os error 11"),
        "{said}"
    );
    world.works(2);
    host.refuses.store(false, Ordering::Relaxed);
    assert_eq!(
        registry.connection(ID).unwrap().changed().unwrap(),
        Some(Path::HostForward)
    );
    world.works(2);
    drop(line);
    assert!(!is_forwarded());
}

#[test]
fn row_128_explicit_forward_of_intx() {
    let mut world = World::new(level(), SoftGuest::new());
    let registry = Registry::new(Policy::Explicit);
    let device = 33;
    world.intx.set_irq(Some(DeviceIrq {
        device,
        index: 0,
        sub: 0,
    }));
    let _device = registry.add_producer(ID, world.intx.clone()).unwrap();
    let _line = registry.add_consumer(ID, Arc::new(world.guest.a.kernel())).unwrap();
    let gsi = [Gsi(10)];
    let request = ForwardIrq::new(device, 0, 0, &gsi);
    // Before signalling is set up.
    registry.forward(&request).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::KernelLoop));
    world.works(2);
    registry.unforward(&request).unwrap();
    assert_eq!(world.intx.status().state, State::Carried(Path::Relay));
    world.works(2);
    // In service, as the relay knows, and then masked.
    Moment::InService.bring_about(&mut world);
    assert_eq!(registry.forward(&request).unwrap_err().errno(), Some(11));
    registry.unforward(&request).unwrap();
    world.serve();
    world.guest.eoi(A);
    world.settle();
    world.intx.mask().unwrap();
    assert_eq!(registry.forward(&request).unwrap_err().errno(), Some(11));
    world.intx.unmask().unwrap();
    registry.forward(&request).unwrap();
    assert_eq!(world.intx.status().state, State::Carried(Path::KernelLoop));
    world.works(2);
}

#[test]
fn an_fd_number_that_is_used_again_does_not_match() {
    let world = World::new(level(), SoftGuest::new());
    let registry = Registry::default();
    let trigger = new_eventfd();
    let (id, number) = (EventfdId::of(&trigger).unwrap(), trigger.as_raw_fd());
    let _device = registry.add_producer(id, world.intx.clone()).unwrap();
    // The other holder keeps the eventfd: its number is free, and goes to another eventfd. Other tests open files too.
    let held = trigger.try_clone().unwrap();
    drop(trigger);
    let again = rustix::io::fcntl_dupfd_cloexec(new_eventfd(), number).unwrap();
    assert_ne!(EventfdId::of(&again).unwrap(), id);
    let stranger = registry.add_consumer(EventfdId::of(&again).unwrap(), Arc::new(world.guest.b.kernel()));
    assert_eq!(registry.connection(id).unwrap().path(), None);
    drop(stranger);
    let line = registry
        .add_consumer(EventfdId::of(&held).unwrap(), Arc::new(world.guest.a.kernel()))
        .unwrap();
    assert_eq!(registry.connection(id).unwrap().path(), Some(Path::KernelLoop));
    drop(line);
}

/// How many interrupts a storm has: fewer than 1,000,000 unless asked for all.
fn storm() -> u32 {
    match std::env::var("IRQ_TEST_STORM") {
        Ok(_) => 1_000_000,
        Err(_) => 20_000,
    }
}

/// A part of the way of an interrupt is replaced every so often, at any moment, while a device, a kernel, a relay and a
/// guest go on on threads of their own.
fn replaced_in_the_storm(
    replace: impl Fn(&Registry, &mut Option<Registration>, u32, &TestLine, &TestLine),
) -> (u32, u32) {
    let (device, count) = (level(), storm());
    let (intx, mut relay) = Intx::new(device.clone()).unwrap();
    let intx = Arc::new(intx);
    let SoftGuest { a, b, .. } = SoftGuest::new();
    let registry = Registry::default();
    let _device = registry.add_producer(ID, intx.clone()).unwrap();
    let mut line = Some(registry.add_consumer(ID, Arc::new(a.kernel())).unwrap());
    intx.enable().unwrap();
    let (served, spurious) = (AtomicU32::new(0), AtomicU32::new(0));
    let over = AtomicBool::new(false);
    let running = || !over.load(Ordering::Relaxed);
    let mut replaced = 0;
    thread::scope(|scope| {
        struct OnDrop<'a>(&'a AtomicBool);
        impl Drop for OnDrop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = OnDrop(&over);
        scope.spawn(move || {
            while running() {
                relay.wait(Some(Duration::from_millis(20))).unwrap();
            }
        });
        scope.spawn(|| {
            while running() {
                if !(a.irqfd.poll() | b.irqfd.poll() | device.poll_unmask()) {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while running() {
                for line in [&a, &b] {
                    if line.accept() {
                        match device.status() {
                            0 => drop(spurious.fetch_add(1, Ordering::Relaxed)),
                            status => {
                                device.acknowledge(status);
                                served.fetch_add(1, Ordering::Release);
                            }
                        }
                        line.eoi();
                    }
                }
                thread::yield_now();
            }
        });
        for round in 0..count {
            device.raise(1);
            if round % 50 == 0 {
                replace(&registry, &mut line, replaced, &a, &b);
                replaced += 1;
            }
            let deadline = Instant::now() + PATIENCE;
            while served.load(Ordering::Acquire) <= round {
                assert!(
                    Instant::now() < deadline,
                    "round {round} is lost: {registry:?} {device:?}"
                );
                thread::yield_now();
            }
        }
    });
    assert_eq!(served.into_inner(), count, "doubled");
    assert_eq!(intx.status().fallbacks, 0);
    (replaced, spurious.into_inner())
}

#[test]
fn the_forwarder_is_replaced_in_the_storm() {
    let (replaced, spurious) = replaced_in_the_storm(|registry, _, n, _, _| {
        let path = if n % 2 == 0 { Path::Relay } else { Path::KernelLoop };
        assert_eq!(
            registry.connection(ID).unwrap().restrict(Some(path)).unwrap(),
            Some(path)
        );
    });
    println!("{replaced} changes of forwarder, {spurious} handler runs for nothing");
    assert_eq!(spurious, 0);
}

/// A line that an interrupt is under way on is left: it falls, and a guest that had begun with it finds the device
/// served on the other.
fn at_most_one_each(what: &str, (replaced, spurious): (u32, u32)) {
    println!("{replaced} changes of {what}, {spurious} handler runs for nothing");
    assert!(
        spurious <= replaced,
        "{spurious} handler runs for nothing in {replaced} changes of {what}"
    );
}

#[test]
fn the_eoi_notifier_is_replaced_in_the_storm() {
    let outcome = replaced_in_the_storm(|registry, line, n, a, _| {
        *line = None;
        // By the key of the source, or by the GSI.
        let to = if n % 2 == 0 { a.split() } else { a.kernel() };
        *line = Some(registry.add_consumer(ID, Arc::new(to)).unwrap());
    });
    at_most_one_each("EOI notifier", outcome);
}

#[test]
fn the_level_source_is_replaced_in_the_storm() {
    let outcome = replaced_in_the_storm(|registry, line, n, a, _| {
        *line = None;
        // One with a trigger eventfd, or one that this process asserts.
        let to = if n % 2 == 0 { a.without_trigger() } else { a.kernel() };
        let path = if n % 2 == 0 { Path::Relay } else { Path::KernelLoop };
        *line = Some(registry.add_consumer(ID, Arc::new(to)).unwrap());
        assert_eq!(registry.connection(ID).unwrap().path(), Some(path));
    });
    at_most_one_each("level source", outcome);
}

#[test]
fn the_route_is_replaced_in_the_storm() {
    let outcome = replaced_in_the_storm(|registry, line, n, a, b| {
        *line = None;
        let to = if n % 2 == 0 { b.kernel() } else { a.kernel() };
        let gsi = to.source().gsi();
        *line = Some(registry.add_consumer(ID, Arc::new(to)).unwrap());
        assert!(registry.explain()[0].to_string().contains(&gsi.to_string()));
    });
    at_most_one_each("route", outcome);
}
