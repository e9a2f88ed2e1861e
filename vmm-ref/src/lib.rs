// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A reference VMM.

pub mod cli;
pub mod commands;
pub mod composition;
pub mod device;
pub mod eoi;
pub mod error;
pub mod guest;
pub mod host;
pub mod latency;
pub mod machine;
pub mod observe;
pub mod parts;
pub mod probe;
pub mod report;
pub mod run;
pub mod traffic;
pub mod vcpu;
