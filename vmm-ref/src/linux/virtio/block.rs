// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device (section 5.2): reads, writes, flushes and its name.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes as _, GuestMemoryMmap};

use crate::linux::virtio::backend::Backend;
use crate::linux::virtio::chain::{Chain, Malformed};
use crate::linux::virtio::disk::{Disk, SECTOR};
use crate::linux::virtio::mmio::QUEUE_MAX;

/// The size of a request's header: type, a reserved field, and the sector.
const HEADER: usize = 16;
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// See the [module](self).
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// Whether the driver flushes. Otherwise the driver relies on each write to be on stable storage (5.2.6.2).
    flushes: bool,
}

impl Block {
    /// A device on `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, flushes: false }
    }

    fn request(&mut self, memory: &GuestMemoryMmap, chain: &Chain, kind: u32, sector: u64) -> Result<u32, u32> {
        let io_error = |_: io::Error| VIRTIO_BLK_S_IOERR;
        let at = || sector.checked_mul(SECTOR).ok_or(VIRTIO_BLK_S_IOERR);
        match kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
                let is_read = kind == VIRTIO_BLK_T_IN;
                let buffers = if is_read { &chain.writable } else { &chain.readable };
                if buffers.length() % SECTOR != 0 {
                    return Err(VIRTIO_BLK_S_IOERR);
                }
                if is_read {
                    self.disk.read(memory, buffers, at()?).map_err(io_error)?;
                    // A chain has at most 4 GiB less one byte.
                    return Ok(buffers.length() as u32);
                }
                // A read-only disk refuses the write.
                self.disk.write(memory, buffers, at()?).map_err(io_error)?;
                if !self.flushes {
                    self.disk.flush().map_err(io_error)?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => self.disk.flush().map(|()| 0).map_err(io_error),
            VIRTIO_BLK_T_GET_ID => {
                let name = self.disk.path().file_name().unwrap_or_default().as_encoded_bytes();
                let mut id = [0; ID_BYTES];
                for (to, from) in id.iter_mut().zip(name) {
                    *to = *from;
                }
                let mut written = 0;
                for (address, length) in chain.writable.iter() {
                    let count = (ID_BYTES - written).min(length as usize);
                    let written_here = memory.write_slice(&id[written..written + count], address);
                    written_here.map_err(|_| VIRTIO_BLK_S_IOERR)?;
                    written += count;
                }
                Ok(written as u32)
            }
            _ => Err(VIRTIO_BLK_S_UNSUPP),
        }
    }
}

impl Backend for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        read_only | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX
    }

    /// The capacity, the largest segment (not offered), and the number of segments of a request without its header and
    /// its status.
    fn configuration(&self) -> Vec<u8> {
        let mut space = self.disk.sectors().to_le_bytes().to_vec();
        space.extend(0_u32.to_le_bytes());
        space.extend((u32::from(QUEUE_MAX) - 2).to_le_bytes());
        space
    }

    fn negotiated(&mut self, features: u64) {
        self.flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
    }

    fn serve(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<u32, Malformed> {
        let mut header = [0; HEADER];
        chain.take_header(memory, &mut header)?;
        let status = chain.take_status()?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(sector));
        let (answer, written) = match self.request(memory, chain, kind, sector) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(answer) => (answer, 0),
        };
        // The address has been checked.
        let outside = |_| Malformed::OutsideMemory {
            address: status.0,
            length: 1,
        };
        memory.write_obj(answer as u8, status).map_err(outside)?;
        Ok(written.saturating_add(1))
    }
}
