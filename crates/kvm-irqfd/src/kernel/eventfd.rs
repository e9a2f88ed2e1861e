// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds: the conversion between vmm-sys-util's `EventFd`, which kvm-ioctls and VMMs take, and std's `OwnedFd`,
//! which
//! [`Listener`](interrupt_core::Listener), sockets and rustix take; vmm-sys-util has no conversion of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use interrupt_core::Gsi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr, write};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Reason, Result};
use crate::kernel::Kernel;

/// An eventfd that came from a socket or from another library, as [`EventFd`]. Whether the fd is an eventfd, and can be
/// bound, is found out when the fd is bound.
///
/// ```
/// use kvm_irqfd::eventfd;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let event = EventFd::new(EFD_NONBLOCK)?;
/// event.write(3)?;
/// let event = eventfd::from_owned(eventfd::into_owned(event));
/// assert_eq!(event.read()?, 3, "it is the same eventfd");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn from_owned(fd: OwnedFd) -> EventFd {
    // SAFETY: `into_raw_fd` gives up ownership of a descriptor that is open, so the `EventFd` is its only owner.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A VMM's eventfd as [`Listener::fd`](interrupt_core::Listener::fd) takes one.
pub fn into_owned(event: EventFd) -> OwnedFd {
    // SAFETY: as in `from_owned`, the other way round.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}

/// An eventfd as this crate keeps it.
pub(crate) struct Eventfd {
    fd: EventFd,
    /// The kernel's number of the eventfd itself, which duplicates share and which a recycled fd number does not.
    /// `None` where /proc is not mounted.
    id: Option<u64>,
    /// Whether the eventfd is a semaphore; `None` where the kernel does not say (before Linux 6.5, or without /proc).
    semaphore: Option<bool>,
    /// A write waits while the counter is full.
    may_block: bool,
    /// KVM takes what is signalled, so that the counter is not full.
    is_taken: AtomicBool,
    /// How often this process has asserted by this eventfd. Other holders of the eventfd are not seen.
    asserted: AtomicU64,
    /// The same, counted after the signal.
    signalled: AtomicU64,
}

impl Eventfd {
    /// A new eventfd with nothing pending.
    pub(crate) fn new(kernel: &dyn Kernel, gsi: Gsi) -> Result<Self> {
        let fd = kernel.eventfd().map_err(|e| Error::os("eventfd", gsi, e))?;
        let mut eventfd = Self::adopt(from_owned(fd), "eventfd", gsi)?;
        eventfd.semaphore = Some(false);
        Ok(eventfd)
    }

    /// Takes over an eventfd of the caller. What the eventfd counts stays in it.
    pub(crate) fn adopt(fd: EventFd, operation: &'static str, gsi: Gsi) -> Result<Self> {
        let info = info(&fd).map_err(|e| Error::os("read(/proc/thread-self/fdinfo)", gsi, e))?;
        let id = info.as_deref().map(|info| field(info, "eventfd-id"));
        let is_eventfd = match id {
            Some(id) => id.is_some(),
            None => has_no_file_type(&fd).map_err(|e| Error::os("fstat", gsi, e))?,
        };
        if !is_eventfd {
            return Err(Error::new(operation, gsi, Reason::NotEventfd));
        }
        let flags = fcntl_getfl(borrow(&fd)).map_err(|e| Error::os("fcntl(F_GETFL)", gsi, e))?;
        Ok(Self {
            id: id.flatten(),
            semaphore: info
                .and_then(|info| field(&info, "eventfd-semaphore"))
                .map(|flag| flag != 0),
            may_block: !flags.contains(OFlags::NONBLOCK),
            is_taken: AtomicBool::new(false),
            asserted: AtomicU64::new(0),
            signalled: AtomicU64::new(0),
            fd,
        })
    }

    pub(crate) fn fd(&self) -> &EventFd {
        &self.fd
    }

    pub(crate) fn into_owned(self) -> OwnedFd {
        into_owned(self.fd)
    }

    /// Adds 1. A counter that is full is signalled already, and is not waited for. When another writer takes the last room
    /// of a blocking eventfd at this moment, this waits until the thread's next signal.
    pub(crate) fn signal(&self) -> io::Result<()> {
        self.add(1)
    }

    fn add(&self, count: u64) -> io::Result<()> {
        // Another holder of the eventfd may have filled the counter, and may have made the eventfd blocking.
        if (self.may_block || !self.is_taken.load(Ordering::Relaxed)) && !self.has_room()? {
            return Ok(());
        }
        Ok(self.write(count)?)
    }

    /// Says whether KVM takes what is signalled from now on.
    pub(crate) fn set_taken(&self, is_taken: bool) {
        self.is_taken.store(is_taken, Ordering::Relaxed);
    }

    fn has_room(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self, PollFlags::OUT)];
        // A signal that is pending makes even a poll that does not wait answer EINTR.
        Ok(retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? > 0)
    }

    fn write(&self, count: u64) -> rustix::io::Result<()> {
        match write(self, &count.to_ne_bytes()) {
            // EINTR: the write waited, so the counter was full. Not tried again, so that a kick frees a vCPU.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Signals the trigger of a level source, and counts that.
    pub(crate) fn assert(&self) -> io::Result<()> {
        // Counted first, so that who finds the signal finds it counted. Beside a system call this costs nothing.
        self.asserted.fetch_add(1, Ordering::SeqCst);
        let signalled = self.signal();
        self.signalled.fetch_add(1, Ordering::SeqCst);
        signalled
    }

    /// How many of the assertions have been signalled.
    pub(crate) fn signalled(&self) -> u64 {
        self.signalled.load(Ordering::SeqCst)
    }

    pub(crate) fn asserted(&self) -> u64 {
        self.asserted.load(Ordering::SeqCst)
    }

    /// Takes what is pending, without waiting. 0 when nothing is.
    pub(crate) fn take(&self) -> io::Result<u64> {
        take(self.as_fd())
    }

    /// Whether a read takes one count of several. Where the kernel does not say, this tries with two counts of its own,
    /// so that the caller must have claimed the eventfd as a trigger, whose counts are discarded anyway.
    fn is_semaphore(&self) -> io::Result<bool> {
        if let Some(semaphore) = self.semaphore {
            return Ok(semaphore);
        }
        self.add(2)?;
        let semaphore = self.take()? == 1;
        if semaphore {
            self.take()?;
        }
        Ok(semaphore)
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.fd)
    }
}

