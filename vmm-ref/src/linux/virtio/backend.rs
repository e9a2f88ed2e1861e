// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's part that is not its transport.

use std::fmt;

use vm_memory::GuestMemoryMmap;

use super::chain::{Chain, Malformed};

/// What a device does, behind its transport.
pub trait Backend: fmt::Debug + Send {
    /// The number of its kind (section 5).
    fn kind(&self) -> u32;

    /// The features it offers, beside those of its transport and its queue.
    fn features(&self) -> u64;

    /// Its configuration space, which does not change.
    fn configuration(&self) -> Vec<u8>;

    /// The driver has chosen these features.
    fn negotiated(&mut self, features: u64);

    /// Serves one request, and returns how many bytes it wrote into the guest's buffers.
    ///
    /// # Errors
    /// [`Malformed`]: the chain is no request, and the device needs a reset. What is wrong with a request itself is
    /// told to the guest in its buffers.
    fn serve(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<u32, Malformed>;
}
