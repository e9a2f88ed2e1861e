// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controller's side of a line.

use std::fmt;

use crate::error::Result;
use crate::level::{Delivery, Level};
use crate::sync::MutexGuard;
use crate::wired_or::WiredOr;

/// An input of an interrupt controller, as a [`Line`](crate::Line) drives it. Devices use a
/// [`LevelSource`](crate::LevelSource): two devices that drove a pin would overwrite each other's level.
///
/// The pin has the lock, and the line keeps its part of the state, a [`WiredOr`], under this lock. So an assertion takes
/// one lock, whatever the controller keeps beside. Several pins may share one lock, with a [`WiredOr`] for each.
///
/// Driving comes in two steps, because only the first may run under the lock. A controller that sent its message from
/// [`drive`](Self::drive) would deadlock when the receiver ends the interrupt at once.
pub trait Pin: fmt::Debug + Send + Sync + 'static {
    /// What the pin's lock protects.
    type State;

    /// What `drive` leaves to be done.
    type Outcome;

    /// Takes the pin's lock, also after a panic of another thread that held it.
    fn lock(&self) -> MutexGuard<'_, Self::State>;

    /// The line's part of the state: always the same for one pin.
    fn wired_or<'a>(&self, state: &'a mut Self::State) -> &'a mut WiredOr;

    /// Takes over the level. Called in the order in which the line's level changes, with the pin's lock held: it must
    /// not call back into the line.
    ///
    /// # Errors
    /// Whatever keeps the controller from taking the level. The line then tries again at its next change.
    fn drive(&self, state: &mut Self::State, level: Level) -> Result<Self::Outcome>;

    /// Does what follows from the level: sends the message, wakes the processor. Called without a lock, and for a line that
    /// an EOI has lowered perhaps after eventfds were signalled.
    ///
    /// # Errors
    /// Whatever keeps the interrupt from being sent. The level is taken over all the same.
    fn deliver(&self, outcome: Self::Outcome) -> Result<Delivery>;
}
