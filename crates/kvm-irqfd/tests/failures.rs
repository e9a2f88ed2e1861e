// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens when a step fails, when two things happen at once, and when the adopter's circumstances are unusual, on
//! real KVM. Rows are those of docs/conformance.md.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, SourceKey};
#[cfg(target_arch = "x86_64")]
use interrupt_core::{Msi, MsiOutput, PinMask};
use kvm_irqfd::KvmInterrupts;
#[cfg(target_arch = "x86_64")]
use kvm_irqfd::{EdgeIrqfd, Route};
use testkit::harness::Suite;
#[cfg(target_arch = "x86_64")]
use testkit::machine::Irqchip;
use testkit::need::Need;
use testkit::process::fds;
use testkit::rig::{LEVEL, MASKED};

mod common;
use common::{ACCEPT, FREE, MESSAGE, Machine, eventfd, full, is_high, limit_fds, taken, to_pin, vmm_eventfd};

const FULL: &[Need] = &[Need::FullIrqchip];
#[cfg(target_arch = "x86_64")]
const ACCEPT_6_3: &[Need] = &[Need::AcceptMode, Need::KernelAtLeast(6, 3)];
#[cfg(target_arch = "x86_64")]
const SPLIT: &[Need] = &[Need::SplitIrqchip];

const PIN: u32 = 18;
const OTHER: u32 = 19;
const GSI: Gsi = Gsi(PIN);
const VECTOR: u8 = 0x51;
const ENTRY: u64 = LEVEL | VECTOR as u64;

fn main() -> ExitCode {
    if std::env::var_os(JAILED).is_some() {
        return jailed();
    }
    // Serial, because fds are counted and limited.
    let suite = Suite::new("kvm-irqfd::failures")
        .serial()
        .test("row_136_gsi_listener_in_every_order", ACCEPT, row_136_every_order)
        .test("row_136_gsi_listener_while_sources_race", ACCEPT, row_136_race)
        .test("row_137_two_gsis_on_one_pin", FULL, row_137_two_gsis_on_one_pin)
        .test("row_138_resamplefd_then_trigger", FULL, row_138_resamplefd_then_trigger)
        .test(
            "row_138_line_listener_then_trigger",
            FULL,
            row_138_line_listener_then_trigger,
        )
        .test("row_141_refused_by_key", FULL, || row_141_refused(&by_key))
        .test("row_141_refused_second_listener", FULL, || {
            row_141_refused(&second_listener)
        })
        .test("row_141_refused_gsi", FULL, || row_141_refused(&unknown_gsi))
        .test("row_141_refused_without_fds", FULL, || row_141_refused(&without_fds))
        .test("row_143_full_and_blocking_listener", FULL, row_143_full_and_blocking)
        .test("row_144_irq_line_beside_a_listener", FULL, row_144_irq_line)
        .test("row_144_every_limit_of_fds", FULL, row_144_every_limit)
        .test(
            "row_144_without_proc",
            &[ACCEPT[0], Need::Host("a jail without /proc", can_be_jailed)],
            row_144_without_proc,
        );
    // Messages to a LAPIC, a split irqchip, and levels that KVM forgets.
    #[cfg(target_arch = "x86_64")]
    let suite = suite
        .test("row_133_a_masked_message_waits", ACCEPT, row_133_masked_message)
        .test(
            "row_133_nothing_is_lost_in_10000_rounds",
            ACCEPT,
            row_133_concurrent_rounds,
        )
        .test("row_144_every_limit_of_fds_split", SPLIT, row_144_every_limit_split)
        .test("a_level_is_restated_whatever_a_listener_does", ACCEPT_6_3, restated)
        .test("row_148_a_callback_panics", ACCEPT_6_3, row_148_a_callback_panics)
        .test("a_commit_beside_sources_that_go", FULL, commit_beside_drops)
        .test("row_133_edge_of_a_masked_split_pin_waits", SPLIT, masked_split_pin);
    suite.run()
}

