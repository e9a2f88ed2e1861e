// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controller's side of a line.

use std::fmt;

use crate::{Delivery, Level, Result};

/// An input of an interrupt controller, as a [`Line`](crate::Line) drives it. Devices never use it: they would overwrite
/// each other's level. They use a [`LevelSource`](crate::LevelSource).
///
/// Driving comes in two steps, because only the first may run under the line's lock. A controller that sent its message from
/// [`drive`](Self::drive) would deadlock when the receiver ends the interrupt at once, as a LAPIC with auto-EOI does.
pub trait Pin: fmt::Debug + Send + Sync {
    /// What `drive` leaves to be done.
    type Outcome;

    /// Takes over the level. Called in the order in which the line's level changes, under the line's lock: it must not call
    /// back into the line.
    ///
    /// # Errors
    /// Whatever keeps the controller from taking the level; the line then counts as not driven and tries again at its next
    /// change.
    fn drive(&self, level: Level) -> Result<Self::Outcome>;

    /// Does what followed from the level: sends the message, wakes the processor. Called without a lock.
    ///
    /// # Errors
    /// Whatever keeps the interrupt from being sent. The level is taken over all the same.
    fn deliver(&self, outcome: Self::Outcome) -> Result<Delivery>;
}
