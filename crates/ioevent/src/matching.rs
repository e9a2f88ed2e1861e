// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which guest stores a registration matches.
//!
//! This file alone says when a store matches, when two registrations cannot stand side by side, and which registrations
//! could not work. The rules are KVM's own (`virt/kvm/eventfd.c`: `ioeventfd_in_range`, `ioeventfd_check_collision`),
//! because the kernel serves a registration at one moment and the table at another, and the guest must not see which.

use std::fmt::{self, Display};

/// The address space of a guest store.
///
/// PIO 0x1000 and MMIO 0x1000 are different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Port I/O: 16-bit addresses, reached by `in` and `out`. x86 only.
    Pio,
    /// Memory-mapped I/O: guest physical addresses that no memory slot backs.
    Mmio,
}

/// How many bytes a store must write to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Length {
    /// A store of any length that starts at the address. KVM's length 0 (`KVM_CAP_IOEVENTFD_ANY_LENGTH`, Linux 4.4),
    /// and on MMIO its fastest: the kernel need not decode the instruction (commit 68c3b4d1676d).
    Any,
    /// Exactly 1 byte.
    Bytes1,
    /// Exactly 2 bytes.
    Bytes2,
    /// Exactly 4 bytes.
    Bytes4,
    /// Exactly 8 bytes. KVM accepts it for PIO too, where no instruction can produce such a store.
    Bytes8,
}

impl Length {
    /// The length in bytes, in KVM's encoding: 0 stands for any.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Any => 0,
            Self::Bytes1 => 1,
            Self::Bytes2 => 2,
            Self::Bytes4 => 4,
            Self::Bytes8 => 8,
        }
    }
}

impl TryFrom<u32> for Length {
    type Error = Rejection;

    /// Takes KVM's encoding: 0 for any, or 1, 2, 4, 8 bytes.
    ///
    /// # Errors
    /// [`Rejection::InvalidLength`] for every other number.
    fn try_from(bytes: u32) -> Result<Self, Rejection> {
        match bytes {
            0 => Ok(Self::Any),
            1 => Ok(Self::Bytes1),
            2 => Ok(Self::Bytes2),
            4 => Ok(Self::Bytes4),
            8 => Ok(Self::Bytes8),
            _ => Err(Rejection::InvalidLength(bytes)),
        }
    }
}

/// Why a registration could not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// A length in bytes that no ioeventfd has. KVM rejects it too.
    #[error("{0} is not the length of an ioeventfd: 1, 2, 4, 8 bytes, or 0 for any")]
    InvalidLength(u32),
    /// The datamatch has bits that a store of this length does not write. KVM accepts it and never matches.
    #[error("the datamatch has bits beyond the length, so no store can match it")]
    DatamatchBeyondLength,
    /// A datamatch needs a length to be compared on. KVM rejects it too.
    #[error("a datamatch needs an exact length")]
    DatamatchWithoutLength,
    /// A port above 0xffff, or a range that runs past it. KVM accepts it and never matches.
    #[error("the range ends beyond the last port, 0xffff")]
    PortBeyond16Bits,
    /// Port I/O on a processor other than x86. KVM accepts it and never matches.
    #[error("this architecture has no port I/O")]
    NoPorts,
    /// The range does not end below 2^64. KVM rejects it too.
    #[error("address plus length overflows 64 bits")]
    Overflow,
    /// A relocation from a base above the registration's address.
    #[error("the address is below the base {base:#x} that it is to move with")]
    BelowBase {
        /// The old base that was given.
        base: u64,
    },
}

