// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is on one GSI: its irqfds in the order of assignment, the line that KVM_IRQ_LINE drives, and the watch that
//! this process keeps on its EOIs.

pub(crate) mod dispatch;
pub(crate) mod irq_line;
pub(crate) mod irqfd;
mod resampled;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use interrupt_core::{Gsi, Listeners, SourceKey};

use crate::error::{Error, Reason, Result};
use crate::kernel::eventfd::Eventfd;
use crate::kind::BindingKind;
use dispatch::{Dispatcher, Watch};
use irq_line::{IrqLine, IrqLinePin};
use irqfd::{Assigner, Irqfd, ResampleFd, Told};
use resampled::Resampled;

/// What a change of a line leaves to be done when the books are free again.
#[derive(Default)]
pub(crate) struct Afterwards {
    /// The listeners to ask for their levels.
    pub(crate) ask: Vec<Arc<Told>>,
    /// What goes. A line, a watch and an irqfd lead to what callers own, whose drop may do anything (law 14).
    pub(crate) drop: Vec<Gone>,
}

impl Afterwards {
    /// Called without a lock. Asks, and then drops what goes.
    pub(crate) fn finish(self) {
        for told in &self.ask {
            // An eventfd that KVM has taken as a resamplefd refuses a write when it is full: then it is signalled
            // already.
            drop(told.eventfd.signal());
        }
    }
}

#[allow(dead_code, reason = "the variants are there to be dropped")]
pub(crate) enum Gone {
    Irqfd(Irqfd),
    Line(Arc<IrqLine>),
    Watch(ResampleWatch),
}

/// An irqfd of this process on the GSI, whose resamplefd `dispatch` serves.
pub(crate) struct ResampleWatch {
    // First: no more calls, then no more signals.
    _watch: Watch,
    irqfd: u64,
    resampled: Arc<Resampled>,
}

/// What has happened on one GSI since it came into use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GsiCounts {
    /// Assertions by sources of this process. Signals that others write to a trigger are not seen.
    pub asserted: u64,
    /// EOIs and other resamples that [`dispatch`](crate::KvmInterrupts::dispatch) has served. Those that KVM tells an
    /// eventfd are not seen.
    pub served: u64,
    /// How often the irqfds were deassigned and assigned again: for a new route, for an irqfd that went, for a level
    /// that was withdrawn.
    pub reassigned: u64,
    /// How many irqfds are off now because KVM refused to take them back: see
    /// [`Reason::Refused`](crate::Reason::Refused).
    pub refused: usize,
}

#[derive(Default)]
pub(crate) struct GsiLine {
    irqfds: Vec<Irqfd>,
    irq_line: Option<Arc<IrqLine>>,
    /// The sources of `irq_line`, by token.
    sources: Vec<u64>,
    /// Who needs the watch, by token: callbacks.
    watchers: Vec<u64>,
    watch: Option<ResampleWatch>,
    /// How many resamples this process has served.
    served: Arc<AtomicU64>,
    /// How often this process has asserted by irqfds that are gone.
    asserted_before: u64,
    reassigned: u64,
    /// The route of the GSI changes: no irqfd is assigned.
    is_suspended: bool,
    /// Whether KVM has refused to take an irqfd back.
    is_refused: Arc<AtomicBool>,
}

impl GsiLine {
    pub(crate) fn is_unused(&self) -> bool {
        self.irqfds.is_empty() && self.sources.is_empty() && self.watchers.is_empty()
    }

    pub(crate) fn irq_line(&self) -> Option<&Arc<IrqLine>> {
        self.irq_line.as_ref()
    }

    pub(crate) fn served(&self) -> &Arc<AtomicU64> {
        &self.served
    }

