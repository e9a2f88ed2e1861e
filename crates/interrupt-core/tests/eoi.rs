// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EOIs, and what listeners do while they are told: guards that go, eventfds that are full, subscriptions that are refused.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;

use interrupt_core::testing::RecordingPin;
use interrupt_core::{
    EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelSource, Line, LineSource, Listener, Listeners, LoweredBy,
    SourceKey,
};
use rustix::event::{EventfdFlags, eventfd};

const GSI: Gsi = Gsi(11);

type TestLine = Line<RecordingPin>;

fn line() -> Arc<TestLine> {
    Line::new(GSI, RecordingPin::default())
}

/// A place from which callbacks take guards, by its lock, and drop them while they hold it.
type Slot = Arc<Mutex<Option<EoiGuard>>>;

/// Row 142: two processors are in the callback of one line, which drops its own guard.
#[test]
fn a_callback_on_two_processors_may_drop_its_own_guard() {
    let line = line();
    let slot = Slot::default();
    let inside = Arc::new(Barrier::new(2));
    let (own, both) = (Arc::clone(&slot), Arc::clone(&inside));
    let listener = Listener::callback(move |_| {
        both.wait();
        drop(own.lock().unwrap().take());
    });
    *slot.lock().unwrap() = Some(line.subscribe(GSI.into(), listener).unwrap());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| line.eoi().unwrap());
        }
    });
    assert!(slot.lock().unwrap().is_none());
    // A third call would wait at the barrier for ever.
    line.eoi().unwrap();
}

/// Row 142: the callbacks of two lines drop each other's guards.
#[test]
fn two_callbacks_may_drop_each_others_guards() {
    let lines = [line(), line()];
    let slots = [Slot::default(), Slot::default()];
    let inside = Arc::new(Barrier::new(2));
    for (n, line) in lines.iter().enumerate() {
        let (other, both) = (Arc::clone(&slots[1 - n]), Arc::clone(&inside));
        let listener = Listener::callback(move |_| {
            both.wait();
            drop(other.lock().unwrap().take());
        });
        *slots[n].lock().unwrap() = Some(line.subscribe(GSI.into(), listener).unwrap());
    }
    thread::scope(|scope| {
        for line in &lines {
            scope.spawn(|| line.eoi().unwrap());
        }
    });
    for (line, slot) in lines.iter().zip(slots) {
        assert!(slot.lock().unwrap().is_none());
        line.eoi().unwrap();
    }
}

/// A callback that drops another listener's guard ends it before the other one's next call, also in the same EOI.
#[test]
fn a_listener_that_an_earlier_one_has_ended_is_not_told() {
    let line = line();
    let slot = Slot::default();
    let other = Arc::clone(&slot);
    let _first = line.subscribe(
        GSI.into(),
        Listener::callback(move |_| drop(other.lock().unwrap().take())),
    );
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let second = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    *slot.lock().unwrap() = Some(line.subscribe(GSI.into(), second).unwrap());
    line.eoi().unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 0);
}

thread_local! {
    static EARLY: RefCell<Vec<EoiGuard>> = const { RefCell::new(Vec::new()) };
    static LATE: RefCell<Vec<EoiGuard>> = const { RefCell::new(Vec::new()) };
}

/// A guard may be dropped by the destructors of a thread, whatever the thread has destroyed before.
#[test]
fn a_guard_may_go_with_its_thread() {
    let line = line();
    let here = Arc::clone(&line);
    let thread = thread::spawn(move || {
        let subscribe = || here.subscribe(GSI.into(), Listener::callback(|_| {})).unwrap();
        EARLY.with_borrow_mut(|guards| guards.push(subscribe()));
        here.eoi().unwrap();
        drop(subscribe());
        LATE.with_borrow_mut(|guards| guards.push(subscribe()));
    });
    thread.join().unwrap();
    assert!(line.eoi().is_ok());
}

fn full_and_blocking() -> OwnedFd {
    let fd = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fd
}

