// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values of registers as the bytes of a bus access.

/// Answers a read of up to 8 bytes with a register's value, zero-extended. Returns false if a processor makes no access
/// of this width, and then leaves the bytes as they are. Writes at most 8 bytes.
pub(crate) fn answer(data: &mut [u8], value: u32) -> bool {
    let valid = has_valid_width(data);
    if valid {
        for (byte, value) in data.iter_mut().zip(u64::from(value).to_le_bytes()) {
            *byte = value;
        }
    }
    valid
}

/// The low 32 bits of the written bytes, zero-extended.
pub(crate) fn value(data: &[u8]) -> u32 {
    if let Some(bytes) = data.first_chunk() {
        return u32::from_le_bytes(*bytes);
    }
    data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Whether a processor makes accesses of this width: 1, 2, 4 or 8 bytes.
pub(crate) fn has_valid_width(data: &[u8]) -> bool {
    matches!(data.len(), 1 | 2 | 4 | 8)
}
