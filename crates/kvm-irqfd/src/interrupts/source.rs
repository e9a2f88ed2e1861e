// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources: a level on an irqfd, a level on KVM_IRQ_LINE, and an edge irqfd.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use interrupt_core::{Delivery, Gsi, LevelSource, LineSource, LoweredBy, SourceKey};

use crate::books::{Binding, Books};
use crate::error::{Error, Result};
use crate::kernel::eventfd::Eventfd;
use crate::kind::BindingKind;
use crate::line::irq_line::IrqLinePin;
use crate::line::irqfd::{Irqfd, ResampleFd};

/// A level source on an irqfd: a resample irqfd, or an irqfd on a level-triggered message.
struct IrqfdSource {
    binding: Binding,
    kind: BindingKind,
    key: SourceKey,
    label: String,
    trigger: Arc<Eventfd>,
}

pub(crate) fn irqfd(
    books: &Arc<Books>,
    kind: BindingKind,
    gsi: Gsi,
    label: String,
    trigger: Eventfd,
) -> Result<Arc<dyn LevelSource>> {
    let (key, trigger) = (SourceKey::new(gsi), Arc::new(trigger));
    let resamplefd = match kind {
        BindingKind::Resample => ResampleFd::Discarded,
        _ => ResampleFd::None,
    };
    let irqfd = Irqfd::new(kind, gsi, Some(key), Arc::clone(&trigger), resamplefd)?;
    Ok(Arc::new(IrqfdSource {
        binding: Binding::new(books, gsi, books.add(gsi, irqfd)?),
        kind,
        key,
        label,
        trigger,
    }))
}

impl LevelSource for IrqfdSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        let asserted = signal(&self.binding, &self.trigger, Eventfd::assert);
        asserted.map_err(|error| error.into_core("assert", self.gsi()))?;
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> interrupt_core::Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        let lowered = self.binding.books.lower(self.gsi(), self.binding.token);
        lowered.map_err(|error| error.into_core("force_deassert", self.gsi()))
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}

impl fmt::Debug for IrqfdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.to_string();
        let kind = kind.trim_start_matches("a ").trim_start_matches("an ");
        write!(f, "{} on {}: {kind}", self.label, self.gsi())
    }
}

/// Signals a trigger, and tries again what KVM has refused on its line.
fn signal(binding: &Binding, trigger: &Eventfd, how: fn(&Eventfd) -> io::Result<()>) -> Result<()> {
    how(trigger).map_err(|error| Error::os("write(trigger)", binding.gsi, error))?;
    binding.mend()
}

/// A level source over KVM_IRQ_LINE: synchronous, without the work-queue hop of an irqfd, and lowered by the device
/// alone.
pub(crate) struct IrqLineSource {
    // First: the source ends its assertion before the books let go of the line.
    pub(crate) source: LineSource<IrqLinePin>,
    pub(crate) binding: Binding,
}

impl IrqLineSource {
    /// Enters a source in the books. The source comes to its line when the result is called with a label: books and line
    /// have a lock each.
    pub(crate) fn enter(books: &Arc<Books>, gsi: Gsi) -> Result<impl FnOnce(String) -> Self + use<>> {
        let (line, token) = books.add_line_source(gsi)?;
        let binding = Binding::new(books, gsi, token);
        Ok(move |label| Self {
            source: line.source(label, LoweredBy::Device),
            binding,
        })
    }
}

pub(crate) fn irq_line(books: &Arc<Books>, gsi: Gsi, label: String) -> Result<Arc<dyn LevelSource>> {
    Ok(Arc::new(IrqLineSource::enter(books, gsi)?(label)))
}

impl LevelSource for IrqLineSource {
    fn key(&self) -> SourceKey {
        self.source.key()
    }

    fn label(&self) -> &str {
        self.source.label()
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        let mended = self.binding.mend();
        mended.map_err(|error| error.into_core("assert", self.gsi()))?;
        self.source.assert()
    }

    fn deassert(&self) -> interrupt_core::Result<()> {
        self.source.deassert()
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        self.source.force_deassert()
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl fmt::Debug for IrqLineSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// An edge irqfd, on a pin or on an MSI route: each signal of its eventfd is an event of its own. Several signals
/// before the guest takes the first are one interrupt. A signal while the guest has masked a pin of the in-kernel
/// IOAPIC is lost, as on hardware; on a pin of a userspace IOAPIC (split irqchip) the signal waits for the unmask.
///
/// [`mask`](Self::mask) and [`unmask`](Self::unmask) are the mask and pending bits of an MSI or MSI-X vector: what is
/// signalled while the irqfd is masked is one interrupt at the unmask.
///
/// Dropping this deassigns the irqfd. A signal that comes later stays in the eventfd.
pub struct EdgeIrqfd {
    binding: Binding,
    trigger: Arc<Eventfd>,
}

impl EdgeIrqfd {
    pub(crate) fn new(books: &Arc<Books>, gsi: Gsi, trigger: Eventfd) -> Result<Self> {
        let trigger = Arc::new(trigger);
        let irqfd = Irqfd::new(BindingKind::Edge, gsi, None, Arc::clone(&trigger), ResampleFd::None)?;
        let binding = Binding::new(books, gsi, books.add(gsi, irqfd)?);
        Ok(Self { binding, trigger })
    }

    /// The line that the irqfd is on.
    pub fn gsi(&self) -> Gsi {
        self.binding.gsi
    }

    /// Raises the interrupt.
    ///
    /// # Errors
    /// [`Reason::Os`](crate::Reason::Os) when the eventfd cannot be written.
    /// [`Reason::Refused`](crate::Reason::Refused) when KVM had refused to take the irqfd back and refuses again: the
    /// signal waits.
    pub fn signal(&self) -> Result<()> {
        signal(&self.binding, &self.trigger, Eventfd::signal)
    }

    /// Masks the interrupt. When this returns nothing is injected any more; a signal stays in the eventfd.
    ///
    /// While the interrupt is masked, a poll of [`trigger`](Self::trigger) says whether a signal waits: the pending bit
    /// that the guest reads, and that a snapshot keeps. After a restore, [`signal`](Self::signal) a new irqfd that is
    /// masked, then unmask it.
    pub fn mask(&self) {
        // Nothing is assigned by this, so that nothing can be refused.
        drop(self.set_masked(true));
    }

    /// Ends [`mask`](Self::mask), and raises one interrupt if the eventfd was signalled meanwhile; a message is
    /// injected before this returns.
    ///
    /// # Errors
    /// [`Reason::Refused`](crate::Reason::Refused) when KVM refuses to take the irqfd back. What was signalled waits,
    /// and the next [`signal`](Self::signal) or `unmask` tries again.
    pub fn unmask(&self) -> Result<()> {
        self.set_masked(false)
    }

    fn set_masked(&self, masked: bool) -> Result<()> {
        let Binding { books, gsi, token, .. } = &self.binding;
        books.change_irqfd(*gsi, *token, |irqfd| irqfd.masked = masked)
    }

    /// The eventfd whose write raises the interrupt.
    pub fn trigger(&self) -> BorrowedFd<'_> {
        self.trigger.as_fd()
    }
}

impl fmt::Debug for EdgeIrqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: edge irqfd", self.gsi())
    }
}

/// For vm-superio's devices: each call is a pulse.
#[cfg(feature = "vm-superio")]
impl vm_superio::Trigger for EdgeIrqfd {
    type E = Error;

    fn trigger(&self) -> Result<()> {
        self.signal()
    }
}
