// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device's interrupt and one guest's line: the path that connects the two, and why it is that path.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::ends::Side;
use super::{Consumer, Decision, Error, EventfdId, Explanation, Limits, Path, Producer, Result, WhyNot, decide};
use crate::Gsi;
use crate::every_step::EveryStep;
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Mutex, MutexGuard};

/// The path that a connection takes without a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The best path.
    #[default]
    Automatic,
    /// The relay, until the interrupt is [forwarded](super::Registry::forward) as in the 2015 proposal.
    Explicit,
}

/// Takes a lock. A panic under it can come only from an end's own method; the state is written down as it is reached.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects one [`Producer`] and one [`Consumer`] by the best path that both can do, and changes the path when asked
/// to.
///
/// The connection alone decides ([`decide`]). It stops both ends around every change, and can explain its choice.
/// Either end can be missing, and can be replaced at any time. Dropping the connection disconnects the ends.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::forward::{Connection, Path};
/// use interrupt_core::testing::{RecordingConsumer, RecordingProducer};
///
/// let device = Arc::new(RecordingProducer::new("device"));
/// let connection = Connection::new(device);
/// // The guest has routed the device's pin.
/// let path = connection.set_consumer(Some(Arc::new(RecordingConsumer::new(11))))?;
/// assert_eq!(path, Some(Path::KernelLoop));
/// println!("{}", connection.explain()); // device to gsi 11: kernel loop, kernel irqchip; for 0.001 s, never changed; ..
/// # Ok::<(), interrupt_core::forward::Error>(())
/// ```
///
/// # Locks
/// The ends' methods are called one at a time, under the connection's own lock. A method of an end must not wait for
/// another thread that uses the same connection. When a method of an end uses the connection itself, the call is
/// refused ([`Error::Reentrant`]); a [`Registration`](super::Registration) that is dropped there ends with the
/// operation that called the method. No end is dropped under the lock.
pub struct Connection {
    state: Mutex<State>,
    inside: Mutex<Inside>,
}

/// Which thread calls the ends' methods now, and the ends that leave from within such a call.
#[derive(Default)]
struct Inside {
    thread: Option<ThreadId>,
    leaving: Vec<Side>,
}

/// Which path is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The best.
    Best,
    /// This path, or the relay.
    Only(Path),
    /// The best to this line: an explicit forward. To another line, the relay.
    Forward(Gsi),
}

/// What the connection's lock guards.
pub(super) struct State {
    id: Option<EventfdId>,
    pub(super) producer: Option<Arc<dyn Producer>>,
    pub(super) consumer: Option<Arc<dyn Consumer>>,
    pub(super) request: Request,
    pub(super) path: Option<Path>,
    /// The paths that have failed since the last change that could have helped.
    failed: Vec<(Path, Arc<crate::Error>)>,
    why_not: Vec<(Path, WhyNot)>,
    since: Instant,
    changes: u64,
    /// What callers own, to be dropped when the lock is free.
    discarded: Vec<Box<dyn Any + Send>>,
}

/// Ends the time in which this thread calls the ends' methods, also when one of them panics.
struct Turn<'a>(&'a Connection);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.inside).thread = None;
    }
}

impl Connection {
    /// A connection of `producer`, which has no line yet.
    pub fn new(producer: Arc<dyn Producer>) -> Self {
        let connection = Self::empty(None, Policy::Automatic);
        lock(&connection.state).producer = Some(producer);
        connection
    }

    /// A connection with neither end.
    pub(super) fn empty(id: Option<EventfdId>, policy: Policy) -> Self {
        Self {
            state: Mutex::new(State {
                id,
                producer: None,
                consumer: None,
                request: match policy {
                    Policy::Automatic => Request::Best,
                    Policy::Explicit => Request::Only(Path::Relay),
                },
                path: None,
                failed: Vec::new(),
                why_not: Vec::new(),
                since: Instant::now(),
                changes: 0,
                discarded: Vec::new(),
            }),
            inside: Mutex::default(),
        }
    }

    /// Leads the interrupt to another line, or to no line. Returns the path to the new line.
    ///
    /// # Errors
    /// [`Error::Connect`] and [`Error::NoPath`]: the old line is kept, and connected again if that is possible.
    /// [`Error::Reentrant`].
    pub fn set_consumer(&self, consumer: Option<Arc<dyn Consumer>>) -> Result<Option<Path>> {
        self.with(|state| state.replace_consumer(consumer))?
    }

