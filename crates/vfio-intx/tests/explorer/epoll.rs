// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes epoll_ctl(EPOLL_CTL_ADD) of the EOI eventfd fail on the relay's epoll, with EEXIST, by adding it first.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::event::epoll;

/// While this lives, the EOI eventfd cannot be added.
pub struct RefusedEoi {
    epoll: RawFd,
    eoi: RawFd,
}

impl RefusedEoi {
    /// `None` when this process has no epoll yet, or the EOI eventfd is watched already.
    pub fn of_the_only_epoll() -> Option<Self> {
        let links = fs::read_dir("/proc/self/fd")
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let epolls =
            links.filter(|path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]"));
        let numbers: Vec<RawFd> = epolls
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect();
        let [epoll] = numbers[..] else { return None };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
        let watched = info
            .lines()
            .filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok());
        let mut watched: Vec<RawFd> = watched.collect();
        watched.sort_unstable();
        // The three eventfds are made in one go: trigger, EOI, changed.
        let [trigger, changed] = watched[..] else { return None };
        if changed != trigger + 2 {
            return None;
        }
        let refused = Self {
            epoll,
            eoi: trigger + 1,
        };
        let (epoll, eoi) = refused.borrow();
        epoll::add(
            epoll,
            eoi,
            epoll::EventData::new_u64(u64::MAX),
            epoll::EventFlags::empty(),
        )
        .ok()?;
        Some(refused)
    }

    fn borrow(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        // SAFETY: the relay's epoll is open, as /proc has just said; nothing drops the relay before this.
        let epoll = unsafe { BorrowedFd::borrow_raw(self.epoll) };
        // SAFETY: as above, for the relay's EOI eventfd.
        (epoll, unsafe { BorrowedFd::borrow_raw(self.eoi) })
    }
}

impl Drop for RefusedEoi {
    fn drop(&mut self) {
        let (epoll, eoi) = self.borrow();
        // A file that has been closed meanwhile is out of the epoll by itself.
        let _ = epoll::delete(epoll, eoi);
    }
}