fn listen(interrupts: &KvmInterrupts, scope: EoiScope, eoi: &OwnedFd) -> interrupt_core::Result<EoiGuard> {
    interrupts.subscribe(scope, Listener::fd(eoi.try_clone().unwrap()))
}

fn accept(machine: &mut Machine) -> Option<u8> {
    machine.accept_within(Duration::from_secs(1))
}

fn dispatch(interrupts: &KvmInterrupts) {
    while interrupts.dispatch(Some(Duration::ZERO)).unwrap() > 0 {}
}

/// One interrupt of a source of either kind, from its assertion to what follows the EOI.
fn round(machine: &mut Machine, interrupts: &KvmInterrupts, source: &dyn LevelSource) {
    source.assert().unwrap();
    assert_eq!(accept(machine), Some(VECTOR));
    source.deassert().unwrap();
    machine.eoi();
    dispatch(interrupts);
}

/// Sources of both kinds come and go before, between and after two listeners, one of each kind.
fn row_136_every_order() {
    for steps in permutations(&['f', 'c', 'l', 'm', 'r']) {
        let (mut machine, interrupts) = full();
        machine.set_rte(PIN, ENTRY);
        let fd = eventfd();
        let calls = Arc::new(AtomicU32::new(0));
        let mut guards = Vec::new();
        let mut source: Option<Arc<dyn LevelSource>> = None;
        let mut expected = [0; 2];
        for step in &steps {
            match step {
                'f' => guards.push(listen(&interrupts, GSI.into(), &fd).unwrap()),
                'c' => {
                    let count = Arc::clone(&calls);
                    let listener = Listener::callback(move |_| {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                    guards.push(interrupts.subscribe(GSI.into(), listener).unwrap());
                }
                // The source takes the place of the one before, which listeners may have come to know.
                'r' => {
                    drop(source.take());
                    let next = interrupts.resample_source(GSI, "resample").unwrap();
                    round(&mut machine, &interrupts, &**source.insert(next));
                }
                _ => {
                    drop(source.take());
                    let next = interrupts.irq_line_source(GSI, "line").unwrap();
                    round(&mut machine, &interrupts, &**source.insert(next));
                }
            }
            // A source that goes may ask for levels once more; what counts is that each EOI was told.
            for (n, kind) in ['f', 'c'].into_iter().enumerate() {
                let position = |of: char| steps.iter().position(|other| *other == of);
                expected[n] = u32::from(position(kind) < position(*step));
            }
            let told = [
                u32::from(taken(&fd) > 0),
                u32::from(calls.swap(0, Ordering::Relaxed) > 0),
            ];
            if ['l', 'm', 'r'].contains(step) {
                assert_eq!(told, expected, "{steps:?}: step {step}");
            }
        }
    }
}

fn permutations(of: &[char]) -> Vec<Vec<char>> {
    match of {
        [] => vec![Vec::new()],
        _ => of
            .iter()
            .flat_map(|first| {
                let rest: Vec<char> = of.iter().copied().filter(|other| other != first).collect();
                permutations(&rest).into_iter().map(|mut tail| {
                    tail.insert(0, *first);
                    tail
                })
            })
            .collect(),
    }
}

/// The last source of a line goes while another thread makes a new one: the new line's listener is told all the same.
fn row_136_race() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    for n in 0..2_000 {
        let old = interrupts.irq_line_source(GSI, "old").unwrap();
        let _guard = interrupts
            .subscribe(old.key().into(), Listener::callback(|_| {}))
            .unwrap();
        let other = interrupts.clone();
        let go = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&go);
        let dropper = thread::spawn(move || {
            while !gone.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            drop(old);
        });
        go.store(true, Ordering::Release);
        let source = other.irq_line_source(GSI, "new").unwrap();
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let guard = interrupts.subscribe(source.key().into(), listener).unwrap();
        dropper.join().unwrap();
        if n % 20 == 0 {
            source.assert().unwrap();
            assert_eq!(accept(&mut machine), Some(VECTOR));
            source.deassert().unwrap();
            machine.eoi();
            dispatch(&interrupts);
            assert_eq!(
                told.load(Ordering::Relaxed),
                1,
                "round {n}: the new line's listener is told"
            );
        } else {
            // What EOIs are served is one watch; without one nobody is told.
            let watched = format!("{interrupts:?}");
            assert!(watched.contains("EOI"), "round {n}: {watched}");
        }
        drop((guard, source));
    }
}

