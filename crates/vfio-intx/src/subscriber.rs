// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay as an event-manager subscriber.

use std::os::fd::{AsFd, AsRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::relay::{Relay, Signal, Watch};

impl Relay {
    fn events(&self, signal: Signal) -> Events {
        // Edge-triggered: each write of an eventfd is one event, and the counter need not be read.
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        Events::with_data_raw(self.fd(signal).as_fd().as_raw_fd(), signal as u32, set)
    }

    fn end(&self, ops: &mut EventOps<'_>) {
        let eoi = self.watching_eoi.then_some(Signal::Eoi);
        for signal in [Signal::Trigger, Signal::Changed].into_iter().chain(eoi) {
            if let Err(error) = ops.remove(self.events(signal)) {
                log::error!("{self:?}: {error}");
            }
        }
    }
}

/// Runs the relay in an event-manager. When the [`Intx`](crate::Intx) has been dropped it takes its eventfds out of the
/// event-manager and does nothing any more; the subscriber itself is for whoever added it to remove.
///
/// What goes wrong is logged, because an event-manager has nobody to tell: see the errors of [`Relay::wait`]. If the eventfds
/// cannot be added, only direct paths are possible from then on.
impl MutEventSubscriber for Relay {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Some(signal) = Signal::from_number(events.data().into()) else {
            return;
        };
        let watched = match self.forward(signal) {
            Ok(Watch::Same) => return,
            Ok(Watch::AddEoi) => ops.add(self.events(Signal::Eoi)),
            Ok(Watch::RemoveEoi) => ops.remove(self.events(Signal::Eoi)),
            Ok(Watch::End) => return self.end(ops),
            Err(error) => return log::error!("{error}"),
        };
        if let Err(error) = watched {
            log::error!("{self:?}: {error}");
            self.shared.relay_has_gone();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for signal in self.start() {
            if let Err(error) = ops.add(self.events(signal)) {
                log::error!("{self:?}: {error}");
                return self.shared.relay_has_gone();
            }
        }
    }
}
