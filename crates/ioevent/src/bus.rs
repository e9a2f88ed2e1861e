// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus: where registrations are made, moved and dispatched to.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::backend::{Backend, NoBackend};
use crate::error::Error;
use crate::event::Event;
use crate::ledger::{Ledger, Registered};
use crate::matching::{Match, Space};
use crate::registration::Registration;
use crate::reserved::ReservedRange;
use crate::table::Entry;

/// The ioeventfds of one VM: one table that drives the kernel's and stands in for those that the kernel refuses.
///
/// Clones share one bus. Make the bus once, beside the VM; devices register on it, and the exit path of every vCPU offers
/// it the stores that exit ([`IoeventBus::dispatch`]). Registering, relocating and removing take a lock of the bus;
/// dispatching takes none.
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
    ledger: Arc<Ledger>,
}

impl IoeventBus {
    /// A bus on any backend.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self {
            ledger: Arc::new(Ledger::new(backend)),
        }
    }

    /// A bus on KVM. `vm` stays open for as long as the bus or one of its registrations lives.
    ///
    /// KVM is asked at each registration, and what KVM refuses is served from the exit path, so this cannot fail.
    #[cfg(feature = "kvm")]
    pub fn kvm(vm: Arc<kvm_ioctls::VmFd>) -> Self {
        Self::new(crate::kvm::Kvm::new(vm))
    }

    /// A bus without a backend: every registration is served from the exit path.
    pub fn userspace() -> Self {
        Self::new(NoBackend)
    }

    /// Keeps registrations out of `ranges`: the guest's RAM, and the registers of in-kernel interrupt controllers.
    ///
    /// ```
    /// use ioevent::{IoeventBus, ReservedRange};
    ///
    /// let bus = IoeventBus::userspace();
    /// bus.reserve(&[ReservedRange::ram(0..=0x7fff_ffff)])?;
    /// bus.reserve(&ReservedRange::X86_IRQCHIP)?;
    /// # Ok::<(), ioevent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Nothing is reserved then.
    /// * [`Error::Occupied`] (`EBUSY`): a registration is inside one of the ranges already.
    /// * [`Error::NotRemoved`]: a registration that is gone from the bus is inside one of the ranges, and the kernel
    ///   still does not let go of it, see [`Registration::remove`].
    pub fn reserve(&self, ranges: &[ReservedRange]) -> Result<(), Error> {
        self.ledger.reserve(ranges)
    }

    /// Ends every earlier reservation of exactly `range`: memory was unplugged. Other ranges that overlap it stay.
    pub fn unreserve(&self, range: &ReservedRange) {
        self.ledger.unreserve(range);
    }

    /// Registers one event: from now on, each store that `at` matches adds one to `event`.
    ///
    /// The kernel signals the event without an exit where it can. Where it refuses, the store exits and
    /// [`IoeventBus::dispatch`] signals the event; [`Registration::path`] says which, and why. The guest sees no
    /// difference.
    ///
    /// One eventfd may carry any number of registrations. It may be the trigger of an irqfd at the same time: a store
    /// then becomes an interrupt in the kernel, without an exit. Its counter is left alone, here and at removal. A
    /// store that finds the counter full is dropped, as in KVM. This call looks up whether the eventfd is non-blocking;
    /// a later change of the flag is not noticed.
    ///
    /// A store that exited before this call and is dispatched after it counts as a store after it.
    ///
    /// # Errors
    /// Nothing is registered then.
    /// * [`Error::Rejected`] (`EINVAL`): the registration could not work, see [`Rejection`](crate::Rejection).
    /// * [`Error::Reserved`] (`EINVAL`): the registration is inside a reserved range.
    /// * [`Error::Collision`] (`EEXIST`): a store could match this and an earlier registration of this bus.
    /// * [`Error::NotAnEventFd`] (`EBADF`, `EINVAL`): `event` is closed, or is not an eventfd.
    /// * [`Error::NotRemoved`]: a removed registration collides, and the kernel still does not let go of it, see
    ///   [`Registration::remove`].
    pub fn register(&self, at: Match, event: Arc<EventFd>) -> Result<Registration, Error> {
        let mut set = [checked(at, event)?];
        self.ledger.register(&mut set)?;
        let [registered] = set;
        Ok(Registration::new(Arc::clone(&self.ledger), registered))
    }

    /// Registers a set of events, all or none: the doorbells of one device.
    ///
    /// The whole set is checked before any of it is registered, and [`IoeventBus::dispatch`] sees all of it at once.
    /// What the kernel refuses, at whatever position of the set, is served from the exit path, so a refusal fails
    /// nothing. The registrations come back in the order of the set.
    ///
    /// # Errors
    /// As [`IoeventBus::register`], for the first of the set that is wrong or collides with what is registered or with
    /// an earlier one of the set. None of the set is registered then.
    pub fn register_all(
        &self,
        set: impl IntoIterator<Item = (Match, Arc<EventFd>)>,
    ) -> Result<Vec<Registration>, Error> {
        let set = set.into_iter().map(|(at, event)| checked(at, event));
        let mut set = set.collect::<Result<Vec<_>, Error>>()?;
        self.ledger.register(&mut set)?;
        let guard = |registered| Registration::new(Arc::clone(&self.ledger), registered);
        Ok(set.into_iter().map(guard).collect())
    }

    /// Moves registrations with a base address that moves: the doorbells of a BAR that the guest programs anew.
    ///
    /// Each of `registrations` goes from `from + offset` to `to + offset` and keeps its length, datamatch and event.
    /// All move at one moment. In three steps:
    ///
    /// 1. The kernel's ioeventfds at the old addresses are removed. A store there now exits, and the table, which still
    ///    has the old addresses, serves it.
    /// 2. The table changes from all old addresses to all new ones, at once. **This is the moment of the move.**
    /// 3. The kernel is asked to take the new addresses. Until it does, and where it refuses, a store there exits and
    ///    the table serves it.
    ///
    /// # A guest that stores meanwhile
    /// *No store signals twice.* KVM looks a store up once: it signals the eventfd and resumes the guest, or the store
    /// exits. The VMM dispatches the exit once, against one table, and at most one registration of a table matches a
    /// store.
    ///
    /// *No store is lost.* A store to an old address before the move meets the kernel's old ioeventfd or the old table;
    /// both signal. A store to a new address after the move meets the new table or the kernel's new ioeventfd. No other
    /// thread can take an address in between, because registering takes the lock that this call holds (cloud-hypervisor
    /// #8572). KVM's removal waits for stores under way on its bus (`kvm_io_bus_unregister_dev` ends with
    /// `synchronize_srcu_expedited`), so when step 2 begins, KVM signals for no old address any more.
    ///
    /// For a store that exits, *before* and *after* refer to its dispatch. A store to an old address that exited before
    /// the move and is dispatched after it is returned as not matched, like any store to an address without a
    /// registration. The guest cannot tell: the vCPU has executed nothing since the store. Once this call returns, no
    /// eventfd is signalled for an old address.
    ///
    /// # Errors
    /// The registrations work at their old addresses then, each one.
    /// * [`Error::Rejected`], [`Error::Reserved`], [`Error::Collision`]: a new address could not work, is reserved, or
    ///   collides with a registration that does not move. Nothing was touched.
    /// * [`Error::OtherBus`] (`EINVAL`): a registration of another bus is among them. Nothing was touched.
    /// * [`Error::NotRemoved`]: the kernel did not remove one of the old ioeventfds, or one of an earlier removal that
    ///   failed and that collides with a new address. Old ones that the kernel had removed are assigned again; if the
    ///   kernel refuses to take one back, it is served from the exit path.
    pub fn relocate<'a>(
        &self,
        registrations: impl IntoIterator<Item = &'a mut Registration>,
        from: u64,
        to: u64,
    ) -> Result<(), Error> {
        let registrations: Vec<_> = registrations.into_iter().collect();
        let moved = |registration: &&mut Registration| {
            let at = registration.at();
            if !registration.is_on(&self.ledger) {
                return Err(Error::OtherBus { at });
            }
            let new = at.moved(from, to).map_err(|why| Error::Rejected { at, why })?;
            new.check().map_err(|why| Error::Rejected { at: new, why })?;
            Ok(new)
        };
        let places = registrations.iter().map(moved).collect::<Result<Vec<_>, Error>>()?;
        if from == to {
            return Ok(());
        }
        let mut moving: Vec<_> = registrations.into_iter().map(Registration::registered).collect();
        self.ledger.relocate(&mut moving, &places)
    }

    /// Offers one store that made a vCPU exit. `true`: a registration matched it, and its eventfd has been signalled.
    /// `false`: no registration matched; the store belongs to the device at that address.
    ///
    /// A store to a registration that the kernel serves does not exit, unless it came before the registration; it may
    /// be offered all the same. Offer stores alone: a read never matches.
    ///
    /// `data` is one store, in the bytes of KVM's exit. An exit that carries several (`KVM_EXIT_IO` with a count above
    /// one, as SEV-ES guests cause with `rep outs`) is split into stores of `io.size` bytes and offered one by one.
    ///
    /// Takes no lock and does not allocate, but for some bytes at a thread's first call; many vCPUs may call it at
    /// once. It makes one system call, the write to the eventfd. For an eventfd without `O_NONBLOCK` it makes another
    /// before that, which asks for room, so that a full counter makes no vCPU wait. When two vCPUs, or a vCPU and a peer,
    /// meet at the last room of a counter (2^64-2 stores that nobody has read), one of the writes waits, until the
    /// reader reads or the next signal to the thread: a kick frees the vCPU if its handler was set without SA_RESTART.
    ///
    /// # Errors
    /// [`Error::NotSignalled`]: a registration matched, and the write failed, so that the fd was closed behind the
    /// registration's back (`EBADF`).
    #[inline]
    pub fn dispatch(&self, space: Space, address: u64, data: &[u8]) -> Result<bool, Error> {
        let table = self.ledger.table.read();
        let Some(entry) = table.find(space, address, data) else {
            return Ok(false);
        };
        let signalled = entry.event.signal();
        signalled.map_err(|errno| Error::NotSignalled { at: entry.at, errno })?;
        Ok(true)
    }

    /// The registration that a store would match, without signalling anything: [`IoeventBus::dispatch`] up to the
    /// write.
    #[inline]
    pub fn find(&self, space: Space, address: u64, data: &[u8]) -> Option<Match> {
        Some(self.ledger.table.read().find(space, address, data)?.at)
    }
}

/// Checks one member of a set on its own, in KVM's order: a bad length is reported before a bad fd.
fn checked(at: Match, event: Arc<EventFd>) -> Result<Registered, Error> {
    at.check().map_err(|why| Error::Rejected { at, why })?;
    let event = Event::new(event).map_err(|errno| Error::NotAnEventFd { at, errno })?;
    Ok(Registered::new(Entry { at, event }))
}
