// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EOIs: which eventfd becomes a resamplefd, by the key of a source and by GSI.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, Listener, Listeners, SourceKey};

use crate::books::Books;
use crate::error::{Error, Result};
use crate::kernel::eventfd::{Claim, Eventfd, from_owned};
use crate::kind::BindingKind;
use crate::line::GsiLine;
use crate::line::irq_line::IrqLine;
use crate::line::irqfd::{Irqfd, ResampleFd, Told};

const OPERATION: &str = "subscribe";

type Subscribed = interrupt_core::Result<EoiGuard>;

/// Subscribes a listener. An eventfd becomes KVM's own resamplefd; a callback is called by `dispatch`.
pub(crate) fn subscribe(books: &Arc<Books>, scope: EoiScope, listener: Listener) -> Subscribed {
    let line = scope.gsi();
    match scope {
        EoiScope::Gsi(_) => match listener.into_fd() {
            Ok(fd) => {
                let told = adopt(fd, line)?;
                let entry = notify_only(books, line, told).map_err(|error| error.into_core(OPERATION, line))?;
                let subscription = Subscription::new(books, line, entry);
                Ok(EoiGuard::new(scope, move || drop(subscription)))
            }
            Err(callback) => {
                let watch = Subscription::watch(books, line)?;
                let listeners = books.with(|state| state.lines.get(&line).and_then(GsiLine::listeners));
                watch.guard(listeners.unwrap_or_default().subscribe(scope, callback)?)
            }
        },
        EoiScope::Source(key) => to_source(books, key, listener, How::Subscribe),
    }
}

/// Makes a listener the one of a source, in place of the one that it has.
pub(crate) fn exchange(books: &Arc<Books>, key: SourceKey, listener: Listener) -> Subscribed {
    to_source(books, key, listener, How::Exchange)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Subscribe,
    Exchange,
}

fn to_source(books: &Arc<Books>, key: SourceKey, listener: Listener, how: How) -> Subscribed {
    let found = books.with(|state| {
        let of_gsi = state.lines.get(&key.gsi())?;
        let irqfd = of_gsi
            .find_key(key)
            .map(|irqfd| (irqfd.token, Arc::clone(of_gsi.served())));
        Some((irqfd, of_gsi.irq_line().cloned()))
    });
    match found {
        Some((Some((token, served)), _)) => to_irqfd(books, key.into(), token, served, listener, how),
        Some((None, Some(irq_line))) => to_irq_line(books, key, &irq_line, listener, how),
        _ => Err(not_found(key.into())),
    }
}

fn not_found(subject: EoiScope) -> interrupt_core::Error {
    interrupt_core::Error::NotFound {
        operation: OPERATION,
        subject,
    }
}

fn adopt(fd: OwnedFd, gsi: Gsi) -> interrupt_core::Result<Arc<Told>> {
    let eventfd = Eventfd::adopt(from_owned(fd), OPERATION, gsi);
    let told = eventfd.and_then(|eventfd| Told::new(eventfd, OPERATION, gsi));
    told.map_err(|error| error.into_core(OPERATION, gsi))
}

/// A resample irqfd whose trigger is never signalled.
fn notify_only(books: &Books, gsi: Gsi, told: Arc<Told>) -> Result<u64> {
    let trigger = Arc::new(Eventfd::new(&*books.assigner.kernel, gsi)?);
    let irqfd = Irqfd::new(BindingKind::Notify, gsi, None, trigger, ResampleFd::Fd(told))?;
    books.add(gsi, irqfd)
}

/// Makes a listener the resamplefd of a source.
fn to_irqfd(
    books: &Arc<Books>,
    scope: EoiScope,
    token: u64,
    served: Arc<AtomicU64>,
    listener: Listener,
    how: How,
) -> Subscribed {
    let gsi = scope.gsi();
    let core = |error: Error| error.into_core(OPERATION, gsi);
    let (told, watch) = match listener.into_fd() {
        Ok(fd) => (adopt(fd, gsi)?, None),
        Err(callback) => {
            let eventfd = Eventfd::new(&*books.assigner.kernel, gsi).map_err(core)?;
            let told = Told::new(eventfd, OPERATION, gsi).map_err(core)?;
            let listeners = Listeners::new();
            let guard = listeners.subscribe(scope, callback)?;
            let action = Arc::new(move || {
                served.fetch_add(1, Ordering::Relaxed);
                listeners.notify(gsi).map(drop)
            });
            let watch = books
                .dispatcher
                .watch(&*books.assigner.kernel, gsi, Arc::clone(&told), action);
            (told, Some((watch.map_err(core)?, guard)))
        }
    };
    books.with(|state| {
        let line = state.lines.get_mut(&gsi).ok_or_else(|| not_found(scope))?;
        let irqfd = line.find(token).ok_or_else(|| not_found(scope))?;
        if how == How::Subscribe && irqfd.told().is_some() {
            let (operation, subject) = (OPERATION, scope);
            return Err(interrupt_core::Error::Busy { operation, subject });
        }
        let exchanged = line.exchange(&books.assigner, gsi, token, Arc::clone(&told));
        exchanged.map_err(|error| core(Error::os("KVM_IRQFD", gsi, error)))
    })?;
    let (books, told) = (Arc::downgrade(books), Arc::downgrade(&told));
    Ok(EoiGuard::new(scope, move || {
        if let Some(books) = books.upgrade() {
            books.discard(gsi, token, &told);
        }
        // No more signals, then no more calls.
        drop(watch);
    }))
}

/// Adds a listener to a line that KVM_IRQ_LINE drives. `dispatch` tells it, together with the restating of the level.
fn to_irq_line(books: &Arc<Books>, key: SourceKey, line: &Arc<IrqLine>, listener: Listener, how: How) -> Subscribed {
    let gsi = key.gsi();
    let (listener, claim) = match listener.into_fd() {
        Ok(fd) => {
            let eventfd = Eventfd::adopt(from_owned(fd), OPERATION, gsi);
            let claimed = eventfd.and_then(|eventfd| {
                let claim = Claim::resamplefd(&eventfd, OPERATION, gsi)?;
                Ok((Listener::fd(eventfd.into_owned()), Some(claim)))
            });
            claimed.map_err(|error| error.into_core(OPERATION, gsi))?
        }
        Err(callback) => (callback, None),
    };
    let watch = Subscription::watch(books, gsi)?;
    let told = match how {
        How::Subscribe => line.subscribe(key.into(), listener),
        How::Exchange => line.exchange(key, listener),
    }?;
    watch.guard(EoiGuard::new(key.into(), move || {
        drop(told);
        drop(claim);
    }))
}

/// An entry in the books that does not keep the books. Dropping it takes the entry away.
struct Subscription {
    books: Weak<Books>,
    gsi: Gsi,
    token: u64,
}

impl Subscription {
    fn new(books: &Arc<Books>, gsi: Gsi, token: u64) -> Self {
        let books = Arc::downgrade(books);
        Self { books, gsi, token }
    }

    /// Has `dispatch` serve the EOIs of a GSI.
    fn watch(books: &Arc<Books>, gsi: Gsi) -> interrupt_core::Result<Self> {
        let token = books.add_watcher(gsi);
        let token = token.map_err(|error| error.into_core(OPERATION, gsi))?;
        Ok(Self::new(books, gsi, token))
    }

    /// A guard that ends `told`, then this.
    fn guard(self, told: EoiGuard) -> Subscribed {
        Ok(EoiGuard::new(told.subject(), move || {
            drop(told);
            drop(self);
        }))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(books) = self.books.upgrade() {
            books.remove(self.gsi, self.token);
        }
    }
}
