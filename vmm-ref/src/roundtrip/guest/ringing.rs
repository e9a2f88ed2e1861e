// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stores to the device's doorbells: the guest's instructions, and the host's view of their results.
//!
//! The guest makes batches of stores. The host sets the size of the next batch. The guest reads its time-stamp counter
//! before and after each store, and writes the difference to memory. After a batch the guest writes [`BATCH_PORT`].
//! During that exit, which is in no figure, the guest stands still and the host takes the samples.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, di, dword_ptr, dx, eax, ecx, esi};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::roundtrip::guest::layout::{BATCH, BATCH_MAX, BATCH_PORT, DOORBELL_PORT, TIMED_STEPS, rung, samples};
use crate::roundtrip::guest::word::GuestWord;

/// A timed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// A store to [`DOORBELL_PORT`].
    Pio,
    /// A store to [`DOORBELL_ADDRESS`](super::layout::DOORBELL_ADDRESS).
    Mmio,
    /// No store: the time of reading the clock.
    Clock,
}

/// In the order of a batch.
const TIMED: [Timed; TIMED_STEPS] = [Timed::Pio, Timed::Mmio, Timed::Clock];

/// Makes batches of stores until the size of the next batch is 0. The word at [`BATCH`] starts as 0, so that a guest
/// without doorbells makes no store.
pub(super) fn ring(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut batch = a.create_label();
    let mut done = a.create_label();
    a.set_label(&mut batch)?;
    a.cmp(dword_ptr(BATCH as u32), 0)?;
    a.je(done)?;
    for timed in TIMED {
        let mut again = a.create_label();
        a.mov(di, samples(timed as usize) as i32)?;
        a.mov(ecx, dword_ptr(BATCH as u32))?;
        a.set_label(&mut again)?;
        // The low half suffices for times below 2^32 ticks.
        a.rdtsc()?;
        a.mov(esi, eax)?;
        match timed {
            Timed::Pio => a.out(i32::from(DOORBELL_PORT), eax)?,
            Timed::Mmio => a.mov(dword_ptr(0).fs(), eax)?,
            Timed::Clock => {}
        }
        a.rdtsc()?;
        a.sub(eax, esi)?;
        a.mov(dword_ptr(di), eax)?;
        a.add(di, 4)?;
        match timed {
            Timed::Pio | Timed::Mmio => a.inc(dword_ptr(rung(timed as usize) as u32))?,
            Timed::Clock => {}
        }
        a.dec(ecx)?;
        a.jne(again)?;
    }
    a.mov(dx, i32::from(BATCH_PORT))?;
    a.out(dx, al)?;
    a.jmp(batch)?;
    a.set_label(&mut done)
}

/// The words through which host and guest agree on batches.
#[derive(Debug)]
pub struct Ringing {
    memory: Arc<GuestMemoryMmap>,
    batch: GuestWord,
    rung: [GuestWord; 2],
}

impl Ringing {
    pub(super) fn new(memory: &Arc<GuestMemoryMmap>) -> Result<Self, GuestMemoryError> {
        Ok(Self {
            memory: Arc::clone(memory),
            batch: GuestWord::new(memory, BATCH)?,
            rung: [GuestWord::new(memory, rung(0))?, GuestWord::new(memory, rung(1))?],
        })
    }

    /// Lets the next batch have `stores` to each doorbell, [`BATCH_MAX`] at most. With 0 the guest continues with its
    /// interrupts.
    ///
    /// The guest must not have started yet, or must stand still in its write to [`BATCH_PORT`].
    pub fn next(&self, stores: u32) {
        self.batch.store(stores.min(BATCH_MAX), Ordering::Release);
    }

    /// Stores to each doorbell in the last batch.
    pub fn batch(&self) -> u32 {
        // Limit the value, because the guest could have written this memory.
        self.batch.load(Ordering::Acquire).min(BATCH_MAX)
    }

    /// The numbers of stores that the guest reports for the port doorbell and for the memory doorbell, counted in 32
    /// bits.
    pub fn rung(&self) -> [u32; 2] {
        self.rung.each_ref().map(|rung| rung.load(Ordering::Acquire))
    }

    /// Copies the samples of the last batch, in ticks of the time-stamp counter, to `into`.
    ///
    /// # Errors
    /// None in practice: the memory is large enough.
    pub fn samples(&self, timed: Timed, into: &mut Vec<u32>) -> Result<(), GuestMemoryError> {
        let mut bytes = [0; 4 * BATCH_MAX as usize];
        let bytes = &mut bytes[..4 * self.batch() as usize];
        self.memory.read_slice(bytes, GuestAddress(samples(timed as usize)))?;
        into.clear();
        // The guest has the host's byte order, because it runs on the host's CPU.
        into.extend(
            bytes
                .chunks_exact(4)
                .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])),
        );
        Ok(())
    }
}
