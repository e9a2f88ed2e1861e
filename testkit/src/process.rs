// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel counts for this process and thread, for "no leak" and "exactly these system calls" tests.

use rustix::fs::{Mode, OFlags, open};

/// Open file descriptors of this process, now. Other threads count too: use it in a serial suite.
pub fn fds() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    // The directory is open while it is read and lists itself.
    entries.count() - 1
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
/// Asking is itself one read, counted after its answer is made: subtract with [`ThreadIo::since`].
pub fn thread_io() -> ThreadIo {
    let file = open("/proc/thread-self/io", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("/proc/thread-self/io, which needs CONFIG_TASK_IO_ACCOUNTING");
    // One read call, whatever the content: seven short lines fit.
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

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn thread_io_counts_exactly() {
        let event = EventFd::new(0).unwrap();
        let before = thread_io();
        assert_eq!(thread_io().since(before), ThreadIo { reads: 0, writes: 0 });
        let before = thread_io();
        for _ in 0..3 {
            event.write(1).unwrap();
        }
        event.read().unwrap();
        assert_eq!(thread_io().since(before), ThreadIo { reads: 1, writes: 3 });
    }
}
