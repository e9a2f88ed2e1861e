// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC on a hypervisor's irqfds and routes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use interrupt_core::forward::GuestLine;
use interrupt_core::{Delivery, EoiNotifier, Gsi, Irqfds, LevelSource, Listener, LoweredBy, Msi, MsiOutput, PinMask};
use user_irqchip::{BorrowedEventFd, Ioapic, IrqfdPins};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

const LEVEL: u32 = 0x8000;
const MASKED: u32 = 0x1_0000;

/// A hypervisor that binds and routes as KVM does.
#[derive(Debug, Default)]
struct Hypervisor(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is bound: the caller's descriptor, and a duplicate.
    bound: Vec<(RawFd, Gsi, OwnedFd)>,
    routes: BTreeMap<Gsi, Msi>,
    calls: Vec<&'static str>,
    /// The call of this name that comes next is refused.
    refuse: Option<&'static str>,
    /// The call of this name that comes next panics.
    panic: Option<&'static str>,
    /// A device signals while its eventfd is being bound. KVM sends that, and leaves the count.
    signal_in_bind: bool,
    /// The next route says that it has begun, and ends after it is told that an assertion has ended.
    in_route: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
    waited_too_long: bool,
}

impl State {
    fn call(&mut self, call: &'static str) -> io::Result<()> {
        if self.panic.take_if(|panicking| *panicking == call).is_some() {
            std::panic::resume_unwind(Box::new("the hypervisor's fault"));
        }
        if self.refuse.take_if(|refused| *refused == call).is_some() {
            return Err(io::Error::from_raw_os_error(12));
        }
        self.calls.push(call);
        Ok(())
    }
}

impl Hypervisor {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Irqfds for Hypervisor {
    fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        let mut state = self.lock();
        state.call("bind")?;
        assert!(state.routes.contains_key(&gsi), "law 3: route, then assign");
        let duplicate = trigger.try_clone_to_owned()?;
        if state.signal_in_bind {
            File::from(duplicate.try_clone()?).write_all(&1u64.to_ne_bytes())?;
        }
        assert!(
            state.bound.iter().all(|(fd, ..)| *fd != trigger.as_raw_fd()),
            "bound twice"
        );
        state.bound.push((trigger.as_raw_fd(), gsi, duplicate));
        Ok(())
    }

    fn unbind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        let mut state = self.lock();
        state.call("unbind")?;
        let before = state.bound.len();
        state
            .bound
            .retain(|(fd, at, _)| (*fd, *at) != (trigger.as_raw_fd(), gsi));
        assert_eq!(state.bound.len(), before - 1, "not bound");
        Ok(())
    }

    fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()> {
        let in_route = self.lock().in_route.take();
        if let Some((entered, asserts)) = in_route {
            entered.send(()).unwrap();
            let waited = asserts.recv_timeout(Duration::from_secs(10));
            self.lock().waited_too_long = waited.is_err();
        }
        let mut state = self.lock();
        state.call("route")?;
        state.routes.insert(gsi, message);
        Ok(())
    }
}

struct Rig {
    hypervisor: Arc<Hypervisor>,
    pins: Arc<IrqfdPins>,
    ioapic: Arc<Ioapic>,
}

impl Rig {
    fn new() -> Self {
        let hypervisor = Arc::new(Hypervisor::default());
        let pins = Arc::new(IrqfdPins::new(hypervisor.clone(), Gsi(0), 24).unwrap());
        let ioapic = Arc::new(Ioapic::builder().build(pins.clone()).unwrap());
        Self {
            hypervisor,
            pins,
            ioapic,
        }
    }

    fn write(&self, register: u32, value: u32) {
        let base = MmioAddress(Ioapic::BASE);
        self.ioapic.mmio_write(base, 0, &register.to_le_bytes());
        self.ioapic.mmio_write(base, 0x10, &value.to_le_bytes());
    }

    /// The guest programs pin 5.
    fn set(&self, low: u32) {
        self.write(0x10 + 2 * 5, low);
    }

    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.hypervisor.lock().calls)
    }

    fn refuse(&self, call: &'static str) {
        self.hypervisor.lock().refuse = Some(call);
    }

    fn bound(&self) -> usize {
        self.hypervisor.lock().bound.len()
    }

    /// What the hypervisor sends for the eventfds that are signalled: the data of each message.
    fn sent(&self) -> Vec<u32> {
        let state = self.hypervisor.lock();
        let mut sent = Vec::new();
        for (_, gsi, eventfd) in &state.bound {
            let mut eventfd = File::from(eventfd.try_clone().unwrap());
            if eventfd.read(&mut [0; 8]).is_ok() {
                sent.push(state.routes[gsi].data);
            }
        }
        sent
    }
}

