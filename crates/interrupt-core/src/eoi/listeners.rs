// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The listeners of one line, and how dropping a guard waits for a callback.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError};

use super::{EoiGuard, EoiScope, Listener};
use crate::error::{Error, Result};
use crate::every_step::EveryStep;
use crate::gsi::Gsi;
use crate::key::SourceKey;
use crate::sync::{AtomicUsize, Condvar, Mutex, Ordering, lock, thread_local};

/// The listeners of one line, for an EOI notifier that keeps no [`Line`](crate::Line).
///
/// Handles are cheap to clone and share one list.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    list: Arc<Mutex<ListenerList>>,
}

impl Listeners {
    /// No listeners.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a listener. The caller checks that `subject` exists.
    ///
    /// # Errors
    /// * [`Error::Busy`]: `subject` is a source that has its listener already.
    /// * [`Error::Os`]: the listener's eventfd cannot be made non-blocking.
    pub fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        lock(&self.list).check_free(subject)?;
        let entry = Entry::new(subject, listener);
        entry.prepare()?;
        let replaced = lock(&self.list).add(&entry)?;
        drop(replaced);
        let list = Arc::clone(&self.list);
        Ok(EoiGuard::new(subject, move || {
            let replaced = lock(&list).remove(&entry);
            drop(replaced);
            entry.end();
        }))
    }

    /// Ends the subscription to a source that is going, as if its guard were dropped. The guard then guards nothing.
    pub fn end_source(&self, key: SourceKey) {
        let removed = lock(&self.list).remove_source(key);
        if let Some((entry, _replaced)) = removed {
            entry.end();
        }
    }

    /// Tells every listener once, in the order of subscription. Call it with the line low, and with no lock held.
    ///
    /// A listener that is added meanwhile may or may not be told. A listener whose guard is dropped meanwhile is not
    /// told after that drop has returned. Returns how many eventfds had a full counter; they are signalled already.
    ///
    /// # Errors
    /// The first error of a write to an eventfd; the other listeners are told all the same.
    pub fn notify(&self, gsi: Gsi) -> Result<u64> {
        let entries = Arc::clone(lock(&self.list).entries());
        tell_all(&entries, gsi, |_| true)
    }

    /// How many listeners there are.
    pub fn len(&self) -> usize {
        lock(&self.list).entries().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

type Entries = Arc<[Arc<Entry>]>;

/// The listeners of one line, under a lock of the owner's. Nothing is dropped here: what a change replaces is returned,
/// and the caller drops it without the lock.
#[derive(Debug, Default)]
pub(crate) struct ListenerList {
    entries: Entries,
    /// At least one listener is a callback, which runs foreign code and is told without a lock.
    callbacks: bool,
}

impl ListenerList {
    /// Refuses a second listener of a source.
    pub(crate) fn check_free(&self, subject: EoiScope) -> Result<()> {
        if matches!(subject, EoiScope::Source(_)) && self.entries.iter().any(|old| old.subject == subject) {
            return Err(Error::Busy {
                operation: "subscribe",
                subject,
            });
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, entry: &Arc<Entry>) -> Result<Entries> {
        self.check_free(entry.subject)?;
        Ok(self.replace(self.entries.iter().chain([entry]).cloned().collect()))
    }

    /// Adds a listener in place of the one with the same subject. Returns that one, if there is one.
    pub(crate) fn exchange(&mut self, entry: &Arc<Entry>) -> (Option<Arc<Entry>>, Entries) {
        let (old, others): (Vec<_>, Vec<_>) = self
            .entries
            .iter()
            .cloned()
            .partition(|old| old.subject == entry.subject);
        let old = old.into_iter().next();
        let replaced = self.replace(others.iter().chain([entry]).cloned().collect());
        if let Some(old) = &old {
            // An entry is exchanged once: it is not in the list after that.
            let _ = old.successor.set(Arc::clone(entry));
        }
        (old, replaced)
    }

    pub(crate) fn remove(&mut self, entry: &Arc<Entry>) -> Entries {
        let others = self.entries.iter().filter(|other| !Arc::ptr_eq(other, entry));
        self.replace(others.cloned().collect())
    }

    pub(crate) fn remove_source(&mut self, key: SourceKey) -> Option<(Arc<Entry>, Entries)> {
        let subject = EoiScope::Source(key);
        let entry = self.entries.iter().find(|entry| entry.subject == subject)?.clone();
        let replaced = self.remove(&entry);
        Some((entry, replaced))
    }

    fn replace(&mut self, entries: Entries) -> Entries {
        self.callbacks = entries.iter().any(|entry| entry.listener.is_callback());
        std::mem::replace(&mut self.entries, entries)
    }

    pub(crate) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Whether a listener of the list is meant.
    pub(crate) fn has(&self, is_meant: impl Fn(EoiScope) -> bool) -> bool {
        self.entries.iter().any(|entry| is_meant(entry.subject))
    }

    /// The list, if a listener of it is meant.
    pub(crate) fn entries_if_any(&self, is_meant: impl Fn(EoiScope) -> bool) -> Option<Entries> {
        self.has(is_meant).then(|| Arc::clone(&self.entries))
    }

    pub(crate) fn has_callbacks(&self) -> bool {
        self.callbacks
    }

    /// Tells every listener of a list without callbacks, with the owner's lock held: the write to a non-blocking eventfd
    /// runs no foreign code, and an entry that is removed is not told any more when its removal has had the lock.
    pub(crate) fn tell_eventfds(&self, gsi: Gsi) -> Result<u64> {
        tell(&self.entries, gsi, |entry| entry.listener.tell(gsi))
    }
}

/// Tells every listener of a subject that `is_meant`, unless its subscription has ended. Called without a lock.
pub(crate) fn tell_all(entries: &[Arc<Entry>], gsi: Gsi, is_meant: impl Fn(EoiScope) -> bool) -> Result<u64> {
    tell(entries, gsi, |entry| {
        if !is_meant(entry.subject) {
            return Ok(false);
        }
        entry.tell(gsi)
    })
}

fn tell(entries: &[Arc<Entry>], gsi: Gsi, one: impl Fn(&Entry) -> std::io::Result<bool>) -> Result<u64> {
    let mut outcome = Ok(());
    let mut full = 0;
    let mut steps = EveryStep::default();
    for entry in entries {
        match steps.take(|| one(entry)) {
            Some(Ok(was_full)) => full += u64::from(was_full),
            Some(Err(error)) => outcome = outcome.and(Err(error)),
            None => {}
        }
    }
    steps.end();
    outcome.map(|()| full).map_err(|source| Error::Os {
        operation: "write(listener's eventfd)",
        gsi,
        source,
    })
}

/// One subscription.
pub(crate) struct Entry {
    subject: EoiScope,
    listener: Listener,
    /// How many calls of the listener are under way, on all threads, and [`ENDED`]. One word, so that a call and the end
    /// of the subscription are always in one order.
    calls: AtomicUsize,
    idle: Condvar,
    idle_lock: Mutex<()>,
    /// The listener that has taken this one's place: an EOI that has begun before tells that one.
    successor: OnceLock<Arc<Entry>>,
}

/// The bit of [`Entry::calls`] that says that the subscription has ended.
const ENDED: usize = 1 << (usize::BITS - 1);

impl Entry {
    pub(crate) fn new(subject: EoiScope, listener: Listener) -> Arc<Self> {
        Arc::new(Self {
            subject,
            listener,
            calls: AtomicUsize::new(0),
            idle: Condvar::new(),
            idle_lock: Mutex::new(()),
            successor: OnceLock::new(),
        })
    }

    /// Readies the listener's eventfd: after the last check that can refuse it, because a refusal leaves it as it was.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.listener.prepare(self.subject.gsi())
    }

    /// Tells the listener, unless its subscription has ended.
    fn tell(&self, gsi: Gsi) -> std::io::Result<bool> {
        let call = Call::enter(self);
        if !call.ended {
            return self.listener.tell(gsi);
        }
        drop(call);
        self.successor.get().map_or(Ok(false), |next| next.tell(gsi))
    }

    pub(crate) fn subject(&self) -> EoiScope {
        self.subject
    }

    /// Ends the subscription, and waits for the calls of other threads.
    ///
    /// A thread that is inside a callback of any line does not wait: two callbacks that end each other's subscription
    /// would wait for ever, and so would a callback that runs on two threads and ends its own.
    pub(crate) fn end(&self) {
        let calls = self.calls.fetch_or(ENDED, Ordering::AcqRel) & !ENDED;
        if calls == 0 || Call::is_inside() {
            return;
        }
        let mut guard = lock(&self.idle_lock);
        while self.calls.load(Ordering::Acquire) & !ENDED > 0 {
            guard = self.idle.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for {}", self.listener, self.subject)
    }
}

// How many listeners this thread is calling now, one inside the other. The type has no destructor, so that a guard may be
// dropped at any time of a thread's end. The model checker's macro has no const form.
#[cfg(not(all(loom, test)))]
thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
#[cfg(all(loom, test))]
thread_local!(static DEPTH: Cell<usize> = Cell::new(0));

/// One call of a listener, counted for as long as it lasts, even if the listener panics.
pub(crate) struct Call<'a> {
    entry: &'a Entry,
    /// The subscription had ended before the call was counted: the listener is not to be called.
    ended: bool,
}

impl<'a> Call<'a> {
    fn enter(entry: &'a Entry) -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        let before = entry.calls.fetch_add(1, Ordering::AcqRel);
        Self {
            entry,
            ended: before & ENDED != 0,
        }
    }

    /// Whether this thread is inside a call of any listener.
    pub(crate) fn is_inside() -> bool {
        DEPTH.with(Cell::get) > 0
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
        if self.entry.calls.fetch_sub(1, Ordering::AcqRel) & ENDED != 0 {
            // Under the lock, so that a waiter between its look and its wait is not missed.
            let _guard = lock(&self.entry.idle_lock);
            self.entry.idle.notify_all();
        }
    }
}
#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Mutex, mpsc};
    use std::thread;

    use super::*;

    const GSI: Gsi = Gsi(11);

    fn counter(listeners: &Listeners, subject: EoiScope) -> (Arc<AtomicUsize>, EoiGuard) {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let listener = Listener::callback(move |_| {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        (count, listeners.subscribe(subject, listener).unwrap())
    }

    #[test]
    fn every_listener_is_told_until_its_guard_goes() {
        let listeners = Listeners::new();
        let (first, first_guard) = counter(&listeners, GSI.into());
        let (second, _second_guard) = counter(&listeners, GSI.into());
        listeners.notify(GSI).unwrap();
        drop(first_guard);
        listeners.notify(GSI).unwrap();
        assert_eq!((first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)), (1, 2));
        assert_eq!((listeners.len(), listeners.is_empty()), (1, false));
    }

    /// A second listener that comes between the look at the list and its entry is refused, too.
    #[test]
    fn the_list_takes_one_listener_of_a_source() {
        let mut list = ListenerList::default();
        let subject = SourceKey::new(GSI).into();
        let entry = || Entry::new(subject, Listener::callback(|_| {}));
        drop(list.add(&entry()).unwrap());
        assert_eq!(list.add(&entry()).unwrap_err().errno(), Some(16));
    }

    #[test]
    fn a_listener_that_ends_with_its_source_is_not_told_in_the_same_eoi() {
        let listeners = Listeners::new();
        let key = SourceKey::new(GSI);
        let ender = listeners.clone();
        let first = Listener::callback(move |_| ender.end_source(key));
        let _first = listeners.subscribe(GSI.into(), first).unwrap();
        let (count, _second) = counter(&listeners, key.into());
        listeners.notify(GSI).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_source_has_one_listener_at_a_time() {
        let listeners = Listeners::new();
        let key = SourceKey::new(GSI);
        let (_, guard) = counter(&listeners, key.into());
        let second = listeners.subscribe(key.into(), Listener::callback(|_| {}));
        assert_eq!(second.unwrap_err().errno(), Some(16));
        drop(guard);
        let (count, _guard) = counter(&listeners, key.into());
        listeners.notify(GSI).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_listener_ends_with_its_source_and_the_guard_may_go_later() {
        let listeners = Listeners::new();
        let key = SourceKey::new(GSI);
        let (count, guard) = counter(&listeners, key.into());
        listeners.end_source(key);
        listeners.notify(GSI).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 0);
        drop(guard);
        assert!(listeners.is_empty());
    }

    #[test]
    fn what_a_listener_owns_goes_with_its_guard() {
        let listeners = Listeners::new();
        let owned = Arc::new(());
        let held = Arc::clone(&owned);
        let guard = listeners
            .subscribe(GSI.into(), Listener::callback(move |_| drop(Arc::clone(&held))))
            .unwrap();
        assert_eq!(Arc::strong_count(&owned), 2);
        drop(guard);
        assert_eq!(Arc::strong_count(&owned), 1, "no old snapshot keeps it");
    }

    #[test]
    fn a_callback_may_drop_its_own_guard_and_subscribe_anew() {
        let listeners = Listeners::new();
        let guard: Arc<Mutex<Option<EoiGuard>>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let (inner, slot, seen) = (listeners.clone(), Arc::clone(&guard), Arc::clone(&calls));
        let listener = Listener::callback(move |gsi| {
            seen.fetch_add(1, Ordering::Relaxed);
            drop(slot.lock().unwrap().take());
            *slot.lock().unwrap() = Some(inner.subscribe(gsi.into(), Listener::callback(|_| {})).unwrap());
        });
        *guard.lock().unwrap() = Some(listeners.subscribe(GSI.into(), listener).unwrap());
        listeners.notify(GSI).unwrap();
        listeners.notify(GSI).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(listeners.len(), 1);
    }

    #[test]
    fn dropping_a_guard_waits_for_a_callback_on_another_thread() {
        let listeners = Listeners::new();
        let (entered, has_entered) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let done = Arc::new(AtomicBool::new(false));
        let finished = Arc::clone(&done);
        let listener = Listener::callback(move |_| {
            entered.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
            finished.store(true, Ordering::SeqCst);
        });
        let guard = listeners.subscribe(GSI.into(), listener).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| listeners.notify(GSI).unwrap());
            has_entered.recv().unwrap();
            let dropper = scope.spawn(|| {
                // Having been in a callback is not being in one.
                let other = Listeners::new();
                let (_, own) = counter(&other, GSI.into());
                other.notify(GSI).unwrap();
                drop(own);
                drop(guard);
                done.load(Ordering::SeqCst)
            });
            // The entry leaves the list before its guard's drop waits, and the callback has not been released yet.
            while !listeners.is_empty() {
                thread::yield_now();
            }
            assert!(!dropper.is_finished());
            release.send(()).unwrap();
            assert!(dropper.join().unwrap(), "the drop returned while the callback ran");
        });
    }
}