fn row_137_two_gsis_on_one_pin() {
    const SECOND: Gsi = FREE;
    const THIRD: Gsi = Gsi(FREE.0 + 1);
    let pin = [to_pin(PIN)];
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let mut routing = interrupts.routing();
    routing.set(SECOND, &pin).unwrap();
    routing.commit().unwrap();
    let first = interrupts.irq_line_source(GSI, "first").unwrap();
    match interrupts.irq_line_source(SECOND, "second") {
        Ok(second) => {
            first.assert().unwrap();
            second.assert().unwrap();
            second.deassert().unwrap();
            assert!(is_high(&mut machine, PIN), "the first still asserts");
        }
        Err(error) => assert_eq!(error.errno(), Some(16), "{error}"),
    }
    let edge = interrupts.edge_irqfd(SECOND);
    assert_eq!(edge.unwrap_err().errno(), Some(16), "a pulse would end the level");
    drop(first);
    // The same through a change of routes, which KVM_IRQ_LINE does not follow on arm64.
    if cfg!(target_arch = "aarch64") {
        return;
    }
    let second = interrupts.irq_line_source(SECOND, "second").unwrap();
    let mut routing = interrupts.routing();
    routing.set(THIRD, &[to_pin(OTHER)]).unwrap();
    routing.commit().unwrap();
    let other = interrupts.irq_line_source(THIRD, "other").unwrap();
    let mut routing = interrupts.routing();
    routing.set(THIRD, &pin).unwrap();
    assert_eq!(routing.commit().unwrap_err().errno(), Some(16));
    drop((second, other));
}

fn row_138_resamplefd_then_trigger() {
    let (_machine, interrupts) = full();
    let shared = eventfd();
    let line = interrupts.resample_source(GSI, "device").unwrap();
    for scope in [line.key().into(), GSI.into(), Gsi(OTHER).into()] {
        let guard = listen(&interrupts, scope, &shared).unwrap();
        let again = || vmm_eventfd(shared.try_clone().unwrap());
        let refused = interrupts.resample_source_with(Gsi(OTHER), "storm", again());
        assert_eq!(refused.unwrap_err().errno(), Some(22), "{scope}");
        assert_eq!(
            interrupts.edge_irqfd_with(Gsi(20), again()).unwrap_err().errno(),
            Some(22)
        );
        drop(guard);
        interrupts.resample_source_with(Gsi(OTHER), "device", again()).unwrap();
    }
}

fn row_138_line_listener_then_trigger() {
    let (_machine, interrupts) = full();
    let shared = eventfd();
    let again = || vmm_eventfd(shared.try_clone().unwrap());
    let line = interrupts.irq_line_source(GSI, "device").unwrap();
    let guard = listen(&interrupts, line.key().into(), &shared).unwrap();
    let refused = interrupts.resample_source_with(Gsi(OTHER), "storm", again());
    assert_eq!(refused.unwrap_err().errno(), Some(22));
    drop(guard);
    let _trigger = interrupts.resample_source_with(Gsi(OTHER), "device", again()).unwrap();
    let refused = listen(&interrupts, line.key().into(), &shared);
    assert_eq!(refused.unwrap_err().errno(), Some(22));
}

