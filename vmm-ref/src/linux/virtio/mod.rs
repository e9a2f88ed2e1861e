// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio devices (Virtual I/O Device Version 1.2) with one queue each, behind the MMIO transport.
//!
//! The guest's processors reach the registers ([`mmio`]); a thread of the device's own serves its queue ([`worker`]) by
//! one of the [`Backend`](backend::Backend)s. [`chain`] alone checks the descriptors that a guest has written.

pub mod backend;
pub mod block;
pub mod chain;
pub mod disk;
pub mod entropy;
pub mod mmio;
pub mod worker;
