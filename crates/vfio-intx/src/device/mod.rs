// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's end of INTx: VFIO's request format, and the devices that take such requests.

#[cfg(feature = "vfio-user")]
mod connection;
pub mod irq_set;
#[cfg(feature = "testing")]
pub(crate) mod model;
#[cfg(feature = "vfio")]
pub(crate) mod vfio;
#[cfg(feature = "vfio-user")]
pub(crate) mod vfio_user;
#[cfg(feature = "vfio-user-client")]
pub(crate) mod vfio_user_client;
