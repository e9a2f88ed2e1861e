// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What of a device's INTx is part of a snapshot.

/// The part of an [`Intx`](crate::Intx) that a snapshot keeps.
///
/// It says what the guest and the VMM have asked for, and not how INTx was wired: that follows from the line and the
/// device at the place of restore. A level is not in it either: the device has it, and states it when INTx is set up
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct IntxState {
    /// The version of this format, [`IntxState::VERSION`].
    pub version: u32,
    /// INTx is enabled.
    pub enabled: bool,
    /// The device is in MSI or MSI-X mode.
    pub msi: bool,
    /// The VMM masks INTx on the guest's behalf.
    pub masked: bool,
    /// Interrupt Disable is set in the device's command register.
    pub disintx: bool,
    /// A device that pulses has pulsed, and the guest may not have seen it. Always false for one with a level.
    pub pulse_pending: bool,
}

impl IntxState {
    /// The version that this crate writes, and the only one it reads.
    pub const VERSION: u32 = 1;
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

    #[test]
    fn it_survives_serialisation_and_refuses_what_it_does_not_know() {
        let state = IntxState {
            version: IntxState::VERSION,
            enabled: true,
            msi: false,
            masked: true,
            disintx: false,
            pulse_pending: true,
        };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<IntxState>(&text).unwrap(), state);
        let unknown = text.replace("\"msi\"", "\"msi_x\"");
        serde_json::from_str::<IntxState>(&unknown).unwrap_err();
        let incomplete = text.replace("\"msi\":false,", "");
        assert_ne!(incomplete, text);
        serde_json::from_str::<IntxState>(&incomplete).unwrap_err();
    }
}
