// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A line's level, and the controller's answer to an assertion.

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

/// The controller's answer to an assertion, for statistics and tick catch-up. A device needs no answer to be correct: a
/// level stays high until the guest has served it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The path cannot tell (an eventfd carries nothing back).
    Unknown,
    /// An interrupt was sent to this many destinations.
    Delivered(u32),
    /// The line was high already; nothing new happened.
    Coalesced,
    /// The controller keeps the level and sends nothing now: the pin is masked, or its interrupt is in service.
    Pending,
}

/// What ends a source's contribution in the ordinary course.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoweredBy {
    /// The device, by [`LevelSource::deassert`](crate::LevelSource::deassert). An EOI leaves the contribution as it is.
    Device,
    /// The EOI. The controller lowers the contribution before any listener is told; a device whose cause persists asserts
    /// again from its listener. A resample irqfd works in this way.
    Eoi,
}
