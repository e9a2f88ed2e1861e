// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table of connections, one for each eventfd, whose two ends register in any order.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connection::{Fault, Pair, Wanted};
use super::{Consumer, Error, EventfdId, Explanation, Path, Producer, Result};

/// What a pair does that nobody has asked anything of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// It takes the best path.
    #[default]
    Automatic,
    /// It is relayed until it is [forwarded](Registry::forward), as with the 2015 proposal.
    Explicit,
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The device's.
    Producer,
    /// The guest's.
    Consumer,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        })
    }
}

/// A table of connections between devices and lines, see the [module](super). Clones are handles to the same table.
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
/// assert_eq!(registry.path(EventfdId(42)), Some(Path::KernelLoop));
/// for pair in registry.explain() {
///     println!("{pair}"); // device to gsi 11: kernel loop, irqchip in the kernel; for 0.001 s, never changed; not host forward: ..
/// }
///
/// drop(line_is_here);
/// assert_eq!(registry.path(EventfdId(42)), None);
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
    pairs: Mutex<HashMap<EventfdId, Arc<Mutex<Pair>>>>,
}

/// Takes a lock. A panic can come only from a side's own method; what is connected is written down as it is done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty registry.
    pub fn new(policy: Policy) -> Self {
        Self {
            shared: Arc::new(Shared {
                policy,
                pairs: Mutex::default(),
            }),
        }
    }

    /// Registers a device's interrupt. If the line is there already the two are connected when this returns.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Connect`] and [`Error::NoPath`] when the line is there and no path can be had. It is not
    /// registered then.
    pub fn add_producer(&self, id: EventfdId, producer: Arc<dyn Producer>) -> Result<Registration> {
        self.add(id, Newcomer::Producer(producer))
    }

    /// Registers a guest's line. If the device is there already the two are connected when this returns.
    ///
    /// # Errors
    /// As [`add_producer`](Self::add_producer).
    pub fn add_consumer(&self, id: EventfdId, consumer: Arc<dyn Consumer>) -> Result<Registration> {
        self.add(id, Newcomer::Consumer(consumer))
    }

    /// What one side of this identity can do has changed, or a path that failed may work by now: takes the best path.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Connect`], [`Error::NoPath`].
    pub fn changed(&self, id: EventfdId) -> Result<Option<Path>> {
        self.on(id, |pair| {
            let outcome = pair.reconsider();
            outcome.map_err(|fault| error(id, pair, fault)).map(|()| pair.path())
        })
    }

    /// Takes this path and no other, but for the relay when it fails; with `None`, the best. It holds until the last of both sides has
    /// gone.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    pub fn restrict(&self, id: EventfdId, only: Option<Path>) -> Result<Option<Path>> {
        let wanted = only.map_or(Wanted::Best, Wanted::Only);
        self.on(id, |pair| self.want(id, pair, wanted).map(|()| pair.path()))
    }

    /// The paths that both sides of an identity can do, best first; none while one of them is missing.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn possible(&self, id: EventfdId) -> Result<Vec<Path>> {
        self.on(id, |pair| Ok(pair.possible()))
    }

    /// The path of an identity, if it has one.
    pub fn path(&self, id: EventfdId) -> Option<Path> {
        self.on(id, |pair| Ok(pair.path())).ok().flatten()
    }

    /// What there is to be said of each identity, in the order of their numbers.
    pub fn explain(&self) -> Vec<Explanation> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, pair)| lock(&pair).explain()).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (EventfdId, Arc<Mutex<Pair>>)> + use<> {
        let pairs: Vec<_> = {
            let pairs = lock(&self.shared.pairs);
            pairs.iter().map(|(id, pair)| (*id, Arc::clone(pair))).collect()
        };
        pairs.into_iter()
    }

    fn on<R>(&self, id: EventfdId, act: impl FnOnce(&mut Pair) -> Result<R>) -> Result<R> {
        let pair = lock(&self.shared.pairs).get(&id).map(Arc::clone);
        match pair {
            Some(pair) => act(&mut lock(&pair)),
            None => Err(Error::NotFound(id)),
        }
    }

    pub(super) fn want(&self, id: EventfdId, pair: &mut Pair, wanted: Wanted) -> Result<()> {
        pair.wanted = wanted;
        pair.reconsider().map_err(|fault| error(id, pair, fault))
    }

    fn add(&self, id: EventfdId, newcomer: Newcomer) -> Result<Registration> {
        let side = newcomer.side();
        loop {
            let shared = Arc::clone(&self.shared);
            let pair = Arc::clone(
                lock(&shared.pairs)
                    .entry(id)
                    .or_insert_with(|| Arc::new(Mutex::new(Pair::new(id, shared.policy)))),
            );
            let mut locked = lock(&pair);
            // The last of its sides has left it in between.
            if locked.gone {
                continue;
            }
            newcomer.enter(id, &mut locked)?;
            let connected = locked.reconsider().map_err(|fault| error(id, &locked, fault));
            drop(locked);
            // Dropped, it leaves again.
            let registration = Registration { shared, id, pair, side };
            return connected.map(|()| registration);
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.explain().iter().map(ToString::to_string))
            .finish()
    }
}

pub(super) fn error(id: EventfdId, pair: &Pair, fault: Fault) -> Error {
    let producer = pair.producer.as_ref().map(|producer| producer.label().to_owned());
    let line = pair.consumer.as_ref().map(|consumer| consumer.line().to_string());
    let (producer, line) = (producer.unwrap_or_default(), line.unwrap_or_default());
    match fault {
        Fault::Step(source) => Error::Connect {
            id,
            producer,
            line,
            source,
        },
        Fault::NoPath(reason) => Error::NoPath {
            id,
            producer,
            line,
            reason,
        },
    }
}

/// Who registers.
enum Newcomer {
    Producer(Arc<dyn Producer>),
    Consumer(Arc<dyn Consumer>),
}

impl Newcomer {
    fn side(&self) -> Side {
        match self {
            Self::Producer(_) => Side::Producer,
            Self::Consumer(_) => Side::Consumer,
        }
    }

    fn enter(&self, id: EventfdId, pair: &mut Pair) -> Result<()> {
        let there = match self {
            Self::Producer(_) => pair.producer.as_ref().map(|producer| producer.label().to_owned()),
            Self::Consumer(_) => pair.consumer.as_ref().map(|consumer| consumer.line().to_string()),
        };
        if let Some(label) = there {
            let side = self.side();
            return Err(Error::Busy { id, side, label });
        }
        match self {
            Self::Producer(producer) => pair.producer = Some(Arc::clone(producer)),
            Self::Consumer(consumer) => pair.consumer = Some(Arc::clone(consumer)),
        }
        Ok(())
    }
}

/// Keeps one side registered. Dropping it disconnects the pair and lets go of the side: when the drop returns, the registry calls
/// none of its methods any more. The two sides may go in any order, at any time.
#[must_use = "dropping the registration ends it"]
pub struct Registration {
    shared: Arc<Shared>,
    id: EventfdId,
    pair: Arc<Mutex<Pair>>,
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
        let mut pair = lock(&self.pair);
        pair.disconnect();
        let (producer, consumer) = match self.side {
            Side::Producer => (pair.producer.take(), None),
            Side::Consumer => (None, pair.consumer.take()),
        };
        if pair.is_empty() {
            pair.gone = true;
            lock(&self.shared.pairs).remove(&self.id);
        }
        drop(pair);
        // Without a lock: what goes with them may be anybody's.
        drop((producer, consumer));
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.side, self.id)
    }
}
