// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor under a figure: the same guest and the same round trip without the workspace's interrupt crates, in bare
//! ioctls, eventfd writes and eventfd reads.

mod intx;
mod kernel;
mod rig;
mod soft;
mod split;
mod user;

use std::thread;

use anyhow::Context as _;
use interrupt_core::Irqchip;
use kvm_ioctls::Kvm;
use vmm_ref::composition::options::{Composition, DeviceKind, MachineKind, Source, Wait};
use vmm_ref::latency::Latency;

pub use self::rig::{Floor, Path};
use crate::Result;

impl Floor {
    /// The floor under a composition.
    pub fn under(composition: &Composition) -> Self {
        let path = match composition.device {
            DeviceKind::Vfio(address) => Path::Intx(address),
            // vfio-user and model devices are not measured: a vfio-user server is another process, and a model has one
            // thread more than a device.
            DeviceKind::Embedded | DeviceKind::Model | DeviceKind::VfioUser(_) => {
                match (composition.machine, composition.irqchip, composition.source) {
                    (MachineKind::Soft, _, _) => Path::Thread,
                    (MachineKind::Kvm, Irqchip::Kernel, Source::Line) => Path::Line,
                    (MachineKind::Kvm, Irqchip::Kernel, _) => Path::Resample,
                    (MachineKind::Kvm, Irqchip::Split, _) => Path::Split,
                    (MachineKind::Kvm, Irqchip::User, _) => Path::Interrupt,
                }
            }
        };
        Self {
            path,
            controller: composition.controller,
            polls: composition.wait != Wait::Block,
        }
    }

    /// Makes `count` round trips.
    ///
    /// # Errors
    /// The first system call or step that fails.
    pub fn run(&self, kvm: Option<&Kvm>, count: u64) -> Result<Latency> {
        // Run the device in a thread of its own, as in a composition: the processor that a thread starts on determines
        // the cost of a wake-up.
        let device = thread::scope(|scope| scope.spawn(|| self.run_here(kvm, count)).join());
        device.unwrap_or_else(|_| anyhow::bail!("the device's thread panicked"))
    }

    fn run_here(&self, kvm: Option<&Kvm>, count: u64) -> Result<Latency> {
        let kvm = || kvm.context("there is no KVM");
        match self.path {
            Path::Resample => kernel::resample(kvm()?, self, count),
            Path::Line => kernel::line(kvm()?, self, count),
            Path::Split => split::run(kvm()?, self, count),
            Path::Interrupt => user::run(kvm()?, self, count),
            Path::Thread => soft::run(self, count),
            Path::Intx(address) => intx::run(kvm()?, self, address, count),
        }
    }
}
