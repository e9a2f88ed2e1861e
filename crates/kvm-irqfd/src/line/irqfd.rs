// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One irqfd, and the one place that assigns and deassigns it.

use std::io;
use std::sync::Arc;

use interrupt_core::{Gsi, SourceKey};

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::kernel::eventfd::{Claim, Eventfd};
use crate::kind::BindingKind;

/// An eventfd that KVM signals at an EOI.
pub(crate) struct Told {
    // First, so that the claim is given back before the eventfd is closed: the kernel gives its number to another one
    // then.
    _claim: Claim,
    pub(crate) eventfd: Eventfd,
}

impl Told {
    pub(crate) fn new(eventfd: Eventfd, operation: &'static str, gsi: Gsi) -> Result<Arc<Self>> {
        let _claim = Claim::resamplefd(&eventfd, operation, gsi)?;
        Ok(Arc::new(Self { _claim, eventfd }))
    }
}

/// The eventfd that KVM signals at an EOI of an irqfd.
#[derive(Clone)]
pub(crate) enum ResampleFd {
    /// None: the irqfd is an edge irqfd.
    None,
    /// No listener. KVM still needs a resamplefd: all such irqfds of the VM share one.
    Discarded,
    /// A listener's.
    Fd(Arc<Told>),
}

/// One irqfd, with everything that its deassign needs.
pub(crate) struct Irqfd {
    // First, for the same reason as in `Told`.
    _claim: Claim,
    pub(crate) kind: BindingKind,
    pub(crate) token: u64,
    pub(crate) key: Option<SourceKey>,
    pub(crate) trigger: Arc<Eventfd>,
    pub(crate) resamplefd: ResampleFd,
    /// The owner of an edge irqfd has masked it.
    pub(crate) masked: bool,
    /// The assertions of this process that KVM has surely injected.
    injected: u64,
    assigned: bool,
    /// KVM has refused to take the irqfd back. What is signalled waits in the trigger.
    refused: bool,
}

impl Irqfd {
    /// An irqfd that is still to be added to its GSI. Its trigger is claimed from here on.
    pub(crate) fn new(
        kind: BindingKind,
        gsi: Gsi,
        key: Option<SourceKey>,
        trigger: Arc<Eventfd>,
        resamplefd: ResampleFd,
    ) -> Result<Self> {
        Ok(Self {
            _claim: Claim::trigger(&trigger, "KVM_IRQFD", gsi)?,
            kind,
            token: 0,
            key,
            trigger,
            resamplefd,
            masked: false,
            injected: 0,
            assigned: false,
            refused: false,
        })
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    pub(crate) fn is_resampler(&self) -> bool {
        !matches!(self.resamplefd, ResampleFd::None)
    }

    /// Drops what a device has signalled while the irqfd was off: the device is asked for its level, and signals again if
    /// the level lasts. What this process has asserted stays, because a pulse is not asserted again.
    pub(crate) fn drop_waiting(&mut self) -> io::Result<()> {
        let waits = self.kind == BindingKind::Split && !self.assigned && self.trigger.take()? > 0;
        if waits && self.trigger.asserted() != self.injected {
            self.trigger.signal()
        } else {
            Ok(())
        }
    }

    /// The listener that KVM tells of its EOIs.
    pub(crate) fn told(&self) -> Option<Arc<Told>> {
        match &self.resamplefd {
            ResampleFd::Fd(told) => Some(Arc::clone(told)),
            ResampleFd::None | ResampleFd::Discarded => None,
        }
    }
}

/// Assigns the irqfds of one VM.
pub(crate) struct Assigner {
    pub(crate) kernel: Arc<dyn Kernel>,
    /// The resamplefd of irqfds without a listener. KVM holds references of its own. The counter is never read.
    discarded: Eventfd,
    /// The trigger of the resample irqfd that stands in while another one is exchanged. Made beforehand, so that no
    /// exchange fails for want of an fd.
    stand_in: Eventfd,
}

impl Assigner {
    pub(crate) fn new(kernel: Arc<dyn Kernel>) -> Result<Self> {
        Ok(Self {
            discarded: Eventfd::new(&*kernel, Gsi(0))?,
            stand_in: Eventfd::new(&*kernel, Gsi(0))?,
            kernel,
        })
    }

