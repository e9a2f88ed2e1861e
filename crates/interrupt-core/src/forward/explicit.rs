// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Explicit forward and unforward, as proposed in 2015 for the KVM-VFIO device, on top of the registry.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::connection::{Connection, Request, State};
use super::{DeviceIrq, Error, Path, Registry, Result};
use crate::Gsi;

/// Which interrupts go to which lines: the proposal's `kvm_vfio_dev_irq`. Interrupt `start + n` of `index` goes to
/// `gsis[n]`.
#[derive(Clone, Copy, Debug)]
pub struct ForwardIrq<'a> {
    /// The size that the caller takes the structure to have, in bytes, with its GSIs.
    pub argsz: u32,
    /// The VFIO device's file descriptor.
    pub device: RawFd,
    /// The interrupt index.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// One line for each of them.
    pub gsis: &'a [Gsi],
}

impl<'a> ForwardIrq<'a> {
    /// The size of the structure without its GSIs: `argsz`, `fd`, `index`, `start` and `count`.
    pub const HEADER: u32 = 20;

    /// A well-formed request.
    pub fn new(device: RawFd, index: u32, start: u32, gsis: &'a [Gsi]) -> Self {
        let count = u32::try_from(gsis.len()).unwrap_or(u32::MAX);
        Self {
            argsz: Self::HEADER.saturating_add(count.saturating_mul(4)),
            device,
            index,
            start,
            count,
            gsis,
        }
    }

    /// The interrupts, each with its line.
    ///
    /// # Errors
    /// [`Error::Malformed`]: `argsz` without room for the GSIs, no interrupt, more than there are numbers, not one line
    /// for each.
    pub fn irqs(&self) -> Result<impl Iterator<Item = (DeviceIrq, Gsi)> + use<'a>> {
        let malformed = |what: String| Err(Error::Malformed(what));
        let needed = u64::from(Self::HEADER) + 4 * u64::from(self.count);
        if u64::from(self.argsz) < needed {
            return malformed(format!(
                "argsz {} for {} interrupts, which take {needed}",
                self.argsz, self.count
            ));
        }
        if self.count == 0 {
            return malformed("count 0".to_owned());
        }
        if self.start.checked_add(self.count).is_none() {
            return malformed(format!(
                "{} interrupts from {} on are more than there are",
                self.count, self.start
            ));
        }
        if self.gsis.len() as u64 != u64::from(self.count) {
            return malformed(format!("{} GSIs for {} interrupts", self.gsis.len(), self.count));
        }
        let (device, index, start) = (self.device, self.index, self.start);
        let irqs = (start..).zip(self.gsis);
        Ok(irqs.map(move |(sub, gsi)| (DeviceIrq { device, index, sub }, *gsi)))
    }
}

/// One interrupt of a request, with the connection that it is the producer of.
struct Ordered {
    connection: Arc<Connection>,
    irq: DeviceIrq,
    gsi: Gsi,
}

impl Registry {
    /// Forwards these interrupts: each takes the best path to its line. The call works before the interrupt is enabled,
    /// and before the line is registered; the request then holds for the line when the line comes. For an interrupt
    /// that is forwarded already it does nothing.
    ///
    /// # Errors
    /// * [`Error::Malformed`], EINVAL: the request, an interrupt that the device has not registered, or a line that is
    ///   not the line registered for the interrupt.
    /// * [`Error::UnknownDevice`], EBADF.
    /// * [`Error::NotIdle`], EAGAIN: one of the interrupts is masked, or in service.
    /// * [`Error::Connect`], [`Error::NoPath`]: one of the interrupts has no path better than the relay.
    /// * [`Error::Reentrant`]: called by a method of a registered end.
    ///
    /// On an error, no interrupt of the request is newly forwarded.
    pub fn forward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        let ordered = self.ordered(request)?;
        for order in &ordered {
            order.connection.with(|state| order.check(state))??;
        }
        let mut done: Vec<(&Ordered, Request)> = Vec::new();
        for order in &ordered {
            match order.forward() {
                Ok(before) => done.push((order, before)),
                Err(error) => {
                    for (order, before) in done.into_iter().rev() {
                        // The request was this one a moment ago; what fails now is in the explanation.
                        let _ = order.connection.with(|state| state.ask(before));
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the forwarding of these interrupts: each is relayed. The call works at any time, also while an interrupt is
    /// masked or in service.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but for EAGAIN. All interrupts have been tried.
    pub fn unforward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        let ordered = self.ordered(request)?;
        let mut outcome = Ok(());
        for order in &ordered {
            let relayed = order.connection.restrict(Some(Path::Relay));
            outcome = outcome.and(relayed.map(drop));
        }
        outcome
    }

    /// The connections that a request is about.
    fn ordered(&self, request: &ForwardIrq<'_>) -> Result<Vec<Ordered>> {
        let irqs: Vec<_> = request.irqs()?.collect();
        let mut known = Vec::new();
        for (_, connection) in self.all() {
            let of_host = connection.with(|state| {
                let irq = state.producer.as_ref().and_then(|producer| producer.info().irq);
                let line = state.consumer.as_ref().map(|consumer| consumer.line().gsi());
                irq.map(|irq| (irq, line))
            })?;
            known.extend(of_host.map(|(irq, line)| (irq, line, connection)));
        }
        if !known.iter().any(|(irq, _, _)| irq.device == request.device) {
            return Err(Error::UnknownDevice(request.device));
        }
        irqs.into_iter()
            .map(|(irq, gsi)| match known.iter().find(|(other, _, _)| *other == irq) {
                None => Err(Error::Malformed(format!("{irq} is not registered"))),
                Some((_, Some(line), _)) if *line != gsi => {
                    Err(Error::Malformed(format!("{irq} goes to {line}, and not to {gsi}")))
                }
                Some((_, _, connection)) => Ok(Ordered {
                    connection: Arc::clone(connection),
                    irq,
                    gsi,
                }),
            })
            .collect()
    }
}

impl Ordered {
    /// Whether the interrupt is in a state in which it can be forwarded.
    fn check(&self, state: &mut State) -> Result<()> {
        let forwarded =
            state.path.is_some_and(|path| path != Path::Relay) && state.request != Request::Only(Path::Relay);
        let Some(producer) = state.producer.as_ref().filter(|_| !forwarded) else {
            return Ok(());
        };
        let now = producer.state();
        let what = match (now.masked, now.active) {
            (true, _) => "masked",
            (_, true) => "active",
            _ => return Ok(()),
        };
        Err(Error::NotIdle { irq: self.irq, what })
    }

    /// Returns what was asked for before.
    fn forward(&self) -> Result<Request> {
        self.connection.with(|state| {
            self.check(state)?;
            let before = state.request;
            let asked = state.ask(Request::Forward(self.gsi));
            let forwarded = asked.and_then(|_| state.relayed_because().map_or(Ok(()), Err));
            if let Err(error) = forwarded {
                // The request was this one a moment ago; what fails now is in the explanation.
                let _ = state.ask(before);
                return Err(error);
            }
            Ok(before)
        })?
    }
}
