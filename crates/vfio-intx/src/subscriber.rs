// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay as an event-manager subscriber.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::relay::{Relay, Signal};

impl Relay {
    fn events(&self, signal: Signal) -> Events {
        // Edge-triggered: each write of an eventfd is one event, and the counter need not be read.
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        Events::with_data_raw(self.fd(signal).as_fd().as_raw_fd(), signal as u32, set)
    }

    /// Brings what the event-manager watches up to date. When that fails the relay cannot go on.
    fn update_ops(&mut self, ops: &mut EventOps<'_>) {
        let watched = self.watch(|relay, signal, add| {
            let changed = match add {
                true => ops.add(relay.events(signal)),
                false => ops.remove(relay.events(signal)),
            };
            changed.map_err(|error| io::Error::other(format!("{error}")))
        });
        if let Err(error) = watched {
            log::error!("{self:?}: {error}");
            self.machine.relay_has_gone();
        }
    }
}

/// Runs the relay in an event-manager. When the [`Intx`](crate::Intx) has been dropped the relay takes its eventfds out
/// of the event-manager and does nothing any more; the subscriber itself has to be removed by the VMM.
///
/// An event-manager has no channel for errors: those of [`Relay::wait`] are logged. When the eventfds cannot be added,
/// only direct paths are possible from then on.
impl MutEventSubscriber for Relay {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Some(signal) = Signal::from_number(events.data().into()) else {
            return;
        };
        match self.carry(signal) {
            Ok(true) => {}
            Ok(false) => {
                for signal in self.watched() {
                    if let Err(error) = ops.remove(self.events(signal)) {
                        log::error!("{self:?}: {error}");
                    }
                }
                return;
            }
            Err(error) => log::error!("{error}"),
        }
        self.update_ops(ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for signal in Self::ALWAYS {
            if let Err(error) = ops.add(self.events(signal)) {
                log::error!("{self:?}: {error}");
                return self.machine.relay_has_gone();
            }
        }
        self.update_ops(ops);
    }
}
