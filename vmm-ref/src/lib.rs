// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A reference VMM.

pub mod error;
pub mod guest;
pub mod machine;
pub mod vcpu;