/// A device in another process, or the kernel.
fn signal(source: &dyn LevelSource) {
    rustix::io::write(source.trigger().unwrap(), &1u64.to_ne_bytes()).unwrap();
}

#[test]
fn the_pins_are_the_ioapics_output_and_ask_for_nothing_twice() {
    let rig = Rig::new();
    let device = rig.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    rig.set(MASKED | LEVEL | 0x31);
    assert_eq!(rig.calls(), [""; 0], "a masked pin has neither");
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.calls(), ["route", "bind"]);
    device.assert().unwrap();
    assert_eq!(rig.sent(), [0x8031]);
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.calls(), [""; 0]);
    rig.set(MASKED | LEVEL | 0x31);
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.calls(), ["unbind", "bind"], "the route stays");
    rig.ioapic.eoi(0x31);
    assert_eq!(rig.sent(), [0x8031], "the line is still high");
    rig.set(LEVEL | 0x32);
    assert_eq!(rig.calls(), ["route"], "from message to message");
    let message = Some(Msi {
        address: 0xfee0_0000,
        data: LEVEL | 0x33,
    });
    rig.pins.set_pin(Gsi(5), message, PinMask::Masked).unwrap();
    assert_eq!(rig.calls(), ["unbind", "route"], "law 3");
    let Rig {
        hypervisor,
        pins,
        ioapic,
    } = rig;
    drop((device, ioapic, pins));
    assert_eq!(hypervisor.lock().bound.len(), 0);
}

#[test]
fn a_source_has_an_irqfd_of_its_own_and_waits_behind_the_mask() {
    let rig = Rig::new();
    let early = rig.pins.source(Gsi(5), "early").unwrap();
    early.assert().unwrap();
    assert_eq!(rig.bound(), 0);
    rig.set(LEVEL | 0x31);
    assert_eq!((rig.bound(), rig.sent()), (2, vec![0x8031]), "law 16");
    let late = rig.pins.source(Gsi(5), "late").unwrap();
    assert_eq!(rig.bound(), 3);
    for source in [&early, &late] {
        assert_eq!(source.assert().unwrap(), Delivery::Unknown);
        assert_eq!(rig.sent(), [0x8031]);
    }
    rig.set(MASKED | LEVEL | 0x31);
    assert_eq!(rig.bound(), 0);
    late.assert().unwrap();
    early.assert().unwrap();
    early.force_deassert().unwrap();
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.sent(), [0x8031], "the late one's");
    // A device signals, behind a mask and before an unmask after which nobody is asked.
    rig.set(MASKED | LEVEL | 0x31);
    signal(&*late);
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.sent(), [0x8031]);
    drop(early);
    assert_eq!(rig.bound(), 2);
    rig.calls();
    rig.set(0x01);
    assert_eq!((rig.bound(), rig.calls()), (0, vec!["unbind"; 2]), "no message");
    drop(late);
    assert_eq!(rig.calls(), [""; 0]);
}

/// The count that was there before a bind is sent, and a count that came during the bind, which KVM has sent, is not sent
/// again.
#[test]
fn nothing_is_sent_twice_over_a_mask() {
    let rig = Rig::new();
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    for _ in 0..3 {
        source.assert().unwrap();
        source.assert().unwrap();
        rig.set(LEVEL | 0x31);
        assert_eq!(rig.sent(), [0x8031]);
        rig.set(MASKED | LEVEL | 0x31);
        rig.hypervisor.lock().signal_in_bind = true;
        rig.set(LEVEL | 0x31);
        rig.hypervisor.lock().signal_in_bind = false;
        assert_eq!(rig.sent(), [0; 0]);
        rig.set(MASKED | LEVEL | 0x31);
    }
}

