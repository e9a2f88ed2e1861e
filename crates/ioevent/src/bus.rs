// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus: where registrations are made, moved and dispatched to.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use rustix::io::Errno as Code;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{Backend, NoBackend, Refusal};
use crate::error::{Error, Rejection};
use crate::event::Event;
use crate::matching::{Match, Space, collision};
use crate::published::Published;
use crate::registration::{Path, Registration};
use crate::table::Change;
use crate::window::Window;

/// More datamatches than this at one address are worth a warning: the kernel compares them one by one, about 24 ns each
/// on Linux 6.18, and a store that matches none of them pays for all.
const DATAMATCHES_PER_ADDRESS: usize = 64;

/// The ioeventfds of one VM: one table that drives the kernel's and stands in for those that the kernel refuses.
///
/// A handle: clones share one bus. It is made once, beside the VM; devices register on it, and every vCPU's exit path
/// offers it the stores that exit ([`IoeventBus::dispatch`]). Registering, relocating and removing take a lock of the
/// bus; dispatching takes none.
///
/// ```
/// use std::sync::Arc;
/// use ioevent::{IoeventBus, Length, Match, Space};
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = IoeventBus::userspace();
/// let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
/// let registration = bus.register(Match::mmio(0xd000_0000, Length::Any), kick.clone())?;
///
/// // In the vCPU's exit path:
/// assert!(bus.dispatch(Space::Mmio, 0xd000_0000, &[1, 0])?);
/// assert!(!bus.dispatch(Space::Mmio, 0xd000_0002, &[1, 0])?, "not a doorbell: try the other devices");
/// assert_eq!(kick.read()?, 1);
///
/// registration.remove()?;
/// assert!(!bus.dispatch(Space::Mmio, 0xd000_0000, &[1, 0])?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IoeventBus {
    shared: Arc<Shared>,
}

