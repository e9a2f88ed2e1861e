// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of a virtio device behind its transport.

use std::fmt;

use vm_memory::GuestMemoryMmap;

use super::chain::{Chain, Malformed};

/// A device behind its transport.
pub trait Backend: fmt::Debug + Send {
    /// The virtio device ID (section 5).
    fn kind(&self) -> u32;

    /// The feature bits that the device offers besides those of its transport and its queue.
    fn features(&self) -> u64;

    /// Its configuration space, which does not change.
    fn configuration(&self) -> Vec<u8>;

    /// Receives the features that the driver has chosen.
    fn negotiated(&mut self, features: u64);

    /// Serves one request, and returns how many bytes it wrote into the guest's buffers.
    ///
    /// # Errors
    /// [`Malformed`]: the chain is no request, and the device needs a reset. A well-formed request that fails is
    /// reported to the guest in its buffers.
    fn serve(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<u32, Malformed>;
}
