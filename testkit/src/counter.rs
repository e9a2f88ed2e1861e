// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading an eventfd's counter without a sleep. Both functions assume that no other thread reads the same eventfd.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::progress::{Meter, TICK};

/// A type that holds an eventfd: vmm-sys-util's type, which does not implement [`AsFd`], and the standard library's
/// types, which do.
pub trait HoldsEventFd {
    /// The eventfd.
    fn eventfd(&self) -> BorrowedFd<'_>;
}

impl HoldsEventFd for EventFd {
    fn eventfd(&self) -> BorrowedFd<'_> {
        // SAFETY: an `EventFd` owns its open file, and the borrow of it lives as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

impl HoldsEventFd for OwnedFd {
    fn eventfd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl HoldsEventFd for BorrowedFd<'_> {
    fn eventfd(&self) -> BorrowedFd<'_> {
        *self
    }
}

impl HoldsEventFd for File {
    fn eventfd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

fn readable_within(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).expect("a test's time limit fits a timespec");
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => fds[0].revents().contains(PollFlags::IN),
        Err(Errno::INTR) => false,
        Err(e) => panic!("poll({}): {e}", fd.as_raw_fd()),
    }
}

fn take(fd: BorrowedFd<'_>) -> u64 {
    let mut value = [0; 8];
    match rustix::io::read(fd, &mut value) {
        Ok(8) => u64::from_ne_bytes(value),
        Ok(n) => panic!("read of eventfd {} gave {n} bytes", fd.as_raw_fd()),
        Err(Errno::AGAIN) => 0,
        Err(e) => panic!("read({}): {e}", fd.as_raw_fd()),
    }
}

/// Takes the counter of an eventfd: its value, which becomes 0. Returns 0, without blocking, when it is 0.
pub fn count(fd: &impl HoldsEventFd) -> u64 {
    let fd = fd.eventfd();
    if readable_within(fd, Duration::ZERO) {
        take(fd)
    } else {
        0
    }
}

/// Waits with poll(2) until the counter of an eventfd is not 0, and takes the counter. Returns 0 when the counter is
/// still 0 after this much of the program's own time ([`crate::progress`]).
pub fn wait_count(fd: &impl HoldsEventFd, limit: Duration) -> u64 {
    let fd = fd.eventfd();
    let mut meter = Meter::new(std::process::id());
    loop {
        if readable_within(fd, limit.min(TICK)) {
            return take(fd);
        }
        if meter.look().own >= limit {
            return 0;
        }
    }
}
