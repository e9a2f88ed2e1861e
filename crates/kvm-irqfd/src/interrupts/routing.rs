// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A change of the routing table, which cannot be made in the wrong order (law 3).

use std::io;
use std::sync::Arc;

use interrupt_core::{EveryStep, Gsi, PinMask};
use kvm_bindings::KvmIrqRouting;

use crate::books::{Books, State};
use crate::error::{Error, Reason, Result};
use crate::line::Afterwards;
use crate::line::irq_line::{self, IrqLine};
use crate::line::irqfd::Assigner;
use crate::routes::{Changes, Route, Routes};

const OPERATION: &str = "KVM_SET_GSI_ROUTING";

/// A change of some GSIs' routes. The change holds no lock and has no effect before it is
/// [committed](Self::commit); the commit changes the table as it is at that time.
///
/// The commit takes the irqfds of each line whose route changes off, and lowers a level of KVM_IRQ_LINE, before it
/// exchanges the table: KVM would deliver a level that it still holds for the old pin for ever (law 3). No interrupt is
/// lost. A trigger that is signalled during the commit fires after the commit, and the listeners of the line's EOIs are
/// asked for the level.
///
/// ```no_run
/// # fn example(interrupts: &kvm_irqfd::KvmInterrupts) -> Result<(), Box<dyn std::error::Error>> {
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
#[must_use = "nothing changes before the change is committed"]
pub struct Routing<'a> {
    books: &'a Books,
    changes: Changes,
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
    pub(crate) fn new(books: &'a Books) -> Self {
        let changes = Changes::new();
        Self { books, changes }
    }

    /// Makes `gsi` lead to `routes`, and nowhere else; to nothing, when there are none. For an x86 ISA line these are a
    /// pin of an 8259 and a pin of the IOAPIC.
    ///
    /// # Errors
    /// [`Reason::Route`]: KVM would refuse the routes. The change so far stays as it is.
    pub fn set(&mut self, gsi: Gsi, routes: &[Route]) -> Result<()> {
        Routes::check(self.books.irqchip, gsi, routes)?;
        self.changes.insert(gsi, routes.to_vec());
        Ok(())
    }

    /// Gives KVM the new table: deassigns the lines whose routes change, exchanges the table, and assigns the lines
    /// again.
    ///
    /// # Errors
    /// * [`Reason::Reentrant`]: this is called by the VMM's function that sets the routes. Nothing has changed.
    /// * [`Reason::NotOwned`]: a GSI belongs to another owner of the table. Nothing has changed.
    /// * [`Reason::TableFull`]: the table would have too many entries. Nothing has changed.
    /// * [`Reason::UnknownGsi`], [`Reason::MsiRoute`], [`Reason::ShadowedPin`], [`Reason::SharedPin`]: a line that is
    ///   in use would lead nowhere, would not report its EOIs any more, or would drive a pin that another line drives.
    ///   [`Reason::Route`]: a line of KVM_IRQ_LINE would lead to an SPI of another number (aarch64). Nothing has changed.
    /// * [`Reason::Os`]: KVM refused the table, or a level would not be lowered. The old table holds.
    /// * [`Reason::Refused`]: the table that holds is the new one, if `operation` is not KVM_SET_GSI_ROUTING, but KVM
    ///   refused to take a line back.
    pub fn commit(self) -> Result<Committed> {
        let turn = self.books.turn(OPERATION)?;
        let exchanged = exchange(self.books, self.changes);
        drop(turn);
        exchanged.finish()
    }
}

impl std::fmt::Debug for Routing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "routing of {:?}", self.changes)
    }
}

/// Programs a pin of a userspace IOAPIC: its route, and whether the guest masks the pin. A pin that is masked is off
/// before its route changes; a pin that is unmasked has its route first.
pub(crate) fn set_pin(books: &Books, gsi: Gsi, route: Option<Route>, mask: PinMask) -> Result<()> {
    Routes::check(books.irqchip, gsi, route.as_slice())?;
    let turn = books.turn(OPERATION)?;
    books.with(|state| match mask {
        PinMask::Masked => {
            state.set_masked(gsi, true);
            settle_masks(state, &books.assigner, gsi)
        }
        PinMask::Asked => state.change_line(gsi, |line, _, _| line.drop_waiting(gsi)),
        PinMask::Unmasked => Ok(()),
    })?;
    let mut exchanged = exchange(books, Changes::from([(gsi, route.into_iter().collect())]));
    if exchanged.result.is_ok() {
        let settled = books.with(|state| {
            state.set_masked(gsi, mask.is_masked());
            settle_masks(state, &books.assigner, gsi)
        });
        exchanged.result = settled.map(|()| Committed::Changed);
    }
    drop(turn);
    exchanged.finish().map(drop)
}

fn settle_masks(state: &mut State, assigner: &Assigner, gsi: Gsi) -> Result<()> {
    state.change_line(gsi, |line, pin_masked, _| line.settle_masks(assigner, gsi, pin_masked))
}

/// A change of the table that has been made or refused.
struct Exchanged {
    result: Result<Committed>,
    afterwards: Afterwards,
    /// The panic of the VMM's own way to set routes.
    panic: EveryStep,
}

