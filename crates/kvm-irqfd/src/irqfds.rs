// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All irqfds of one GSI: the one place that assigns and deassigns them.

use std::fmt;
use std::sync::{Arc, Weak};

use interrupt_core::{Gsi, Line, SourceKey};
use kvm_ioctls::VmFd;

use crate::event::{Claim, Event};
use crate::irq_line::IrqLinePin;
use crate::{Error, Result};

/// What a GSI is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// An edge irqfd: each signal is a pulse.
    Edge,
    /// A level source on a resample irqfd.
    Resample,
    /// A level source on a split irqchip: an irqfd on a level-triggered message.
    Split,
    /// Level sources on KVM_IRQ_LINE.
    IrqLine,
    /// A resample irqfd that is never triggered, for its resamplefd alone.
    Notify,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "an edge irqfd",
            Self::Resample => "a resample irqfd",
            Self::Split => "an irqfd on a level MSI",
            Self::IrqLine => "KVM_IRQ_LINE",
            Self::Notify => "an EOI notifier",
        })
    }
}

/// Who hears of an irqfd's EOIs.
#[derive(Clone, Debug)]
pub(crate) enum Resample {
    /// It is an edge irqfd: KVM reports none.
    Never,
    /// Nobody. KVM wants a resamplefd all the same; it gets one that is closed again at once, which it allows for: it holds a
    /// reference of its own, and goes on lowering the line at each EOI.
    Unheard,
    /// This eventfd.
    Heard(Arc<Event>),
}

/// One irqfd, with everything that its deassign needs.
#[derive(Debug)]
pub(crate) struct Irqfd {
    // First, so that it is given back before the eventfd is closed: the kernel gives the number to another one then.
    _claim: Claim,
    pub(crate) token: u64,
    pub(crate) purpose: Use,
    pub(crate) trigger: Arc<Event>,
    pub(crate) resample: Resample,
    pub(crate) key: Option<SourceKey>,
    /// A listener is bound by key.
    pub(crate) has_listener: bool,
    /// It is not to be assigned now, and what its trigger counts waits: the pin is masked, or leads nowhere.
    held_back: bool,
}

impl Irqfd {
    /// An irqfd that is still to be added to its GSI. Its trigger is this binding's from here on.
    pub(crate) fn new(token: u64, purpose: Use, gsi: Gsi, trigger: Arc<Event>, resample: Resample) -> Result<Self> {
        let claim = Claim::new(&trigger, "KVM_IRQFD", gsi)?;
        Ok(Self {
            _claim: claim,
            token,
            purpose,
            trigger,
            resample,
            key: None,
            has_listener: false,
            held_back: false,
        })
    }

    fn assign(&self, vm: &VmFd, gsi: Gsi) -> Result<()> {
        if self.held_back {
            return Ok(());
        }
        let trigger = self.trigger.eventfd();
        let assigned = match &self.resample {
            Resample::Never => vm.register_irqfd(trigger, gsi.0),
            Resample::Unheard => {
                let closed_again = Event::new(gsi)?;
                vm.register_irqfd_with_resample(trigger, closed_again.eventfd(), gsi.0)
            }
            Resample::Heard(event) => vm.register_irqfd_with_resample(trigger, event.eventfd(), gsi.0),
        };
        assigned.map_err(|error| Error::os("KVM_IRQFD", gsi, error))?;
        // A count that was there at the assign has been injected, but KVM leaves it in the counter until the next write, where a
        // later assign would inject it again. What is written after the assign is KVM's at once and cannot be taken here.
        self.trigger
            .take()
            .map_err(|error| Error::os("read(trigger)", gsi, error))?;
        Ok(())
    }

    /// When it returns, a signal on the trigger is not injected any more, and stays in its counter. Does nothing to one that is not
    /// assigned.
    fn deassign(&self, vm: &VmFd, gsi: Gsi) -> Result<()> {
        vm.unregister_irqfd(self.trigger.eventfd(), gsi.0)
            .map_err(|error| Error::os("KVM_IRQFD(deassign)", gsi, error))
    }

    /// Tells whoever hears of its EOIs to state its level.
    fn tell(&self, gsi: Gsi) -> Result<()> {
        match &self.resample {
            Resample::Heard(event) => event.signal().map_err(|e| Error::os("write(resamplefd)", gsi, e)),
            Resample::Never | Resample::Unheard => Ok(()),
        }
    }
}

