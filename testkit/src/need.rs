// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The needs of a test, each checked by a trial on the host, once for each process.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counter::count;
use crate::ioctl;
use crate::machine::{Irqchip, Machine, PicChip};
use crate::rig::LEVEL;

/// One requirement of a test.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// `/dev/kvm` opens and makes a VM with a vCPU.
    Kvm,
    /// An in-kernel 8259 pair, IOAPIC and LAPIC, to which a resample irqfd can be assigned.
    FullIrqchip,
    /// A split irqchip.
    SplitIrqchip,
    /// Accept mode works: see [`Machine::accept`].
    AcceptMode,
    /// The LAPIC keeps an interrupt in service until the guest's own EOI write.
    GenuineLapicEoi,
    /// The 8259 keeps an interrupt in service until the guest's own OCW2.
    GenuinePicEoi,
    /// The kernel's version, from uname(2), is at least this one.
    KernelAtLeast(u32, u32),
    /// Another facility that KVM is expected to have on every host: a name, and a probe that returns the reason when it
    /// is missing.
    Facility(&'static str, fn() -> Result<(), String>),
    /// Another requirement that some hosts do not meet: a name, and a probe that returns the reason when it is not met.
    Host(&'static str, fn() -> Result<(), String>),
}

/// Why a need is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The reason, one line.
    pub reason: String,
    /// Whether it is a facility of KVM that a host with `/dev/kvm` is expected to have.
    pub facility: bool,
}

impl Missing {
    fn of_kvm(reason: String) -> Self {
        Missing { reason, facility: true }
    }

    fn on_this_host(reason: String) -> Self {
        Missing {
            reason,
            facility: false,
        }
    }
}

/// The cause of the end of an interrupt.
#[derive(Clone, Copy, Debug)]
enum EndedBy {
    /// Only the guest's EOI ended the interrupt.
    Guest,
    /// The controller ended the interrupt when it injected it, without the guest's EOI.
    Injection,
}

impl EndedBy {
    fn guest(self, chip: &str) -> Result<(), Missing> {
        match self {
            EndedBy::Guest => Ok(()),
            EndedBy::Injection => Err(Missing::on_this_host(format!(
                "the {chip} of this host ends interrupts as it injects them"
            ))),
        }
    }
}

impl Need {
    /// Checks whether the host meets the need. For a need that takes a VM, the first call runs the trial, and later
    /// calls return its result.
    pub fn probe(self) -> Result<(), Missing> {
        fn once<T: Clone>(cell: &OnceLock<Result<T, String>>, probe: fn() -> Result<T, String>) -> Result<T, Missing> {
            cell.get_or_init(probe).clone().map_err(Missing::of_kvm)
        }
        static KVM: OnceLock<Result<(), String>> = OnceLock::new();
        static FULL: OnceLock<Result<(), String>> = OnceLock::new();
        static SPLIT: OnceLock<Result<(), String>> = OnceLock::new();
        static ACCEPT: OnceLock<Result<(), String>> = OnceLock::new();
        static LAPIC_EOI: OnceLock<Result<EndedBy, String>> = OnceLock::new();
        static PIC_EOI: OnceLock<Result<EndedBy, String>> = OnceLock::new();

        match self {
            Need::Kvm => once(&KVM, || build(Irqchip::User).map(drop)),
            Need::FullIrqchip => once(&FULL, full_irqchip),
            Need::SplitIrqchip => once(&SPLIT, || build(Irqchip::Split).map(drop)),
            Need::AcceptMode => {
                Need::FullIrqchip.probe()?;
                once(&ACCEPT, accept_mode)
            }
            Need::GenuineLapicEoi => {
                Need::FullIrqchip.probe()?;
                once(&LAPIC_EOI, lapic_interrupt)?.guest("LAPIC")
            }
            Need::GenuinePicEoi => {
                Need::FullIrqchip.probe()?;
                once(&PIC_EOI, pic_interrupt)?.guest("8259")
            }
            Need::KernelAtLeast(major, minor) => kernel_at_least(major, minor).map_err(Missing::on_this_host),
            Need::Facility(name, probe) => named(name, probe).map_err(Missing::of_kvm),
            Need::Host(name, probe) => named(name, probe).map_err(Missing::on_this_host),
        }
    }
}

fn named(name: &str, probe: fn() -> Result<(), String>) -> Result<(), String> {
    probe().map_err(|reason| format!("{name}: {reason}"))
}