/// Gives `refused` a callback that owns a source, the guard of another subscription and the notifier. It is dropped
/// once, and no lock is held then: what it owns takes every lock of the VM when it goes.
fn row_141_refused(refused: &dyn Fn(&KvmInterrupts, Listener)) {
    struct Owned {
        source: Option<Arc<dyn LevelSource>>,
        guard: Option<EoiGuard>,
        interrupts: KvmInterrupts,
        dropped: Arc<AtomicU32>,
    }
    impl Drop for Owned {
        fn drop(&mut self) {
            self.source = None;
            self.guard = None;
            let _ = self.interrupts.counts(GSI);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (_machine, interrupts) = full();
    for gsi in [GSI, Gsi(20)] {
        for resample in [true, false] {
            let dropped = Arc::new(AtomicU32::new(0));
            let source = if resample {
                interrupts.resample_source(gsi, "owned").unwrap()
            } else {
                interrupts.irq_line_source(gsi, "owned").unwrap()
            };
            let owned = Owned {
                source: Some(source),
                guard: Some(interrupts.subscribe(gsi.into(), Listener::callback(|_| {})).unwrap()),
                interrupts: interrupts.clone(),
                dropped: Arc::clone(&dropped),
            };
            let owned = Arc::new(std::sync::Mutex::new(owned));
            let listener = Listener::callback(move |_| drop(owned.lock()));
            refused(&interrupts, listener);
            assert_eq!(dropped.load(Ordering::Relaxed), 1);
            assert_eq!(interrupts.counts(gsi), None, "nothing is left");
        }
    }
}

fn by_key(interrupts: &KvmInterrupts, listener: Listener) {
    let refused = interrupts.subscribe(SourceKey::new(GSI).into(), listener).unwrap_err();
    assert_eq!(refused.errno(), Some(2), "{refused}");
}

fn second_listener(interrupts: &KvmInterrupts, listener: Listener) {
    let source = interrupts.resample_source(Gsi(OTHER), "device").unwrap();
    let _guard = interrupts.subscribe(source.key().into(), Listener::callback(|_| {}));
    let refused = interrupts.subscribe(source.key().into(), listener).unwrap_err();
    assert_eq!(refused.errno(), Some(16), "{refused}");
}

fn unknown_gsi(interrupts: &KvmInterrupts, listener: Listener) {
    let refused = interrupts.subscribe(FREE.into(), listener).unwrap_err();
    assert_eq!(refused.errno(), Some(22), "{refused}");
}

fn without_fds(interrupts: &KvmInterrupts, listener: Listener) {
    const EMFILE: i32 = 24;
    let refused = limit_fds(0, || interrupts.subscribe(Gsi(OTHER).into(), listener).unwrap_err());
    assert_eq!(refused.errno(), Some(EMFILE), "{refused}");
}

/// A peer has filled the eventfd of a listener, whose writes block. Nothing waits for it, and no lock is held for it.
fn row_143_full_and_blocking() {
    let (_machine, interrupts) = full();
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let other = eventfd();
    let (a, b) = (
        interrupts.resample_source(GSI, "a").unwrap(),
        interrupts.resample_source(GSI, "b").unwrap(),
    );
    let _guards = [
        listen(&interrupts, a.key().into(), &full).unwrap(),
        listen(&interrupts, GSI.into(), &other).unwrap(),
    ];
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    b.force_deassert().unwrap();
    assert_eq!(taken(&other), 1, "the other listener is told");
    drop(b);
    assert_eq!(taken(&other), 1, "and again");
}

/// A KVM_IRQ_LINE source on a line that has a listener takes an fd, so that its level can be stated again after an
/// unmask.
fn row_144_irq_line() {
    let (_machine, interrupts) = full();
    let told = eventfd();
    let _guard = listen(&interrupts, GSI.into(), &told).unwrap();
    let before = fds();
    let refused = limit_fds(0, || interrupts.irq_line_source(GSI, "device").map(drop).unwrap_err());
    assert_eq!(refused.errno(), Some(24), "{refused}");
    assert_eq!(fds(), before);
    interrupts.irq_line_source(GSI, "device").unwrap();
    assert_eq!(fds(), before);
}

#[cfg(target_arch = "x86_64")]
/// A listener that cannot be told is refused, or keeps nobody's level from being stated again after an unmask.
fn restated() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let broken = || OwnedFd::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let by_gsi = interrupts.subscribe(GSI.into(), Listener::fd(broken()));
    let by_key = interrupts.subscribe(source.key().into(), Listener::fd(broken()));
    let _callback = interrupts.subscribe(GSI.into(), Listener::callback(|_| {})).unwrap();
    source.assert().unwrap();
    machine.set_rte(PIN, ENTRY);
    let told = interrupts.dispatch(Some(Duration::ZERO));
    assert_eq!(accept(&mut machine), Some(VECTOR), "{by_gsi:?}, {by_key:?}, {told:?}");
}

#[cfg(target_arch = "x86_64")]
/// A callback that panics keeps no other listener from being told, on its line or on another one that `dispatch` serves
/// in the same call, and no level from being stated again.
fn row_148_a_callback_panics() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    machine.set_rte(OTHER, LEVEL | MASKED | 0x61);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let other = interrupts.irq_line_source(Gsi(OTHER), "other").unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let listeners = [GSI, GSI, Gsi(OTHER), Gsi(OTHER)].map(|gsi| {
        let told = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            assert!(told.fetch_add(1, Ordering::Relaxed) % 2 == 1, "a listener's fault");
        });
        interrupts.subscribe(gsi.into(), listener).unwrap()
    });
    source.assert().unwrap();
    other.assert().unwrap();
    machine.set_rte(PIN, ENTRY);
    machine.set_rte(OTHER, LEVEL | 0x61);
    let dispatch = || interrupts.dispatch(Some(Duration::ZERO));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(dispatch)).unwrap_err();
    assert_eq!(told.load(Ordering::Relaxed), 4);
    assert_eq!(accept(&mut machine), Some(0x61));
    other.deassert().unwrap();
    machine.eoi();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    drop(listeners);
}

