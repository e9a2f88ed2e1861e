// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Forwarding: how a device's interrupt reaches a guest's line, and the line's EOI the device.
//!
//! A [`Connection`] joins a device's interrupt ([`Producer`]) and a guest's line ([`Consumer`]). It takes the best
//! [`Path`] that both can do ([`decide`]), takes another when their abilities change ([`Connection::changed`]), and
//! explains the choice ([`Connection::explain`]). A [`Registry`] is a table of connections whose ends register in any
//! order, under the eventfd that they share ([`EventfdId`]): what the review of the 2015 "forward this IRQ" ioctl asked
//! for. [`Registry::forward`] and [`Registry::unforward`] are the calls of that proposal.
//!
//! # The order of a change
//!
//! As in Linux's `virt/lib/irqbypass.c`:
//!
//! 1. **stop the producer**: nothing more of the device reaches the line;
//! 2. **stop the consumer**;
//! 3. **connect** the producer by the new path, then the consumer;
//! 4. **start the consumer**;
//! 5. **start the producer**: the device is unmasked, and a level that it holds is signalled again, through the new
//!    wires.
//!
//! Nothing is lost, because 5 signals again what was not carried. Nothing is doubled, because an interrupt that is
//! under way stays under way. When a step fails, the connection undoes the steps before and tries the next best path;
//! the last is the relay. When the relay fails too, it takes up the path from before, and disconnects the producer when
//! that fails. The producer is masked in none of these cases.

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

pub use connection::{Connection, Policy};
pub use device_interrupt::{DeviceInterrupt, DeviceIrq, InterruptInfo};
pub use ends::{Consumer, Producer, ProducerState, Side};
pub use error::{Error, Result};
pub use eventfd_id::EventfdId;
pub use explain::Explanation;
pub use explicit::ForwardIrq;
pub use guest_line::GuestLine;
pub use path::{ConsumerInfo, Decision, Limits, Path, ProducerInfo, WhyNot, decide};
pub use registry::{Registration, Registry};
