// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Explicit forward and unforward, as proposed in 2015 for the KVM-VFIO device, on top of the registry.

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::connection::{Pair, Wanted};
use super::registry::{error, lock};
use super::{DeviceIrq, Error, EventfdId, Path, Registry, Result};
use crate::Gsi;

/// Which interrupts go to which lines: the proposal's `kvm_vfio_dev_irq`. Interrupt `start + n` of `index` goes to `gsis[n]`.
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
    /// [`Error::Malformed`]: `argsz` without room for the GSIs, no interrupt, more than there are numbers, not one line for each.
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

/// One interrupt of a request, with the pair that it is the producer of.
struct Ordered {
    id: EventfdId,
    pair: Arc<Mutex<Pair>>,
    irq: DeviceIrq,
    gsi: Gsi,
}

impl Registry {
    /// Forwards these interrupts: each takes the best path to its line. It may be asked for before the interrupt is enabled, and
    /// before the line is registered; it then holds for the line when that comes. For one that is forwarded already this
    /// does nothing.
    ///
    /// # Errors
    /// * [`Error::Malformed`], EINVAL: the request, an interrupt that the device has not registered, or a line that is not the
    ///   one that is registered for it.
    /// * [`Error::UnknownDevice`], EBADF.
    /// * [`Error::NotIdle`], EAGAIN: one of the interrupts is masked, or in service.
    /// * [`Error::Connect`], [`Error::NoPath`]: there is nothing better than a relay for one of them.
    ///
    /// None of them is forwarded then that was not before.
    pub fn forward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        let ordered = self.ordered(request)?;
        for order in &ordered {
            order.check()?;
        }
        let mut done: Vec<(&Ordered, Wanted)> = Vec::new();
        for order in &ordered {
            match order.forward(self) {
                Ok(before) => done.push((order, before)),
                Err(error) => {
                    for (order, before) in done.into_iter().rev() {
                        // It was so a moment ago; what fails now is in the explanation.
                        let _ = self.want(order.id, &mut lock(&order.pair), before);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the forwarding of these interrupts: each is relayed. It works at any time, also while the interrupt is masked or in
    /// service.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but for EAGAIN. All of them have been tried.
    pub fn unforward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        let ordered = self.ordered(request)?;
        let mut outcome = Ok(());
        for order in &ordered {
            let relayed = self.want(order.id, &mut lock(&order.pair), Wanted::Only(Path::Relay));
            outcome = outcome.and(relayed);
        }
        outcome
    }

    /// The pairs that a request is about.
    fn ordered(&self, request: &ForwardIrq<'_>) -> Result<Vec<Ordered>> {
        let irqs: Vec<_> = request.irqs()?.collect();
        let mut known = Vec::new();
        let mut devices = HashSet::new();
        for (id, pair) in self.all() {
            let irq = lock(&pair).producer.as_ref().and_then(|producer| producer.info().irq);
            if let Some(irq) = irq {
                devices.insert(irq.device);
                known.push((irq, id, pair));
            }
        }
        if !devices.contains(&request.device) {
            return Err(Error::UnknownDevice(request.device));
        }
        irqs.into_iter()
            .map(|(irq, gsi)| {
                let Some((_, id, pair)) = known.iter().find(|(other, _, _)| *other == irq) else {
                    return Err(Error::Malformed(format!("{irq} is not registered")));
                };
                let order = Ordered {
                    id: *id,
                    pair: Arc::clone(pair),
                    irq,
                    gsi,
                };
                let line = lock(pair).consumer.as_ref().map(|consumer| consumer.line().gsi());
                match line {
                    Some(line) if line != gsi => {
                        Err(Error::Malformed(format!("{irq} goes to {line}, and not to {gsi}")))
                    }
                    _ => Ok(order),
                }
            })
            .collect()
    }
}

impl Ordered {
    /// Whether the interrupt is in a state in which it can be forwarded.
    fn check(&self) -> Result<()> {
        self.check_pair(&lock(&self.pair))
    }

    fn check_pair(&self, pair: &Pair) -> Result<()> {
        let forwarded = pair.path().is_some_and(|path| path != Path::Relay) && pair.wanted != Wanted::Only(Path::Relay);
        let Some(producer) = pair.producer.as_ref().filter(|_| !forwarded) else {
            return Ok(());
        };
        let now = producer.now();
        let what = match (now.masked, now.active) {
            (true, _) => "masked",
            (_, true) => "active",
            _ => return Ok(()),
        };
        Err(Error::NotIdle { irq: self.irq, what })
    }

    /// Returns what was wanted before.
    fn forward(&self, registry: &Registry) -> Result<Wanted> {
        let mut pair = lock(&self.pair);
        self.check_pair(&pair)?;
        let before = pair.wanted;
        let wanted = registry.want(self.id, &mut pair, Wanted::Forward(self.gsi));
        let forwarded = wanted.and_then(|()| match pair.relayed_because() {
            Some(fault) => Err(error(self.id, &pair, fault)),
            None => Ok(()),
        });
        if let Err(error) = forwarded {
            // It was so a moment ago; what fails now is in the explanation.
            let _ = registry.want(self.id, &mut pair, before);
            return Err(error);
        }
        Ok(before)
    }
}
