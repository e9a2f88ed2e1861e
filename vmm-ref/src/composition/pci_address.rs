// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address of a PCI device.

use std::fmt;
use std::str::FromStr;

/// A PCI address as Linux writes it: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = String;

    /// # Errors
    /// One line that explains the format of an address.
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!("{text:?} is no PCI address; use domain:bus:device.function, as 0000:00:02.0 (lspci -D)")
        })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    // Reject a sign: the number parsers accept it, a PCI address has none.
    let hex = |digits: &str, least: usize, most: usize| {
        let well_formed =
            (least..=most).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        well_formed.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let address = PciAddress {
        domain: hex(domain, 4, 8)?,
        bus: u8::try_from(hex(bus, 2, 2)?).ok()?,
        device: u8::try_from(hex(device, 2, 2)?).ok()?,
        function: u8::try_from(hex(function, 1, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}