#[test]
fn a_refusal_is_an_error_and_the_next_write_tries_again() {
    let rig = Rig::new();
    let message = Some(Msi {
        address: 0xfee0_0000,
        data: LEVEL | 0x31,
    });
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    source.assert().unwrap();
    for refused in ["bind", "route"] {
        rig.refuse(refused);
        let error = rig.pins.set_pin(Gsi(5), message, PinMask::Unmasked).unwrap_err();
        assert_eq!(error.errno(), Some(12), "{error}");
        rig.pins.set_pin(Gsi(5), message, PinMask::Unmasked).unwrap();
        assert_eq!((rig.bound(), rig.sent()), (2, vec![0x8031]), "{refused}");
        rig.refuse("unbind");
        rig.pins.set_pin(Gsi(5), message, PinMask::Masked).unwrap_err();
        rig.pins.set_pin(Gsi(5), message, PinMask::Masked).unwrap();
        assert_eq!(rig.bound(), 0);
        source.assert().unwrap();
        // The next route is a new one.
        rig.pins
            .set_pin(
                Gsi(5),
                message.map(|old| Msi {
                    data: LEVEL | 0x32,
                    ..old
                }),
                PinMask::Masked,
            )
            .unwrap();
        rig.sent();
    }
    rig.pins.set_pin(Gsi(5), message, PinMask::Unmasked).unwrap();
    rig.refuse("route");
    let moved = message.map(|old| Msi {
        address: 0xfee0_1000,
        ..old
    });
    rig.pins.set_pin(Gsi(5), moved, PinMask::Unmasked).unwrap_err();
    assert_eq!(rig.bound(), 0, "nothing goes to the old place");
    rig.refuse("bind");
    rig.pins.set_pin(Gsi(5), moved, PinMask::Unmasked).unwrap_err();
    rig.pins.set_pin(Gsi(5), moved, PinMask::Unmasked).unwrap();
    rig.refuse("bind");
    rig.pins.source(Gsi(5), "refused").unwrap_err();
    assert_eq!(rig.bound(), 2);
    rig.pins.source(Gsi(24), "no pin").unwrap_err();
}

/// Row 150: a device that listens is asked at the unmask, and signals again if its level lasts. What the VMM has asserted, and
/// what goes by the pin's own trigger, is nobody's level.
#[test]
fn an_unmask_that_asks_drops_what_a_device_signalled() {
    let rig = Rig::new();
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    let mut own = File::from(rig.pins.trigger(Gsi(5)).unwrap().try_clone_to_owned().unwrap());
    let device = source.trigger().unwrap().try_clone_to_owned().unwrap();
    let lasts = Arc::new(AtomicBool::new(false));
    let level = Arc::clone(&lasts);
    let listener = Listener::callback(move |_| {
        if level.load(Ordering::Relaxed) {
            rustix::io::write(&device, &1u64.to_ne_bytes()).unwrap();
        }
    });
    let _guard = rig.ioapic.subscribe(Gsi(5).into(), listener).unwrap();
    for round in 0..3 {
        for (is_high, sent) in [(false, vec![]), (true, vec![0x8031])] {
            rig.set(MASKED | LEVEL | 0x31);
            signal(&*source);
            lasts.store(is_high, Ordering::Relaxed);
            rig.set(LEVEL | 0x31);
            assert_eq!(rig.sent(), sent, "round {round}");
            lasts.store(false, Ordering::Relaxed);
        }
        rig.set(MASKED | LEVEL | 0x31);
        signal(&*source);
        source.assert().unwrap();
        rig.set(LEVEL | 0x31);
        assert_eq!(rig.sent(), [0x8031], "asserted, round {round}");
        rig.set(MASKED | LEVEL | 0x31);
        own.write_all(&1u64.to_ne_bytes()).unwrap();
        rig.set(LEVEL | 0x31);
        assert_eq!(rig.sent(), [0x8031], "the pin's own, round {round}");
    }
    // The device is asked at an unmask that the hypervisor refuses, and its answer is not dropped later.
    rig.set(MASKED | LEVEL | 0x31);
    signal(&*source);
    lasts.store(true, Ordering::Relaxed);
    rig.refuse("route");
    rig.set(LEVEL | 0x32);
    lasts.store(false, Ordering::Relaxed);
    rig.pins.retry().unwrap();
    assert_eq!(rig.sent(), [0x8032]);
    // Nothing waits in an eventfd that is bound.
    signal(&*source);
    rig.set(LEVEL | 0x33);
    assert_eq!(rig.sent(), [0x8033]);
}

