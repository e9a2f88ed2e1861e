// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which bytes of a device's configuration space a guest sees, and which it may write.
//!
//! A guest sees the device's registers, except the base addresses, which are not the guest's, and the capabilities that
//! this machine does not offer, which are taken out of the list and read 0. A write reaches the device only in registers
//! of the header that a driver writes, and within a capability that the guest sees. There VFIO, or the server, decides bit
//! by bit.

use super::config_space::{
    CACHE_LINE, CAPABILITIES, COMMAND, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN, ROM, SIZE, STATUS,
};
use super::msix::Capability;

/// Capability IDs (PCI Code and ID Assignment Specification).
const POWER_MANAGEMENT: u8 = 0x01;
const VITAL_PRODUCT_DATA: u8 = 0x03;
const MSI: u8 = 0x05;
const PCI_X: u8 = 0x07;
const VENDOR_SPECIFIC: u8 = 0x09;
const SUBSYSTEM: u8 = 0x0d;
const EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
const ADVANCED_FEATURES: u8 = 0x13;

/// The first byte that a capability can have.
const FIRST: usize = 0x40;
/// Capabilities begin at multiples of 4 bytes. So there are no more of them.
const MOST: usize = (SIZE - FIRST) / 4;

/// The status bit of a function that has capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;
/// The header-type bit of a device with several functions.
const MULTI_FUNCTION: u8 = 1 << 7;

/// A bit of a register by which a guest resets the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetBit {
    /// The byte.
    pub offset: u8,
    /// The bit.
    pub mask: u8,
}

/// A guest's view of a device's configuration space.
#[derive(Clone, Debug)]
pub struct View {
    /// What a byte reads, if not what the device's byte reads.
    fixed: [Option<u8>; SIZE],
    writable: [bool; SIZE],
    /// The byte whose two lowest bits are the power state (PCI Bus Power Management 1.2, 3.2.4).
    pub power_state: Option<u8>,
    /// Where the guest resets the function.
    pub resets: Vec<ResetBit>,
    /// The interrupt pin, 1; 0 for a function that has none.
    pub pin: u8,
    /// MSI-X, if the guest sees it. Its control register is not the device's.
    pub msix: Option<Capability>,
}

impl View {
    /// The view of a device whose configuration space reads `space`. With `messages` the guest sees MSI-X. No guest sees
    /// MSI.
    pub fn new(space: &[u8; SIZE], messages: bool) -> Self {
        let at = |register: u8| usize::from(register);
        let mut view = Self {
            fixed: [None; SIZE],
            writable: [false; SIZE],
            power_state: None,
            resets: Vec::new(),
            // A device of one function has INTA (PCI Local Bus Specification 3.0, 2.2.6), whatever it has on the host.
            pin: space[at(INTERRUPT_PIN)].min(1),
            msix: None,
        };
        for (register, bytes) in [(COMMAND, 2), (STATUS, 2), (CACHE_LINE, 2), (INTERRUPT_LINE, 1)] {
            view.writable[at(register)..][..bytes].fill(true);
        }
        // No expansion ROM: it would be firmware of the host's, for a machine like the host.
        view.fixed[at(ROM)..][..4].fill(Some(0));
        view.fixed[at(HEADER_TYPE)] = Some(space[at(HEADER_TYPE)] & !MULTI_FUNCTION);
        view.fixed[at(INTERRUPT_PIN)] = Some(view.pin);
        // Reserved in front of the first capability.
        view.fixed[FIRST..].fill(Some(0));

        let has_list = space[at(STATUS)] & HAS_CAPABILITIES != 0;
        let (mut link, mut next) = (at(CAPABILITIES), space[at(CAPABILITIES)]);
        view.fixed[link] = Some(0);
        for _ in 0..MOST {
            let start = at(next & !0b11);
            // A list that comes to a capability again goes in a circle.
            if !has_list || start < FIRST || view.fixed[start].is_none() {
                break;
            }
            next = space[start + 1];
            let end = length(space, start).map(|length| start + length);
            let Some(end) = end.filter(|end| *end <= SIZE && shown(space[start], messages)) else {
                continue;
            };
            view.fixed[link] = Some(start as u8);
            view.fixed[start..end].fill(None);
            view.fixed[start + 1] = Some(0);
            view.writable[start + 2..end].fill(true);
            link = start + 1;
            view.remember(space, start);
        }
        view
    }

