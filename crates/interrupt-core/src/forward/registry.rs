// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table of connections, one for each eventfd, whose two ends register in any order.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use super::connection::{Connection, Policy, State, lock};
use super::ends::Side;
use super::{Consumer, Error, EventfdId, Explanation, Producer, Result};
use crate::sync::Mutex;

/// A table of [`Connection`]s between devices and lines, by the eventfd that the two share. Clones are handles to the
/// same table.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::testing::{RecordingConsumer, RecordingProducer};
/// use interrupt_core::forward::{EventfdId, Path, Registry};
///
/// let registry = Registry::default();
/// let (device, line) = (Arc::new(RecordingProducer::new("device")), Arc::new(RecordingConsumer::new(11)));
///
/// let line_is_here = registry.add_consumer(EventfdId(42), line)?;
/// let device_is_here = registry.add_producer(EventfdId(42), device)?;
/// let connection = registry.connection(EventfdId(42))?;
/// assert_eq!(connection.path(), Some(Path::KernelLoop));
/// for connection in registry.explain() {
///     println!("{connection}"); // device to gsi 11: kernel loop, kernel irqchip; for 0.001 s, never changed; ..
/// }
///
/// drop(line_is_here);
/// assert_eq!(connection.path(), None);
/// # drop(device_is_here);
/// # Ok::<(), interrupt_core::forward::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    policy: Policy,
    /// The registrations keep the connections.
    connections: Mutex<HashMap<EventfdId, Weak<Connection>>>,
}

impl Registry {
    /// An empty registry.
    pub fn new(policy: Policy) -> Self {
        Self {
            shared: Arc::new(Shared {
                policy,
                connections: Mutex::default(),
            }),
        }
    }

    /// Registers a device's interrupt. When the line is registered already, the two are connected on return.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Connect`] and [`Error::NoPath`] when the line is there and no path can be had;
    /// [`Error::Reentrant`]. The device is not registered then.
    pub fn add_producer(&self, id: EventfdId, producer: Arc<dyn Producer>) -> Result<Registration> {
        // A newcomer that is refused is dropped by the caller's thread after the lock: `add` only borrows it.
        self.add(id, Side::Producer, |state| match &state.producer {
            Some(there) => Err(there.label().to_owned()),
            None => {
                state.producer = Some(Arc::clone(&producer));
                Ok(())
            }
        })
    }

    /// Registers a guest's line. When the device is registered already, the two are connected on return.
    ///
    /// # Errors
    /// As [`add_producer`](Self::add_producer).
    pub fn add_consumer(&self, id: EventfdId, consumer: Arc<dyn Consumer>) -> Result<Registration> {
        self.add(id, Side::Consumer, |state| match &state.consumer {
            Some(there) => Err(there.line().to_string()),
            None => {
                state.consumer = Some(Arc::clone(&consumer));
                Ok(())
            }
        })
    }

    /// The connection under this identity.
    ///
    /// # Errors
    /// [`Error::NotFound`] while neither end is registered.
    pub fn connection(&self, id: EventfdId) -> Result<Arc<Connection>> {
        let connection = lock(&self.shared.connections).get(&id).and_then(Weak::upgrade);
        connection.ok_or(Error::NotFound(id))
    }

    /// Explains each connection, in the order of the identities.
    pub fn explain(&self) -> Vec<Explanation> {
        let mut all = self.all();
        all.sort_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, connection)| connection.explain()).collect()
    }

    pub(super) fn all(&self) -> Vec<(EventfdId, Arc<Connection>)> {
        let connections = lock(&self.shared.connections);
        let alive = connections.iter().map(|(id, connection)| (*id, connection.upgrade()));
        alive.filter_map(|(id, connection)| Some((id, connection?))).collect()
    }

    /// The connection under this identity, made if there is none.
    fn entry(&self, id: EventfdId) -> Arc<Connection> {
        let mut connections = lock(&self.shared.connections);
        if let Some(connection) = connections.get(&id).and_then(Weak::upgrade) {
            return connection;
        }
        let connection = Arc::new(Connection::empty(Some(id), self.shared.policy));
        connections.insert(id, Arc::downgrade(&connection));
        connection
    }

    /// Adds an end by `enter`, which answers with the label of an end that is there already.
    fn add(
        &self,
        id: EventfdId,
        side: Side,
        enter: impl FnOnce(&mut State) -> std::result::Result<(), String>,
    ) -> Result<Registration> {
        let connection = self.entry(id);
        let entered = connection.with(|state| {
            let label = match enter(state) {
                Ok(()) => return Ok(state.reconsider()),
                Err(label) => label.into(),
            };
            Err(Error::Busy { id, side, label })
        });
        let connected = entered??;
        // Dropped on an error, which lets the end leave again.
        let registration = Registration {
            shared: Arc::clone(&self.shared),
            id,
            connection: Some(connection),
            side,
        };
        connected.map(|_| registration)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.explain().iter().map(ToString::to_string))
            .finish()
    }
}

/// Keeps one end registered. Dropping the registration disconnects the two ends and lets go of this one; when the drop
/// returns, the registry calls none of its methods any more. The ends may go in any order, at any time.
#[must_use = "dropping the registration ends it"]
pub struct Registration {
    shared: Arc<Shared>,
    id: EventfdId,
    connection: Option<Arc<Connection>>,
    side: Side,
}

impl Registration {
    /// The identity.
    pub fn id(&self) -> EventfdId {
        self.id
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.leave(self.side);
        }
        let mut connections = lock(&self.shared.connections);
        if connections.get(&self.id).is_some_and(|left| left.strong_count() == 0) {
            connections.remove(&self.id);
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.side, self.id)
    }
}
