// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one function that decides whether a device's INTx is set up, held back, or carried. By which path it is carried is
//! decided by [`forward::decide`], here and in a registry alike.

use interrupt_core::forward::{self, Consumer as _, Limits, Path, ProducerInfo};
use interrupt_core::forward::{GuestLine, LineEnd};

use crate::state::Because;

/// Everything the decision depends on.
pub(crate) struct Circumstances<'a> {
    pub enabled: bool,
    pub msi: bool,
    pub guest_mask: bool,
    pub disintx: bool,
    /// A registry has stopped it, to change its path.
    pub stopped: bool,
    /// The path that INTx is carried by on this very line, or was until it was stopped.
    pub carried_by: Option<Path>,
    pub line: Option<&'a GuestLine>,
    pub producer: ProducerInfo,
    pub limits: &'a Limits,
}

/// Where INTx is, or is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// Nothing is set up at the device, and nobody listens for EOIs.
    Off,
    /// The device signals the relay, which forwards nothing. Every other wiring is made from here and unmade to here.
    Parked,
    /// The device signals the relay, which forwards.
    Relay,
    /// The device signals the line, and the line's EOI the device.
    Direct(Path),
    /// A registry changes the path on this line: the device signals the relay, which takes note and forwards nothing. An interrupt that
    /// is under way on the line stays so, and its EOI is kept.
    Held(Path),
}

/// Where INTx is to be under these circumstances, and why.
pub(crate) fn decide(now: &Circumstances<'_>) -> (Wiring, Because) {
    if !now.enabled {
        return (Wiring::Off, Because::NotEnabled);
    }
    if now.msi {
        return (Wiring::Off, Because::Msi);
    }
    let Some(line) = now.line else {
        return (Wiring::Off, Because::NoRoute);
    };
    if now.stopped {
        // The host forwards an interrupt that is not masked, or not set up yet; it is not set up, then, while it is stopped.
        let wiring = match (now.limits.only, now.carried_by) {
            (Some(Path::HostForward), _) => Wiring::Off,
            (_, Some(path)) => Wiring::Held(path),
            (_, None) => Wiring::Parked,
        };
        return (wiring, Because::Changing);
    }
    if now.guest_mask {
        return (Wiring::Parked, Because::GuestMask);
    }
    if now.disintx {
        return (Wiring::Parked, Because::DisIntx);
    }
    let mut consumer = line.info();
    if now.limits.only == Some(Path::HostForward) {
        // The line as such does not know; the registry, which asks for it, does.
        consumer.host_forward = Ok(());
    }
    let decision = forward::decide(&now.producer, &consumer, now.limits);
    match decision.path {
        None => (Wiring::Off, Because::NoRelay),
        Some(Path::Relay) => {
            let direct = match line.end() {
                LineEnd::Split => Path::SplitKick,
                LineEnd::Kernel | LineEnd::User(_) => Path::KernelLoop,
            };
            // It has a reason, since it is better than a relay.
            let because = decision
                .why_not(direct)
                .cloned()
                .map_or(Because::Fastest, Because::Slower);
            (Wiring::Relay, because)
        }
        Some(path) => (Wiring::Direct(path), Because::Fastest),
    }
}
