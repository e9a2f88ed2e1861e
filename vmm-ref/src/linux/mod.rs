// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock Linux as the guest: `vmm-ref run --kernel FILE`.
//!
//! The machine is a small PC without PCI: 1 to 4 processors, an IOAPIC, a serial port, and virtio devices behind the MMIO transport.
//! Every interrupt of a device is level-triggered and goes through this workspace: each device holds its line by a
//! [`LevelSource`](interrupt_core::LevelSource), is told of EOIs by an [`EoiNotifier`](interrupt_core::EoiNotifier), and answers with
//! its level ([mod@line]). With `--irqchip split` Linux programs the IOAPIC of `user-irqchip`. The guest's notifications of its
//! queues are events of an `ioevent` bus.
//!
//! [`prepare`] does what needs no KVM, [`fn@run`] the rest.

pub mod acpi;
pub mod args;
pub mod boot;
pub mod console;
pub mod cpu;
pub mod devices;
pub mod error;
pub mod guest_counts;
pub mod kernel;
pub mod layout;
pub mod line;
pub mod power;
pub mod processor;
pub mod report;
pub mod run;
pub mod speed;
pub mod terminal;
pub mod virtio;
pub mod wake;

pub use args::LinuxArgs;
pub use error::Error;
pub use report::Summary;
pub use run::{Options, Prepared, check_speed, default_source, prepare, run};
