// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A limit on how long a thread polls for an event.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A limit on the CPU time of the polling thread. Time in which the host gives the thread no CPU does not count.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    end: Duration,
}

impl Patience {
    /// Starts the limit now. On a quiet host `limit` is also the wall-clock time.
    pub fn new(limit: Duration) -> Self {
        Self {
            end: cpu_time() + limit,
        }
    }

    /// Whether the calling thread has used up the limit. Call this on the thread that made the value.
    pub fn is_over(self) -> bool {
        cpu_time() >= self.end
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
