// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run is put together from, and which combinations cannot work, and why.
//!
//! The names are those of the command line and of the JSON output.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::guest::{Controller, MAX_DEVICES};

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Irqchip {
    /// All in the kernel: 8259 pair, IOAPIC and LAPIC
    Kernel,
}

/// How a device holds its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A resample irqfd: asserted by an eventfd write, lowered by KVM at the EOI
    Resample,
    /// KVM_IRQ_LINE: asserted and lowered by the device; the handler acknowledges it before its EOI
    Line,
}

/// How a device learns of an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Eoi {
    /// By the key of its own source: KVM signals the source's resamplefd
    Resamplefd,
    /// By GSI: notify-only, whoever drives the line
    Gsi,
}

/// How the device side waits for an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Sleeps until it is told
    Block,
    /// Polls until it is told: shortest, and a whole CPU
    Spin,
    /// Polls for a short time that adjusts itself, at most 100 us, then sleeps
    Adaptive,
}

/// What carries a device's interrupt to its line and the EOI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Nothing: the device is a part of the VMM and uses its source and its notifier itself.
    None,
}

/// The interrupting device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// [`crate::device::Device`], a part of this VMM.
    Embedded,
}

/// What a run is put together from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composition {
    /// Where the interrupt controllers are.
    pub irqchip: Irqchip,
    /// The controller that the line goes to.
    pub controller: Controller,
    /// How a device holds its line.
    pub source: Source,
    /// How a device learns of an EOI.
    pub eoi: Eoi,
    /// What lies between device and line.
    pub forward: Forward,
    /// The device.
    pub device: DeviceKind,
    /// How many devices share the GSI.
    pub sharers: usize,
    /// How they wait.
    pub wait: Wait,
}

/// Why a composition cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// A resamplefd belongs to an irqfd.
    #[error("--source line with --eoi resamplefd: a KVM_IRQ_LINE source has no resamplefd; use --eoi gsi")]
    LineHasNoResamplefd,
    /// Nobody to interrupt for.
    #[error("--sharers 0: a line needs at least one device; use --sharers 1")]
    NoSharers,
    /// No room.
    #[error(
        "--sharers {0}: the guest's status page has room for {MAX_DEVICES} devices; use at most --sharers {MAX_DEVICES}"
    )]
    TooManySharers(usize),
}

impl Composition {
    /// The one that `vmm-ref` runs by default on a host where the EOI of `controller` is observable.
    pub fn new(controller: Controller) -> Self {
        Self {
            irqchip: Irqchip::Kernel,
            controller,
            source: Source::Resample,
            eoi: Eoi::Resamplefd,
            forward: Forward::None,
            device: DeviceKind::Embedded,
            sharers: 1,
            wait: Wait::Block,
        }
    }

    /// Whether it can work. This is the only place that decides it; whoever composes may rely on it.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self) -> Result<(), Impossible> {
        match (self.source, self.eoi) {
            (Source::Line, Eoi::Resamplefd) => return Err(Impossible::LineHasNoResamplefd),
            (Source::Line, Eoi::Gsi) | (Source::Resample, Eoi::Resamplefd | Eoi::Gsi) => {}
        }
        match self.sharers {
            0 => Err(Impossible::NoSharers),
            1..=MAX_DEVICES => Ok(()),
            more => Err(Impossible::TooManySharers(more)),
        }
    }

    /// Whether the handler has to acknowledge its devices before the EOI, so that they lower their line themselves.
    pub fn acknowledge(&self) -> bool {
        match self.source {
            Source::Resample => false,
            Source::Line => true,
        }
    }
}

impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "irqchip {}, controller {} ({}), source {}, eoi {}, sharers {}, wait {}",
            name(&self.irqchip),
            name(&self.controller),
            self.controller.gsi(),
            name(&self.source),
            name(&self.eoi),
            self.sharers,
            name(&self.wait),
        )
    }
}

/// The name that a value has on the command line.
pub fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composition(source: Source, eoi: Eoi) -> Composition {
        Composition {
            source,
            eoi,
            ..Composition::new(Controller::Pic)
        }
    }

    #[test]
    fn every_combination_is_decided() {
        let cases = [
            (Source::Resample, Eoi::Resamplefd, Ok(())),
            (Source::Resample, Eoi::Gsi, Ok(())),
            (Source::Line, Eoi::Gsi, Ok(())),
            (Source::Line, Eoi::Resamplefd, Err(Impossible::LineHasNoResamplefd)),
        ];
        assert_eq!(
            cases.len(),
            Source::value_variants().len() * Eoi::value_variants().len()
        );
        for (source, eoi, expected) in cases {
            assert_eq!(composition(source, eoi).check(), expected, "{source:?} {eoi:?}");
        }
    }

    #[test]
    fn sharers_have_both_bounds() {
        let check = |sharers| {
            Composition {
                sharers,
                ..Composition::new(Controller::Pic)
            }
            .check()
        };
        assert_eq!(check(0), Err(Impossible::NoSharers));
        assert_eq!(check(1), Ok(()));
        assert_eq!(check(MAX_DEVICES), Ok(()));
        assert_eq!(check(MAX_DEVICES + 1), Err(Impossible::TooManySharers(MAX_DEVICES + 1)));
    }

    #[test]
    fn a_reason_is_one_line_and_says_the_way_out() {
        for reason in [
            Impossible::LineHasNoResamplefd,
            Impossible::NoSharers,
            Impossible::TooManySharers(99),
        ] {
            let reason = reason.to_string();
            assert_eq!(reason.lines().count(), 1, "{reason}");
            assert!(reason.contains("; use "), "{reason}");
        }
    }

    #[test]
    fn json_and_command_line_use_the_same_names() {
        fn check<T: ValueEnum + Serialize>() {
            for value in T::value_variants() {
                assert_eq!(serde_json::to_value(value).unwrap(), name(value));
            }
        }
        check::<Irqchip>();
        check::<Controller>();
        check::<Source>();
        check::<Eoi>();
        check::<Wait>();
    }
}
