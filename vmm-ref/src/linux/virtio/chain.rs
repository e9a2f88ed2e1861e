// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A checked descriptor chain: all buffers are in the guest's memory, and the buffers that the device reads come before
//! those that it writes.
//!
//! `virtio-queue` stops after as many descriptors as the table has, and stops without an error at an invalid
//! descriptor. The last descriptor shows whether the chain was cut short: its NEXT flag is still set.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// Why a device cannot serve its queue any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The available ring's index is ahead by more than the ring's length.
    #[error("the index of its available ring: {0}")]
    Ring(String),
    /// The queue's addresses or its size are invalid.
    #[error(
        "a queue of {size} descriptors at {descriptors:#x}, {available:#x} and {used:#x} is not possible: {reason}"
    )]
    Queue {
        /// The queue's size.
        size: u32,
        /// The address of the descriptor table.
        descriptors: u64,
        /// The address of the available ring.
        available: u64,
        /// The address of the used ring.
        used: u64,
        /// Why the queue is invalid.
        reason: &'static str,
    },
    /// The head of the chain is outside the descriptor table.
    #[error("the descriptor {0} is not in the table")]
    NoDescriptor(u16),
    /// The chain is a loop, leaves its table, or is longer than 4 GiB.
    #[error("the chain at {0} is a loop, leads out of its table, or is longer than 4 GiB")]
    CutShort(u16),
    /// A buffer is outside the guest's memory.
    #[error("{length} bytes at {address:#x} are not in the guest's memory")]
    OutsideMemory {
        /// The buffer's address.
        address: u64,
        /// The buffer's length in bytes.
        length: u32,
    },
    /// A buffer for the device to read follows a buffer for it to write.
    #[error("the chain at {0} has a buffer to read after one to write")]
    Order(u16),
    /// A part of the request is missing.
    #[error("the chain at {head} is too short for {what}")]
    TooShort {
        /// The first descriptor of the chain.
        head: u16,
        /// The part that is missing.
        what: &'static str,
    },
}

/// Some of the guest's buffers, in their order: addresses and lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers(Vec<(GuestAddress, u32)>);

/// The buffers of one request. The allocation is reused for the next request.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// The buffers that the device reads.
    pub readable: Buffers,
    /// The buffers that the device writes.
    pub writable: Buffers,
}

impl Buffers {
    /// The length of all buffers in bytes. A chain has less than 4 GiB: a longer one is refused as
    /// [`Malformed::CutShort`].
    pub fn length(&self) -> u64 {
        self.0.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// The buffers.
    pub fn iter(&self) -> impl Iterator<Item = (GuestAddress, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Removes the first bytes and copies them to `bytes`. `None` when the buffers are shorter.
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

    /// Removes the last byte, and returns its address.
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
    /// Replaces the buffers by those of `chain`.
    ///
    /// # Errors
    /// [`Malformed`]; the buffers are then incomplete.
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

    /// Removes the first bytes of the buffers that the device reads, and copies them.
    ///
    /// # Errors
    /// [`Malformed::TooShort`].
    pub fn take_header(&mut self, memory: &GuestMemoryMmap, header: &mut [u8]) -> Result<(), Malformed> {
        let (head, what) = (self.head, "its header");
        let taken = self.readable.take_first(memory, header);
        taken.ok_or(Malformed::TooShort { head, what })
    }

    /// Removes the last byte of the buffers that the device writes, and returns its address.
    ///
    /// # Errors
    /// [`Malformed::TooShort`].
    pub fn take_status(&mut self) -> Result<GuestAddress, Malformed> {
        let (head, what) = (self.head, "its status");
        self.writable.take_last().ok_or(Malformed::TooShort { head, what })
    }
}
