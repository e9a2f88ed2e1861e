// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a producer and a consumer have in common: an eventfd.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's number of an eventfd. A dup() has the same number; another eventfd behind a reused file descriptor has
/// not.
///
/// The kernel reuses the number once the eventfd is closed. Keep the eventfd open while the number is registered; a
/// level source does so with its trigger.
///
/// Where the number cannot be read (in a jail without /proc), any number that the VMM gives to one device and its line
/// does as well: the registry only compares.
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