impl IoeventBus {
    /// A bus on any backend.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                backend: Box::new(backend),
                tables: Published::new(),
                books: Mutex::new(Books::default()),
                refusal_reported: AtomicBool::new(false),
            }),
        }
    }

    /// A bus on KVM. `vm` stays open for as long as the bus or one of its registrations lives.
    ///
    /// KVM is asked for each registration anew, and what it refuses is served from the exit path. So this cannot fail.
    #[cfg(feature = "kvm")]
    pub fn kvm(vm: Arc<kvm_ioctls::VmFd>) -> Self {
        Self::new(crate::kvm::Kvm::new(vm))
    }

    /// A bus without a backend: every registration is served from the exit path.
    pub fn userspace() -> Self {
        Self::new(NoBackend)
    }

    /// Keeps registrations out of `windows`: the guest's RAM, and the windows of in-kernel interrupt controllers.
    ///
    /// ```
    /// use ioevent::{IoeventBus, Window};
    ///
    /// let bus = IoeventBus::userspace();
    /// bus.exclude(&[Window::ram(0..=0x7fff_ffff)])?;
    /// bus.exclude(&Window::X86_IRQCHIP)?;
    /// # Ok::<(), ioevent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Occupied`] (`EBUSY`) when a registration is inside one of them already. Then none is excluded.
    pub fn exclude(&self, windows: &[Window]) -> Result<(), Error> {
        let mut books = self.shared.books();
        for at in &books.registered {
            if let Some(&window) = windows.iter().find(|window| window.touches(at)) {
                return Err(Error::Occupied { at: *at, window });
            }
        }
        books.windows.extend_from_slice(windows);
        Ok(())
    }

    /// Takes back every earlier exclusion of exactly `window`: memory was unplugged. Other windows that overlap it stay.
    pub fn readmit(&self, window: &Window) {
        self.shared.books().windows.retain(|other| other != window);
    }

    /// Registers one event: from now on, each store that `at` matches adds one to `event`.
    ///
    /// The kernel does it without an exit where it can. Where it refuses, the store exits and [`IoeventBus::dispatch`]
    /// does it; [`Registration::path`] says which, and why. Either way the guest sees the same.
    ///
    /// One eventfd may carry any number of registrations. It may be the trigger of an irqfd at the same time: a store
    /// then becomes an interrupt in the kernel, without an exit. Its counter is left alone, here and at removal. A store
    /// that finds the counter full is dropped, as in KVM. Whether it is non-blocking is looked up here; a change of the
    /// flag after this is not noticed.
    ///
    /// A store that exited before this call and is dispatched after it counts as a store after it.
    ///
    /// # Errors
    /// Nothing is registered then.
    /// * [`Error::Rejected`] (`EINVAL`): the registration could not work, see [`Rejection`].
    /// * [`Error::Collision`] (`EEXIST`): a store could match this and an earlier registration of this bus.
    /// * [`Error::Event`] (`EBADF`, `EINVAL`): `event` is closed, or is not an eventfd.
    pub fn register(&self, at: Match, event: Arc<EventFd>) -> Result<Registration, Error> {
        let event = checked(at, event)?;
        let mut books = self.shared.books();
        books.admit_all(&[at])?;
        self.shared.tables.change(&[Change::Insert(at, event.clone())]);
        Ok(self.start(&mut books, at, event))
    }

    /// Registers a set of events, all or none: the doorbells of one device.
    ///
    /// The whole set is checked before any of it is registered, and [`IoeventBus::dispatch`] sees all of it at once. What
    /// the kernel refuses, at whatever position of the set, is served from the exit path, so a refusal fails nothing.
    /// The registrations come back in the order of the set.
    ///
    /// # Errors
    /// As [`IoeventBus::register`], for the first of the set that is wrong or collides with what is registered or with
    /// an earlier one of the set. None of the set is registered then.
    pub fn register_all(
        &self,
        set: impl IntoIterator<Item = (Match, Arc<EventFd>)>,
    ) -> Result<Vec<Registration>, Error> {
        let set = set.into_iter().map(|(at, event)| Ok((at, checked(at, event)?)));
        let set = set.collect::<Result<Vec<(Match, Event)>, Error>>()?;
        let mut books = self.shared.books();
        books.admit_all(&set.iter().map(|(at, _)| *at).collect::<Vec<_>>())?;
        let inserts: Vec<_> = set
            .iter()
            .map(|(at, event)| Change::Insert(*at, event.clone()))
            .collect();
        self.shared.tables.change(&inserts);
        Ok(set
            .into_iter()
            .map(|(at, event)| self.start(&mut books, at, event))
            .collect())
    }

    /// Hands over to the kernel what is in the table already. In this order no store finds nobody: until the kernel
    /// takes it, it exits, and from the exit path it is served.
    fn start(&self, books: &mut Books, at: Match, event: Event) -> Registration {
        let path = self.shared.assign(books, &at, &event);
        Registration::new(Arc::clone(&self.shared), at, event, path)
    }

    /// Moves registrations with a base address that moves: the doorbells of a BAR that the guest programs anew.
    ///
    /// Each of `registrations` goes from `from + offset` to `to + offset` and keeps its length, datamatch and event. All
    /// move at one moment. In three steps:
    ///
    /// 1. The kernel's ioeventfds at the old addresses are removed. A store there now exits, and the table, which still
    ///    has the old addresses, serves it.
    /// 2. The table changes from all old addresses to all new ones, at once. **This is the moment of the move.**
    /// 3. The kernel is asked to take the new addresses. Until it does, and where it refuses, a store there exits and the
    ///    table serves it.
    ///
    /// # A guest that stores meanwhile
    /// *No store signals twice.* KVM looks one store up once, and either signals the eventfd and resumes the guest, or
    /// exits. A store that exits is dispatched once, against one table, in which it matches at most one registration
    /// (colliding registrations are not admitted).
    ///
    /// *No store is lost.* A store to an old address before the move either still meets the kernel's ioeventfd, which
    /// signals, or exits and meets the old table, which signals. A store to a new address after the move meets the new
    /// table or the kernel's new ioeventfd. No other thread can get at an address in between, because a registration
    /// takes the lock that this call holds (cloud-hypervisor #8572). KVM's removal waits for stores that are on their
    /// way through its bus (`kvm_io_bus_unregister_dev` ends with `synchronize_srcu_expedited`), so that none is still to
    /// be signalled at an old address when step 2 comes.
    ///
    /// *Before* and *after* mean, for a store that exits, its dispatch. A store to an old address that exited before the
    /// move and is dispatched after it is returned as not matched, like any store to an address where nothing is any
    /// more: the vCPU that made it has executed nothing since, so nothing in the guest can tell it from one that was made
    /// after the move. The VMM has it in its hands, it is not lost; and once this call returns, no eventfd is signalled
    /// for an old address.
    ///
    /// # Errors
    /// The registrations work at their old addresses then, each one.
    /// * [`Error::Rejected`], [`Error::Collision`]: a new address could not work, or collides with a registration that
    ///   does not move. Nothing was touched.
    /// * [`Error::OtherBus`] (`EINVAL`): a registration of another bus is among them. Nothing was touched.
    /// * [`Error::NotRemoved`]: the kernel did not remove one of the old ioeventfds. Those that it had removed before are
    ///   assigned again. One that it refuses to take back is served from the exit path.
    pub fn relocate<'a>(
        &self,
        registrations: impl IntoIterator<Item = &'a mut Registration>,
        from: u64,
        to: u64,
    ) -> Result<(), Error> {
        let mut registrations: Vec<_> = registrations.into_iter().collect();
        let mut moves = Vec::with_capacity(registrations.len());
        for registration in &registrations {
            let at = registration.at();
            if !registration.is_on(&self.shared) {
                return Err(Error::OtherBus { at });
            }
            let new = at.moved(from, to).map_err(|why| Error::Rejected { at, why })?;
            new.check().map_err(|why| Error::Rejected { at: new, why })?;
            moves.push((at, new));
        }
        if from == to {
            return Ok(());
        }
        let mut books = self.shared.books();
        books.admit_moves(&moves)?;

        if let Err(error) = self.shared.deassign_all(&mut registrations, &mut books) {
            books.revert_moves(&moves);
            return Err(error);
        }
        let removals = moves.iter().map(|(old, _)| Change::Remove(*old));
        let inserts = moves
            .iter()
            .zip(&registrations)
            .map(|((_, new), r)| Change::Insert(*new, r.event().clone()));
        self.shared.tables.change(&removals.chain(inserts).collect::<Vec<_>>());
        for ((_, new), registration) in moves.iter().zip(registrations) {
            let path = self.shared.assign(&mut books, new, registration.event());
            registration.settle(*new, path);
        }
        Ok(())
    }

    /// Offers one store that made a vCPU exit. `true`: a registration matched it, and its eventfd has been signalled.
    /// `false`: nobody asked for it; it belongs to whatever device is there.
    ///
    /// Stores to registrations that the kernel serves do not get here, but they may be offered: the exit may have come
    /// before the registration did. Only stores are offered, since a read never matches.
    ///
    /// `data` is one store, in the bytes of KVM's exit. An exit that carries several (`KVM_EXIT_IO` with a count above
    /// one, as SEV-ES guests cause with `rep outs`) is split into stores of `io.size` bytes and offered one by one.
    ///
    /// Takes no lock and does not allocate (but for some bytes at a thread's first call); many vCPUs may call it at
    /// once. The system call that writes the eventfd is all that it costs beyond some ns; on an eventfd without
    /// `O_NONBLOCK` there is a second, which makes sure that the first cannot wait.
    ///
    /// # Errors
    /// [`Error::NotSignalled`]: a registration matched, and the write failed, so that the fd was closed behind the
    /// registration's back (`EBADF`).
    #[inline]
    pub fn dispatch(&self, space: Space, address: u64, data: &[u8]) -> Result<bool, Error> {
        let table = self.shared.tables.read();
        let Some(row) = table.find(space, address, data) else {
            return Ok(false);
        };
        row.event
            .signal()
            .map_err(|errno| Error::NotSignalled { at: row.at, errno })?;
        Ok(true)
    }

    /// The registration that a store would match, without signalling anything: [`IoeventBus::dispatch`] up to the write.
    #[inline]
    pub fn find(&self, space: Space, address: u64, data: &[u8]) -> Option<Match> {
        Some(self.shared.tables.read().find(space, address, data)?.at)
    }
}