/// Row 143: the counter is full, and the eventfd blocks whoever writes it.
#[test]
fn a_full_eventfd_stops_nobody_and_is_counted() {
    let line = line();
    let full = full_and_blocking();
    let _full = line
        .subscribe(GSI.into(), Listener::fd(full.try_clone().unwrap()))
        .unwrap();
    let other = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let guard = line
        .subscribe(GSI.into(), Listener::fd(other.try_clone().unwrap()))
        .unwrap();
    assert_eq!(line.eoi().unwrap(), Level::Low);
    let mut count = [0; 8];
    rustix::io::read(&other, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "the other listener is told");
    assert_eq!(line.counts().full_eventfds, 1);
    // Beside a callback, listeners are told without the line's lock.
    let _callback = line.subscribe(GSI.into(), Listener::callback(|_| {})).unwrap();
    line.eoi().unwrap();
    rustix::io::read(&other, &mut count).unwrap();
    assert_eq!(line.counts().full_eventfds, 2);
    drop(guard);
    line.eoi().unwrap();
    rustix::io::read(&other, &mut count).unwrap_err();
}

/// What a callback may own, and what looks at the line when it is dropped: with a lock held, that would hang.
struct Owned {
    line: Arc<TestLine>,
    source: LineSource<RecordingPin>,
    _guard: EoiGuard,
    drops: Arc<AtomicUsize>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.source.assert().unwrap();
        self.line.eoi().unwrap();
        drop(self.line.source("another", LoweredBy::Eoi));
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

fn owned(line: &Arc<TestLine>, drops: &Arc<AtomicUsize>) -> Owned {
    let source = line.source("owned", LoweredBy::Eoi);
    Owned {
        line: Arc::clone(line),
        _guard: line.subscribe(source.key().into(), Listener::callback(|_| {})).unwrap(),
        source,
        drops: Arc::clone(drops),
    }
}

/// Row 141: the callback of a subscription that is refused is dropped once, and not under a lock.
#[test]
fn a_refused_subscription_drops_its_callback_without_a_lock() {
    let line = line();
    let source = line.source("device", LoweredBy::Eoi);
    let _guard = line.subscribe(source.key().into(), Listener::callback(|_| {})).unwrap();
    let gone = line.source("gone", LoweredBy::Eoi).key();
    let refusals: [(EoiScope, i32); 4] = [
        (source.key().into(), 16),
        (gone.into(), 2),
        (SourceKey::new(GSI).into(), 2),
        (Gsi(12).into(), 2),
    ];
    for (n, (subject, errno)) in (1..).zip(refusals) {
        let drops = Arc::new(AtomicUsize::new(0));
        let owned = owned(&line, &drops);
        let refused = line.subscribe(subject, Listener::callback(move |_| drop(owned.source.assert())));
        assert_eq!(refused.unwrap_err().errno(), Some(errno), "{subject}");
        assert_eq!(drops.load(Ordering::Relaxed), 1, "refusal {n}");
    }
}

/// Row 141: an eventfd whose subscription is refused stays as it was, for a reader that blocks.
#[test]
fn a_refused_subscription_leaves_the_eventfd_blocking() {
    let line = line();
    let source = line.source("device", LoweredBy::Eoi);
    let _guard = line.subscribe(source.key().into(), Listener::callback(|_| {})).unwrap();
    let subjects: [EoiScope; 3] = [
        source.key().into(),
        line.source("gone", LoweredBy::Eoi).key().into(),
        Gsi(12).into(),
    ];
    for subject in subjects {
        let told = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let listener = Listener::fd(told.try_clone().unwrap());
        line.subscribe(subject, listener).map(drop).unwrap_err();
        let flags = rustix::fs::fcntl_getfl(&told).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "{subject}");
    }
}

