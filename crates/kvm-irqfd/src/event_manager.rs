// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `dispatch` in an event-manager.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::interrupts::KvmInterrupts;

/// Calls [`KvmInterrupts::dispatch`] when there are EOIs to serve: `manager.add_subscriber(..)` with a clone. Callbacks
/// run on the event-manager's thread, and must not wait for that thread.
///
/// Errors are logged, because an event-manager takes none.
impl MutEventSubscriber for KvmInterrupts {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        if let Err(error) = self.dispatch(Some(Duration::ZERO)) {
            log::error!("{error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Level-triggered: one call serves a number of EOIs, and there may be more.
        let events = Events::new_raw(self.as_fd().as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("{self:?}: EOIs will not be dispatched: {error}");
        }
    }
}
