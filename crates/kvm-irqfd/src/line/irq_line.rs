// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pin that KVM_IRQ_LINE drives.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::{Delivery, Error, Gsi, Level, Line, Pin, WiredOr};

use crate::kernel::Kernel;

/// The line that all KVM_IRQ_LINE sources of a GSI share, so that the ioctl states their OR.
pub(crate) type IrqLine = Line<IrqLinePin>;

/// The GSI as KVM_IRQ_LINE sees it.
pub(crate) struct IrqLinePin {
    gsi: Gsi,
    kernel: Arc<dyn Kernel>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    or: WiredOr,
    /// The route of the GSI changes: the pin stays low, and the level is driven after the change.
    is_held: bool,
}

/// Lowers the line until [`release`], because KVM would keep the level on the old pin for ever.
pub(crate) fn hold(line: &IrqLine) -> interrupt_core::Result<()> {
    line.while_low(|state| state.is_held = true)
}

/// Drives the level that the line has now.
pub(crate) fn release(line: &IrqLine) -> interrupt_core::Result<()> {
    line.while_low(|state| state.is_held = false)
}

impl IrqLinePin {
    pub(crate) fn line(gsi: Gsi, kernel: &Arc<dyn Kernel>) -> Arc<IrqLine> {
        let kernel = Arc::clone(kernel);
        let state = Mutex::default();
        Line::new(gsi, Self { gsi, kernel, state })
    }
}

impl Pin for IrqLinePin {
    type State = State;
    type Outcome = Delivery;

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wired_or<'a>(&self, state: &'a mut State) -> &'a mut WiredOr {
        &mut state.or
    }

    fn drive(&self, state: &mut State, level: Level) -> interrupt_core::Result<Delivery> {
        if state.is_held {
            return Ok(Delivery::Pending);
        }
        self.kernel.set_irq_line(self.gsi, level).map_err(|source| Error::Os {
            operation: "KVM_IRQ_LINE",
            gsi: self.gsi,
            source,
        })
    }

    fn deliver(&self, outcome: Delivery) -> interrupt_core::Result<Delivery> {
        Ok(outcome)
    }
}

impl fmt::Debug for IrqLinePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by KVM_IRQ_LINE", self.gsi)
    }
}