    /// Decides again, because an end's abilities have changed or because a failed path may work by now. Returns the
    /// path.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::NoPath`], [`Error::Reentrant`].
    pub fn changed(&self) -> Result<Option<Path>> {
        self.with(State::reconsider)?
    }

    /// Takes only this path, or the relay where this path is not possible or fails; with `None`, the best path. The
    /// restriction holds until the next call, also when an end is replaced. Returns the path.
    ///
    /// # Errors
    /// As [`changed`](Self::changed). The restriction holds all the same.
    pub fn restrict(&self, only: Option<Path>) -> Result<Option<Path>> {
        self.with(|state| state.ask(only.map_or(Request::Best, Request::Only)))?
    }

    /// The paths that both ends can do, best first. Empty while an end is missing, and within a method of an end.
    pub fn possible(&self) -> Vec<Path> {
        self.with(|state| state.possible()).unwrap_or_default()
    }

    /// The path that connects the ends, as of the last decision. `None` within a method of an end, too.
    pub fn path(&self) -> Option<Path> {
        self.with(|state| state.path).ok().flatten()
    }

    /// Which path connects the ends, since when, and why no better one. Within a method of an end the explanation names
    /// neither.
    pub fn explain(&self) -> Explanation {
        self.with(State::explain).unwrap_or_else(|error| Explanation {
            id: None,
            producer: None,
            line: None,
            path: None,
            held: Some(error.to_string()),
            elapsed: std::time::Duration::ZERO,
            changes: 0,
            why_not: Vec::new(),
        })
    }

    /// Disconnects and lets go of one end; within a method of an end, when the operation that called the method ends.
    pub(super) fn leave(&self, side: Side) {
        if self.with(|state| state.leave(side)).is_err() {
            lock(&self.inside).leaving.push(side);
        }
    }

    /// Runs `act` on the state. This is the only place that takes the lock; what `act` discards is dropped after it.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> Result<R> {
        let this = thread::current().id();
        if lock(&self.inside).thread == Some(this) {
            return Err(Error::Reentrant);
        }
        let (result, discarded) = {
            let mut state = lock(&self.state);
            lock(&self.inside).thread = Some(this);
            let _turn = Turn(self);
            let result = act(&mut state);
            loop {
                let leaving = lock(&self.inside).leaving.pop();
                let Some(side) = leaving else { break };
                state.leave(side);
            }
            (result, std::mem::take(&mut state.discarded))
        };
        drop(discarded);
        Ok(result)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.disconnect();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explain().fmt(f)
    }
}

impl State {
    /// Asks for another path from now on.
    pub(super) fn ask(&mut self, request: Request) -> Result<Option<Path>> {
        self.request = request;
        self.reconsider()
    }

    /// Takes the path that the ends are to have, now that something has changed.
    pub(super) fn reconsider(&mut self) -> Result<Option<Path>> {
        self.look();
        let failed = std::mem::take(&mut self.failed);
        self.discard(failed);
        self.settle().map(|()| self.path)
    }

    fn replace_consumer(&mut self, new: Option<Arc<dyn Consumer>>) -> Result<Option<Path>> {
        let Some(new) = new else {
            self.leave(Side::Consumer);
            return Ok(None);
        };
        self.look();
        let (Some(producer), Some(old), Some(path)) = (self.producer.clone(), self.consumer.clone(), self.path) else {
            let old = self.consumer.replace(new);
            let connected = self.reconsider();
            if connected.is_err() {
                let refused = std::mem::replace(&mut self.consumer, old);
                self.discard(refused);
            } else {
                self.discard(old);
            }
            return connected;
        };
        // The producer leaves the old line when it is connected to the new one, and not before: a line that refuses it
        // costs nothing then.
        if let Err(error) = self.stop(&*producer, &*old) {
            let error = Arc::new(error);
            if self.path.is_none() {
                // The old line is lost, too. For the explanation:
                self.why_not.push((path, WhyNot::Failed(Arc::clone(&error))));
            }
            return Err(self.connect_error(error));
        }
        old.disconnect(path);
        self.consumer = Some(new);
        self.path = None;
        let connected = self.reconsider();
        if connected.is_err() {
            let refused = self.consumer.replace(Arc::clone(&old));
            self.discard(refused);
            // The error to report is that of the new line. When this fails too, the explanation says so.
            let _ = self.reconsider();
            if self.path.is_none() {
                // Neither line has a path, and the producer is still wired to the old line, stopped or not.
                producer.disconnect();
                let _ = old.start();
            }
        } else {
            // Nothing comes to the old line any more that a refusal could hold back.
            let _ = old.start();
        }
        self.discard((old, producer));
        connected
    }

