// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Floor of the soft machine: the time to wake a thread and to receive its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_ref::error::Error;
use vmm_ref::latency::Latency;
use vmm_ref::roundtrip::guest::layout::MEMORY_SIZE;
use vmm_ref::roundtrip::guest::status::Status;
use vmm_ref::vm::cpu_thread::Cpu;
use vmm_ref::vm::cpu_thread::Processor;

use super::rig::Floor;
use crate::Result;

pub(super) fn run(floor: &Floor, count: u64) -> Result<Latency> {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])?);
    let (registers, guest) = (Status::new(&memory)?.device(0)?, Status::new(&memory)?.device(0)?);
    let told = floor.eventfd()?;
    let (asserted, processor) = (Arc::new(AtomicBool::new(false)), Processor::default());
    let (raised, this, ended) = (Arc::clone(&asserted), processor.clone(), told.try_clone()?);
    let cpu = Cpu::start("soft0", move |stop| {
        this.is_this_thread();
        while !stop.load(Ordering::Acquire) {
            if raised.swap(false, Ordering::AcqRel) {
                guest
                    .serviced
                    .store(guest.raised.load(Ordering::Acquire), Ordering::Release);
                ended.write(1).map_err(|source| Error::System {
                    step: "write(eventfd)",
                    source,
                })?;
            } else {
                thread::park();
            }
        }
        Ok(())
    })?;
    let latency = floor.round_trips(&registers, &told, count, || {
        asserted.store(true, Ordering::Release);
        processor.wake();
        Ok(())
    })?;
    cpu.stop()?;
    Ok(latency)
}
