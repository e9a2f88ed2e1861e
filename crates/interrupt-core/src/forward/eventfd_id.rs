// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a producer and a consumer have in common: an eventfd.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's own number of an eventfd. A dup() has the same one, and a file descriptor whose number is used again for another
/// eventfd has not.
///
/// The number itself is used again when the last file of the eventfd has been closed. Whoever registers under it keeps a file
/// of it for as long, which a source does with its trigger; the two that meet in a [`Registry`](super::Registry) under one number
/// then mean one eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventfdId(pub u64);

impl EventfdId {
    /// The number of the eventfd behind `fd`, by /proc/self/fdinfo ("eventfd-id", since Linux 5.2).
    ///
    /// # Errors
    /// That of reading it, and [`io::ErrorKind::InvalidInput`] for a file that is no eventfd.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
        let id = info.lines().find_map(|line| line.strip_prefix("eventfd-id:"));
        id.and_then(|id| id.trim().parse().ok())
            .map(Self)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the file is no eventfd"))
    }
}

impl fmt::Display for EventfdId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eventfd #{}", self.0)
    }
}