    fn remember(&mut self, space: &[u8; SIZE], start: usize) {
        match space[start] {
            POWER_MANAGEMENT => self.power_state = Some(start as u8 + 4),
            MSI_X => {
                self.msix = Some(Capability::read(space, start));
                self.writable[start..start + 12].fill(false);
            }
            // Device Capabilities bit 28, Device Control bit 15 (PCI Express Base Specification 5.0, 7.5.3).
            EXPRESS if space[start + 7] & 1 << 4 != 0 => self.resets.push(ResetBit {
                offset: start as u8 + 9,
                mask: 1 << 7,
            }),
            // Advanced Features: capabilities bit 1, control bit 0.
            ADVANCED_FEATURES if space[start + 3] & 1 << 1 != 0 => self.resets.push(ResetBit {
                offset: start as u8 + 4,
                mask: 1,
            }),
            _ => {}
        }
    }

    /// What the byte at `offset` reads, of which the device's byte reads `byte`.
    pub fn byte(&self, offset: usize, byte: u8) -> u8 {
        match self.fixed.get(offset) {
            Some(Some(fixed)) => *fixed,
            Some(None) if offset == usize::from(STATUS) && self.fixed[usize::from(CAPABILITIES)] == Some(0) => {
                byte & !HAS_CAPABILITIES
            }
            Some(None) => byte,
            None => 0xff,
        }
    }

    /// The runs of bytes of a write at `offset` that reach the device: the offset of each, and its bytes.
    pub fn writable<'a>(&self, offset: u8, data: &'a [u8]) -> Vec<(u8, &'a [u8])> {
        let mut runs = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            let first = usize::from(offset) + data.len() - rest.len();
            let writable = self.writable.get(first).is_some_and(|writable| *writable);
            let same = self.writable[first.min(SIZE)..]
                .iter()
                .take_while(|other| **other == writable);
            let (run, after) = rest.split_at(same.count().clamp(1, rest.len()));
            if writable {
                runs.push((first as u8, run));
            }
            rest = after;
        }
        runs
    }
}

/// Whether a guest sees capabilities of this kind. Those that this file has no length of are not shown: nobody knows
/// which bytes they have. Enhanced Allocation among them would say where the host's BARs are.
fn shown(id: u8, messages: bool) -> bool {
    match id {
        MSI => false,
        MSI_X => messages,
        _ => true,
    }
}