/// What can be told without the books. In KVM's order: a bad length is reported before a bad fd.
fn checked(at: Match, event: Arc<EventFd>) -> Result<Event, Error> {
    at.check().map_err(|why| Error::Rejected { at, why })?;
    Event::new(event).map_err(|source| Error::Event { at, source })
}

/// What the handles and the registrations of one bus share.
#[derive(Debug)]
pub(crate) struct Shared {
    backend: Box<dyn Backend>,
    /// What vCPU threads read. Changed only while `books` is locked, and always in step with it.
    tables: Published,
    books: Mutex<Books>,
    /// The guest decides how often its BARs move, so only the first refusal is a warning.
    refusal_reported: AtomicBool,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while the books are half written.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the kernel to serve what is in the table.
    fn assign(&self, books: &mut Books, at: &Match, event: &Event) -> Path {
        match self.backend.assign(at, event.fd()) {
            Ok(()) => {
                books.warn_of_fan(at);
                Path::Kernel
            }
            Err(refusal) => {
                if let Refusal::Kernel(_) = refusal {
                    if self.refusal_reported.swap(true, Ordering::Relaxed) {
                        debug!("ioevent {at}: served from the exit path: {refusal}");
                    } else {
                        warn!("ioevent {at}: served from the exit path: {refusal}; more of the kind at level debug");
                    }
                }
                Path::Trapped(refusal)
            }
        }
    }