#[cfg(target_arch = "x86_64")]
/// Routes change while the sources of their lines go. Neither waits for the other for ever.
fn commit_beside_drops() {
    let (_machine, interrupts) = full();
    let done = Arc::new(AtomicBool::new(false));
    let (other, end) = (interrupts.clone(), Arc::clone(&done));
    let churn = thread::spawn(move || {
        let mut made = 0;
        while !end.load(Ordering::Relaxed) {
            drop(other.irq_line_source(GSI, "device").unwrap());
            made += 1;
        }
        made
    });
    let lines = [PIN, OTHER].map(|pin| [to_pin(pin)]);
    let mut routing = interrupts.routing();
    routing.set(Gsi(OTHER), &[]).unwrap();
    routing.commit().unwrap();
    for n in 0..20_000 {
        let mut routing = interrupts.routing();
        routing.set(GSI, &lines[n % 2]).unwrap();
        routing.commit().unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(churn.join().unwrap() > 0);
}

#[cfg(target_arch = "x86_64")]
fn masked_split_pin() {
    let machine = Machine::builder().irqchip(Irqchip::Split).build();
    let mut machine = machine.unwrap();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    let message = Msi {
        address: 0xFEE0_0000,
        data: VECTOR.into(),
    };
    interrupts.set_pin(GSI, Some(message), PinMask::Unmasked).unwrap();
    let edge = interrupts.edge_irqfd(GSI).unwrap();
    edge.signal().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    interrupts.set_pin(GSI, Some(message), PinMask::Masked).unwrap();
    edge.signal().unwrap();
    assert_eq!(machine.accept(), None, "the guest has masked the pin");
    interrupts.set_pin(GSI, Some(message), PinMask::Unmasked).unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR), "what was signalled is kept");
    machine.eoi();
    assert_eq!(machine.accept(), None);
}

#[cfg(target_arch = "x86_64")]
const MSI: Gsi = Gsi(40);

#[cfg(target_arch = "x86_64")]
/// A message of vector 0x51 on GSI 40, and its irqfd.
fn message(machine: &Machine) -> (KvmInterrupts, EdgeIrqfd) {
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    let mut routing = interrupts.routing();
    routing.set(MSI, &[to_vector(VECTOR)]).unwrap();
    routing.commit().unwrap();
    let edge = interrupts.edge_irqfd(MSI).unwrap();
    (interrupts, edge)
}

