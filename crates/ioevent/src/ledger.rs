// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The owner of what is registered: one table for the exit path, kept in step with the backend.
//!
//! Each change of the ledger is made under one lock, and in one order: check, take from the backend, change the table,
//! give to the backend. So a store that the backend does not take always finds the table. Nothing that a caller owns is
//! dropped under the lock (law 14).

use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{debug, error, warn};
use rustix::io::Errno as Code;

use crate::backend::{Backend, Refusal};
use crate::error::{Error, errno};
use crate::matching::Match;
use crate::published::Published;
use crate::reserved::ReservedRange;
use crate::table::{Change, Entry};

/// More registrations than this at one address are worth a warning: KVM compares them one by one, about 24 ns each on
/// Linux 6.18, and a store that matches none of them pays for all.
const REGISTRATIONS_PER_ADDRESS: usize = 64;

/// Who signals the eventfd for a matching store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The kernel, without an exit.
    ///
    /// KVM fails to find a few registrations that it has accepted: where the ranges of three or more overlap so that a
    /// range without the store lies between two that contain it. Such a store exits, and is served from there.
    Kernel,
    /// [`IoeventBus::dispatch`](crate::IoeventBus::dispatch), from the exit that the store causes, for this reason.
    /// A store that makes no exit, because an ioeventfd from elsewhere takes it (`EEXIST`, see [`Refusal::Kernel`]), is
    /// lost to this registration.
    Trapped(Refusal),
}

/// What the guard of a registration holds: the entry of the table, and who serves it.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) entry: Entry,
    pub(crate) path: Path,
}

impl Registered {
    /// Before [`Ledger::register`].
    pub(crate) fn new(entry: Entry) -> Self {
        let path = Path::Trapped(Refusal::NoBackend);
        Self { entry, path }
    }
}

#[derive(Debug)]
pub(crate) struct Ledger {
    backend: Box<dyn Backend>,
    /// What vCPU threads read. Changed only while `books` is locked.
    pub(crate) table: Published,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    reserved: Vec<ReservedRange>,
    /// Registrations that are gone from the table, and that the backend did not remove. A later removal needs their
    /// eventfd.
    stuck: Vec<Entry>,
    /// The guest decides how often its BARs move, so only the first refusal is a warning.
    refusal_reported: bool,
    crowd_reported: bool,
}

impl Ledger {
    pub(crate) fn new(backend: impl Backend + 'static) -> Self {
        Self {
            backend: Box::new(backend),
            table: Published::new(),
            books: Mutex::default(),
        }
    }

    /// Registers all of `set`, or none, and says in each who serves it.
    pub(crate) fn register(&self, set: &mut [Registered]) -> Result<(), Error> {
        // Declared before the lock is taken, and so dropped after it is released.
        let mut freed = Vec::new();
        let mut books = self.lock();
        books.check_reserved(set.iter().map(|new| &new.entry.at))?;
        let inserts: Vec<_> = set.iter().map(|new| Change::Insert(new.entry.clone())).collect();
        self.table.change(&inserts, || {
            let collides = |stuck: &Match| set.iter().any(|new| new.entry.at.collides(stuck));
            self.free(&mut books, &mut freed, collides)
        })?;
        for new in set {
            new.path = self.assign(&mut books, &new.entry);
        }
        Ok(())
    }

    /// Moves each of `moving` to its place in `to`, all or none.
    pub(crate) fn relocate(&self, moving: &mut [&mut Registered], to: &[Match]) -> Result<(), Error> {
        let mut freed = Vec::new();
        let mut books = self.lock();
        books.check_reserved(to)?;
        let removals = moving.iter().map(|old| Change::Remove(old.entry.clone()));
        let inserts = moving.iter().zip(to).map(|(old, at)| {
            let event = old.entry.event.clone();
            Change::Insert(Entry { at: *at, event })
        });
        let changes: Vec<_> = removals.chain(inserts).collect();
        self.table.change(&changes, || {
            self.free(&mut books, &mut freed, |stuck| to.iter().any(|at| at.collides(stuck)))?;
            self.deassign_all(&mut books, moving)
        })?;
        for (moved, at) in moving.iter_mut().zip(to) {
            moved.entry.at = *at;
            moved.path = self.assign(&mut books, &moved.entry);
        }
        Ok(())
    }

