// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a machine's interrupt controllers are.

use std::fmt;

/// Where the interrupt controllers of a virtual machine are. QEMU's `kernel-irqchip=on`, `split` and `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Irqchip {
    /// All in the kernel: 8259 pair, IOAPIC and LAPICs on x86, the vGIC on arm64.
    Kernel,
    /// The LAPICs are in the kernel, the IOAPIC and the 8259 pair are in this process (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
    /// All in this process.
    User,
}

impl fmt::Display for Irqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Split => "split",
            Self::User => "user",
        })
    }
}
