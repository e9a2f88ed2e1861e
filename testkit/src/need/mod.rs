// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The needs of a test, each checked by a trial on the host, once for each process.

#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(target_arch = "x86_64")]
mod pc;

use std::path::Path;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use gic as trial;
#[cfg(target_arch = "x86_64")]
use pc as trial;
#[cfg(target_arch = "x86_64")]
use pc::EndedBy;

/// One requirement of a test.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// `/dev/kvm` opens and makes a VM with a vCPU.
    Kvm,
    /// All controllers in the kernel, to which a resample irqfd can be assigned: an 8259 pair, IOAPIC and LAPIC, or a
    /// GICv3.
    FullIrqchip,
    /// A split irqchip.
    SplitIrqchip,
    /// Accept mode works: see `Machine::accept`.
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

#[cfg(target_arch = "x86_64")]
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
        #[cfg(target_arch = "x86_64")]
        static SPLIT: OnceLock<Result<(), String>> = OnceLock::new();
        #[cfg(target_arch = "x86_64")]
        static ACCEPT: OnceLock<Result<(), String>> = OnceLock::new();
        #[cfg(target_arch = "x86_64")]
        static LAPIC_EOI: OnceLock<Result<EndedBy, String>> = OnceLock::new();
        #[cfg(target_arch = "x86_64")]
        static PIC_EOI: OnceLock<Result<EndedBy, String>> = OnceLock::new();

        match self {
            Need::Kvm => once(&KVM, kvm),
            Need::FullIrqchip => once(&FULL, trial::full_irqchip),
            #[cfg(target_arch = "aarch64")]
            Need::SplitIrqchip | Need::AcceptMode | Need::GenuineLapicEoi | Need::GenuinePicEoi => {
                let reason = format!("{self:?}: it is a PC's, and this is an arm64 host");
                Err(Missing::on_this_host(reason))
            }
            #[cfg(target_arch = "x86_64")]
            Need::SplitIrqchip => once(&SPLIT, trial::split_irqchip),
            #[cfg(target_arch = "x86_64")]
            Need::AcceptMode => {
                Need::FullIrqchip.probe()?;
                once(&ACCEPT, trial::accept_mode)
            }
            #[cfg(target_arch = "x86_64")]
            Need::GenuineLapicEoi => {
                Need::FullIrqchip.probe()?;
                once(&LAPIC_EOI, trial::lapic_interrupt)?.guest("LAPIC")
            }
            #[cfg(target_arch = "x86_64")]
            Need::GenuinePicEoi => {
                Need::FullIrqchip.probe()?;
                once(&PIC_EOI, trial::pic_interrupt)?.guest("8259")
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

fn kvm() -> Result<(), String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("no /dev/kvm".into());
    }
    trial::vm()
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
