// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm-ref probe`: finds this host's capabilities by trials.

pub mod capabilities;
mod trial;
#[cfg(target_arch = "x86_64")]
mod unmask;
