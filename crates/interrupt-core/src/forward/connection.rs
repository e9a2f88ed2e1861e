// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One identity: who is registered under it, and by which path the two are connected.

use std::sync::Arc;
use std::time::Instant;

use super::{Consumer, Decision, EventfdId, Explanation, Limits, Path, Policy, Producer, WhyNot, decide};
use crate::{Error, Gsi};

/// Which path is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The best.
    Best,
    /// This one.
    Only(Path),
    /// The best, if the line is this one: an explicit forward. Otherwise the relay.
    Forward(Gsi),
}

impl Wanted {
    pub(super) fn of(policy: Policy) -> Self {
        match policy {
            Policy::Automatic => Self::Best,
            Policy::Explicit => Self::Only(Path::Relay),
        }
    }
}

/// Why a pair could not be connected.
pub(super) enum Fault {
    /// The last path that was tried failed so.
    Step(Arc<Error>),
    /// There was nothing to try.
    NoPath(String),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Pair {
    id: EventfdId,
    pub(super) producer: Option<Arc<dyn Producer>>,
    pub(super) consumer: Option<Arc<dyn Consumer>>,
    pub(super) wanted: Wanted,
    connected: Option<Path>,
    /// Paths that failed since the last time that something was changed which could have helped.
    failed: Vec<(Path, Arc<Error>)>,
    why_not: Vec<(Path, WhyNot)>,
    since: Instant,
    changes: u64,
    /// Both have gone, and the registry has forgotten it.
    pub(super) gone: bool,
}

impl Pair {
    pub(super) fn new(id: EventfdId, policy: Policy) -> Self {
        Self {
            id,
            producer: None,
            consumer: None,
            wanted: Wanted::of(policy),
            connected: None,
            failed: Vec::new(),
            why_not: Vec::new(),
            since: Instant::now(),
            changes: 0,
            gone: false,
        }
    }

    pub(super) fn path(&self) -> Option<Path> {
        self.connected
    }

    /// Why it is relayed, if it is.
    pub(super) fn relayed_because(&self) -> Option<Fault> {
        if self.connected != Some(Path::Relay) {
            return None;
        }
        if let Some((_, error)) = self.failed.last() {
            return Some(Fault::Step(Arc::clone(error)));
        }
        let reasons = self.why_not.iter().map(|(path, why)| format!("{path}: {why}"));
        Some(Fault::NoPath(reasons.collect::<Vec<_>>().join("; ")))
    }

    pub(super) fn possible(&self) -> Vec<Path> {
        let (Some(producer), Some(consumer)) = (&self.producer, &self.consumer) else {
            return Vec::new();
        };
        let possible = |path: &Path| is_possible(*path, &**producer, &**consumer);
        Path::ALL.into_iter().filter(possible).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.producer.is_none() && self.consumer.is_none()
    }

    /// Brings the pair to the path that it is to have, now that something has changed: the one place that does.
    pub(super) fn reconsider(&mut self) -> Result<(), Fault> {
        self.look();
        self.failed.clear();
        self.settle()
    }

    fn settle(&mut self) -> Result<(), Fault> {
        let (Some(producer), Some(consumer)) = (self.producer.clone(), self.consumer.clone()) else {
            return Ok(());
        };
        let before = self.connected;
        loop {
            let Decision { path, why_not } = decide(&producer.info(), &consumer.info(), &self.limits(&*consumer));
            self.why_not = why_not;
            let Some(path) = path else { break };
            if Some(path) == self.connected {
                return Ok(());
            }
            match self.change_to(path, &*producer, &*consumer) {
                Ok(()) => {
                    self.note_change(before);
                    return Ok(());
                }
                // Each path fails at most once, so that this ends.
                Err(error) => self.failed.push((path, Arc::new(error))),
            }
        }
        let fault = match self.failed.last() {
            Some((_, error)) => Fault::Step(Arc::clone(error)),
            None => {
                let relay = self.why_not.last().map(|(_, why)| why.to_string());
                Fault::NoPath(relay.unwrap_or_default())
            }
        };
        // Nothing is possible. What worked before is better than nothing, if it was not what became impossible.
        let again = before.filter(|before| is_possible(*before, &*producer, &*consumer));
        match (again, self.connected) {
            (Some(again), None) => {
                // It is worth the attempt, and the error to report is the other one.
                let _ = self.change_to(again, &*producer, &*consumer);
            }
            // This counts as a change by itself.
            (None, Some(_)) => {
                self.disconnect();
                return Err(fault);
            }
            _ => {}
        }
        self.note_change(before);
        Err(fault)
    }

