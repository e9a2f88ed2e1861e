// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When nothing will come any more.

use std::time::{Duration, Instant};

use crate::roundtrip::device::Device;

/// A round trip that takes longer than this has come to nothing. Rounds take microseconds; the rest is for a busy host.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// How long after the handler has run an EOI may come that it did not make. Where the host ends interrupts by itself it has
/// done so before the handler starts, and the news takes microseconds.
const NO_EOI_LIMIT: Duration = Duration::from_millis(250);

/// How often the run is looked after.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// Decides when nothing will come any more.
pub(crate) struct Patience {
    guest_eoi: bool,
    done: u64,
    since: Instant,
    served_since: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(guest_eoi: bool) -> Self {
        Self {
            guest_eoi,
            done: 0,
            since: Instant::now(),
            served_since: None,
        }
    }

    pub(crate) fn is_at_its_end(&mut self, done: u64, devices: &[Device]) -> bool {
        let now = Instant::now();
        if done != self.done {
            (self.done, self.since, self.served_since) = (done, now, None);
        }
        if !self.guest_eoi && devices.iter().all(Device::is_served) && devices.iter().any(|device| device.raised() > 0)
        {
            let since = *self.served_since.get_or_insert(now);
            return now - since > NO_EOI_LIMIT;
        }
        now - self.since > STALL_LIMIT
    }
}