impl Exchanged {
    fn without_kvm(result: Result<Committed>) -> Self {
        Self {
            result,
            afterwards: Afterwards::default(),
            panic: EveryStep::default(),
        }
    }

    /// Called when the turn is over.
    fn finish(self) -> Result<Committed> {
        self.afterwards.finish();
        self.panic.end();
        self.result
    }
}

/// A change of the table that can be made. The books have the new table.
struct Plan {
    table: KvmIrqRouting,
    before: Changes,
    /// The GSIs that lead to another pin, or to none.
    moved: Vec<Gsi>,
    /// Those of them that KVM_IRQ_LINE drives.
    lines: Vec<Arc<IrqLine>>,
}

/// Exchanges the table for one with `changes`. The caller has the turn.
fn exchange(books: &Books, changes: Changes) -> Exchanged {
    let mut changes = Some(changes);
    let plan = match books.with(|state| plan(state, changes.take().unwrap_or_default())) {
        Ok(Some(plan)) => plan,
        Ok(None) => return Exchanged::without_kvm(Ok(Committed::Unchanged)),
        Err(error) => return Exchanged::without_kvm(Err(error)),
    };
    let Plan {
        table,
        before,
        moved,
        lines,
    } = plan;
    let mut before = Some(before);
    if let Err(error) = hold_all(&lines) {
        books.with(|state| put_back(state, before.take()));
        return Exchanged::without_kvm(Err(of_level(error, Reason::Os)));
    }
    books.with(|state| {
        for gsi in &moved {
            if let Some(line) = state.lines.get_mut(gsi) {
                line.suspend(&books.assigner, *gsi);
            }
        }
    });
    // Without the lock of the books: this may be the VMM's own way to set routes. It has refused when it panics.
    let mut panic = EveryStep::default();
    let set = panic.take(|| books.assigner.kernel.set_routing(&table));
    let set = set.unwrap_or_else(|| Err(io::ErrorKind::Other.into()));
    let (assigned, afterwards) = books.run(|state| {
        if set.is_err() {
            put_back(state, before.take());
        }
        let mut assigned = Ok(());
        for gsi in &moved {
            assigned = assigned.and(state.change_line(*gsi, |line, pin_masked, afterwards| {
                line.resume(&books.assigner, *gsi, pin_masked, afterwards)
            }));
        }
        assigned
    });
    let raised = release_all(&lines);
    let result = set
        .map_err(|error| Error::vm(OPERATION, error))
        .and(assigned)
        .and_then(|()| raised.map_err(|error| of_level(error, Reason::Refused)))
        .map(|()| Committed::Changed);
    Exchanged {
        result,
        afterwards,
        panic,
    }
}

/// Takes the changes into the table of the books, if they can be made. `None`: the table is as it was.
fn plan(state: &mut State, mut changes: Changes) -> Result<Option<Plan>> {
    if let Some(gsi) = changes.keys().find(|gsi| !state.owns(**gsi)) {
        return Err(Error::new(OPERATION, *gsi, Reason::NotOwned));
    }
    changes.retain(|gsi, routes| state.routes.get(*gsi) != *routes);
    // KVM follows a change from MSI to MSI by itself, which is what a guest does when it moves an interrupt to another
    // CPU, and no other line depends on such a route.
    let is_msi = |routes: &[Route]| matches!(routes, [Route::Msi { .. }]);
    let moved = |(gsi, routes): &(&Gsi, &Vec<Route>)| !(is_msi(&state.routes.get(**gsi)) && is_msi(routes));
    let moved: Vec<Gsi> = changes.iter().filter(moved).map(|(gsi, _)| *gsi).collect();
    if changes.is_empty() {
        return Ok(None);
    }
    let before = state.routes.replace(changes)?;
    let checked = if moved.is_empty() { Ok(()) } else { state.check_routes() };
    let table = match checked.and_then(|()| state.routes.to_kvm()) {
        Ok(table) => table,
        Err(error) => {
            put_back(state, Some(before));
            return Err(error);
        }
    };
    let lines = moved.iter().filter_map(|gsi| state.lines.get(gsi)?.irq_line().cloned());
    Ok(Some(Plan {
        table,
        before,
        lines: lines.collect(),
        moved,
    }))
}

/// Holds all of these lines low, or none.
fn hold_all(lines: &[Arc<IrqLine>]) -> interrupt_core::Result<()> {
    for (n, line) in lines.iter().enumerate() {
        if let Err(error) = irq_line::hold(line) {
            // A level that KVM does not take back is driven by the line's next change.
            drop(release_all(&lines[..n]));
            return Err(error);
        }
    }
    Ok(())
}

/// Goes through all, and returns the first error.
fn release_all(lines: &[Arc<IrqLine>]) -> interrupt_core::Result<()> {
    let mut released = Ok(());
    for line in lines {
        released = released.and(irq_line::release(line));
    }
    released
}

fn put_back(state: &mut State, before: Option<Changes>) {
    // The table had room for these entries before.
    drop(before.map(|before| state.routes.replace(before)));
}

fn of_level(error: interrupt_core::Error, reason: fn(io::Error) -> Reason) -> Error {
    match error {
        interrupt_core::Error::Os { operation, gsi, source } => Error::new(operation, gsi, reason(source)),
        other => Error::vm("KVM_IRQ_LINE", io::Error::other(other)),
    }
}
