// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor of the embedded guest on x86: in real mode.

use interrupt_core::Irqchip;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::error::{Error, Result, at};
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{BAR_ADDRESS, DOORBELL_ADDRESS};

const IOAPIC_BASE: u64 = 0xfec0_0000;

/// Real mode at the program's entry, with the IOAPIC at the base of ES, the doorbell at that of FS, a device's BAR at
/// that of GS, and an x2APIC that the guest may turn on.
pub(super) fn set_up(kvm: &Kvm, _: &VmFd, vcpu: &VcpuFd, image: &Image, irqchip: Irqchip) -> Result<()> {
    const CPUID_FEATURES: u32 = 1;
    const ECX_X2APIC: u32 = 1 << 21;
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(at("KVM_GET_SUPPORTED_CPUID"))?;
    for entry in cpuid.as_mut_slice() {
        if entry.function == CPUID_FEATURES && irqchip != Irqchip::User {
            entry.ecx |= ECX_X2APIC;
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(at("KVM_SET_CPUID2"))?;

    let mut sregs = vcpu.get_sregs().map_err(at("KVM_GET_SREGS"))?;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        segment.selector = 0;
        segment.base = 0;
    }
    sregs.es.base = IOAPIC_BASE;
    sregs.fs.base = DOORBELL_ADDRESS;
    sregs.gs.base = BAR_ADDRESS;
    vcpu.set_sregs(&sregs).map_err(at("KVM_SET_SREGS"))?;

    const RFLAGS_ALWAYS_ONE: u64 = 2;
    vcpu.set_regs(&kvm_regs {
        rip: image.entry,
        rsp: image.stack,
        rflags: RFLAGS_ALWAYS_ONE,
        ..Default::default()
    })
    .map_err(at("KVM_SET_REGS"))
}

/// Ticks of the guest's time-stamp counter in a millisecond, never 0.
pub(super) fn tsc_khz(vcpu: &VcpuFd) -> Result<u32> {
    match vcpu.get_tsc_khz().map_err(at("KVM_GET_TSC_KHZ"))? {
        0 => Err(Error::Guest(
            "KVM does not know the rate of its time-stamp counter".to_owned(),
        )),
        khz => Ok(khz),
    }
}
