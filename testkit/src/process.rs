// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's counts for this process and thread, for "no leak" and "exactly these system calls" tests.

use rustix::fs::{Mode, OFlags, open};

/// Open file descriptors of this process, now. Descriptors of other threads count too, so use this function in a serial
/// suite.
pub fn fds() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    // Files of /proc are this directory and what the harness's meter reads meanwhile, in its own thread. A link that
    // cannot be read is one of the meter's, closed by now.
    entries
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| !file.starts_with("/proc")))
        .count()
}

/// Read and write system calls of a thread (read, pread, readv, ... and write, ...), as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadIo {
    /// `syscr`.
    pub reads: u64,
    /// `syscw`.
    pub writes: u64,
}

/// The calling thread's system calls so far, from `/proc/thread-self/io`.
///
/// The call itself makes one read, which the kernel counts after the result is made. Subtract it with
/// [`ThreadIo::since`].
pub fn thread_io() -> ThreadIo {
    let file = open("/proc/thread-self/io", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("/proc/thread-self/io, which needs CONFIG_TASK_IO_ACCOUNTING");
    // The buffer holds the whole file, seven short lines, so that one read call suffices.
    let mut text = [0; 512];
    let n = rustix::io::read(&file, &mut text).expect("read /proc/thread-self/io");
    let text = std::str::from_utf8(&text[..n]).expect("/proc is ASCII");
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in /proc/thread-self/io: {text:?}"))
    };
    ThreadIo {
        reads: field("syscr"),
        writes: field("syscw"),
    }
}

impl ThreadIo {
    /// The system calls made between `earlier` and this one, without the read that `earlier` cost.
    pub fn since(self, earlier: ThreadIo) -> ThreadIo {
        ThreadIo {
            reads: self.reads - earlier.reads - 1,
            writes: self.writes - earlier.writes,
        }
    }
}