    /// Disconnects, and lets go of one end.
    pub(super) fn leave(&mut self, side: Side) {
        self.disconnect();
        match side {
            Side::Producer => {
                let left = self.producer.take();
                self.discard(left);
            }
            Side::Consumer => {
                let left = self.consumer.take();
                self.discard(left);
            }
        }
    }

    /// Why the path is the relay, if it is.
    pub(super) fn relayed_because(&self) -> Option<Error> {
        if self.path != Some(Path::Relay) {
            return None;
        }
        if let Some((_, error)) = self.failed.last() {
            return Some(self.connect_error(Arc::clone(error)));
        }
        let reasons = self.why_not.iter().map(|(path, why)| format!("{path}: {why}"));
        Some(self.no_path_error(reasons.collect::<Vec<_>>().join("; ")))
    }

    fn possible(&self) -> Vec<Path> {
        let (Some(producer), Some(consumer)) = (&self.producer, &self.consumer) else {
            return Vec::new();
        };
        let possible = |path: &Path| is_possible(*path, &**producer, &**consumer);
        Path::ALL.into_iter().filter(possible).collect()
    }

    fn settle(&mut self) -> Result<()> {
        let (Some(producer), Some(consumer)) = (self.producer.clone(), self.consumer.clone()) else {
            return Ok(());
        };
        let before = self.path;
        let outcome = self.try_paths(&*producer, &*consumer);
        let lost = outcome.is_err().then_some(before).flatten();
        // The path from before is better than none, unless it is what became impossible.
        match lost.filter(|path| is_possible(*path, &*producer, &*consumer)) {
            Some(path) if self.path.is_none() => {
                // The error to report is the one that led here.
                let _ = self.change_to(path, &*producer, &*consumer);
            }
            None if outcome.is_err() => self.disconnect(),
            _ => {}
        }
        self.look();
        self.note_change(before);
        outcome
    }

    /// Takes the best path that does not fail.
    fn try_paths(&mut self, producer: &dyn Producer, consumer: &dyn Consumer) -> Result<()> {
        // Each path fails at most once, so that this ends.
        loop {
            let Decision { path, why_not } = decide(&producer.info(), &consumer.info(), &self.limits(consumer));
            let old = std::mem::replace(&mut self.why_not, why_not);
            self.discard(old);
            let Some(path) = path else { break };
            if Some(path) == self.path {
                return Ok(());
            }
            match self.change_to(path, producer, consumer) {
                Ok(()) => return Ok(()),
                Err(error) => self.failed.push((path, Arc::new(error))),
            }
        }
        Err(match self.failed.last() {
            Some((_, error)) => self.connect_error(Arc::clone(error)),
            None => {
                let relay = self.why_not.last().map(|(_, why)| why.to_string());
                self.no_path_error(relay.unwrap_or_default())
            }
        })
    }

    fn limits(&self, consumer: &dyn Consumer) -> Limits {
        let only = match self.request {
            Request::Best => None,
            Request::Only(path) => Some(path),
            Request::Forward(gsi) if gsi == consumer.line().gsi() => None,
            Request::Forward(_) => Some(Path::Relay),
        };
        Limits {
            only,
            failed: self.failed.clone(),
        }
    }

    /// Counts a change of path; the first path is none.
    fn note_change(&mut self, before: Option<Path>) {
        if self.path != before {
            self.since = Instant::now();
            self.changes += u64::from(before.is_some() || self.changes > 0);
        }
    }

    /// One attempt, in the bracket of irqbypass: stop the producer, stop the consumer, change, start the consumer,
    /// start the producer. On an error either nothing has changed, because a stop was refused, or the ends are
    /// disconnected and neither is stopped.
    fn change_to(&mut self, path: Path, producer: &dyn Producer, consumer: &dyn Consumer) -> crate::Result<()> {
        self.stop(producer, consumer)?;
        if let Some(old) = self.path.take() {
            consumer.disconnect(old);
        }
        let mut steps = EveryStep::default();
        let changed = steps.take(|| {
            producer
                .connect(path, consumer)
                .and_then(|()| consumer.connect(path, producer))
                .and_then(|()| consumer.start())
                .and_then(|()| producer.start())
        });
        match changed {
            Some(Ok(())) => self.path = Some(path),
            _ => drop(steps.take(|| self.unwind(Some(path), producer, consumer))),
        }
        steps.end();
        changed.unwrap_or(Ok(()))
    }