    pub(crate) fn counts(&self) -> GsiCounts {
        let by_irqfds: u64 = self.irqfds.iter().map(|irqfd| irqfd.trigger.asserted()).sum();
        let by_irq_line = self.irq_line.as_ref().map_or(0, |line| line.counts().asserted);
        GsiCounts {
            asserted: self.asserted_before + by_irqfds + by_irq_line,
            served: self.served.load(Ordering::Relaxed),
            reassigned: self.reassigned,
            refused: self.refused(),
        }
    }

    /// How many irqfds are off because KVM refused to take them back.
    fn refused(&self) -> usize {
        self.irqfds.iter().filter(|irqfd| irqfd.is_refused()).count()
    }

    /// Whether there are any, for those who do not hold the lock of the books.
    pub(crate) fn is_refused(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_refused)
    }

    fn note_refused(&self) {
        self.is_refused.store(self.refused() > 0, Ordering::Relaxed);
    }

    /// What is on the GSI beside KVM_IRQ_LINE, in words: "2 of a resample irqfd".
    pub(crate) fn describe(&self) -> Vec<String> {
        use BindingKind::{Edge, Notify, Resample, Split};
        let count = |kind| self.irqfds.iter().filter(|irqfd| irqfd.kind == kind).count();
        let mut described = Vec::new();
        for kind in [Edge, Resample, Split, Notify] {
            match count(kind) {
                0 => {}
                1 => described.push(kind.to_string()),
                more => described.push(format!("{more} of {kind}")),
            }
        }
        if self.refused() > 0 {
            described.push(format!("{} of them refused by KVM", self.refused()));
        }
        described
    }

    /// What asserts here, if anything does: a notifier does not.
    pub(crate) fn drivers(&self) -> impl Iterator<Item = BindingKind> {
        let irqfds = self.irqfds.iter().map(|irqfd| irqfd.kind);
        let irq_line = self.irq_line.iter().map(|_| BindingKind::IrqLine);
        irqfds.chain(irq_line).filter(|kind| *kind != BindingKind::Notify)
    }

    /// Whether something uses the GSI in this way. A callback is a listener whether its irqfd is made yet or not.
    pub(crate) fn has(&self, kind: BindingKind) -> bool {
        let listened = kind == BindingKind::Notify && !self.watchers.is_empty();
        listened || self.irqfds.iter().any(|irqfd| irqfd.kind == kind)
    }

    /// Whether KVM has to report the EOIs of the GSI.
    pub(crate) fn has_resampler(&self) -> bool {
        self.irqfds.iter().any(Irqfd::is_resampler)
    }

    pub(crate) fn find(&mut self, token: u64) -> Option<&mut Irqfd> {
        self.irqfds.iter_mut().find(|irqfd| irqfd.token == token)
    }

    pub(crate) fn find_key(&self, key: SourceKey) -> Option<&Irqfd> {
        self.irqfds.iter().find(|irqfd| irqfd.key == Some(key))
    }

    /// Assigns an irqfd, if the pin's mask allows, and takes it up. After an error `irqfd` is still the caller's.
    pub(crate) fn add(
        &mut self,
        assigner: &Assigner,
        gsi: Gsi,
        token: u64,
        irqfd: &mut Option<Irqfd>,
        pin_masked: bool,
    ) -> Result<()> {
        if let Some(new) = irqfd {
            new.token = token;
            let wanted = !self.is_suspended && is_wanted(new, pin_masked);
            assigner.bind(new, gsi, wanted)?;
            self.irqfds.extend(irqfd.take());
        }
        Ok(())
    }

    /// Adds a KVM_IRQ_LINE source.
    pub(crate) fn add_source(&mut self, assigner: &Assigner, gsi: Gsi, token: u64) -> Arc<IrqLine> {
        self.sources.push(token);
        let line = || IrqLinePin::line(gsi, &assigner.kernel);
        Arc::clone(self.irq_line.get_or_insert_with(line))
    }

    /// Adds a callback that has to be served.
    pub(crate) fn add_watcher(&mut self, token: u64) {
        self.watchers.push(token);
    }

    /// The callbacks that listen to the GSI, if there is a watch.
    pub(crate) fn listeners(&self) -> Option<Listeners> {
        self.watch.as_ref().map(|watch| watch.resampled.listeners.clone())
    }

    /// Makes the watch, or ends it, as what is on the line now needs it: a callback does, and KVM_IRQ_LINE beside a
    /// resampler. Fails only where a watch is to be made.
    pub(crate) fn settle_watch(
        &mut self,
        assigner: &Assigner,
        dispatcher: &Arc<Dispatcher>,
        gsi: Gsi,
        token: u64,
        afterwards: &mut Afterwards,
    ) -> Result<()> {
        let own = self.watch.as_ref().map(|watch| watch.irqfd);
        let listened = self
            .irqfds
            .iter()
            .any(|irqfd| irqfd.is_resampler() && Some(irqfd.token) != own);
        let needed = !self.watchers.is_empty() || self.irq_line.is_some() && listened;
        match &self.watch {
            Some(watch) if needed => {
                let before = watch.resampled.line.swap(self.irq_line.clone());
                afterwards.drop.extend(before.map(Gone::Line));
            }
            Some(watch) => {
                let irqfd = watch.irqfd;
                afterwards.drop.extend(self.watch.take().map(Gone::Watch));
                self.remove_irqfd(assigner, gsi, irqfd, afterwards);
            }
            None if needed => {
                const OPERATION: &str = "KVM_IRQFD";
                let told = Told::new(Eventfd::new(&*assigner.kernel, gsi)?, OPERATION, gsi)?;
                let resampled = Resampled::new(gsi, self.irq_line.clone(), Arc::clone(&self.served));
                let serve = Arc::clone(&resampled);
                let action = Arc::new(move || serve.serve());
                let _watch = dispatcher.watch(&*assigner.kernel, gsi, Arc::clone(&told), action)?;
                let trigger = Arc::new(Eventfd::new(&*assigner.kernel, gsi)?);
                let irqfd = Irqfd::new(BindingKind::Notify, gsi, None, trigger, ResampleFd::Fd(told))?;
                self.add(assigner, gsi, token, &mut Some(irqfd), false)?;
                self.watch = Some(ResampleWatch {
                    _watch,
                    irqfd: token,
                    resampled,
                });
            }
            None => {}
        }
        Ok(())
    }

    /// Takes an irqfd, a KVM_IRQ_LINE source or a callback away, and with it what it asserted.
    pub(crate) fn remove(&mut self, assigner: &Assigner, gsi: Gsi, token: u64, afterwards: &mut Afterwards) {
        self.watchers.retain(|other| *other != token);
        self.sources.retain(|other| *other != token);
        if self.sources.is_empty() {
            if let Some(line) = self.irq_line.take() {
                // Lowers the line again only if KVM refused to lower it when the source was dropped.
                drop(line.while_low(|_| ()));
                afterwards.drop.push(Gone::Line(line));
            }
        }
        self.remove_irqfd(assigner, gsi, token, afterwards);
    }

    fn remove_irqfd(&mut self, assigner: &Assigner, gsi: Gsi, token: u64, afterwards: &mut Afterwards) {
        let Some(at) = self.irqfds.iter().position(|irqfd| irqfd.token == token) else {
            return;
        };
        let mut gone = self.irqfds.remove(at);
        self.asserted_before += gone.trigger.asserted();
        assigner.deassign(&mut gone, gsi);
        // KVM lowers the line with the last resampler only. What KVM refuses to take back is marked.
        if gone.kind == BindingKind::Resample && !self.irqfds.is_empty() {
            self.deassign_all(assigner, gsi);
            drop(self.assign_all(assigner, gsi, false, afterwards));
        }
        afterwards.drop.push(Gone::Irqfd(gone));
    }

    pub(crate) fn deassign_all(&mut self, assigner: &Assigner, gsi: Gsi) {
        for irqfd in &mut self.irqfds {
            assigner.deassign(irqfd, gsi);
        }
    }

    /// Deassigns every irqfd, until [`resume`](Self::resume).
    pub(crate) fn suspend(&mut self, assigner: &Assigner, gsi: Gsi) {
        self.is_suspended = true;
        self.deassign_all(assigner, gsi);
    }

    /// Ends [`suspend`](Self::suspend), as [`assign_all`](Self::assign_all) does.
    pub(crate) fn resume(
        &mut self,
        assigner: &Assigner,
        gsi: Gsi,
        pin_masked: bool,
        afterwards: &mut Afterwards,
    ) -> Result<()> {
        self.is_suspended = false;
        self.assign_all(assigner, gsi, pin_masked, afterwards)
    }

    /// Assigns every irqfd that is off, as far as the masks allow, and asks for the levels: KVM keeps one assertion for
    /// all resample irqfds, which went when they were all deassigned. Goes through all, and returns the first error.
    pub(crate) fn assign_all(
        &mut self,
        assigner: &Assigner,
        gsi: Gsi,
        pin_masked: bool,
        afterwards: &mut Afterwards,
    ) -> Result<()> {
        self.reassigned += u64::from(!self.irqfds.is_empty());
        afterwards.ask.extend(self.irqfds.iter().filter_map(Irqfd::told));
        self.settle_masks(assigner, gsi, pin_masked)
    }

    /// Drops what devices have signalled while their irqfds were off. The first error is returned; all are gone through.
    pub(crate) fn drop_waiting(&mut self, gsi: Gsi) -> Result<()> {
        let mut dropped = Ok(());
        for irqfd in &mut self.irqfds {
            dropped = dropped.and(irqfd.drop_waiting());
        }
        dropped.map_err(|error| Error::os("read(trigger)", gsi, error))
    }

    /// Assigns what is to be on and is off, and deassigns what is to be off and is on.
    pub(crate) fn settle_masks(&mut self, assigner: &Assigner, gsi: Gsi, pin_masked: bool) -> Result<()> {
        let mut settled = Ok(());
        for irqfd in &mut self.irqfds {
            if !self.is_suspended && is_wanted(irqfd, pin_masked) {
                settled = settled.and(assigner.assign(irqfd, gsi));
            } else {
                assigner.deassign(irqfd, gsi);
            }
        }
        self.note_refused();
        settled.map_err(|error| Error::new("KVM_IRQFD", gsi, Reason::Refused(error)))
    }

    /// Makes a listener the resamplefd of a source.
    pub(crate) fn exchange(&mut self, assigner: &Assigner, gsi: Gsi, token: u64, told: Arc<Told>) -> io::Result<()> {
        let Some(irqfd) = self.find(token) else {
            return Ok(());
        };
        let exchanged = assigner.exchange(irqfd, gsi, ResampleFd::Fd(told));
        self.note_refused();
        exchanged
    }

    /// Ends the listener of a source, unless another one has taken its place.
    pub(crate) fn discard(
        &mut self,
        assigner: &Assigner,
        gsi: Gsi,
        token: u64,
        told: &Weak<Told>,
        afterwards: &mut Afterwards,
    ) {
        let Some(irqfd) = self.find(token) else { return };
        if !irqfd
            .told()
            .is_some_and(|now| Weak::ptr_eq(&Arc::downgrade(&now), told))
        {
            return;
        }
        let lowered = assigner.discard(irqfd, gsi);
        if lowered {
            afterwards.ask.extend(self.irqfds.iter().filter_map(Irqfd::told));
        }
        self.note_refused();
    }
}

/// Whether an irqfd is to be assigned. What is signalled while it is off waits in the trigger.
fn is_wanted(irqfd: &Irqfd, pin_masked: bool) -> bool {
    let by_pin = matches!(irqfd.kind, BindingKind::Split | BindingKind::Edge);
    !(irqfd.masked || pin_masked && by_pin)
}