/// Nobody has to write the entry again.
#[test]
fn a_refused_pin_is_tried_again_where_a_level_meets_it() {
    type Retry = fn(&Rig, &dyn LevelSource);
    let retries: [(&str, Retry); 4] = [
        ("the source asserts", |_, source| {
            source.assert().unwrap();
        }),
        ("another pin sends", |rig, _| {
            let other = rig.ioapic.source(Gsi(6), "other", LoweredBy::Eoi).unwrap();
            other.assert().unwrap();
        }),
        ("the pin sends", |rig, _| {
            let other = rig.ioapic.source(Gsi(5), "sharer", LoweredBy::Eoi).unwrap();
            other.assert().unwrap();
        }),
        ("the VMM asks", |rig, _| rig.pins.retry().unwrap()),
    ];
    for (how, retry) in retries {
        for refused in ["bind", "route"] {
            let rig = Rig::new();
            rig.write(0x10 + 2 * 6, LEVEL | 0x61);
            let source = rig.pins.source(Gsi(5), "device").unwrap();
            rig.refuse(refused);
            rig.set(LEVEL | 0x31);
            assert_eq!((rig.pins.refused(), rig.ioapic.counts().route_errors), (1, 1));
            assert!(format!("{:?}", rig.pins).contains("1 refused"));
            signal(&*source);
            retry(&rig, &*source);
            assert_eq!(rig.pins.refused(), 0, "{how}, {refused}");
            assert!(rig.sent().contains(&0x8031), "{how}, {refused}");
            rig.set(MASKED | LEVEL | 0x31);
            assert_eq!(rig.bound(), 1, "the pin is masked as any other");
        }
    }
    // A refusal of another pin is none of this one's.
    let rig = Rig::new();
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    rig.set(LEVEL | 0x31);
    rig.refuse("route");
    rig.write(0x10 + 2 * 6, LEVEL | 0x61);
    rig.refuse("route");
    source.assert().unwrap();
    assert_eq!(rig.pins.refused(), 1);
    rig.pins.retry().unwrap_err();
    rig.pins.retry().unwrap();
    // A mask that is refused lets signals through until it is tried again.
    rig.refuse("unbind");
    rig.set(MASKED | LEVEL | 0x31);
    assert_eq!((rig.pins.refused(), rig.bound()), (1, 2));
    rig.pins.retry().unwrap();
    assert_eq!((rig.pins.refused(), rig.bound()), (0, 1));
    // A hypervisor that still refuses is an error of the assertion.
    rig.refuse("bind");
    rig.set(LEVEL | 0x31);
    rig.refuse("bind");
    assert_eq!(source.assert().unwrap_err().errno(), Some(12));
}

/// A pulse is not asserted again when its device is asked.
#[test]
fn a_refused_unmask_keeps_what_was_asserted() {
    for refused in ["route", "bind"] {
        let rig = Rig::new();
        let source = rig.pins.source(Gsi(5), "device").unwrap();
        let _guard = rig.ioapic.subscribe(Gsi(5).into(), Listener::callback(|_| {})).unwrap();
        source.assert().unwrap();
        rig.refuse(refused);
        rig.set(LEVEL | 0x31);
        assert_eq!(rig.pins.refused(), 1, "{refused}");
        // Only the pin's own bind is refused.
        let mut sent = rig.sent();
        rig.set(MASKED | LEVEL | 0x31);
        rig.set(LEVEL | 0x31);
        sent.extend(rig.sent());
        assert_eq!(sent, [0x8031], "{refused}");
    }
}

/// A pin is refused, and another one is being programmed: the VMM's way to set routes may wait for a thread that asserts.
#[test]
fn an_assertion_does_not_wait_for_a_pin_that_is_being_programmed() {
    let rig = Rig::new();
    let source = rig.pins.source(Gsi(6), "irqfd").unwrap();
    let device = rig.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    rig.set(LEVEL | 0x31);
    let (entered, enters) = mpsc::channel();
    let (asserted, asserts) = mpsc::channel();
    rig.hypervisor.lock().in_route = Some((entered, asserts));
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| rig.write(0x10 + 2 * 6, LEVEL | 0x61));
        enters.recv().unwrap();
        source.assert().unwrap();
        device.assert().unwrap();
        // Nobody listens when the route has waited too long.
        let _ = asserted.send(());
        guest.join().unwrap();
    });
    assert!(!rig.hypervisor.lock().waited_too_long);
    assert_eq!(rig.sent().len(), 2);
}