fn borrow(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `fd` lives, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Reads an eventfd's counter without waiting. RWF_NOWAIT makes that independent of O_NONBLOCK, which is for the maker
/// of the eventfd to choose. 0 when nothing is pending.
pub(crate) fn take(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = [0; 8];
    // u64::MAX is "no offset": an eventfd has none.
    match preadv2(fd, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// What /proc tells of an fd; `None` where /proc is not mounted or not to be read, as in the jail of a VMM.
fn info(fd: &EventFd) -> io::Result<Option<String>> {
    match fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd())) {
        Ok(info) => Ok(Some(info)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an fd stands for an anonymous inode, as that of an eventfd does: a file, a pipe or a socket of somebody must not
/// be written to, nor read from, to find out more. The other anonymous inodes refuse such a write.
fn has_no_file_type(fd: &EventFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(borrow(fd))?.st_mode) == FileType::Unknown)
}

/// A field of /proc/.../fdinfo. `eventfd-id` is there since Linux 5.2 and of an eventfd only, `eventfd-semaphore` since
/// 6.5.
fn field(info: &str, name: &str) -> Option<u64> {
    let value = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

/// What this process uses each eventfd for, in all its VMs. The kernel refuses a second binding to the same VM, and
/// since Linux 6.17 to any VM; before, the second VM would silently never be triggered.
static ROLES: Mutex<BTreeMap<u64, Role>> = Mutex::new(BTreeMap::new());

enum Role {
    /// The trigger of one irqfd.
    Trigger(Gsi),
    /// Told of EOIs, by so many irqfds.
    Resample(usize),
}

fn roles() -> MutexGuard<'static, BTreeMap<u64, Role>> {
    ROLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to use one eventfd in one role, for as long as this lives. An eventfd without an identity, which is so
/// where /proc is not mounted, is taken to be another one than all others.
pub(crate) struct Claim {
    id: Option<u64>,
}

impl Claim {
    /// As the trigger of an irqfd: one irqfd, and told of no EOI.
    pub(crate) fn trigger(eventfd: &Eventfd, operation: &'static str, gsi: Gsi) -> Result<Self> {
        let refuse = |reason| Err(Error::new(operation, gsi, reason));
        if let Some(id) = eventfd.id {
            let mut roles = roles();
            match roles.get(&id) {
                Some(Role::Trigger(bound)) => return refuse(Reason::AlreadyBound { bound: *bound }),
                Some(Role::Resample(_)) => return refuse(Reason::TriggerIsResample),
                None => drop(roles.insert(id, Role::Trigger(gsi))),
            }
        }
        // From here on, a refusal gives the claim back.
        let claim = Self { id: eventfd.id };
        match eventfd.is_semaphore() {
            Ok(false) => Ok(claim),
            Ok(true) => refuse(Reason::Semaphore),
            Err(error) => refuse(Reason::Os(error)),
        }
    }

    /// As an eventfd that is told of EOIs, by any number of irqfds.
    pub(crate) fn resamplefd(eventfd: &Eventfd, operation: &'static str, gsi: Gsi) -> Result<Self> {
        if let Some(id) = eventfd.id {
            match roles().entry(id).or_insert(Role::Resample(0)) {
                Role::Trigger(_) => return Err(Error::new(operation, gsi, Reason::TriggerIsResample)),
                Role::Resample(users) => *users += 1,
            }
        }
        Ok(Self { id: eventfd.id })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut roles = roles();
        match roles.get_mut(&id) {
            Some(Role::Resample(users)) if *users > 1 => *users -= 1,
            _ => drop(roles.remove(&id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, OnceLock};
    use std::thread;

    use interrupt_core::{Listener, Listeners};
    use rustix::io::ioctl_fionbio;
    use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

    use super::*;

    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    /// Row 149: signals hit a thread that asserts by a blocking trigger, and that waits because another writer has taken
    /// the last room.
    #[test]
    fn a_signal_fails_no_assertion_and_frees_a_writer_that_waits() {
        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let fd = EventFd::new(0).unwrap();
        let reader = fd.try_clone().unwrap();
        let trigger = Eventfd::adopt(fd, "test", Gsi(0)).unwrap();
        let started = Arc::new(OnceLock::new());
        let task = Arc::clone(&started);
        let writer = thread::spawn(move || {
            start(&task);
            let asserted = (0..20_000).try_for_each(|_| trigger.signal());
            trigger.write(u64::MAX - 1 - 20_000).unwrap();
            asserted.and(trigger.write(1).map_err(io::Error::from))
        });
        let freed = frees(&writer, &started);
        // Frees a writer that waits all the same.
        drop(reader.read());
        writer.join().unwrap().unwrap();
        assert!(freed);
    }

    /// Row 149: a peer has made a listener's eventfd blocking again, and full.
    #[test]
    fn a_signal_frees_an_eoi_that_a_peer_holds() {
        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let peer = EventFd::new(0).unwrap();
        let listeners = Listeners::new();
        let listener = Listener::fd(into_owned(peer.try_clone().unwrap()));
        let _guard = listeners.subscribe(Gsi(0).into(), listener).unwrap();
        ioctl_fionbio(borrow(&peer), false).unwrap();
        peer.write(u64::MAX - 1).unwrap();
        let started = Arc::new(OnceLock::new());
        let task = Arc::clone(&started);
        let vcpu = thread::spawn(move || {
            start(&task);
            listeners.notify(Gsi(0))
        });
        let freed = frees(&vcpu, &started);
        peer.read().unwrap();
        assert_eq!((vcpu.join().unwrap().unwrap(), freed), (1, true));
    }

    /// Names the calling thread to [`frees`].
    fn start(task: &OnceLock<PathBuf>) {
        let path = fs::read_link("/proc/thread-self").unwrap();
        task.set(Path::new("/proc").join(path)).unwrap();
    }

    /// Whether a signal frees a thread that waits.
    fn frees<T>(writer: &thread::JoinHandle<T>, task: &OnceLock<PathBuf>) -> bool {
        // A signal that comes while the thread runs, or before it has run, says nothing.
        let mut waited = 0;
        while !writer.is_finished() && waited < 1000 {
            let stat = task.get().and_then(|task| fs::read_to_string(task.join("stat")).ok());
            waited += u32::from(stat.is_some_and(|stat| stat.contains(") S ")));
            writer.kill(SIGRTMIN()).unwrap();
            thread::yield_now();
        }
        writer.is_finished()
    }
}
