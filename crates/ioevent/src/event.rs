// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The eventfd behind a registration: checked when it comes in, written when a trapped store matches.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno as Code;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::error::errno;

/// Takes over an eventfd that came from elsewhere: over a socket, from a parent process, from another library.
///
/// The fd keeps its flags and its counter. Wrap the result in an `Arc` to register it, as often as needed.
///
/// # Errors
/// `EINVAL` when `fd` is something else; `fd` is closed then.
///
/// ```
/// let file = std::fs::File::open("/dev/null")?;
/// assert!(ioevent::eventfd_from_owned(file.into()).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn eventfd_from_owned(fd: OwnedFd) -> Result<EventFd, Errno> {
    file_status(fd.as_raw_fd())?;
    // SAFETY: the fd was just given up by its `OwnedFd`, so that the `EventFd` is its only owner.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// An eventfd that trapped stores signal.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    fd: Arc<EventFd>,
    /// A write to a full counter would wait. Looked up once, because it costs a system call.
    blocking: bool,
}

impl Event {
    pub(crate) fn new(fd: Arc<EventFd>) -> Result<Self, Errno> {
        let blocking = !file_status(fd.as_raw_fd())?.contains(OFlags::NONBLOCK);
        Ok(Self { fd, blocking })
    }

    pub(crate) fn fd(&self) -> &Arc<EventFd> {
        &self.fd
    }

    /// Adds one to the counter, as the kernel does for a store that it matches itself: a full counter stays full. The
    /// vCPU does not wait for the reader. When another writer takes the last room of an eventfd without O_NONBLOCK at
    /// this moment, the vCPU waits until its next signal, and a VMM kicks vCPUs by signals.
    pub(crate) fn signal(&self) -> Result<(), Errno> {
        // SAFETY: `self.fd` keeps the fd open for longer than the borrow, which ends with this function.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        // Without O_NONBLOCK a write to a full counter waits. A peer that shares the eventfd could fill the counter to
        // stop the vCPU, so ask first. O_NONBLOCK cannot be set here: the flag belongs to the open file, and the reader
        // at the other end may rely on waiting. RWF_NOWAIT is not possible (EOPNOTSUPP on Linux 6.18).
        let added = if self.blocking { has_room(fd) } else { Ok(true) }.and_then(|room| match room {
            true => add_one(fd),
            false => Ok(()),
        });
        added.map_err(errno)
    }
}

fn has_room(fd: BorrowedFd<'_>) -> Result<bool, Code> {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A signal that is pending makes even a poll that does not wait answer EINTR.
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&NOW)));
    Ok(ready? > 0)
}

fn add_one(fd: BorrowedFd<'_>) -> Result<(), Code> {
    match rustix::io::write(fd, &1u64.to_ne_bytes()) {
        // EINTR: the write waited, so the counter was full. Not tried again, so that a kick frees the vCPU.
        Ok(_) | Err(Code::AGAIN | Code::INTR) => Ok(()),
        Err(code) => Err(code),
    }
}

/// The file status flags of an open eventfd.
fn file_status(fd: RawFd) -> Result<OFlags, Errno> {
    if fd < 0 {
        return Err(errno(Code::BADF));
    }
    // SAFETY: `fd` is not negative. If its owner closed it behind its own back, the calls below answer EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = rustix::fs::fcntl_getfl(borrowed).map_err(errno)?;
    // Only /proc tells an eventfd from its siblings (timerfd, epoll) without side effects. In a jail without /proc the
    // check is that the inode has no file type; a sibling passes it, and its first write fails.
    let eventfd = match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(target) => target == Path::new("anon_inode:[eventfd]"),
        Err(_) => rustix::fs::fstat(borrowed).map_err(errno)?.st_mode & 0o170_000 == 0,
    };
    if eventfd { Ok(flags) } else { Err(errno(Code::INVAL)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn only_an_eventfd_is_an_eventfd() {
        Event::new(Arc::new(EventFd::new(0).unwrap())).unwrap();
        let timer = rustix::time::timerfd_create(
            rustix::time::TimerfdClockId::Monotonic,
            rustix::time::TimerfdFlags::empty(),
        )
        .unwrap();
        assert_eq!(eventfd_from_owned(timer).unwrap_err(), errno(Code::INVAL));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(eventfd_from_owned(file.into()).unwrap_err(), errno(Code::INVAL));
    }

    /// Row 149: another writer has taken the last room after the look at it.
    #[test]
    fn a_signal_frees_a_writer_that_waits() {
        use std::os::fd::AsFd;
        use std::sync::atomic::{AtomicU32, Ordering};
        use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

        static SIGNALS: AtomicU32 = AtomicU32::new(0);
        extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            SIGNALS.fetch_add(1, Ordering::Relaxed);
        }
        register_signal_handler(SIGRTMIN(), count).unwrap();
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let reader = fd.try_clone().unwrap();
        let writer = std::thread::spawn(move || add_one(fd.as_fd()));
        // The first signals may come before the write. Many have come during it when the last has.
        while !writer.is_finished() && SIGNALS.load(Ordering::Relaxed) < 1000 {
            writer.kill(SIGRTMIN()).unwrap();
            std::thread::yield_now();
        }
        let freed = writer.is_finished();
        // Frees a writer that waits all the same.
        rustix::io::read(&reader, &mut [0; 8]).unwrap();
        assert_eq!((writer.join().unwrap(), freed), (Ok(()), true));
    }

    #[test]
    fn a_full_counter_stays_full_and_nobody_waits() {
        for flags in [0, EFD_NONBLOCK] {
            let fd = Arc::new(EventFd::new(flags).unwrap());
            let event = Event::new(fd.clone()).unwrap();
            fd.write(u64::MAX - 1).unwrap();
            event.signal().unwrap();
            assert_eq!(fd.read().unwrap(), u64::MAX - 1, "flags {flags}");
            event.signal().unwrap();
            assert_eq!(fd.read().unwrap(), 1, "flags {flags}");
        }
    }
}