#[cfg(target_arch = "x86_64")]
fn to_vector(vector: u8) -> Route {
    Route::Msi {
        address: 0xFEE0_0000,
        data: vector.into(),
        device: None,
    }
}

#[cfg(target_arch = "x86_64")]
fn row_133_masked_message() {
    let mut machine = Machine::full();
    let (interrupts, edge) = message(&machine);
    for signals in 0..3 {
        edge.mask();
        edge.mask();
        (0..signals).for_each(|_| edge.signal().unwrap());
        // By anybody who has the eventfd, too.
        if signals > 0 {
            rustix::io::write(edge.trigger(), &1u64.to_ne_bytes()).unwrap();
        }
        assert_eq!(machine.accept(), None, "masked");
        // The guest changes the message while the vector is masked, as it does to move an interrupt.
        let vector = VECTOR + signals;
        let mut routing = interrupts.routing();
        routing.set(MSI, &[to_vector(vector)]).unwrap();
        routing.commit().unwrap();
        assert_eq!(machine.accept(), None, "still masked");
        edge.unmask().unwrap();
        edge.unmask().unwrap();
        assert_eq!(
            accept_now(&mut machine),
            (signals > 0).then_some(vector),
            "{signals} signals"
        );
        assert_eq!(accept_now(&mut machine), None, "one interrupt");
    }
    // A route that goes and comes back while the message is masked changes nothing.
    edge.mask();
    edge.signal().unwrap();
    drop(edge);
    assert_eq!(interrupts.counts(MSI), None);
}

#[cfg(target_arch = "x86_64")]
/// The vector that comes, or that none does after the time that one could take through the kernel's work queue.
fn accept_now(machine: &mut Machine) -> Option<u8> {
    let vector = machine.accept_within(Duration::from_millis(20));
    if vector.is_some() {
        machine.eoi();
    }
    vector
}

#[cfg(target_arch = "x86_64")]
/// Signals meet masks and unmasks at every point. Each signal is followed by an interrupt before the next one is made.
fn row_133_concurrent_rounds() {
    const ROUNDS: u32 = 10_000;
    let mut machine = Machine::full();
    let (_interrupts, edge) = message(&machine);
    let (edge, done, unmasked) = (
        Arc::new(edge),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let (other, end, count) = (Arc::clone(&edge), Arc::clone(&done), Arc::clone(&unmasked));
    let driver = thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            other.mask();
            other.unmask().unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for round in 0..ROUNDS {
        edge.signal().unwrap();
        let before = unmasked.load(Ordering::Relaxed);
        // The limit is on progress: a signal that is not there after so many unmasks is lost.
        while machine.accept() != Some(VECTOR) {
            let passed = unmasked.load(Ordering::Relaxed).wrapping_sub(before);
            assert!(passed < 1_000, "round {round}: lost");
            thread::yield_now();
        }
        machine.eoi();
    }
    done.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}

type Tried = Result<Box<dyn std::any::Any>, Option<i32>>;

/// Tries `make` with every limit of fds up to the one that it needs. With each smaller one it is refused, and leaves
/// nothing.
fn with_every_limit(what: &str, interrupts: &KvmInterrupts, make: &dyn Fn() -> Tried) {
    const EMFILE: i32 = 24;
    let before = (fds(), format!("{interrupts:?}"));
    for limit in 0.. {
        assert!(limit < before.0 as u64 + 16, "{what}: it needs more than 16 fds");
        match limit_fds(limit, make) {
            Err(errno) => assert_eq!(errno, Some(EMFILE), "{what}, limit {limit}"),
            Ok(made) => {
                drop(made);
                break;
            }
        }
        assert_eq!((fds(), format!("{interrupts:?}")), before, "{what}, limit {limit}");
    }
    assert_eq!((fds(), format!("{interrupts:?}")), before, "{what}, and gone again");
}

fn boxed<T: 'static>(made: kvm_irqfd::Result<T>) -> Tried {
    made.map(|made| Box::new(made) as _).map_err(|error| error.errno())
}