fn build(irqchip: Irqchip) -> Result<Machine, String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("no /dev/kvm".into());
    }
    Machine::builder()
        .irqchip(irqchip)
        .build()
        .map_err(|e| format!("{irqchip:?} irqchip: {e}"))
}

fn eventfd() -> Result<EventFd, String> {
    EventFd::new(EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"))
}

/// A machine with a resample irqfd on `gsi`, and its two eventfds.
fn resample_machine(gsi: u32) -> Result<(Machine, EventFd, EventFd), String> {
    let machine = build(Irqchip::Kernel)?;
    let (trigger, resample) = (eventfd()?, eventfd()?);
    ioctl::assign_resample(machine.vm(), &trigger, &resample, gsi)
        .map_err(|e| format!("a resample irqfd on a full irqchip: {e}"))?;
    Ok((machine, trigger, resample))
}

fn full_irqchip() -> Result<(), String> {
    resample_machine(GSI).map(drop)
}

const GSI: u32 = 10;
const VECTOR: u8 = 0x31;
/// The work queue takes about 10 us, at worst 160 us.
const LIMIT: Duration = Duration::from_secs(5);

fn signal(trigger: &EventFd) -> Result<(), String> {
    trigger.write(1).map_err(|e| format!("write to an eventfd: {e}"))
}

fn accept_mode() -> Result<(), String> {
    let (mut machine, trigger, resample) = resample_machine(GSI)?;
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    signal(&trigger)?;
    let accepted = machine.accept_within(LIMIT);
    if accepted != Some(VECTOR) {
        return Err(format!(
            "accept mode: accepted {accepted:?} instead of vector {VECTOR:#x}"
        ));
    }
    let before = count(&resample);
    machine.eoi();
    let after = count(&resample);
    if (before, after) != (0, 1) {
        return Err(format!(
            "accept mode: {before} resamples before the EOI and {after} after it, not 0 and 1"
        ));
    }
    Ok(())
}

fn lapic_interrupt() -> Result<EndedBy, String> {
    let (mut machine, trigger, resample) = resample_machine(GSI)?;
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    signal(&trigger)?;
    took(&mut machine, VECTOR)?;
    ended_by(&resample, || drop(machine.eoi()))
}

fn pic_interrupt() -> Result<EndedBy, String> {
    const IRQ: u8 = 5;
    const BASE: u8 = 0x20;
    let (mut machine, trigger, resample) = resample_machine(IRQ.into())?;
    machine.init_pics(BASE, false);
    machine.set_elcr(PicChip::Master, 1 << IRQ);
    machine.set_pic_mask(PicChip::Master, !(1 << IRQ));
    signal(&trigger)?;
    took(&mut machine, BASE + IRQ)?;
    ended_by(&resample, || machine.pic_eoi(PicChip::Master))
}

fn took(machine: &mut Machine, vector: u8) -> Result<(), String> {
    match machine.take_interrupt_within(LIMIT) {
        Some(taken) if taken == vector => Ok(()),
        other => Err(format!("the CPU took {other:?} instead of vector {vector:#x}")),
    }
}

/// The negative control: in service, without the EOI, nothing may have been resampled.
fn ended_by(resample: &EventFd, eoi: impl FnOnce()) -> Result<EndedBy, String> {
    if count(resample) != 0 {
        return Ok(EndedBy::Injection);
    }
    eoi();
    match count(resample) {
        1 => Ok(EndedBy::Guest),
        n => Err(format!("{n} resamples at the guest's EOI, not 1")),
    }
}

fn kernel_at_least(major: u32, minor: u32) -> Result<(), String> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    match version(&release) {
        Some(have) if have >= (major, minor) => Ok(()),
        Some(_) => Err(format!("needs Linux {major}.{minor}, this is {release}")),
        None => Err(format!("needs Linux {major}.{minor}, cannot read version {release:?}")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_strings() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("6.4"), Some((6, 4)));
        assert_eq!(version("6.1.0-39-amd64"), Some((6, 1)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn kernel_gates_compare_numbers_not_text() {
        assert_eq!(Need::KernelAtLeast(2, 6).probe(), Ok(()));
        let missing = Need::KernelAtLeast(1000, 0).probe().unwrap_err();
        assert!(
            missing.reason.starts_with("needs Linux 1000.0, this is "),
            "{}",
            missing.reason
        );
        assert!(!missing.facility);
    }
}