/// The same of a list without a line, which makes the eventfd of a listener that it takes non-blocking.
#[test]
fn a_list_makes_the_eventfd_that_it_takes_non_blocking() {
    let listeners = Listeners::new();
    let key = line().source("device", LoweredBy::Eoi).key();
    let told = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let [first, second] = told.each_ref().map(|fd| Listener::fd(fd.try_clone().unwrap()));
    let _guard = listeners.subscribe(key.into(), first).unwrap();
    listeners.subscribe(key.into(), second).unwrap_err();
    let flags = told.map(|fd| rustix::fs::fcntl_getfl(&fd).unwrap());
    assert_eq!(
        flags.map(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK)),
        [true, false]
    );
}

/// Row 134: the listeners of the GSI are told, and not those of the line's own sources. Nothing changes on the line.
#[test]
fn row_134_a_resample_of_the_gsi_tells_its_listeners() {
    let line = line();
    let source = line.source("device", LoweredBy::Eoi);
    source.assert().unwrap();
    let told = [GSI.into(), source.key().into()].map(|subject| {
        let count = Arc::new(AtomicUsize::new(0));
        let calls = Arc::clone(&count);
        let listener = Listener::callback(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        (count, line.subscribe(subject, listener).unwrap())
    });
    line.resample_gsi().unwrap();
    assert_eq!(told.map(|(count, _)| count.load(Ordering::Relaxed)), [1, 0]);
    assert_eq!((line.level(), line.counts().eois), (Level::High, 0));
}

/// A callback that owns its source and its guard goes with the guard, and not under a lock.
#[test]
fn what_a_callback_owns_goes_without_a_lock() {
    let line = line();
    let drops = Arc::new(AtomicUsize::new(0));
    for by_source in [false, true] {
        let owned = owned(&line, &drops);
        let source = line.source("device", LoweredBy::Eoi);
        let listener = Listener::callback(move |_| drop(owned.source.assert()));
        let guard = line.subscribe(source.key().into(), listener).unwrap();
        if by_source {
            drop(source);
            drop(guard);
        } else {
            drop(guard);
            drop(source);
        }
    }
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

/// What a change of the wiring replaces, or has not used, is dropped without the line's lock, also when the pin refuses.
#[test]
fn what_while_low_has_in_hand_goes_without_a_lock() {
    for refused in [0, 1, 2] {
        let line = line();
        let drops = Arc::new(AtomicUsize::new(0));
        let device = line.source("device", LoweredBy::Device);
        device.assert().unwrap();
        let mut replaced = Some(owned(&line, &drops));
        // The call that lowers the pin, or the call that raises it again.
        match refused {
            0 => {}
            1 => line.pin().refuse_next(1),
            _ => line.pin().refuse_after(1, 1),
        }
        let result = line.while_low(|_| replaced.take());
        assert_eq!(result.is_err(), refused > 0);
        drop(result);
        drop(replaced);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        device.deassert().unwrap();
        assert_eq!(line.level(), Level::Low);
    }
}

/// A subscription that meets the end of its source is refused or ends with it: no listener stays behind.
#[test]
fn a_listener_does_not_outlive_its_source() {
    let line = line();
    for _ in 0..200 {
        let source = line.source("device", LoweredBy::Eoi);
        let key = source.key();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                drop(source);
            });
            start.wait();
            match line.subscribe(key.into(), Listener::callback(|_| {})) {
                Ok(guard) => std::mem::forget(guard),
                Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{error}"),
            }
        });
        assert!(line.is_unused());
    }
}

/// A line that goes while a callback of it runs: the guard that the callback drops is the last to know the line.
#[test]
fn a_callback_may_own_the_line_and_its_own_guard() {
    let line = line();
    let place: Arc<OnceLock<Slot>> = Arc::default();
    let (inner, kept) = (Arc::clone(&place), Arc::clone(&line));
    let listener = Listener::callback(move |gsi| {
        assert_eq!(kept.gsi(), gsi);
        drop(inner.get().unwrap().lock().unwrap().take());
    });
    let guard = line.subscribe(GSI.into(), listener).unwrap();
    place.set(Arc::new(Mutex::new(Some(guard)))).unwrap();
    line.eoi().unwrap();
    drop(place);
    assert_eq!(Arc::strong_count(&line), 1, "the callback is gone");
}

