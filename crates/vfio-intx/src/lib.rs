// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VFIO device's INTx, forwarded to a guest's line and back.
#![deny(unsafe_code)]

mod decide;
mod error;
mod eventfd;
mod forward;
mod guest_line;
mod intx;
pub mod irq_set;
mod model;
mod relay;
mod saved;
mod state;
#[cfg(feature = "event-manager")]
mod subscriber;
#[cfg(feature = "vfio")]
mod vfio;

pub use error::{Error, Result};
pub use guest_line::GuestLine;
pub use intx::Intx;
pub use model::ModelIntx;
pub use relay::Relay;
pub use saved::IntxState;
pub use state::{Because, Direct, Fallback, State, Status};
#[cfg(feature = "vfio")]
pub use vfio::VfioIntx;