fn guard(made: interrupt_core::Result<EoiGuard>) -> Tried {
    made.map(|made| Box::new(made) as _).map_err(|error| error.errno())
}

fn row_144_every_limit() {
    let (machine, interrupts) = full();
    let kept = eventfd();
    let foreign = || kept.try_clone().unwrap();
    let vm = machine.vm();
    with_every_limit("new", &interrupts, &|| boxed(KvmInterrupts::new(vm.clone())));
    for beside in ["nothing", "a listener", "sources"] {
        let _listener = (beside != "nothing").then(|| listen(&interrupts, GSI.into(), &eventfd()).unwrap());
        let line = (beside == "sources").then(|| interrupts.irq_line_source(Gsi(OTHER), "line").unwrap());
        let level = (beside == "sources").then(|| interrupts.resample_source(GSI, "level").unwrap());
        let edge = (beside == "sources").then(|| interrupts.edge_irqfd(Gsi(20)).unwrap());
        let make = |what: &str, make: &dyn Fn() -> Tried| {
            with_every_limit(&format!("{what} beside {beside}"), &interrupts, make)
        };
        make("a level", &|| boxed(interrupts.resample_source(GSI, "a")));
        make("a line", &|| {
            boxed(interrupts.irq_line_source(if level.is_some() { Gsi(OTHER) } else { GSI }, "a"))
        });
        make("an edge", &|| boxed(interrupts.edge_irqfd(Gsi(20))));
        make("a listener by GSI", &|| {
            guard(interrupts.subscribe(GSI.into(), Listener::callback(|_| {})))
        });
        make("a listener of another GSI", &|| {
            guard(interrupts.subscribe(Gsi(OTHER).into(), Listener::callback(|_| {})))
        });
        for source in level.iter().chain(&line) {
            make("a listener by key", &|| {
                guard(interrupts.subscribe(source.key().into(), Listener::callback(|_| {})))
            });
        }
        // These take no fd at all: not one of them can fail for want of one, whatever is there.
        limit_fds(0, || {
            let mut routing = interrupts.routing();
            routing.set(FREE, &[MESSAGE]).unwrap();
            routing.set(GSI, &[to_pin(PIN)]).unwrap();
            routing.commit().unwrap();
            for source in level.iter().chain(&line) {
                source.assert().unwrap();
                source.force_deassert().unwrap();
            }
            if let Some(edge) = &edge {
                edge.mask();
                edge.unmask().unwrap();
            }
            interrupts.dispatch(Some(Duration::ZERO)).unwrap();
        });
    }
    // A foreign eventfd needs the kernel's word on what it is, which takes an fd for a moment.
    let (a, b) = (foreign(), foreign());
    let refused = limit_fds(0, || {
        interrupts.resample_source_with(GSI, "a", vmm_eventfd(a)).unwrap_err()
    });
    assert_eq!(refused.errno(), Some(24));
    let refused = limit_fds(0, || interrupts.subscribe(GSI.into(), Listener::fd(b)).unwrap_err());
    assert_eq!(refused.errno(), Some(24));
    interrupts
        .resample_source_with(GSI, "a", vmm_eventfd(foreign()))
        .unwrap();
}

#[cfg(target_arch = "x86_64")]
fn row_144_every_limit_split() {
    let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    with_every_limit("a split source", &interrupts, &|| {
        boxed(interrupts.split_source(GSI, "a"))
    });
    let _source = interrupts.split_source(GSI, "a").unwrap();
    with_every_limit("a sharer", &interrupts, &|| boxed(interrupts.split_source(GSI, "b")));
    let message = Msi {
        address: 0xFEE0_0000,
        data: 1 << 15 | u32::from(VECTOR),
    };
    limit_fds(0, || {
        for mask in [PinMask::Unmasked, PinMask::Masked, PinMask::Unmasked] {
            interrupts.set_pin(GSI, Some(message), mask).unwrap();
        }
        interrupts.set_pin(GSI, None, PinMask::Unmasked).unwrap();
    });
}

