// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The listeners of one line: added and removed at any time, told without a lock and without an allocation.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use super::snapshot::Snapshot;
use crate::sync::{AtomicUsize, Condvar, Mutex, Ordering, lock, thread_local};
use crate::{EoiGuard, EoiScope, Error, Gsi, Listener, Result, SourceKey};

/// The listeners of one line. EOI notifiers keep one for each line and call [`notify`](Self::notify).
///
/// Handles are cheap to clone and share one list.
#[derive(Clone)]
pub struct Listeners {
    list: Arc<Snapshot<[Arc<Entry>]>>,
}

impl Listeners {
    /// No listeners.
    pub fn new() -> Self {
        Self {
            list: Arc::new(Snapshot::new(Arc::new([]))),
        }
    }

    /// Adds a listener. That a source or a line of this subject exists is for the caller to know.
    ///
    /// # Errors
    /// [`Error::Busy`] when `subject` is a source that has its listener already.
    pub fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        let entry = Arc::new(Entry::new(subject, listener));
        self.list.try_update(|list| {
            let taken = |old: &Arc<Entry>| old.subject == subject && matches!(subject, EoiScope::Source(_));
            if list.iter().any(taken) {
                return Err(Error::Busy {
                    operation: "subscribe",
                    subject,
                });
            }
            Ok(list.iter().chain([&entry]).cloned().collect())
        })?;
        let list = self.clone();
        Ok(EoiGuard::new(subject, move || list.remove(&entry)))
    }

    /// Ends the subscription to a source that is going, as if its guard were dropped. The guard then guards nothing.
    pub fn end_source(&self, key: SourceKey) {
        let of_source = |entry: &&Arc<Entry>| entry.subject == EoiScope::Source(key);
        let found = self.list.load().iter().find(of_source).cloned();
        if let Some(entry) = found {
            self.remove(&entry);
        }
    }

    /// Tells every listener once, in the order of subscription. Call it with the line already low and with no lock held.
    ///
    /// A listener that is added meanwhile may or may not be told; one whose guard is dropped meanwhile is not told after
    /// that drop has returned.
    ///
    /// # Errors
    /// The first error of a write to an eventfd; the other listeners are told all the same.
    pub fn notify(&self, gsi: Gsi) -> Result<()> {
        self.notify_where(gsi, |_| true)
    }

    /// Tells the listeners of the line, and not those of a source, as [`notify`](Self::notify) does.
    ///
    /// # Errors
    /// As for [`notify`](Self::notify).
    pub fn notify_gsi(&self, gsi: Gsi) -> Result<()> {
        self.notify_where(gsi, |entry| matches!(entry.subject, EoiScope::Gsi(_)))
    }

    fn notify_where(&self, gsi: Gsi, is_meant: impl Fn(&Entry) -> bool) -> Result<()> {
        let mut outcome = Ok(());
        for entry in self.list.load().iter().filter(|entry| is_meant(entry)) {
            let told = entry.tell(gsi);
            if outcome.is_ok() {
                outcome = told;
            }
        }
        outcome.map_err(|source| Error::Os {
            operation: "write(listener's eventfd)",
            gsi,
            source,
        })
    }

    /// How many listeners there are.
    pub fn len(&self) -> usize {
        self.list.load().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.load().is_empty()
    }

    fn remove(&self, entry: &Arc<Entry>) {
        self.list.update(|list| {
            list.iter()
                .filter(|other| !Arc::ptr_eq(other, entry))
                .cloned()
                .collect()
        });
        entry.end();
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list.load();
        f.debug_list()
            .entries(
                list.iter()
                    .map(|entry| format_args!("{:?} for {}", entry.listener, entry.subject).to_string()),
            )
            .finish()
    }
}

/// One subscription.
struct Entry {
    subject: EoiScope,
    listener: Listener,
    /// How many calls of the listener are under way, on all threads, and [`ENDED`]. One word, so that a call and the end of
    /// the subscription are always in one order.
    calls: AtomicUsize,
    idle: Condvar,
    idle_lock: Mutex<()>,
}

/// The bit of [`Entry::calls`] that says that the subscription has ended.
const ENDED: usize = 1 << (usize::BITS - 1);

impl Entry {
    fn new(subject: EoiScope, listener: Listener) -> Self {
        Self {
            subject,
            listener,
            calls: AtomicUsize::new(0),
            idle: Condvar::new(),
            idle_lock: Mutex::new(()),
        }
    }

    /// Tells the listener unless the subscription has ended.
    fn tell(self: &Arc<Self>, gsi: Gsi) -> io::Result<()> {
        let call = Call::enter(self);
        if call.ended { Ok(()) } else { self.listener.notify(gsi) }
    }

    /// Ends the subscription and waits for the calls of other threads. Calls that this very thread is inside of are not
    /// waited for: that is a callback which drops its own guard.
    fn end(self: &Arc<Self>) {
        let own = Call::depth(self);
        let mut guard = lock(&self.idle_lock);
        let mut calls = self.calls.fetch_or(ENDED, Ordering::AcqRel) & !ENDED;
        while calls > own {
            guard = self.idle.wait(guard).unwrap_or_else(PoisonError::into_inner);
            calls = self.calls.load(Ordering::Acquire) & !ENDED;
        }
    }
}

thread_local! {
    /// The entries whose listeners this thread is calling now, innermost last. It keeps its capacity, so that only a
    /// thread's first calls allocate.
    #[allow(clippy::missing_const_for_thread_local, reason = "the model checker's macro has no const form")]
    static CALLS: RefCell<Vec<usize>> = RefCell::new(Vec::new());
}

/// One call of a listener, counted for as long as it lasts, even if the listener panics.
struct Call<'a> {
    entry: &'a Arc<Entry>,
    /// The subscription had ended before the call was counted: the listener is not to be called.
    ended: bool,
}

impl<'a> Call<'a> {
    fn enter(entry: &'a Arc<Entry>) -> Self {
        CALLS.with(|calls| calls.borrow_mut().push(Arc::as_ptr(entry) as usize));
        let before = entry.calls.fetch_add(1, Ordering::AcqRel);
        Self {
            entry,
            ended: before & ENDED != 0,
        }
    }

    /// How deep this thread is inside calls of `entry`.
    fn depth(entry: &Arc<Entry>) -> usize {
        let this = Arc::as_ptr(entry) as usize;
        CALLS.with(|calls| calls.borrow().iter().filter(|&&call| call == this).count())
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        CALLS.with(|calls| calls.borrow_mut().pop());
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
        assert_eq!(listeners.len(), 1);
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
