// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! x
/// Remote IRR, bit 14 of a redirection-table entry.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Level-triggered, bit 15.
pub const LEVEL: u64 = 1 << 15;
/// Masked, bit 16.
pub const MASKED: u64 = 1 << 16;