/// The line object of one GSI: every irqfd on it in the order of assignment, and the line that KVM_IRQ_LINE drives, if there
/// is one. Nothing else drives the GSI.
#[derive(Debug, Default)]
pub(crate) struct GsiLine {
    irqfds: Vec<Irqfd>,
    irq_line: Weak<Line<IrqLinePin>>,
    /// How often this process has asserted by irqfds that are gone.
    asserted_before: u64,
    /// How often all irqfds were taken off and put on again.
    reassigned: u64,
}

impl GsiLine {
    pub(crate) fn is_unused(&self) -> bool {
        self.irqfds.is_empty() && self.irq_line.strong_count() == 0
    }

    pub(crate) fn irq_line(&self) -> Option<Arc<Line<IrqLinePin>>> {
        self.irq_line.upgrade()
    }

    pub(crate) fn set_irq_line(&mut self, line: &Arc<Line<IrqLinePin>>) {
        self.irq_line = Arc::downgrade(line);
    }

    /// How often this process has asserted by irqfds.
    pub(crate) fn asserted(&self) -> u64 {
        let now: u64 = self.irqfds.iter().map(|irqfd| irqfd.trigger.asserted()).sum();
        self.asserted_before + now
    }

    pub(crate) fn reassigned(&self) -> u64 {
        self.reassigned
    }

    /// What is on the GSI beside KVM_IRQ_LINE, in words: "2 resample irqfds".
    pub(crate) fn describe(&self) -> Vec<String> {
        let kinds = [Use::Edge, Use::Resample, Use::Split, Use::Notify];
        let count = |kind| self.irqfds.iter().filter(|irqfd| irqfd.purpose == kind).count();
        let found = kinds.into_iter().map(|kind| (kind, count(kind)));
        found
            .filter_map(|(kind, count)| match count {
                0 => None,
                1 => Some(kind.to_string()),
                more => Some(format!("{more} of {kind}")),
            })
            .collect()
    }

    pub(crate) fn irqfds(&self) -> &[Irqfd] {
        &self.irqfds
    }

    pub(crate) fn find(&mut self, token: u64) -> Option<&mut Irqfd> {
        self.irqfds.iter_mut().find(|irqfd| irqfd.token == token)
    }

    pub(crate) fn find_key(&self, key: SourceKey) -> Option<&Irqfd> {
        self.irqfds.iter().find(|irqfd| irqfd.key == Some(key))
    }

    /// Whether any irqfd makes KVM look for a resampler.
    pub(crate) fn has_resampler(&self) -> bool {
        self.irqfds
            .iter()
            .any(|irqfd| !matches!(irqfd.resample, Resample::Never))
    }

    /// Law 2: what may be on one GSI together. KVM keeps one assertion for all resample irqfds, and another one for edge irqfds
    /// and KVM_IRQ_LINE together, which the end of an edge's pulse takes away. A notifier asserts nothing.
    pub(crate) fn check(&self, gsi: Gsi, wants: Use) -> Result<()> {
        let irq_line = (self.irq_line.strong_count() > 0).then_some(Use::IrqLine);
        let uses = self.irqfds.iter().map(|irqfd| irqfd.purpose).chain(irq_line);
        for has in uses {
            if has != wants && has != Use::Notify && wants != Use::Notify {
                return Err(Error::MixedUse { gsi, has, wants });
            }
        }
        Ok(())
    }

    /// Assigns an irqfd and takes it up. `held_back` says how the pin is, for irqfds that wait while it is masked.
    pub(crate) fn add(&mut self, vm: &VmFd, gsi: Gsi, mut irqfd: Irqfd, held_back: bool) -> Result<()> {
        if irqfd.purpose == Use::Split {
            irqfd.held_back = held_back;
        }
        // A pending count would be injected at the assign, whatever it meant before.
        irqfd.trigger.take().map_err(|e| Error::os("read(trigger)", gsi, e))?;
        irqfd.assign(vm, gsi)?;
        self.irqfds.push(irqfd);
        Ok(())
    }

