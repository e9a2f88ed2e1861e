// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading an eventfd's counter without a sleep. Both functions assume that nobody else reads the same eventfd.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow of `fd`, whose type owns or borrows an open file, lives as long as the result.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
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
pub fn count(fd: &impl AsRawFd) -> u64 {
    let fd = borrow(fd);
    if readable_within(fd, Duration::ZERO) {
        take(fd)
    } else {
        0
    }
}

/// Waits with poll(2) until the counter of an eventfd is not 0 and takes it. Returns 0 when the deadline passes first.
pub fn wait_count(fd: &impl AsRawFd, deadline: Instant) -> u64 {
    let fd = borrow(fd);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if readable_within(fd, left) {
            return take(fd);
        }
        if left.is_zero() {
            return 0;
        }
    }
}