    /// Ends a registration. Whatever the backend answers, the table does not have it afterwards.
    pub(crate) fn remove(&self, registered: &Registered) -> Result<(), Error> {
        let mut books = self.lock();
        let entry = &registered.entry;
        let deassigned = match registered.path {
            Path::Kernel => self.deassign(entry),
            Path::Trapped(_) => Ok(()),
        };
        if deassigned
            .as_ref()
            .is_err_and(|error| error.errno() != errno(Code::NOENT))
        {
            books.stuck.push(entry.clone());
        }
        self.table
            .change(&[Change::Remove(entry.clone())], || Ok(()))
            .and(deassigned)
    }

    /// Reserves all of `ranges`, or none.
    pub(crate) fn reserve(&self, ranges: &[ReservedRange]) -> Result<(), Error> {
        let mut freed = Vec::new();
        let mut books = self.lock();
        let occupied = |at: Match| Some((at, *ranges.iter().find(|range| range.touches(&at))?));
        let first = self
            .table
            .read()
            .entries()
            .filter_map(|entry| occupied(entry.at))
            .min_by_key(|(at, _)| *at);
        if let Some((at, range)) = first {
            return Err(Error::Occupied { at, range });
        }
        self.free(&mut books, &mut freed, |stuck| occupied(*stuck).is_some())?;
        books.reserved.extend_from_slice(ranges);
        Ok(())
    }

    pub(crate) fn unreserve(&self, range: &ReservedRange) {
        self.lock().reserved.retain(|other| other != range);
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while the books are half written.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the backend to serve what is in the table.
    fn assign(&self, books: &mut Books, entry: &Entry) -> Path {
        let at = entry.at;
        match self.backend.assign(&at, entry.event.fd()) {
            Ok(()) => {
                let sharing = self.table.read().sharing(&at);
                if sharing > REGISTRATIONS_PER_ADDRESS && !std::mem::replace(&mut books.crowd_reported, true) {
                    warn!(
                        "ioevent {at}: one of {sharing} registrations at this address; KVM looks through them one by \
                         one for each store, so give each event an address of its own where the device can"
                    );
                }
                Path::Kernel
            }
            Err(refusal) => {
                if let Refusal::Kernel(code) = refusal {
                    if code == errno(Code::EXIST) {
                        error!(
                            "ioevent {at}: an ioeventfd that was registered past the bus takes its stores, and this \
                             registration loses them; remove that ioeventfd, or register it here"
                        );
                        return Path::Trapped(refusal);
                    }
                    if std::mem::replace(&mut books.refusal_reported, true) {
                        debug!("ioevent {at}: served from the exit path: {refusal}");
                    } else {
                        warn!("ioevent {at}: served from the exit path: {refusal}; more of the kind at level debug");
                    }
                }
                Path::Trapped(refusal)
            }
        }
    }

    fn deassign(&self, entry: &Entry) -> Result<(), Error> {
        let at = entry.at;
        self.backend
            .deassign(&at, entry.event.fd())
            .map_err(|errno| Error::NotRemoved { at, errno })
    }

    /// Takes all of `moving` from the backend, or none.
    fn deassign_all(&self, books: &mut Books, moving: &mut [&mut Registered]) -> Result<(), Error> {
        for index in 0..moving.len() {
            if moving[index].path != Path::Kernel {
                continue;
            }
            if let Err(error) = self.deassign(&moving[index].entry) {
                // The kernel lost this registration (ENOENT), so it is assigned anew too. After any other answer the
                // kernel may still have it, and would take the same registration for a collision.
                let lost = error.errno() == errno(Code::NOENT);
                let again = if lost { index + 1 } else { index };
                for taken in moving[..again].iter_mut().filter(|taken| taken.path == Path::Kernel) {
                    taken.path = self.assign(books, &taken.entry);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes from the backend the stuck registrations that are in the way, which go to `freed`.
    ///
    /// # Errors
    /// [`Error::NotRemoved`]: the backend still does not let go of one.
    fn free(
        &self,
        books: &mut Books,
        freed: &mut Vec<Entry>,
        in_the_way: impl Fn(&Match) -> bool,
    ) -> Result<(), Error> {
        while let Some(index) = books.stuck.iter().position(|stuck| in_the_way(&stuck.at)) {
            self.deassign(&books.stuck[index]).or_else(|error| {
                // The kernel has lost it meanwhile, which is as good.
                let lost = error.errno() == errno(Code::NOENT);
                if lost { Ok(()) } else { Err(error) }
            })?;
            freed.push(books.stuck.swap_remove(index));
        }
        Ok(())
    }
}

impl Books {
    fn check_reserved<'a>(&self, set: impl IntoIterator<Item = &'a Match>) -> Result<(), Error> {
        for at in set {
            if let Some(&range) = self.reserved.iter().find(|range| range.touches(at)) {
                return Err(Error::Reserved { at: *at, range });
            }
        }
        Ok(())
    }
}