    /// Takes an irqfd away, and with it what it asserted.
    pub(crate) fn remove(&mut self, vm: &VmFd, gsi: Gsi, token: u64) -> Result<()> {
        let Some(at) = self.irqfds.iter().position(|irqfd| irqfd.token == token) else {
            return Ok(());
        };
        self.asserted_before += self.irqfds[at].trigger.asserted();
        let asserts = self.irqfds[at].purpose == Use::Resample;
        let shared = self.irqfds.len() > 1;
        if asserts && shared {
            // KVM lowers the line with the last resampler only.
            return self.while_deassigned(vm, gsi, |line| drop(line.irqfds.remove(at)));
        }
        let gone = self.irqfds.remove(at);
        gone.deassign(vm, gsi)
    }

    /// Lowers what `token` asserts. The others of the line are told to state their levels, since KVM keeps one assertion for all.
    pub(crate) fn lower(&mut self, vm: &VmFd, gsi: Gsi, token: u64) -> Result<()> {
        let mut taken = Ok(0);
        self.while_deassigned(vm, gsi, |line| {
            if let Some(irqfd) = line.find(token) {
                taken = irqfd.trigger.take();
            }
        })?;
        taken.map(drop).map_err(|e| Error::os("read(trigger)", gsi, e))
    }

    /// Runs `change` while no irqfd of the GSI is assigned, which lowers the line, then assigns them again and tells every one who
    /// hears of EOIs to state its level. A trigger that is signalled meanwhile keeps its count, which the assign injects.
    pub(crate) fn while_deassigned<R>(
        &mut self,
        vm: &VmFd,
        gsi: Gsi,
        change: impl FnOnce(&mut Self) -> R,
    ) -> Result<R> {
        let off = self.deassign_all(vm, gsi);
        let result = change(self);
        let on = self.assign_all(vm, gsi);
        off.and(on).map(|()| result)
    }

    /// Whether the pin of a userspace IOAPIC has an irqfd.
    pub(crate) fn has_split_source(&self) -> bool {
        self.irqfds.iter().any(|irqfd| irqfd.purpose == Use::Split)
    }

    /// Says whether the irqfds of a userspace IOAPIC's pin are to wait, the next time they are assigned.
    pub(crate) fn set_held_back(&mut self, held_back: bool) {
        for irqfd in &mut self.irqfds {
            irqfd.held_back = held_back && irqfd.purpose == Use::Split;
        }
    }

    pub(crate) fn deassign_all(&self, vm: &VmFd, gsi: Gsi) -> Result<()> {
        first_error(self.irqfds.iter().map(|irqfd| irqfd.deassign(vm, gsi)))
    }

    pub(crate) fn assign_all(&mut self, vm: &VmFd, gsi: Gsi) -> Result<()> {
        self.reassigned += u64::from(!self.irqfds.is_empty());
        let assigned = first_error(self.irqfds.iter().map(|irqfd| irqfd.assign(vm, gsi)));
        // Only now: whoever is told may assert at once, and all of them share one assertion.
        let told = first_error(self.irqfds.iter().map(|irqfd| irqfd.tell(gsi)));
        assigned.and(told)
    }

    /// Changes who hears of an irqfd's EOIs, with the line as it is: another resampler, which is never triggered, stands in while
    /// the irqfd is away, so that KVM does not lower the line and an EOI in between is heard by `resample` too.
    pub(crate) fn set_resample(&mut self, vm: &VmFd, gsi: Gsi, token: u64, resample: Resample) -> Result<()> {
        let stand_in = Irqfd::new(token, Use::Notify, gsi, Arc::new(Event::new(gsi)?), resample.clone())?;
        let Some(irqfd) = self.find(token) else {
            return Ok(());
        };
        stand_in.assign(vm, gsi)?;
        let changed = irqfd.deassign(vm, gsi).and_then(|()| {
            let old = std::mem::replace(&mut irqfd.resample, resample);
            let assigned = irqfd.assign(vm, gsi);
            if assigned.is_err() {
                irqfd.resample = old;
                // The error that is returned is the one that matters; this is the attempt to be as before.
                drop(irqfd.assign(vm, gsi));
            }
            assigned
        });
        let removed = stand_in.deassign(vm, gsi);
        changed.and(removed)
    }
}

/// Goes through all of them and returns the first error: a step that fails keeps the others from nothing.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}