    /// Takes all of `registrations` from the kernel, or none.
    fn deassign_all(&self, registrations: &mut [&mut Registration], books: &mut Books) -> Result<(), Error> {
        for index in 0..registrations.len() {
            let registration = &registrations[index];
            let at = registration.at();
            if registration.path() != Path::Kernel {
                continue;
            }
            if let Err(errno) = self.backend.deassign(&at, registration.event().fd()) {
                // The kernel lost this one (ENOENT), so it is assigned anew too. After any other answer it may still
                // have it, and would take the same registration for a collision.
                let lost = errno.errno() == Code::NOENT.raw_os_error();
                let again = if lost { index + 1 } else { index };
                for registration in registrations[..again].iter_mut().filter(|r| r.path() == Path::Kernel) {
                    let path = self.assign(books, &registration.at(), registration.event());
                    registration.settle(registration.at(), path);
                }
                return Err(Error::NotRemoved { at, errno });
            }
        }
        Ok(())
    }

    /// Ends a registration. Whatever the kernel says, it is off the table afterwards.
    pub(crate) fn remove(&self, at: &Match, event: &Event, path: Path) -> Result<(), Error> {
        let mut books = self.books();
        let deassigned = match path {
            Path::Kernel => self.backend.deassign(at, event.fd()),
            Path::Trapped(_) => Ok(()),
        };
        self.tables.change(&[Change::Remove(*at)]);
        books.registered.remove(at);
        deassigned.map_err(|errno| Error::NotRemoved { at: *at, errno })
    }
}

/// What is registered, and where nothing may be.
#[derive(Debug, Default)]
struct Books {
    registered: BTreeSet<Match>,
    windows: Vec<Window>,
    fan_reported: bool,
}

impl Books {
    /// Admits all of `set`, or none.
    fn admit_all(&mut self, set: &[Match]) -> Result<(), Error> {
        for (index, at) in set.iter().enumerate() {
            if let Err(error) = self.admit(at) {
                for admitted in &set[..index] {
                    self.registered.remove(admitted);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn admit(&mut self, at: &Match) -> Result<(), Error> {
        if let Some(&window) = self.windows.iter().find(|window| window.touches(at)) {
            return Err(Error::Rejected {
                at: *at,
                why: Rejection::InsideWindow(window),
            });
        }
        if let Some(with) = collision(&self.registered, at) {
            return Err(Error::Collision { at: *at, with });
        }
        self.registered.insert(*at);
        Ok(())
    }

    /// Admits the new addresses in place of the old ones, all or none. Old and new may overlap.
    fn admit_moves(&mut self, moves: &[(Match, Match)]) -> Result<(), Error> {
        for (old, _) in moves {
            self.registered.remove(old);
        }
        let new: Vec<_> = moves.iter().map(|(_, new)| *new).collect();
        let admitted = self.admit_all(&new);
        if admitted.is_err() {
            self.registered.extend(moves.iter().map(|(old, _)| *old));
        }
        admitted
    }

    fn revert_moves(&mut self, moves: &[(Match, Match)]) {
        for (_, new) in moves {
            self.registered.remove(new);
        }
        self.registered.extend(moves.iter().map(|(old, _)| *old));
    }

    /// Warns, once for a bus, when an address carries more datamatches than KVM looks through quickly.
    fn warn_of_fan(&mut self, at: &Match) {
        if self.fan_reported || at.datamatch.is_none() {
            return;
        }
        let first = Match {
            length: crate::Length::Any,
            datamatch: None,
            ..*at
        };
        let last = Match {
            length: crate::Length::Bytes8,
            datamatch: Some(u64::MAX),
            ..*at
        };
        let fan = self
            .registered
            .range(first..=last)
            .filter(|other| other.datamatch.is_some())
            .count();
        if fan > DATAMATCHES_PER_ADDRESS {
            self.fan_reported = true;
            warn!(
                "ioevent {at}: one of {fan} datamatches at this address; KVM looks through them one by one for each                  store, so give each event an address of its own where the device can"
            );
        }
    }
}
