// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The embedded guest: a real-mode program that serves level interrupts, and the page of memory through which it and its
//! devices meet.
//!
//! The page makes a round trip exit-free: a device raises a request by adding 1 to its [`Registers::raised`], the handler
//! serves it by copying that into [`Registers::serviced`], and a device that is told of an EOI sees by comparing the two
//! whether its cause is gone. The handler counts its runs, so that lost and spurious interrupts are found by comparing numbers
//! and not by guessing.

pub(crate) mod chips;
mod doorbell;
pub(crate) mod edu;
mod image;
mod layout;
mod program;
mod status;
mod unmask;
mod word;

pub use doorbell::{Ringing, Timed};
pub use image::Image;
pub use layout::{
    ACKNOWLEDGE_PORT, BAR_ADDRESS, BAR_SIZE, BATCH_MAX, BATCH_PORT, DOORBELL_ADDRESS, DOORBELL_PORT, FAULT_PORT,
    MAX_DEVICES, MEMORY_SIZE,
};
pub use program::{Controller, Idle, Program};
pub use status::{Registers, Status};
pub use unmask::unmask_program;
pub use word::GuestWord;
