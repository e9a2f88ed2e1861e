// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor chain that has been looked at: its buffers are in the guest's memory, and what the device reads comes
//! before what it writes.
//!
//! `virtio-queue` walks a chain no further than the table is long, and ends quietly where a descriptor is not to be
//! had. That end is told from a proper one by the last descriptor, which then says that there is another.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// Why a queue cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The ring's index is further on than the ring is long.
    #[error("the index of its available ring: {0}")]
    Ring(String),
    /// The queue's own addresses or its size.
    #[error(
        "a queue of {size} descriptors at {descriptors:#x}, {available:#x} and {used:#x} is not possible: {reason}"
    )]
    Queue {
        /// Its size.
        size: u32,
        /// The address of the descriptor table.
        descriptors: u64,
        /// The address of the available ring.
        available: u64,
        /// The address of the used ring.
        used: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not even one descriptor.
    #[error("the descriptor {0} is not in the table")]
    NoDescriptor(u16),
    /// It does not come to an end of its own.
    #[error("the chain at {0} is a loop, leads out of its table, or is longer than 4 GiB")]
    CutShort(u16),
    /// A buffer somewhere else.
    #[error("{length} bytes at {address:#x} are not in the guest's memory")]
    OutsideMemory {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// What the device is to read comes after what it is to write.
    #[error("the chain at {0} has a buffer to read after one to write")]
    Order(u16),
    /// A part of the request is missing.
    #[error("the chain at {head} is too short for {what}")]
    TooShort {
        /// Its first descriptor.
        head: u16,
        /// What does not fit.
        what: &'static str,
    },
}

/// Some of the guest's buffers, in their order: addresses and lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers(Vec<(GuestAddress, u32)>);

/// The buffers of one request. It is used again for the next one.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// What the device reads.
    pub readable: Buffers,
    /// What the device writes.
    pub writable: Buffers,
}

impl Buffers {
    /// Their bytes. No more than 4 GiB: a longer chain is cut short.
    pub fn length(&self) -> u64 {
        self.0.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// The buffers.
    pub fn iter(&self) -> impl Iterator<Item = (GuestAddress, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Takes the first bytes and puts them in `bytes`; `None` when there are not as many.
    fn take_first(&mut self, memory: &GuestMemoryMmap, bytes: &mut [u8]) -> Option<()> {
        if self.length() < bytes.len() as u64 {
            return None;
        }
        let mut filled = 0;
        while filled < bytes.len() {
            let (address, length) = *self.0.first()?;
            let count = (bytes.len() - filled).min(length as usize);
            memory.read_slice(&mut bytes[filled..filled + count], address).ok()?;
            filled += count;
            match length as usize - count {
                0 => drop(self.0.remove(0)),
                left => self.0[0] = (GuestAddress(address.0 + count as u64), left as u32),
            }
        }
        Some(())
    }

    /// Takes the last byte, and says where it is.
    fn take_last(&mut self) -> Option<GuestAddress> {
        loop {
            let (address, length) = self.0.last_mut()?;
            if let Some(left) = length.checked_sub(1) {
                *length = left;
                return Some(GuestAddress(address.0 + u64::from(left)));
            }
            self.0.pop();
        }
    }
}

impl Chain {
    /// Takes over the buffers of `chain`.
    ///
    /// # Errors
    /// [`Malformed`]; the buffers are of no value then.
    pub fn read(&mut self, chain: DescriptorChain<&GuestMemoryMmap>) -> Result<(), Malformed> {
        let (head, memory) = (chain.head_index(), chain.memory());
        self.head = head;
        self.readable.0.clear();
        self.writable.0.clear();
        let mut last = None;
        for descriptor in chain.clone() {
            let (address, length) = (descriptor.addr(), descriptor.len());
            if !memory.check_range(address, length as usize) {
                return Err(Malformed::OutsideMemory {
                    address: address.0,
                    length,
                });
            }
            if descriptor.is_write_only() {
                self.writable.0.push((address, length));
            } else if self.writable.0.is_empty() {
                self.readable.0.push((address, length));
            } else {
                return Err(Malformed::Order(head));
            }
            last = Some(descriptor);
        }
        match last {
            None => Err(Malformed::NoDescriptor(head)),
            Some(last) if last.has_next() => Err(Malformed::CutShort(head)),
            Some(_) => Ok(()),
        }
    }

    /// Takes the first bytes of what the device reads.
    ///
    /// # Errors
    /// [`Malformed::TooShort`].
    pub fn take_header(&mut self, memory: &GuestMemoryMmap, header: &mut [u8]) -> Result<(), Malformed> {
        let (head, what) = (self.head, "its header");
        let taken = self.readable.take_first(memory, header);
        taken.ok_or(Malformed::TooShort { head, what })
    }

    /// Takes the last byte of what the device writes, and says where it is.
    ///
    /// # Errors
    /// [`Malformed::TooShort`].
    pub fn take_status(&mut self) -> Result<GuestAddress, Malformed> {
        let (head, what) = (self.head, "its status");
        self.writable.take_last().ok_or(Malformed::TooShort { head, what })
    }
}
