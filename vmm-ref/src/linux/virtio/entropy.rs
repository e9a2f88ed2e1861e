// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device (section 5.4): fills the guest's buffers with the host's random bytes.

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::{Bytes as _, GuestMemoryMmap};

use crate::linux::virtio::backend::Backend;
use crate::linux::virtio::chain::{Chain, Malformed};

/// The most bytes that one request gets. The driver sees the length and asks again for more.
const REQUEST_MAX: usize = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Entropy;

impl Backend for Entropy {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn configuration(&self) -> Vec<u8> {
        Vec::new()
    }

    fn negotiated(&mut self, _features: u64) {}

    fn serve(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<u32, Malformed> {
        let mut random = [0; REQUEST_MAX];
        let mut written = 0;
        for (address, length) in chain.writable.iter() {
            let wanted = &mut random[..(REQUEST_MAX - written).min(length as usize)];
            // Fails only on a kernel without getrandom(2). The driver then gets fewer bytes.
            let got = getrandom(&mut *wanted, GetRandomFlags::empty()).unwrap_or(0);
            let outside = |_| Malformed::OutsideMemory {
                address: address.0,
                length,
            };
            memory.write_slice(&wanted[..got], address).map_err(outside)?;
            written += got;
        }
        Ok(written as u32)
    }
}
