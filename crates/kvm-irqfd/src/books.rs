// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One VM's routes, lines, masks, and users of each pin: the one owner of what KVM does not keep (law 4).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};

use interrupt_core::{Gsi, Irqchip};

use crate::error::{Error, Reason, Result};
use crate::kernel::Kernel;
use crate::kind::BindingKind;
use crate::line::dispatch::Dispatcher;
use crate::line::irq_line::IrqLine;
use crate::line::irqfd::{Assigner, Irqfd, Told};
use crate::line::{Afterwards, GsiLine};
use crate::routes::Routes;

const OPERATION: &str = "KVM_IRQFD";

/// The books of one VM. Signals, EOIs and `dispatch` never take their lock.
pub(crate) struct Books {
    pub(crate) irqchip: Irqchip,
    pub(crate) assigner: Assigner,
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// Held throughout a change of routes and while a user of a GSI is entered, so that the two do not meet.
    changes: Mutex<()>,
    /// Who holds `changes`.
    changer: Mutex<Option<ThreadId>>,
    state: Mutex<State>,
}

/// The turn of a thread to change the routes or the users of GSIs.
pub(crate) struct Turn<'a> {
    changer: &'a Mutex<Option<ThreadId>>,
    _changes: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(self.changer) = None;
    }
}

/// Takes a lock under which nothing of a caller's runs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What changes at configuration time.
pub(crate) struct State {
    pub(crate) routes: Routes,
    /// The GSIs that this has, if the others of the VM are somebody else's.
    owned: Option<Range<Gsi>>,
    pub(crate) lines: BTreeMap<Gsi, GsiLine>,
    /// The pins of a userspace IOAPIC that the guest has unmasked; as many as are reserved for it.
    unmasked: Vec<bool>,
    next_token: u64,
    pub(crate) afterwards: Afterwards,
}

/// An entry in the books, which keeps the books. Dropping it takes away what it is for, and that alone (law 9).
pub(crate) struct Binding {
    pub(crate) books: Arc<Books>,
    pub(crate) gsi: Gsi,
    pub(crate) token: u64,
    is_refused: Arc<AtomicBool>,
}

impl Binding {
    pub(crate) fn new(books: &Arc<Books>, gsi: Gsi, token: u64) -> Self {
        Self {
            books: Arc::clone(books),
            gsi,
            token,
            is_refused: books.with(|state| state.lines.get(&gsi).map(GsiLine::is_refused).unwrap_or_default()),
        }
    }

    /// Tries again what KVM has refused on this line, if there is anything.
    pub(crate) fn mend(&self) -> Result<()> {
        if self.is_refused.load(Ordering::Relaxed) {
            self.books.change_irqfd(self.gsi, self.token, |_| {})?;
        }
        Ok(())
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.books.remove(self.gsi, self.token);
    }
}

impl Books {
    pub(crate) fn new(
        kernel: Arc<dyn Kernel>,
        irqchip: Irqchip,
        pins: u32,
        routes: Routes,
        owned: Option<Range<Gsi>>,
    ) -> Result<Arc<Self>> {
        let pins = if irqchip == Irqchip::Split { pins as usize } else { 0 };
        Ok(Arc::new(Self {
            irqchip,
            assigner: Assigner::new(kernel)?,
            dispatcher: Dispatcher::new()?,
            changes: Mutex::default(),
            changer: Mutex::default(),
            state: Mutex::new(State {
                routes,
                owned,
                lines: BTreeMap::new(),
                unmasked: vec![false; pins],
                next_token: 0,
                afterwards: Afterwards::default(),
            }),
        }))
    }

    /// Runs `change` under the lock. Nothing that a caller owns is dropped or signalled there: `change` is only
    /// borrowed, so that what it captures outlives the lock, and what it takes out of the books goes through
    /// [`Afterwards`].
    pub(crate) fn with<R>(&self, change: impl FnMut(&mut State) -> R) -> R {
        let (result, afterwards) = self.run(change);
        afterwards.finish();
        result
    }

    /// The same for a caller that holds a lock, and that finishes when it has released the lock.
    pub(crate) fn run<R>(&self, mut change: impl FnMut(&mut State) -> R) -> (R, Afterwards) {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        (result, std::mem::take(&mut state.afterwards))
    }