    /// Stops both ends. On an error both go on as before, or are disconnected when they cannot.
    fn stop(&mut self, producer: &dyn Producer, consumer: &dyn Consumer) -> crate::Result<()> {
        let mut steps = EveryStep::default();
        let stopped = steps.take(|| producer.stop().and_then(|()| consumer.stop()));
        if !matches!(stopped, Some(Ok(()))) && !matches!(steps.take(|| producer.start()), Some(Ok(()))) {
            steps.take(|| self.unwind(self.path, producer, consumer));
        }
        steps.end();
        stopped.unwrap_or(Ok(()))
    }

    /// Takes the ends apart, however far they are connected, and leaves neither stopped.
    fn unwind(&mut self, path: Option<Path>, producer: &dyn Producer, consumer: &dyn Consumer) {
        let mut steps = EveryStep::default();
        self.path = None;
        if let Some(path) = path {
            steps.take(|| consumer.disconnect(path));
        }
        steps.take(|| producer.disconnect());
        // Nothing is connected that a refusal could hold back.
        steps.take(|| drop(consumer.start()));
        steps.end();
    }

    /// Takes the ends apart, in the same bracket.
    fn disconnect(&mut self) {
        let (Some(path), Some(producer), Some(consumer)) = (self.path, self.producer.clone(), self.consumer.clone())
        else {
            return;
        };
        // `unwind` ends both stops, and what a refused stop leaves on.
        let _ = producer.stop();
        let _ = consumer.stop();
        self.unwind(Some(path), &*producer, &*consumer);
        self.note_change(Some(path));
    }

    /// Notices that the producer has changed the path by itself, because the one that it was told to take has failed.
    fn look(&mut self) {
        let Some(producer) = &self.producer else { return };
        let now = producer.state();
        if let (Some(path), Some(connected)) = (now.path, self.path) {
            if path != connected {
                self.path = Some(path);
                self.note_change(Some(connected));
            }
        }
    }

    fn explain(&mut self) -> Explanation {
        let told = self.path;
        self.look();
        let now = self
            .producer
            .as_ref()
            .map(|producer| producer.state())
            .unwrap_or_default();
        let mut why_not: Vec<_> = self
            .why_not
            .iter()
            .map(|(path, why)| (*path, why.to_string()))
            .collect();
        if let (Some(failed), Some(told)) = (now.failed, told) {
            if told != self.path.unwrap_or(told) {
                why_not.push((told, failed));
            }
        }
        Explanation {
            id: self.id,
            producer: self.producer.as_ref().map(|producer| producer.label().to_owned()),
            line: self.consumer.as_ref().map(|consumer| {
                let line = consumer.line();
                (line.gsi(), line.source().label().to_owned(), line.irqchip())
            }),
            path: self.path,
            held: now.held,
            elapsed: self.since.elapsed(),
            changes: self.changes,
            why_not,
        }
    }

    /// Keeps what a caller owns until the lock is free.
    fn discard(&mut self, what: impl Send + 'static) {
        self.discarded.push(Box::new(what));
    }

    fn ends(&self) -> (Box<str>, Box<str>) {
        let producer = self.producer.as_ref().map(|producer| producer.label().to_owned());
        let line = self.consumer.as_ref().map(|consumer| consumer.line().to_string());
        (producer.unwrap_or_default().into(), line.unwrap_or_default().into())
    }

    fn connect_error(&self, source: Arc<crate::Error>) -> Error {
        let (producer, line) = self.ends();
        Error::Connect { producer, line, source }
    }

    fn no_path_error(&self, reason: String) -> Error {
        let (producer, line) = self.ends();
        let reason = reason.into();
        Error::NoPath { producer, line, reason }
    }
}

/// Whether both ends can do this path at all.
fn is_possible(path: Path, producer: &dyn Producer, consumer: &dyn Consumer) -> bool {
    let limits = Limits {
        only: Some(path),
        failed: Vec::new(),
    };
    decide(&producer.info(), &consumer.info(), &limits).path == Some(path)
}
