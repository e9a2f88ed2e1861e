// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The code under test as the explorer sees it: an `Intx`, its relay, and the registry that connects it to a line.

use std::sync::Arc;
use std::time::Duration;

use interrupt_core::forward::{Connection, Consumer, DeviceInterrupt, EventfdId, Path, Registration, Registry};
use vfio_intx::{Intx, IntxState, Relay, State};

const ID: EventfdId = EventfdId(1);

/// What an operation answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// An error, and INTx is disabled: what was asked for stands, and the next operation tries again.
    Stands,
    /// An error, and INTx is as it was, with nothing asked.
    Refused,
}

/// What connects INTx to its line. Fields go in this order.
enum Link {
    Registry {
        device: Option<Registration>,
        line: Option<Registration>,
        registry: Registry,
    },
    Own(Option<Connection>),
}

/// Fields go in this order.
pub struct Wires {
    link: Link,
    intx: Arc<Intx>,
    relay: Option<Relay>,
}

impl Wires {
    /// In a registry, or in a connection of the VMM's own.
    pub fn new(device: Arc<dyn DeviceInterrupt>, own_connection: bool) -> Self {
        let (intx, relay) = Intx::new(device).unwrap();
        Self {
            link: match own_connection {
                true => Link::Own(None),
                false => Link::Registry {
                    device: None,
                    line: None,
                    registry: Registry::default(),
                },
            },
            intx: Arc::new(intx),
            relay: Some(relay),
        }
    }

    fn answer(&self, succeeded: bool) -> Answer {
        match (succeeded, self.state()) {
            (true, _) => Answer::Done,
            (false, State::Disabled) => Answer::Stands,
            (false, _) => Answer::Refused,
        }
    }

    pub fn enable(&self) -> Answer {
        self.answer(self.intx.enable().is_ok())
    }

    pub fn disable(&self) -> Answer {
        self.answer(self.intx.disable().is_ok())
    }

    pub fn mask(&self, mask: bool) -> Answer {
        let state = if mask { self.intx.mask() } else { self.intx.unmask() };
        self.answer(state.is_ok())
    }

    pub fn set_disintx(&self, disable: bool) -> Answer {
        self.answer(self.intx.set_disintx(disable).is_ok())
    }

    pub fn enter_msi(&self) -> Answer {
        self.answer(self.intx.enter_msi().is_ok())
    }

    pub fn leave_msi(&self) -> Answer {
        self.answer(self.intx.leave_msi().is_ok())
    }

    pub fn reset(&self, reset: impl FnOnce()) -> Answer {
        self.answer(self.intx.reset(reset).is_ok())
    }

    pub fn save(&self) -> IntxState {
        self.intx.save()
    }

    pub fn restore(&self, saved: &IntxState) -> Answer {
        self.answer(self.intx.restore(saved).is_ok())
    }

    pub fn add_device(&mut self) -> bool {
        match &mut self.link {
            Link::Registry { device, registry, .. } => {
                *device = registry.add_producer(ID, self.intx.clone()).ok();
                device.is_some()
            }
            Link::Own(connection) => {
                *connection = Some(Connection::new(self.intx.clone()));
                true
            }
        }
    }

    pub fn remove_device(&mut self) {
        match &mut self.link {
            Link::Registry { device, .. } => *device = None,
            Link::Own(connection) => *connection = None,
        }
    }

    /// Without success a line that was there before is kept.
    pub fn add_line(&mut self, new: Arc<dyn Consumer>) -> bool {
        match &mut self.link {
            Link::Registry { line, registry, .. } => {
                *line = registry.add_consumer(ID, new).ok();
                line.is_some()
            }
            Link::Own(connection) => {
                let connected = connection.as_ref().map(|connection| connection.set_consumer(Some(new)));
                matches!(connected, Some(Ok(_)))
            }
        }
    }

    pub fn remove_line(&mut self) {
        match &mut self.link {
            Link::Registry { line, .. } => *line = None,
            Link::Own(connection) => {
                // Leaving cannot be refused.
                drop(connection.as_ref().map(|connection| connection.set_consumer(None)));
            }
        }
    }

    pub fn restrict(&self, only: Option<Path>) -> bool {
        match &self.link {
            Link::Registry { registry, .. } => {
                let connection = registry.connection(ID);
                connection.is_ok_and(|connection| connection.restrict(only).is_ok())
            }
            Link::Own(connection) => {
                let connection = connection.as_ref();
                connection.is_some_and(|connection| connection.restrict(only).is_ok())
            }
        }
    }

    /// Runs the relay for what there is to do now.
    pub fn run_relay(&mut self) {
        if let Some(relay) = &mut self.relay {
            // What it could not forward, the state machine deals with.
            drop(relay.wait(Some(Duration::ZERO)));
        }
    }

    pub fn drop_relay(&mut self) {
        self.relay = None;
    }

    pub fn has_relay(&self) -> bool {
        self.relay.is_some()
    }

    pub fn state(&self) -> State {
        self.intx.status().state
    }

    /// What the connection says when it is asked.
    pub fn path(&self) -> Option<Path> {
        match &self.link {
            Link::Registry { registry, .. } => registry.explain().first().and_then(|pair| pair.path),
            Link::Own(connection) => connection.as_ref().and_then(|connection| connection.explain().path),
        }
    }

    /// All that the two say, for people.
    pub fn say(&self) -> String {
        let connection: &dyn std::fmt::Debug = match &self.link {
            Link::Registry { registry, .. } => registry,
            Link::Own(connection) => connection,
        };
        format!("{}; {connection:?}", self.intx.status())
    }
}