    /// Waits for this thread's turn to change the routes or the users of GSIs.
    ///
    /// The VMM's own way to set routes is called by the thread that has the turn, and with no other lock. A change from
    /// within that call is refused.
    pub(crate) fn turn(&self, operation: &'static str) -> Result<Turn<'_>> {
        let this = thread::current().id();
        if *lock(&self.changer) == Some(this) {
            return Err(Error::of_vm(operation, Reason::Reentrant));
        }
        let _changes = lock(&self.changes);
        *lock(&self.changer) = Some(this);
        Ok(Turn {
            changer: &self.changer,
            _changes,
        })
    }

    /// Checks everything that KVM does not, assigns the irqfd, and enters it.
    pub(crate) fn add(&self, gsi: Gsi, irqfd: Irqfd) -> Result<u64> {
        let (kind, mut irqfd) = (irqfd.kind, Some(irqfd));
        self.enter(gsi, kind, |state, token| {
            let pin_masked = state.is_pin_masked(gsi);
            let line = state.lines.entry(gsi).or_default();
            line.add(&self.assigner, gsi, token, &mut irqfd, pin_masked)?;
            Ok(token)
        })
    }

    /// Enters a KVM_IRQ_LINE source.
    pub(crate) fn add_line_source(&self, gsi: Gsi) -> Result<(Arc<IrqLine>, u64)> {
        self.enter(gsi, BindingKind::IrqLine, |state, token| {
            let line = state.lines.entry(gsi).or_default();
            Ok((line.add_source(&self.assigner, gsi, token), token))
        })
    }

    /// Enters a callback that `dispatch` has to call for `gsi`.
    pub(crate) fn add_watcher(&self, gsi: Gsi) -> Result<u64> {
        self.enter(gsi, BindingKind::Notify, |state, token| {
            state.lines.entry(gsi).or_default().add_watcher(token);
            Ok(token)
        })
    }

    /// Checks a new use of a GSI, enters it with `add`, and makes the watch that it needs. After an error nothing is
    /// entered.
    fn enter<R>(&self, gsi: Gsi, kind: BindingKind, mut add: impl FnMut(&mut State, u64) -> Result<R>) -> Result<R> {
        let turn = self.turn(OPERATION)?;
        let (entered, afterwards) = self.run(|state| {
            state.check(self.irqchip, gsi, kind)?;
            let (token, of_watch) = (state.next_token, state.next_token + 1);
            state.next_token += 2;
            let entered = add(state, token).and_then(|added| self.settle_watch(state, gsi, of_watch).map(|()| added));
            if entered.is_err() {
                self.remove_from(state, gsi, token);
            }
            entered
        });
        drop(turn);
        afterwards.finish();
        entered
    }

    fn settle_watch(&self, state: &mut State, gsi: Gsi, token: u64) -> Result<()> {
        state.change_line(gsi, |line, _, afterwards| {
            line.settle_watch(&self.assigner, &self.dispatcher, gsi, token, afterwards)
        })
    }

    /// Takes an entry out of the books, with what it asserts.
    pub(crate) fn remove(&self, gsi: Gsi, token: u64) {
        self.with(|state| self.remove_from(state, gsi, token));
    }

    fn remove_from(&self, state: &mut State, gsi: Gsi, token: u64) {
        if let Some(line) = state.lines.get_mut(&gsi) {
            line.remove(&self.assigner, gsi, token, &mut state.afterwards);
        }
        // With one user less no watch is to be made, so that this does not fail.
        drop(self.settle_watch(state, gsi, 0));
        state.lines.retain(|other, line| *other != gsi || !line.is_unused());
    }

    /// Changes one irqfd, if it is still there, and assigns what is to be on.
    pub(crate) fn change_irqfd(&self, gsi: Gsi, token: u64, mut change: impl FnMut(&mut Irqfd)) -> Result<()> {
        self.with(|state| {
            state.change_line(gsi, |line, pin_masked, _| {
                line.find(token).into_iter().for_each(&mut change);
                line.settle_masks(&self.assigner, gsi, pin_masked)
            })
        })
    }

    /// Ends the listener of a source, if the source is still there and has this listener still.
    pub(crate) fn discard(&self, gsi: Gsi, token: u64, told: &Weak<Told>) {
        self.with(|state| {
            if let Some(line) = state.lines.get_mut(&gsi) {
                line.discard(&self.assigner, gsi, token, told, &mut state.afterwards);
            }
        });
    }

    /// Lowers what an irqfd asserts. The others of the line are asked for their levels, since KVM keeps one assertion
    /// for all.
    pub(crate) fn lower(&self, gsi: Gsi, token: u64) -> Result<()> {
        self.with(|state| {
            state.change_line(gsi, |line, pin_masked, afterwards| {
                line.deassign_all(&self.assigner, gsi);
                let taken = line.find(token).map_or(Ok(0), |irqfd| irqfd.trigger.take());
                line.assign_all(&self.assigner, gsi, pin_masked, afterwards)?;
                taken.map(drop).map_err(|error| Error::os("read(trigger)", gsi, error))
            })
        })
    }
}

impl State {
    /// Changes the line of a GSI, if something uses the GSI. `change` is told whether the pin is masked.
    pub(crate) fn change_line(
        &mut self,
        gsi: Gsi,
        change: impl FnOnce(&mut GsiLine, bool, &mut Afterwards) -> Result<()>,
    ) -> Result<()> {
        let pin_masked = self.is_pin_masked(gsi);
        let line = self.lines.get_mut(&gsi);
        line.map_or(Ok(()), |line| change(line, pin_masked, &mut self.afterwards))
    }

    pub(crate) fn owns(&self, gsi: Gsi) -> bool {
        self.owned.as_ref().is_none_or(|owned| owned.contains(&gsi))
    }