    fn raw_assign(&self, trigger: &Eventfd, resamplefd: &ResampleFd, gsi: Gsi) -> io::Result<()> {
        let resamplefd = match resamplefd {
            ResampleFd::None => None,
            ResampleFd::Discarded => Some(self.discarded.fd()),
            ResampleFd::Fd(told) => Some(told.eventfd.fd()),
        };
        self.kernel.assign(trigger.fd(), resamplefd, gsi)
    }

    /// Assigns an irqfd for the first time. A count that is pending is discarded (law 5): it would be injected,
    /// whatever it meant before.
    pub(crate) fn bind(&self, irqfd: &mut Irqfd, gsi: Gsi, wanted: bool) -> Result<()> {
        let drained = irqfd.trigger.take();
        drained.map_err(|error| Error::os("read(trigger)", gsi, error))?;
        let bound = if wanted { self.assign(irqfd, gsi) } else { Ok(()) };
        bound.map_err(|error| Error::os("KVM_IRQFD", gsi, error))
    }

    /// Assigns an irqfd, which injects what was signalled while the irqfd was off (law 16).
    pub(crate) fn assign(&self, irqfd: &mut Irqfd, gsi: Gsi) -> io::Result<()> {
        if !irqfd.assigned {
            // KVM would inject a pending count too, but from a work queue: after this has returned, and beside what the
            // device signals next. A signal of a message is injected at once.
            let signalled = irqfd.trigger.signalled();
            let pending = irqfd.trigger.take()? > 0;
            let assigned = self.raw_assign(&irqfd.trigger, &irqfd.resamplefd, gsi);
            irqfd.refused = assigned.is_err();
            if let Err(error) = assigned {
                let put_back = if pending { irqfd.trigger.signal() } else { Ok(()) };
                return Err(put_back.err().unwrap_or(error));
            }
            irqfd.assigned = true;
            irqfd.trigger.set_taken(true);
            // What was signalled since the read above KVM has injected, but leaves in the counter until the next write.
            // A write after the assign is KVM's at once and cannot be taken here.
            irqfd.trigger.take()?;
            if pending {
                irqfd.trigger.signal()?;
            }
            irqfd.injected = signalled;
        }
        Ok(())
    }

    /// When this returns, a signal of the trigger is not injected any more, and stays in its counter.
    pub(crate) fn deassign(&self, irqfd: &mut Irqfd, gsi: Gsi) {
        irqfd.refused = false;
        irqfd.trigger.set_taken(false);
        if std::mem::take(&mut irqfd.assigned) {
            irqfd.injected = irqfd.trigger.signalled();
            self.kernel.deassign(irqfd.trigger.fd(), gsi);
        }
    }

    /// Exchanges the listener of an irqfd, with the line as it is: another resample irqfd, which is never triggered,
    /// stands in meanwhile, so that KVM does not lower the line and tells `resamplefd` of an EOI in between too. If KVM
    /// refuses, the irqfd is as before.
    pub(crate) fn exchange(&self, irqfd: &mut Irqfd, gsi: Gsi, resamplefd: ResampleFd) -> io::Result<()> {
        if irqfd.assigned {
            self.raw_assign(&self.stand_in, &resamplefd, gsi)?;
        }
        let before = std::mem::replace(&mut irqfd.resamplefd, resamplefd);
        let exchanged = self.reassign(irqfd, gsi);
        if exchanged.is_err() {
            irqfd.resamplefd = before;
            // If this fails too, the irqfd is off and marked as refused.
            drop(self.assign(irqfd, gsi));
        }
        self.kernel.deassign(self.stand_in.fd(), gsi);
        exchanged
    }

    /// Ends the listener of an irqfd. Returns whether the line may have been lowered by that: KVM refused the stand-in,
    /// and the listener must not be told again all the same.
    pub(crate) fn discard(&self, irqfd: &mut Irqfd, gsi: Gsi) -> bool {
        let stood_in = irqfd.assigned && self.raw_assign(&self.stand_in, &ResampleFd::Discarded, gsi).is_ok();
        irqfd.resamplefd = ResampleFd::Discarded;
        drop(self.reassign(irqfd, gsi));
        if stood_in {
            self.kernel.deassign(self.stand_in.fd(), gsi);
        }
        !stood_in
    }

    fn reassign(&self, irqfd: &mut Irqfd, gsi: Gsi) -> io::Result<()> {
        if irqfd.assigned {
            self.deassign(irqfd, gsi);
            self.assign(irqfd, gsi)?;
        }
        Ok(())
    }
}
