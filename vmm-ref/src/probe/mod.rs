// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm-ref probe`: what this host can do.

pub mod capabilities;
mod trial;
mod unmask;
