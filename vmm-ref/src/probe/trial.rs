// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parts that the trials share.

use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// A pin that no PC device has.
pub(super) const GSI: u32 = 10;

/// The answer of a trial: `Ok` with details when the capability is there, `Err` with the reason when it is not.
pub(super) type Trial = Result<String>;

pub(super) fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| Error::System {
        step: "eventfd",
        source,
    })
}
