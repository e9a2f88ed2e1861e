// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock Linux as the guest: `vmm-ref run --kernel FILE`.
//!
//! The machine is a small PC: 1 to 4 processors, an IOAPIC, a serial port, virtio devices behind the MMIO transport, and
//! a PCI bus. Every interrupt of a device is level-triggered. Each device drives its line through a
//! [`LevelSource`](interrupt_core::LevelSource), learns of EOIs from an [`EoiNotifier`](interrupt_core::EoiNotifier),
//! and answers each with its level. With `--irqchip split` Linux programs the IOAPIC of `user-irqchip`. The guest
//! notifies its queues through an `ioevent` bus.
//!
//! [`prepare`] reads the files and lays out the memory, without KVM. [`launch`] makes the VM and runs it.
//!
//! The guest is a PC, so that all but the options is for x86_64.

pub mod args;
#[cfg(target_arch = "x86_64")]
pub mod boot;
#[cfg(target_arch = "x86_64")]
pub mod devices;
#[cfg(target_arch = "x86_64")]
pub mod eoi_thread;
#[cfg(target_arch = "x86_64")]
pub mod guest_summary;
#[cfg(target_arch = "x86_64")]
pub mod host_counts;
#[cfg(target_arch = "x86_64")]
pub mod launch;
#[cfg(target_arch = "x86_64")]
pub mod prepare;
#[cfg(target_arch = "x86_64")]
pub mod signals;
#[cfg(target_arch = "x86_64")]
pub mod speed;
#[cfg(target_arch = "x86_64")]
pub mod virtio;
