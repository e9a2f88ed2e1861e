// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kinds of binding that a GSI can have.

use std::fmt;

/// What a GSI is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BindingKind {
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

impl fmt::Display for BindingKind {
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
