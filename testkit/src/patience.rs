// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a thread polls for something that is to come.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A limit on the CPU time of the thread that polls. A host that gives the thread no CPU does not bring the limit
/// closer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    end: Duration,
}

impl Patience {
    /// Begins now. On a quiet host, `limit` is then also the time by the clock.
    pub fn new(limit: Duration) -> Self {
        Self {
            end: cpu_time() + limit,
        }
    }

    /// Whether the calling thread has used up the limit. To be asked on the thread that made this.
    pub fn is_over(self) -> bool {
        cpu_time() >= self.end
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