    fn limits(&self, consumer: &dyn Consumer) -> Limits {
        let only = match self.wanted {
            Wanted::Best => None,
            Wanted::Only(path) => Some(path),
            Wanted::Forward(gsi) if gsi == consumer.line().gsi() => None,
            Wanted::Forward(_) => Some(Path::Relay),
        };
        Limits {
            only,
            failed: self.failed.clone(),
        }
    }

    /// Counts a change of path; the first one is none.
    fn note_change(&mut self, before: Option<Path>) {
        if self.connected != before {
            self.since = Instant::now();
            self.changes += u64::from(before.is_some() || self.changes > 0);
        }
    }

    /// One attempt, in the bracket of irqbypass: stop the producer, stop the consumer, change, start the consumer, start the
    /// producer. On an error either nothing has changed, because the first two refused, or the pair is not connected, nobody is
    /// stopped and nothing is masked.
    fn change_to(&mut self, path: Path, producer: &dyn Producer, consumer: &dyn Consumer) -> Result<(), Error> {
        producer.stop()?;
        if let Err(error) = consumer.stop() {
            if producer.start().is_err() {
                self.unwind(self.connected, producer, consumer);
            }
            return Err(error);
        }
        if let Some(old) = self.connected.take() {
            consumer.disconnect(old);
        }
        let changed = producer
            .connect(path, consumer)
            .and_then(|()| consumer.connect(path, producer))
            .and_then(|()| consumer.start())
            .and_then(|()| producer.start());
        match changed {
            Ok(()) => self.connected = Some(path),
            Err(_) => self.unwind(Some(path), producer, consumer),
        }
        changed
    }

    /// Takes both apart, whatever has been done of connecting them, and leaves neither stopped.
    fn unwind(&mut self, path: Option<Path>, producer: &dyn Producer, consumer: &dyn Consumer) {
        if let Some(path) = path {
            consumer.disconnect(path);
        }
        producer.disconnect();
        // There is nothing connected that a refusal could keep from working.
        let _ = consumer.start();
        self.connected = None;
    }

    /// Takes the two apart, in the same bracket.
    pub(super) fn disconnect(&mut self) {
        let (Some(path), Some(producer), Some(consumer)) = (self.connected, &self.producer, &self.consumer) else {
            return;
        };
        let (producer, consumer) = (Arc::clone(producer), Arc::clone(consumer));
        // Disconnecting ends what a refused stop leaves on.
        let _ = producer.stop();
        let _ = consumer.stop();
        self.unwind(Some(path), &*producer, &*consumer);
        self.note_change(Some(path));
    }

    /// Notices a path that has failed after it was connected.
    fn look(&mut self) {
        let Some(producer) = &self.producer else { return };
        let now = producer.now();
        if let (Some(path), Some(connected)) = (now.path, self.connected) {
            if path != connected {
                self.connected = Some(path);
                self.note_change(Some(connected));
            }
        }
    }

    pub(super) fn explain(&mut self) -> Explanation {
        let told = self.connected;
        self.look();
        let now = self
            .producer
            .as_ref()
            .map(|producer| producer.now())
            .unwrap_or_default();
        let mut why_not: Vec<_> = self
            .why_not
            .iter()
            .map(|(path, why)| (*path, why.to_string()))
            .collect();
        if let (Some(failed), Some(told)) = (now.failed, told) {
            if told != self.connected.unwrap_or(told) {
                why_not.push((told, failed));
            }
        }
        Explanation {
            id: self.id,
            producer: self.producer.as_ref().map(|producer| producer.label().to_owned()),
            line: self.consumer.as_ref().map(|consumer| {
                let line = consumer.line();
                (line.gsi(), line.source().label().to_owned(), line.end().clone())
            }),
            path: self.connected,
            held: now.held,
            elapsed: self.since.elapsed(),
            changes: self.changes,
            why_not,
        }
    }
}

/// Whether both sides can do this path at all.
fn is_possible(path: Path, producer: &dyn Producer, consumer: &dyn Consumer) -> bool {
    let limits = Limits {
        only: Some(path),
        failed: Vec::new(),
    };
    decide(&producer.info(), &consumer.info(), &limits).path == Some(path)
}