#[test]
fn a_bind_that_panics_loses_no_signal() {
    let rig = Rig::new();
    let mut own = File::from(rig.pins.trigger(Gsi(5)).unwrap().try_clone_to_owned().unwrap());
    own.write_all(&1u64.to_ne_bytes()).unwrap();
    rig.hypervisor.lock().panic = Some("bind");
    let unmask = std::panic::AssertUnwindSafe(|| rig.set(LEVEL | 0x31));
    std::panic::catch_unwind(unmask).unwrap_err();
    assert_eq!((rig.bound(), rig.sent()), (0, vec![]));
    rig.set(LEVEL | 0x31);
    assert_eq!((rig.bound(), rig.sent()), (1, vec![0x8031]));
}

/// A source that has gone is off with the next change of its pin, also when somebody keeps its eventfd open.
#[test]
fn an_unbind_that_is_refused_at_a_sources_end_is_tried_again() {
    let rig = Rig::new();
    rig.set(LEVEL | 0x31);
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    rig.refuse("unbind");
    drop(source);
    assert_eq!(rig.bound(), 2);
    rig.set(MASKED | LEVEL | 0x31);
    assert_eq!(rig.bound(), 0);
    rig.set(LEVEL | 0x31);
    assert_eq!(rig.bound(), 1);
}

/// The flag is of the open file, which the process of a device shares.
#[test]
fn a_peer_that_makes_the_trigger_blocking_stops_no_vcpu() {
    let rig = Rig::new();
    let source = rig.pins.source(Gsi(5), "device").unwrap();
    let trigger = source.trigger().unwrap().try_clone_to_owned().unwrap();
    let flags = rustix::fs::fcntl_getfl(&trigger).unwrap();
    rustix::fs::fcntl_setfl(&trigger, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    // Full, and nobody reads it while the pin is masked.
    rustix::io::write(&trigger, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        source.assert().unwrap();
        rig.set(LEVEL | 0x31);
        assert_eq!(rig.sent(), [0x8031]);
        source.force_deassert().unwrap();
        rig.set(MASKED | LEVEL | 0x31);
        done.send(rig.bound()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(0));
}

/// KVM reads bits 14:8 of a destination elsewhere than the guest writes them (KVM_FEATURE_MSI_EXT_DEST_ID).
#[test]
fn a_wide_destination_is_as_kvm_takes_it() {
    let rig = Rig::new();
    // Destination 0x1ab: bits 7:0 in 63:56, bits 14:8 in 55:49.
    rig.write(0x11 + 2 * 5, 0xab << 24 | 0x01 << 17);
    rig.set(LEVEL | 0x31);
    let message = rig.hypervisor.lock().routes[&Gsi(5)];
    assert_eq!(message.address, 0x0100_0000_0000 | 0xfeea_b000);
}

/// The whole way of a split kick: the device's signal, the guest's EOI, and the listener by which the device is unmasked.
#[test]
fn a_guest_line_of_the_pins_is_one_with_the_ioapic() {
    let rig = Rig::new();
    let line = GuestLine::split(rig.pins.source(Gsi(5), "device").unwrap(), rig.ioapic.clone());
    let unmask = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let listener = Listener::fd(unmask.try_clone().unwrap());
    let _guard = line.notifier().subscribe(line.scope(), listener).unwrap();
    rig.set(LEVEL | 0x31);
    let mut unmask = File::from(unmask);
    unmask.read_exact(&mut [0; 8]).expect("told of the unmask");
    for _ in 0..3 {
        let mut trigger = File::from(line.source().trigger().unwrap().try_clone_to_owned().unwrap());
        trigger.write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!(rig.sent(), [0x8031]);
        rig.ioapic.eoi(0x31);
        unmask.read_exact(&mut [0; 8]).expect("told of the EOI");
        unmask.read_exact(&mut [0; 8]).unwrap_err();
    }
}

#[test]
fn a_borrowed_eventfd_is_the_same_eventfd_and_stays_open() {
    let rig = Rig::new();
    rig.set(LEVEL | 0x31);
    let trigger = rig.pins.trigger(Gsi(5)).unwrap();
    let own = BorrowedEventFd::from(trigger).try_clone().unwrap();
    own.write(1).unwrap();
    assert_eq!(rig.sent(), [0x8031]);
    BorrowedEventFd::from(trigger).write(1).unwrap();
    assert_eq!(rig.sent(), [0x8031]);
}
