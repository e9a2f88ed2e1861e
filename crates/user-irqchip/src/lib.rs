// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A userspace IOAPIC and 8259 pair that tell of EOIs.
#![forbid(unsafe_code)]

mod bus;
mod counter;
mod error;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod router;
mod sync;

pub use error::{ConfigError, RouteError, StateError};
pub use ioapic::{Ioapic, IoapicBuilder, IoapicSource, IoapicState};
pub use pic::{Pic, PicSource, PicState};
