// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registry that finds out by itself how a device's interrupt gets to a guest's line.
//!
//! In 2015 the answer to an explicit "forward this IRQ" ioctl was: "Is there no way to do this automatically? If they compare notes
//! through a central registry, they can figure out that the interrupt needs to be forwarded." This is that registry, for a
//! VMM. A device's interrupt ([`Producer`]) and a guest's line ([`Consumer`]) register in any order under the identity of the
//! eventfd that they share ([`EventfdId`]); when both are there they are connected by the best [`Path`] that both can do, and when what
//! they can do changes ([`Registry::changed`]), by another. [`decide`] is the one function that chooses; [`TABLE`] is what it goes by.
//! [`Registry::explain`] says what was chosen and why. [`Registry::forward`] and [`Registry::unforward`] are the explicit calls.
//!
//! # The order of a change
//!
//! As in Linux's `virt/lib/irqbypass.c`, with the two sides' stops and starts around every change:
//!
//! 1. **stop the producer**: the device is masked, and signals nothing that reaches the line;
//! 2. **stop the consumer**: what was under way through the old wires is lowered;
//! 3. **connect** the producer by the new path, then the consumer;
//! 4. **start the consumer**;
//! 5. **start the producer**: the device is unmasked, and a level that it holds is signalled anew, through the new wires.
//!
//! Nothing is lost, because whatever was dropped in 2 is stated again in 5; nothing is doubled, because it was dropped. When a step
//! fails, what was done is undone, and the next best path is tried; at the end of that is the relay. If not even that can be had, the path
//! from before is taken up again, and if that fails too the producer leads nowhere. It is masked in none of these cases.
//!
//! # Locks
//!
//! Each identity has a lock of its own, under which both sides' methods are called: they must not call the registry for the
//! same identity. Registering looks at no other identity. None of it is on the path of an interrupt.

mod connection;
mod device_interrupt;
mod ends;
mod error;
mod eventfd_id;
mod explain;
mod explicit;
mod guest_line;
mod path;
mod registry;

pub use device_interrupt::{DeviceInterrupt, InterruptInfo};
pub use ends::{Consumer, DeviceIrq, Now, Producer};
pub use error::{Error, Result};
pub use eventfd_id::EventfdId;
pub use explain::Explanation;
pub use explicit::ForwardIrq;
pub use guest_line::{GuestLine, LineEnd};
pub use path::{ConsumerInfo, Decision, Limits, Needs, Path, ProducerInfo, TABLE, WhyNot, decide};
pub use registry::{Policy, Registration, Registry, Side};
