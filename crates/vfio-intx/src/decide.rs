// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one function that decides where a device's INTx is to be.

use interrupt_core::InterruptInfo;

use crate::guest_line::GuestLine;
use crate::state::{Because, Direct};

/// Everything the decision depends on.
pub(crate) struct Circumstances<'a> {
    pub enabled: bool,
    pub msi: bool,
    pub guest_mask: bool,
    pub disintx: bool,
    pub line: Option<&'a GuestLine>,
    pub info: InterruptInfo,
    /// Somebody may run the relay.
    pub relay: bool,
    /// The direct path of this line failed, and nothing has happened that would make another try worth it.
    pub fell_back: bool,
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
    Direct(Direct),
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
    if now.guest_mask {
        return (Wiring::Parked, Because::GuestMask);
    }
    if now.disintx {
        return (Wiring::Parked, Because::DisIntx);
    }
    let why_not_direct = match line.direct() {
        _ if !now.info.automasked => Because::Pulse,
        Err(reason) => Because::Line(reason),
        Ok(_) if !now.info.unmask_fd => Because::NoUnmaskEventfd,
        Ok(_) if line.source().trigger().is_none() => Because::NoTriggerEventfd,
        Ok(_) if now.fell_back => Because::FellBack,
        Ok(direct) => return (Wiring::Direct(direct), Because::Fastest),
    };
    if now.relay {
        (Wiring::Relay, why_not_direct)
    } else {
        (Wiring::Off, Because::NoRelay)
    }
}