/// The guest stores that one registration stands for: a space, an exact address, a length, and perhaps a value.
///
/// A store matches when it goes to the same space and starts at exactly `address`, when it writes exactly `length`
/// bytes (or any number of them for [`Length::Any`]), and when the written bytes, read as one number in the host's byte
/// order, equal `datamatch` if there is one. A store that starts inside the range but not at its first byte does not
/// match. A read never matches.
///
/// ```
/// use ioevent::{Length, Match, Space};
///
/// // A virtio 1 notification: any store to the queue's own address.
/// let notify = Match::mmio(0xd000_3000, Length::Any);
/// assert!(notify.matches(Space::Mmio, 0xd000_3000, &[0, 0]));
///
/// // A legacy virtio notification: queue 2 at a port that all queues share.
/// let queue_2 = Match::pio(0xc010, Length::Bytes2).with_datamatch(2);
/// assert!(queue_2.matches(Space::Pio, 0xc010, &2u16.to_ne_bytes()));
/// assert!(!queue_2.matches(Space::Pio, 0xc010, &3u16.to_ne_bytes()));
/// assert!(!queue_2.matches(Space::Pio, 0xc010, &2u32.to_ne_bytes()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    // The order of the fields is the order of the derived `Ord`: all registrations of one address are neighbours, and
    // among them all of one length. The table relies on it.
    /// The address space.
    pub space: Space,
    /// The guest address of the first byte written.
    pub address: u64,
    /// How many bytes are written.
    pub length: Length,
    /// The value that must be written, or `None` for every value.
    pub datamatch: Option<u64>,
}

impl Match {
    /// Every store of `length` to the guest physical address `address`.
    pub const fn mmio(address: u64, length: Length) -> Self {
        Self {
            space: Space::Mmio,
            address,
            length,
            datamatch: None,
        }
    }

    /// Every store of `length` to the port `port`.
    ///
    /// `port` is a `u64` because it often comes from the same BAR arithmetic as an MMIO address; registering one above
    /// 0xffff is rejected.
    pub const fn pio(port: u64, length: Length) -> Self {
        Self {
            space: Space::Pio,
            address: port,
            length,
            datamatch: None,
        }
    }

    /// The same, but only when the store writes `value`.
    pub const fn with_datamatch(self, value: u64) -> Self {
        Self {
            datamatch: Some(value),
            ..self
        }
    }

    /// Whether a store of the bytes `data` to `address` matches.
    ///
    /// `data` is one store, 1 to 8 bytes in the order in which KVM puts them into its exit. An empty store, and one of
    /// more than 8 bytes, which no exit carries, matches nothing.
    pub fn matches(&self, space: Space, address: u64, data: &[u8]) -> bool {
        self.space == space && self.address == address && self.matches_bytes(data)
    }

    /// The part of [`Match::matches`] that looks at the written bytes.
    pub(crate) fn matches_bytes(&self, data: &[u8]) -> bool {
        match (self.length, Written::new(data)) {
            (Length::Any, _) => (1..=8).contains(&data.len()),
            (_, None) => false,
            (length, Some(written)) => {
                length == written.length && self.datamatch.is_none_or(|value| value == written.value)
            }
        }
    }

    /// Whether one store could match both.
    ///
    /// Two registrations of one space and address collide when one of them is of any length, or when both are of one
    /// length and one has no datamatch or both have the same. Different lengths at one address do not collide: no store
    /// has two lengths.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let same_value = self.datamatch.is_none() || other.datamatch.is_none() || self.datamatch == other.datamatch;
        let any_length = self.length == Length::Any || other.length == Length::Any;
        (self.space, self.address) == (other.space, other.address)
            && (any_length || (self.length == other.length && same_value))
    }

    /// The last byte that a matching store writes. For [`Length::Any`] the first byte, the only one that is certain.
    /// `None` when the range does not end below 2^64.
    pub(crate) fn last(&self) -> Option<u64> {
        match self.length {
            Length::Any => Some(self.address),
            length => {
                // KVM rejects `addr + len < addr`, and so also a range whose last byte is 2^64 - 1.
                self.address.checked_add(u64::from(length.bytes())).map(|end| end - 1)
            }
        }
    }

    /// What is wrong with this on its own, whatever else is registered.
    pub(crate) fn check(&self) -> Result<(), Rejection> {
        let last = self.last().ok_or(Rejection::Overflow)?;
        if self.space == Space::Pio && !cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
            return Err(Rejection::NoPorts);
        }
        if self.space == Space::Pio && last > 0xffff {
            return Err(Rejection::PortBeyond16Bits);
        }
        match (self.length, self.datamatch) {
            (_, None) | (Length::Bytes8, _) => Ok(()),
            (Length::Any, Some(_)) => Err(Rejection::DatamatchWithoutLength),
            (length, Some(value)) if value >> (8 * length.bytes()) != 0 => Err(Rejection::DatamatchBeyondLength),
            (_, Some(_)) => Ok(()),
        }
    }

    /// The same stores at a base that moved from `from` to `to`.
    pub(crate) fn moved(&self, from: u64, to: u64) -> Result<Self, Rejection> {
        let offset = self
            .address
            .checked_sub(from)
            .ok_or(Rejection::BelowBase { base: from })?;
        let address = to.checked_add(offset).ok_or(Rejection::Overflow)?;
        Ok(Self { address, ..*self })
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.space {
            Space::Pio => write!(f, "PIO {:#x}", self.address)?,
            Space::Mmio => write!(f, "MMIO {:#x}", self.address)?,
        }
        match self.length {
            Length::Any => f.write_str(" length any")?,
            length => write!(f, " length {}", length.bytes())?,
        }
        match self.datamatch {
            Some(value) => write!(f, " datamatch {value:#x}"),
            None => Ok(()),
        }
    }
}

