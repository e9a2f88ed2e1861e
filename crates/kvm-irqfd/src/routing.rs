// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A change of the routing table, which cannot be made in the wrong order.

use std::sync::{Arc, MutexGuard};

use interrupt_core::{Gsi, Line};

use crate::interrupts::{Shared, State};
use crate::irq_line::IrqLinePin;
use crate::irqfds::{Resample, Use};
use crate::{Error, Result, Route, Routes};

/// A change of the routing table that is being put together. It holds the configuration lock: sources and notifiers go on
/// working, but adding or dropping one waits until this is [committed](Self::commit) or dropped. A thread that does so while it
/// holds a change of its own waits for itself.
///
/// A line whose route changes is off while the table is exchanged: a level that KVM still held for the old pin would be delivered
/// for ever, and nothing would lower it. Nothing is lost by that. A trigger that is signalled meanwhile fires after it, and
/// whoever listens to the line's EOIs is told to state its level.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let interrupts: kvm_irqfd::KvmInterrupts = todo!();
/// use kvm_irqfd::{Chip, Route};
/// use interrupt_core::Gsi;
///
/// let mut routing = interrupts.routing();
/// routing.set(Gsi(40), &[Route::Msi { address: 0xFEE0_0000, data: 0x31, device: None }])?;
/// routing.set(Gsi(16), &[Route::Pin { chip: Chip::Ioapic, pin: 17 }])?;
/// routing.commit()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Routing<'a> {
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    routes: Routes,
}

/// What a [commit](Routing::commit) had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The table is as it was, and KVM was not asked.
    Unchanged,
    /// KVM has the new table.
    Changed,
}

impl<'a> Routing<'a> {
    pub(crate) fn new(shared: &'a Shared, state: MutexGuard<'a, State>) -> Self {
        let routes = state.routes.clone();
        Self { shared, state, routes }
    }

    /// The table as it would be committed.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Makes `gsi` lead to `routes`, and nowhere else; to nothing, when there are none. For an x86 ISA line these are a pin of an
    /// 8259 and a pin of the IOAPIC.
    ///
    /// # Errors
    /// [`Error::Route`] or [`Error::TableFull`]; the change so far stays as it is.
    pub fn set(&mut self, gsi: Gsi, routes: &[Route]) -> Result<()> {
        self.routes.set(self.shared.irqchip(), gsi, routes)
    }

    /// Gives KVM the new table: takes the lines whose routes change off, exchanges the table, and puts the lines on again.
    ///
    /// # Errors
    /// * [`Error::UnknownGsi`], [`Error::MsiRoute`], [`Error::ShadowedPin`]: a line that is in use would lead nowhere, or would not
    ///   report its EOIs any more. Nothing has changed.
    /// * [`Error::Os`]: KVM refused. The old table holds, and the lines are on again, as far as KVM took them.
    pub fn commit(mut self) -> Result<Committed> {
        if self.routes == self.state.routes {
            return Ok(Committed::Unchanged);
        }
        self.check()?;
        let table = self.routes.to_kvm()?;
        let affected: Vec<Gsi> = self.affected().collect();
        let driven: Vec<_> = affected
            .iter()
            .filter_map(|gsi| self.state.lines.get(gsi)?.irq_line())
            .collect();
        let Self {
            shared,
            ref mut state,
            ref mut routes,
        } = self;
        let exchanged = while_low(&driven, &mut || {
            for gsi in &affected {
                if let Some(line) = state.lines.get(gsi) {
                    line.deassign_all(shared.vm(), *gsi)?;
                }
            }
            let exchanged = shared.vm().set_gsi_routing(&table);
            if exchanged.is_ok() {
                std::mem::swap(&mut state.routes, routes);
            }
            let mut on = Ok(());
            for gsi in &affected {
                on = on.and(state.put_on(shared.vm(), *gsi));
            }
            exchanged
                .map_err(|error| Error::vm("KVM_SET_GSI_ROUTING", error))
                .and(on)
        });
        let driven_gsi = driven.first().map_or(Gsi(0), |line| line.gsi());
        exchanged.map_err(|error| Error::os("KVM_IRQ_LINE", driven_gsi, std::io::Error::other(error)))??;
        drop(self.state);
        // Only now: the last reference to a line takes the configuration lock when it goes.
        drop(driven);
        Ok(Committed::Changed)
    }

    /// The lines in use whose routes change in a way that KVM does not follow by itself. It follows a change from MSI to MSI,
    /// which is what a guest does when it moves an interrupt to another CPU.
    fn affected(&self) -> impl Iterator<Item = Gsi> {
        self.state.lines.iter().filter_map(|(&gsi, line)| {
            let (old, new) = (self.state.routes.get(gsi), self.routes.get(gsi));
            let is_msi = |routes: &[Route]| matches!(routes, [Route::Msi { .. }]);
            let unused = line.is_unused();
            (!unused && old != new && !(is_msi(old) && is_msi(new))).then_some(gsi)
        })
    }

    /// Every line that is in use must be usable after the change too, also when it was another GSI's route that changed.
    fn check(&self) -> Result<()> {
        const OPERATION: &str = "KVM_SET_GSI_ROUTING";
        for (&gsi, line) in &self.state.lines {
            let resample = line
                .irqfds()
                .iter()
                .any(|irqfd| !matches!(irqfd.resample, Resample::Never));
            if resample {
                self.routes.check_resample(OPERATION, gsi)?;
            }
            let edge = line.irqfds().iter().any(|irqfd| irqfd.purpose == Use::Edge);
            if (edge || line.irq_line().is_some()) && self.routes.get(gsi).is_empty() {
                return Err(Error::UnknownGsi {
                    operation: OPERATION,
                    gsi,
                });
            }
        }
        Ok(())
    }
}

/// Runs `change` with all of these lines low at once.
fn while_low<R>(lines: &[Arc<Line<IrqLinePin>>], change: &mut dyn FnMut() -> R) -> interrupt_core::Result<R> {
    match lines {
        [] => Ok(change()),
        [line, rest @ ..] => line.while_low(|_| while_low(rest, change))?,
    }
}