/// Row 148: a listener that panics keeps no other listener from being told, and the controller looks at the pin.
#[test]
fn a_panic_goes_on_after_the_eoi() {
    let line = line();
    let source = line.source("device", LoweredBy::Eoi);
    let told = Arc::new(AtomicUsize::new(0));
    let (before, after) = (Arc::clone(&told), Arc::clone(&told));
    let fault = || Listener::callback(|_| panic!("a listener's fault"));
    let count = |told: Arc<AtomicUsize>| {
        Listener::callback(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    let listeners = [count(before), fault(), fault(), count(after)];
    let _guards = listeners.map(|listener| line.subscribe(GSI.into(), listener).unwrap());
    source.assert().unwrap();
    let (mut looked, mut then) = (None, None);
    let eoi = catch_unwind(AssertUnwindSafe(|| {
        line.eoi_then(|_| looked = Some(told.load(Ordering::Relaxed)), |()| then = Some(()))
    }));
    assert_eq!(eoi.unwrap_err().downcast_ref(), Some(&"a listener's fault"));
    assert_eq!((looked, then), (Some(2), Some(())));
    assert_eq!(line.level(), Level::Low);
    // No call is left counted: the drop of a guard would wait for it.
}

/// Each EOI is told to one of the two, also while the listener is exchanged on another thread, and the old guard ends nothing.
#[test]
fn the_listener_of_a_key_is_exchanged_without_a_gap() {
    const EOIS: u32 = 2_000;
    let line = Line::new(GSI, RecordingPin::default());
    let source = line.source("device", LoweredBy::Eoi);
    let told = Arc::new(AtomicU32::new(0));
    let listener = || {
        let told = Arc::clone(&told);
        Listener::callback(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    let mut guard = line.subscribe(source.key().into(), listener()).unwrap();
    assert_eq!(
        line.subscribe(source.key().into(), listener()).unwrap_err().errno(),
        Some(16)
    );
    thread::scope(|scope| {
        let eois = scope.spawn(|| {
            for _ in 0..EOIS {
                let before = told.load(Ordering::Relaxed);
                line.eoi().unwrap();
                assert_ne!(told.load(Ordering::Relaxed), before, "told to neither");
            }
        });
        while !eois.is_finished() {
            // The old guard goes here.
            guard = line.exchange(source.key(), listener()).unwrap();
        }
    });
    let before = told.load(Ordering::Relaxed);
    line.eoi().unwrap();
    assert_eq!(told.load(Ordering::Relaxed), before + 1, "one is left");
    drop(guard);
    line.eoi().unwrap();
    assert_eq!(told.load(Ordering::Relaxed), before + 1);
    let key = source.key();
    drop(source);
    assert_eq!(line.exchange(key, listener()).unwrap_err().errno(), Some(2));
}

/// An EOI that has begun when the listener is exchanged, and has not told it yet, tells the new one.
#[test]
fn an_eoi_in_the_middle_of_an_exchange_is_told() {
    let line = Line::new(GSI, RecordingPin::default());
    let key_of = line.source("device", LoweredBy::Eoi);
    let told: [Arc<AtomicU32>; 2] = Default::default();
    let listener = |n: usize| {
        let told = Arc::clone(&told[n]);
        Listener::callback(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    let new = Mutex::new(Some(listener(1)));
    let (key, here, guards) = (key_of.key(), Arc::downgrade(&line), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&guards);
    let exchanging = Listener::callback(move |_| {
        if let Some(new) = new.lock().unwrap().take() {
            let guard = here.upgrade().unwrap().exchange(key, new).unwrap();
            kept.lock().unwrap().push(guard);
        }
    });
    let _first = line.subscribe(GSI.into(), exchanging).unwrap();
    let _old = line.subscribe(key.into(), listener(0)).unwrap();
    for eois in 1..=2 {
        line.eoi().unwrap();
        assert_eq!([0, 1].map(|n: usize| told[n].load(Ordering::Relaxed)), [0, eois]);
    }
}