/// The number of bytes of the capability at `start`.
fn length(space: &[u8; SIZE], start: usize) -> Option<usize> {
    let control = u16::from_le_bytes([space[start + 2], space[start + 3]]);
    let length = match space[start] {
        POWER_MANAGEMENT | VITAL_PRODUCT_DATA | SUBSYSTEM => 8,
        // With ECC, if the version is 1 or 2, more.
        PCI_X => match control >> 12 & 3 {
            0 => 8,
            _ => 24,
        },
        // A 64-bit address, and a mask for each vector.
        MSI => 10 + if control & 1 << 7 != 0 { 4 } else { 0 } + if control & 1 << 8 != 0 { 10 } else { 0 },
        VENDOR_SPECIFIC => usize::from(space[start + 2]).max(4),
        EXPRESS => match control & 0xf {
            1 => 0x14,
            _ => 0x3c,
        },
        MSI_X => 12,
        ADVANCED_FEATURES => 6,
        _ => return None,
    };
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Power management at 0x50, MSI at 0x60, MSI-X at 0x80, PCI Express at 0x90, an unknown one at 0xe0.
    fn space() -> [u8; SIZE] {
        let mut space = [0xaa; SIZE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x06, &[HAS_CAPABILITIES]);
        put(0x0e, &[MULTI_FUNCTION]);
        put(0x34, &[0x60]);
        put(0x3d, &[2]);
        put(0x60, &[MSI, 0x50, 0x80, 0]);
        put(0x50, &[POWER_MANAGEMENT, 0x80, 3, 0]);
        put(0x80, &[MSI_X, 0x90, 4, 0, 3, 0x20, 0, 0, 0x0b, 0x30, 0, 0]);
        put(0x90, &[EXPRESS, 0xe0, 2, 0, 0, 0, 0, 1 << 4]);
        put(0xe0, &[0x14, 0]);
        space
    }

    fn list(view: &View, space: &[u8; SIZE]) -> Vec<(u8, u8)> {
        let byte = |at: u8| view.byte(at.into(), space[usize::from(at)]);
        let (mut list, mut at) = (Vec::new(), byte(CAPABILITIES));
        while at != 0 && list.len() < MOST {
            list.push((at, byte(at)));
            at = byte(at + 1);
        }
        list
    }

    #[test]
    fn messages_and_unknown_capabilities_are_not_in_the_list() {
        let space = space();
        let view = View::new(&space, false);
        assert_eq!(list(&view, &space), [(0x50, POWER_MANAGEMENT), (0x90, EXPRESS)]);
        for hidden in [0x40, 0x60, 0x61, 0x6d, 0x80, 0x8b, 0xe0, 0xff] {
            assert_eq!(view.byte(hidden, 0x77), 0, "{hidden:#x}");
            assert!(view.writable(hidden as u8, &[1]).is_empty(), "{hidden:#x}");
        }
        assert_eq!(view.power_state, Some(0x54));
        let reset = ResetBit {
            offset: 0x99,
            mask: 0x80,
        };
        assert_eq!(view.resets, [reset]);
    }

    #[test]
    fn messages_are_in_the_list_when_they_are_asked_for() {
        let space = space();
        let view = View::new(&space, true);
        let ids: Vec<_> = list(&view, &space).into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, [POWER_MANAGEMENT, MSI_X, EXPRESS]);
        assert!(
            view.writable(0x82, &[1, 0]).is_empty(),
            "the control register is not the device's"
        );
        let capability = Capability {
            control: 0x82,
            vectors: 5,
            table: (3, 0x2000),
            pending: (3, 0x3008),
        };
        assert_eq!(view.msix, Some(capability));
        assert_eq!(View::new(&space, false).msix, None);
    }

    #[test]
    fn the_header_is_the_devices_but_for_what_is_not_the_guests() {
        let view = View::new(&space(), false);
        assert_eq!((view.byte(0, 0x86), view.byte(8, 3)), (0x86, 3));
        assert_eq!(view.byte(0x0e, MULTI_FUNCTION), 0);
        assert_eq!((view.byte(0x30, 0xff), view.byte(0x3d, 9), view.pin), (0, 1, 1));
        assert_eq!(view.byte(6, 0x10), 0x10);
        let mut bare = space();
        bare[0x34] = 0;
        assert_eq!(View::new(&bare, false).byte(6, 0x10), 0, "no list, no bit");
    }

    #[test]
    fn a_write_reaches_registers_of_a_driver_alone() {
        let view = View::new(&space(), false);
        assert_eq!(view.writable(4, &[7, 0, 0, 0]), [(4, &[7, 0, 0, 0][..])]);
        assert_eq!(view.writable(0x0c, &[1, 2, 3, 4]), [(0x0c, &[1, 2][..])]);
        assert_eq!(view.writable(0x3c, &[1, 2, 3, 4]), [(0x3c, &[1][..])]);
        assert_eq!(view.writable(0x50, &[1, 2, 3, 4]), [(0x52, &[3, 4][..])]);
        for read_only in [0, 8, 0x2c, 0x30, 0x34, 0x38] {
            assert!(view.writable(read_only, &[0; 4]).is_empty(), "{read_only:#x}");
        }
    }

    #[test]
    fn a_list_that_goes_in_a_circle_or_nowhere_ends() {
        let mut space = space();
        space[0x51] = 0x60;
        let view = View::new(&space, true);
        assert!(list(&view, &space).len() <= MOST);
        space[0x51] = 0xfc;
        space[0xfc..].copy_from_slice(&[EXPRESS, 0xfc, 0xff, 0xff]);
        View::new(&space, true);
        space[0x34] = 0x10;
        assert!(list(&View::new(&space, true), &space).is_empty());
    }
}
