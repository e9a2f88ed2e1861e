// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's processors: their CPUID, and the 64-bit mode in which the first processor starts.
//!
//! The 64-bit boot protocol (Documentation/x86/boot.rst) wants paging on with the first memory mapped one to one, flat
//! segments with selectors 0x10 (code) and 0x18 (data), interrupts off, and the boot parameters' address in RSI.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result, at};
use crate::linux::boot::memory_map::{BOOT_STACK, GDT, PAGE_TABLES};

const PAGE: u64 = 4096;
/// One page directory maps 1 GiB in pages of 2 MiB.
const GIBIBYTES: u64 = 4;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ALWAYS_ONE: u64 = 2;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const TASK_DESCRIPTOR: u64 = 0x008f_8b00_0000_ffff;

/// IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back, as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the page tables and the descriptor table that [`start_at`] points to: the first 4 GiB one to one.
///
/// # Errors
/// [`Error::Memory`] when the memory is too small for the tables.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    let entry = |table: u64, index: u64, value: u64| memory.write_obj(value, GuestAddress(table + index * 8));
    let pointers = PAGE_TABLES + PAGE;
    entry(PAGE_TABLES, 0, pointers | PRESENT_WRITABLE)?;
    for gibibyte in 0..GIBIBYTES {
        let directory = pointers + (1 + gibibyte) * PAGE;
        entry(pointers, gibibyte, directory | PRESENT_WRITABLE)?;
        for index in 0..512 {
            let address = (gibibyte << 30) | (index << 21);
            entry(directory, index, address | LARGE_PAGE | PRESENT_WRITABLE)?;
        }
    }
    for (index, descriptor) in [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, TASK_DESCRIPTOR]
        .into_iter()
        .enumerate()
    {
        entry(GDT, index as u64, descriptor)?;
    }
    Ok(())
}

/// Makes the vCPU start at `entry` in 64-bit mode, with this `rsi`.
///
/// # Errors
/// The error of the ioctl.
pub fn start_at(vcpu: &VcpuFd, entry: u64, rsi: u64) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(at("KVM_GET_SREGS"))?;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(CODE_SELECTOR, CODE_DESCRIPTOR);
    for data in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *data = segment(DATA_SELECTOR, DATA_DESCRIPTOR);
    }
    sregs.tr = segment(TASK_SELECTOR, TASK_DESCRIPTOR);
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(at("KVM_SET_SREGS"))?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rflags: RFLAGS_ALWAYS_ONE,
        ..Default::default()
    })
    .map_err(at("KVM_SET_REGS"))
}

/// Memory types as firmware leaves them.
///
/// # Errors
/// The error of the ioctl, or [`Error::Guest`] when KVM does not know the register.
pub fn set_memory_types(vcpu: &VcpuFd) -> Result<()> {
    let msrs = Msrs::from_entries(&[kvm_msr_entry {
        index: MSR_MTRR_DEF_TYPE,
        data: MTRR_WRITE_BACK,
        ..Default::default()
    }])
    .map_err(|error| Error::Guest(format!("{error:?}")))?;
    match vcpu.set_msrs(&msrs).map_err(at("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(Error::Guest("KVM has no IA32_MTRR_DEF_TYPE".to_owned())),
    }
}

/// A segment register from its descriptor.
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |number: u32| (descriptor >> number & 1) as u8;
    kvm_segment {
        selector,
        base: 0,
        // The limit counts pages, because every segment has the granularity bit.
        limit: u32::MAX,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: 0,
        present: bit(47),
        avl: 0,
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..Default::default()
    }
}

/// Sets the CPUID of processor `id` of `cpus` to what KVM supports: one package, one core for each processor, one
/// thread for each core.
///
/// # Errors
/// The error of the ioctl.
pub fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd, id: u8, cpus: u8) -> Result<()> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(at("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let entries = describe(supported.as_slice(), id, cpus, deadline);
    let cpuid = CpuId::from_entries(&entries).map_err(|error| Error::Guest(format!("{error:?}")))?;
    vcpu.set_cpuid2(&cpuid).map_err(at("KVM_SET_CPUID2"))
}

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

fn describe(supported: &[kvm_cpuid_entry2], id: u8, cpus: u8, deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let (id, cpus) = (u32::from(id), u32::from(cpus));
    let mut entries = Vec::with_capacity(supported.len() + 2);
    for entry in supported {
        let mut entry = *entry;
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0x0000_ffff | cpus << 16 | id << 24;
                entry.ecx |= ECX_X2APIC | ECX_HYPERVISOR;
                if deadline {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
                entry.edx = if cpus > 1 {
                    entry.edx | EDX_HTT
                } else {
                    entry.edx & !EDX_HTT
                };
            }
            // Report the guest's cores, and drop the host's cache sharing.
            CACHES => entry.eax = entry.eax & 0x3fff | (cpus.next_power_of_two() - 1) << 26,
            TOPOLOGY | TOPOLOGY_V2 => continue,
            AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | (cpus - 1),
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
        entries.push(entry);
    }
    // Sub-leaf 0: threads of a core; 1: cores of the package. In EAX, how far to shift the APIC ID for the next level.
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    for (index, kind, shift, count) in [(0, THREAD, 0, 1), (1, CORE, cpus.next_power_of_two().ilog2(), cpus)] {
        entries.push(kvm_cpuid_entry2 {
            function: TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            edx: id,
            ..Default::default()
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn each_processor_says_who_it_is_and_how_many_there_are() {
        let host = [FEATURES, CACHES, TOPOLOGY, TOPOLOGY_V2, AMD_SIZES, AMD_TOPOLOGY].map(leaf);
        let entries = describe(&host, 2, 3, true);
        let of = |function| {
            entries
                .iter()
                .filter(move |entry| entry.function == function)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(FEATURES)[0].ebx >> 16, 2 << 8 | 3);
        assert_eq!(of(FEATURES)[0].edx & EDX_HTT, EDX_HTT);
        assert_eq!(of(CACHES)[0].eax >> 14, 3 << 12);
        assert_eq!(of(AMD_SIZES)[0].ecx & 0xf0ff, 2);
        assert_eq!((of(AMD_TOPOLOGY)[0].eax, of(AMD_TOPOLOGY)[0].ebx), (2, 2));
        let levels: Vec<_> = of(TOPOLOGY)
            .iter()
            .map(|level| (level.eax, level.ebx, level.ecx, level.edx))
            .collect();
        assert_eq!(levels, [(0, 1, 0x100, 2), (2, 3, 0x201, 2)]);
        assert!(of(TOPOLOGY_V2).is_empty());
    }

    #[test]
    fn the_timer_is_offered_where_kvm_has_it() {
        let ecx = |deadline| {
            describe(
                &[kvm_cpuid_entry2 {
                    function: FEATURES,
                    ..Default::default()
                }],
                0,
                1,
                deadline,
            )[0]
            .ecx
        };
        assert_eq!(ecx(true) & ECX_TSC_DEADLINE, ECX_TSC_DEADLINE);
        assert_eq!(ecx(false) & ECX_TSC_DEADLINE, 0);
        assert_eq!(ecx(false), ECX_X2APIC | ECX_HYPERVISOR);
    }
}