/// The bytes of one store of a length that a registration can name.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) length: Length,
    pub(crate) value: u64,
}

impl Written {
    /// `None` for 0, 3, 5, 6, 7 and more than 8 bytes: a store split at a page boundary can be of such a length.
    #[inline]
    pub(crate) fn new(data: &[u8]) -> Option<Self> {
        let (length, value) = match *data {
            [a] => (Length::Bytes1, u64::from(a)),
            [a, b] => (Length::Bytes2, u64::from(u16::from_ne_bytes([a, b]))),
            [a, b, c, d] => (Length::Bytes4, u64::from(u32::from_ne_bytes([a, b, c, d]))),
            [a, b, c, d, e, f, g, h] => (Length::Bytes8, u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            _ => return None,
        };
        Some(Self { length, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_matches_by_address_length_and_value() {
        let any_value = Match::mmio(0x1000, Length::Bytes4);
        assert!(any_value.matches(Space::Mmio, 0x1000, &[1, 2, 3, 4]));
        for (address, data) in [
            (0x1000, &[1u8, 2][..]),
            (0x1000, &[0; 8]),
            (0x1001, &[1, 2, 3, 4]),
            (0x0fff, &[1, 2, 3, 4]),
            (0x1002, &[1, 2]),
            (0x1000, &[]),
        ] {
            assert!(!any_value.matches(Space::Mmio, address, data), "{address:#x} {data:?}");
        }
        assert!(!any_value.matches(Space::Pio, 0x1000, &[1, 2, 3, 4]));

        let seven = any_value.with_datamatch(7);
        assert!(seven.matches(Space::Mmio, 0x1000, &7u32.to_ne_bytes()));
        assert!(!seven.matches(Space::Mmio, 0x1000, &8u32.to_ne_bytes()));
        assert!(!seven.matches(Space::Mmio, 0x1000, &7u64.to_ne_bytes()));
    }

    #[test]
    fn any_length_takes_every_length_of_one_store() {
        let any = Match::mmio(u64::MAX, Length::Any);
        for length in 1..=8 {
            assert!(any.matches(Space::Mmio, u64::MAX, &[0; 8][..length]), "{length}");
        }
        assert!(!any.matches(Space::Mmio, u64::MAX, &[]));
        assert!(!any.matches(Space::Mmio, u64::MAX, &[0; 9]));
    }

    #[test]
    fn datamatch_is_compared_on_all_eight_bytes_of_an_eight_byte_store() {
        let at = Match::mmio(0, Length::Bytes8).with_datamatch(0xdead_beef_dead_beef);
        assert!(at.matches(Space::Mmio, 0, &0xdead_beef_dead_beef_u64.to_ne_bytes()));
        assert!(!at.matches(Space::Mmio, 0, &0x0ead_beef_dead_beef_u64.to_ne_bytes()));
    }

    #[test]
    fn what_can_never_match_is_rejected() {
        let cases = [
            (Match::mmio(0, Length::Bytes1).with_datamatch(0xff), Ok(())),
            (
                Match::mmio(0, Length::Bytes1).with_datamatch(0x100),
                Err(Rejection::DatamatchBeyondLength),
            ),
            (
                Match::mmio(0, Length::Bytes2).with_datamatch(0x1_0000),
                Err(Rejection::DatamatchBeyondLength),
            ),
            (
                Match::mmio(0, Length::Bytes4).with_datamatch(u64::MAX),
                Err(Rejection::DatamatchBeyondLength),
            ),
            (Match::mmio(0, Length::Bytes8).with_datamatch(u64::MAX), Ok(())),
            (
                Match::mmio(0, Length::Any).with_datamatch(0),
                Err(Rejection::DatamatchWithoutLength),
            ),
            (Match::pio(0xffff, Length::Bytes1), Ok(())),
            (Match::pio(0xffff, Length::Any), Ok(())),
            (Match::pio(0xffff, Length::Bytes2), Err(Rejection::PortBeyond16Bits)),
            (Match::pio(0x1_0000, Length::Any), Err(Rejection::PortBeyond16Bits)),
            (Match::mmio(u64::MAX, Length::Any), Ok(())),
            (Match::mmio(u64::MAX - 4, Length::Bytes4), Ok(())),
            (Match::mmio(u64::MAX - 3, Length::Bytes4), Err(Rejection::Overflow)),
            (Match::pio(u64::MAX, Length::Bytes1), Err(Rejection::Overflow)),
        ];
        for (at, expected) in cases {
            assert_eq!(at.check(), expected, "{at}");
        }
    }

    #[test]
    fn collisions_are_the_kernels() {
        let four = Match::mmio(0x1000, Length::Bytes4);
        let seven = Match::mmio(0x2000, Length::Bytes4).with_datamatch(7);
        let any = Match::mmio(0x3000, Length::Any);
        let cases = [
            (four, four, true),
            (four, four.with_datamatch(1), true),
            (four, Match::mmio(0x1000, Length::Any), true),
            (four, Match::mmio(0x1000, Length::Bytes2), false),
            (four, Match::mmio(0x1000, Length::Bytes8).with_datamatch(0), false),
            (four, Match::mmio(0x1002, Length::Bytes4), false),
            (four, Match::pio(0x1000, Length::Bytes4), false),
            (seven, seven, true),
            (seven, seven.with_datamatch(8), false),
            (seven, Match::mmio(0x2000, Length::Bytes4), true),
            (seven, Match::mmio(0x2000, Length::Any), true),
            (any, any, true),
            (any, Match::mmio(0x3000, Length::Bytes1), true),
            (any, Match::mmio(0x3000, Length::Bytes1).with_datamatch(1), true),
            (any, Match::pio(0x3000, Length::Any), false),
        ];
        for (one, other, expected) in cases {
            assert_eq!(one.collides(&other), expected, "{one} and {other}");
            assert_eq!(other.collides(&one), expected, "{other} and {one}");
        }
    }

    #[test]
    fn a_match_reads_like_a_sentence() {
        let at = Match::pio(0xc010, Length::Bytes2).with_datamatch(2);
        assert_eq!(at.to_string(), "PIO 0xc010 length 2 datamatch 0x2");
        assert_eq!(Match::mmio(0x1000, Length::Any).to_string(), "MMIO 0x1000 length any");
    }

    #[test]
    fn only_kvms_lengths_exist() {
        for bytes in 0..=17 {
            match Length::try_from(bytes) {
                Ok(length) => assert_eq!(length.bytes(), bytes),
                Err(error) => assert_eq!(error, Rejection::InvalidLength(bytes)),
            }
            assert_eq!(
                Length::try_from(bytes).is_ok(),
                [0, 1, 2, 4, 8].contains(&bytes),
                "{bytes}"
            );
        }
    }
}