/// Has this program run again, as a child that goes into a jail.
const JAILED: &str = "KVM_IRQFD_JAILED";

fn jail(what: &str) -> std::process::Output {
    let program = std::env::current_exe().unwrap();
    std::process::Command::new(program).env(JAILED, what).output().unwrap()
}

fn can_be_jailed() -> Result<(), String> {
    let tried = jail("try");
    tried
        .status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&tried.stderr).into_owned())
}

fn row_144_without_proc() {
    let run = jail("run");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// In a directory of its own, without /proc, as a jailed VMM: with what it opened before.
fn jailed() -> ExitCode {
    let machine = Machine::full();
    let empty = std::env::temp_dir().join(format!("kvm-irqfd-{}", std::process::id()));
    std::fs::create_dir(&empty).unwrap();
    let entered = rustix::process::chroot(&empty);
    let entered = match entered {
        Err(rustix::io::Errno::PERM) => {
            // SAFETY: the process has one thread, and shares nothing but its credentials.
            let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) };
            unshared.and_then(|()| rustix::process::chroot(&empty))
        }
        other => other,
    };
    if let Err(error) = entered {
        eprintln!("chroot: {error}");
        let _ = std::fs::remove_dir(&empty);
        return ExitCode::FAILURE;
    }
    std::env::set_current_dir("/").unwrap();
    assert!(!std::path::Path::new("/proc").exists());
    if std::env::var_os(JAILED).is_some_and(|what| what == "run") {
        in_a_jail(machine);
    }
    ExitCode::SUCCESS
}

fn in_a_jail(mut machine: Machine) {
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    machine.set_rte(PIN, ENTRY);
    // Its own trigger, and a listener's eventfd that came from somewhere else.
    let told = eventfd();
    let source = interrupts.resample_source(GSI, "device").unwrap();
    let guard = listen(&interrupts, source.key().into(), &told).unwrap();
    source.assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!(taken(&told), 1);
    drop((guard, source));
    // A foreign trigger, and a callback.
    let trigger = eventfd();
    let again = || vmm_eventfd(trigger.try_clone().unwrap());
    let source = interrupts.resample_source_with(GSI, "device", again()).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _guard = interrupts.subscribe(GSI.into(), listener).unwrap();
    rustix::io::write(&trigger, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    dispatch(&interrupts);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    // What KVM tells is left of the refusals: a second binding, a fd that is no eventfd. And a semaphore, by trying.
    assert_eq!(
        interrupts
            .resample_source_with(GSI, "again", again())
            .unwrap_err()
            .errno(),
        Some(16)
    );
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(
        interrupts
            .edge_irqfd_with(Gsi(OTHER), vmm_eventfd(pipe))
            .map(drop)
            .unwrap_err()
            .errno(),
        Some(22)
    );
    // A stream that is no eventfd is refused, and nothing is written to it or read from it.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    (&theirs).write_all(b"theirs").unwrap();
    let stream = vmm_eventfd(ours.try_clone().unwrap().into());
    let refused = interrupts.edge_irqfd_with(Gsi(OTHER), stream).map(drop);
    assert_eq!(refused.unwrap_err().errno(), Some(22));
    let mut read = [0; 16];
    theirs.set_nonblocking(true).unwrap();
    assert!((&theirs).read(&mut read).is_err(), "written: {read:?}");
    assert_eq!(
        (&ours).read(&mut read).unwrap(),
        6,
        "what the peer has written was read"
    );
    let semaphore = rustix::event::eventfd(0, rustix::event::EventfdFlags::SEMAPHORE).unwrap();
    assert_eq!(
        interrupts
            .edge_irqfd_with(Gsi(OTHER), vmm_eventfd(semaphore))
            .map(drop)
            .unwrap_err()
            .errno(),
        Some(22)
    );
    drop(source);
    interrupts.edge_irqfd_with(Gsi(OTHER), again()).unwrap();
}
