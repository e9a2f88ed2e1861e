// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A line's level, and what is known of an interrupt after a level was driven.

use std::fmt;

/// The logical level of a line: `High` means asserted, whatever the voltage. Polarity is the controller's matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// No source asserts the line.
    #[default]
    Low,
    /// At least one source asserts the line.
    High,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::High => "high",
        })
    }
}

/// What the controller said became of an assertion. It is information for statistics and tick catch-up; a level
/// source needs none of it to be correct, because a level that nobody took stays up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The path cannot tell (an eventfd carries nothing back).
    Unknown,
    /// An interrupt was sent to this many destinations.
    Delivered(u32),
    /// The line was high already; nothing new happened.
    Coalesced,
    /// The controller took note of the level but sends nothing now: the pin is masked, or in service.
    Pending,
}

/// Who ends a source's contribution in the ordinary course.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoweredBy {
    /// The device, by [`LevelSource::deassert`](crate::LevelSource::deassert). An EOI leaves the contribution as it is.
    Device,
    /// The controller, at the EOI and before any listener hears of it; a device whose cause persists asserts again
    /// from its listener. This is what a resample irqfd does.
    Eoi,
}
