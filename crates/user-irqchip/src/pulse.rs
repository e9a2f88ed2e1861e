// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A level source that an EOI lowers, on a pin whose EOI may never be reported.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use interrupt_core::{Delivery, LevelSource, Line, LineSource, Pin, Result, SourceKey};

/// A pin that can be edge-triggered.
pub(crate) trait Pulse: Pin {
    /// The pin sends rising edges now: it is edge-triggered and not masked.
    fn is_open_edge(&self) -> bool;
}

/// A source that an EOI lowers, which makes one rising edge of each assertion while its pin is edge-triggered: on a
/// split irqchip KVM tells of the EOIs of level-triggered interrupts only, and the line would stay high for ever.
pub(crate) struct PulsingSource<P: Pulse> {
    pub(crate) source: LineSource<P>,
    pub(crate) line: Arc<Line<P>>,
}

impl<P: Pulse> LevelSource for PulsingSource<P> {
    fn key(&self) -> SourceKey {
        self.source.key()
    }

    fn label(&self) -> &str {
        self.source.label()
    }

    fn assert(&self) -> Result<Delivery> {
        let Self { source, line } = self;
        let mut delivery = source.assert()?;
        if line.pin().is_open_edge() {
            if delivery == Delivery::Coalesced {
                // The source asserted before the guest made this pin an edge pin, so the line has to fall first.
                source.deassert()?;
                delivery = source.assert()?;
            }
            source.deassert()?;
        }
        Ok(delivery)
    }

    fn deassert(&self) -> Result<()> {
        self.source.deassert()
    }

    fn force_deassert(&self) -> Result<()> {
        self.source.force_deassert()
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        self.source.trigger()
    }
}

impl<P: Pulse> fmt::Debug for PulsingSource<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}