    /// Whether a pin of a userspace IOAPIC is masked, or leads nowhere. Other lines have no mask here.
    fn is_pin_masked(&self, gsi: Gsi) -> bool {
        let unmasked = self.unmasked.get(gsi.0 as usize);
        unmasked.is_some_and(|unmasked| !unmasked || self.routes.is_unrouted(gsi))
    }

    /// Takes the mask of a userspace IOAPIC's pin.
    pub(crate) fn set_masked(&mut self, gsi: Gsi, masked: bool) {
        if let Some(unmasked) = self.unmasked.get_mut(gsi.0 as usize) {
            *unmasked = !masked;
        }
    }

    /// Whether a GSI can take a new use of this kind.
    fn check(&self, irqchip: Irqchip, gsi: Gsi, kind: BindingKind) -> Result<()> {
        let refuse = |reason| Err(Error::new(OPERATION, gsi, reason));
        if !self.owns(gsi) {
            return refuse(Reason::NotOwned);
        }
        let reserved = (gsi.0 as usize) < self.unmasked.len();
        match (kind, irqchip) {
            // Law 11: KVM raises the EOI exit for the reserved GSIs and for no other.
            (BindingKind::Split, _) if !reserved => return refuse(Reason::NotSplit),
            (BindingKind::Split, _) | (_, Irqchip::Kernel) => {}
            (_, Irqchip::User) => return refuse(Reason::NoIrqchip),
            (BindingKind::Edge, Irqchip::Split) => {}
            (_, Irqchip::Split) => return refuse(Reason::SplitIrqchip),
        }
        if let Some(line) = self.lines.get(&gsi) {
            if let Some(has) = line.drivers().find(|has| *has != kind && kind != BindingKind::Notify) {
                return refuse(Reason::MixedUse { has, wants: kind });
            }
        }
        if reserved {
            return Ok(());
        }
        // An edge pin of an IOAPIC is ended by an EOI too; of a GIC KVM looks at level-triggered interrupts only.
        let silent = match kind {
            BindingKind::Notify => self.has(gsi, BindingKind::Edge),
            BindingKind::Edge => self.has(gsi, BindingKind::Notify),
            _ => false,
        };
        if silent && cfg!(target_arch = "aarch64") && !self.routes.leads_to_msi(gsi) {
            return refuse(Reason::EdgeSpi);
        }
        self.check_route(gsi, kind, Some(kind).filter(|kind| *kind != BindingKind::Notify))
    }

    /// Whether a GSI is used in this way.
    fn has(&self, gsi: Gsi, kind: BindingKind) -> bool {
        self.lines.get(&gsi).is_some_and(|line| line.has(kind))
    }

    /// Whether each line in use can be used with the routes as they are now.
    pub(crate) fn check_routes(&self) -> Result<()> {
        for (&gsi, line) in &self.lines {
            if (gsi.0 as usize) < self.unmasked.len() {
                continue;
            }
            let drives = line.drivers().next();
            if line.has_resampler() {
                self.check_route(gsi, BindingKind::Resample, drives)?;
            } else if let Some(kind) = drives {
                self.check_route(gsi, kind, drives)?;
            }
        }
        Ok(())
    }

    /// Whether a GSI leads to where a use of this kind needs it: to a pin, to a pin whose EOIs KVM reports to this GSI,
    /// and to no pin that another GSI drives (law 2). `drives` is what asserts there, if anything does.
    fn check_route(&self, gsi: Gsi, kind: BindingKind, drives: Option<BindingKind>) -> Result<()> {
        let refuse = |reason| Err(Error::new(OPERATION, gsi, reason));
        if self.routes.is_unrouted(gsi) {
            return refuse(Reason::UnknownGsi);
        }
        let edge = kind == BindingKind::Edge;
        if !edge && self.routes.leads_to_msi(gsi) {
            return refuse(Reason::MsiRoute);
        }
        for (chip, pin) in self.routes.pins(gsi) {
            let by = self.routes.all_to(chip, pin).next();
            let needs_eoi = !edge && kind != BindingKind::IrqLine;
            if let Some(by) = by.filter(|by| *by != gsi && needs_eoi) {
                return refuse(Reason::ShadowedPin { chip, pin, by });
            }
            let driven = |other: &Gsi| {
                self.lines
                    .get(other)
                    .is_some_and(|line| line.drivers().next().is_some())
            };
            let mut others = self.routes.all_to(chip, pin).filter(|other| *other != gsi);
            if let Some(by) = others.find(driven).filter(|_| drives.is_some()) {
                return refuse(Reason::SharedPin { chip, pin, by });
            }
            // On arm64 KVM_IRQ_LINE takes the number of an SPI and looks at no route.
            if cfg!(target_arch = "aarch64") && drives == Some(BindingKind::IrqLine) && pin != gsi.0 {
                return refuse(Reason::Route("KVM_IRQ_LINE drives the SPI of its own number only"));
            }
        }
        Ok(())
    }
}
