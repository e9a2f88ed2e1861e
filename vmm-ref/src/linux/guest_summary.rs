// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The summary of a run with a Linux guest, for lines and for JSON.

use std::fmt;
use std::time::Duration;

use interrupt_core::{Gsi, InterruptCounts, Irqchip};
use serde::Serialize;

use crate::composition::options::{DoorbellPath, Source, name, serialize_irqchip};
use crate::error::INTERRUPTED;
use crate::host::Host;
use crate::linux::devices::guest_counts::GuestCount;
use crate::vm::ending::End;

/// The configuration of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The host.
    pub host: Host,
    /// The irqchip: where the interrupt controllers were.
    #[serde(serialize_with = "serialize_irqchip")]
    pub irqchip: Irqchip,
    /// The kind of source by which a device drove its line.
    pub source: Source,
    /// Whether KVM or the exit path served the stores to the doorbells.
    pub doorbell: DoorbellPath,
    /// The guest's processors.
    pub cpus: u8,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
}

/// The counts of a device's interrupt: [`InterruptCounts`], for JSON.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// See [`InterruptCounts::raised`].
    pub raised: u64,
    /// See [`InterruptCounts::eois`].
    pub eois: u64,
    /// See [`InterruptCounts::reasserted`].
    pub reasserted: u64,
    /// See [`InterruptCounts::errors`].
    pub errors: u64,
}

impl From<InterruptCounts> for Counts {
    fn from(counts: InterruptCounts) -> Self {
        Self {
            raised: counts.raised,
            eois: counts.eois,
            reasserted: counts.reasserted,
            errors: counts.errors,
        }
    }
}

/// The interrupts of one device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSummary {
    /// The device's name.
    pub name: String,
    /// The GSI of the device's line.
    #[serde(serialize_with = "number")]
    pub gsi: Gsi,
    /// The counts of this process.
    #[serde(flatten)]
    pub counts: Counts,
    /// Whether the device still held its line at the end.
    pub high: bool,
    /// The guest's counts of the line, for all its devices together; `null` when the guest printed none.
    pub guest: Option<GuestCount>,
    /// Why KVM refused the device's doorbell; absent when KVM took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trapped: Option<String>,
    /// Why the device needed a reset; absent when it needed none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_reset: Option<String>,
}

fn number<S: serde::Serializer>(gsi: &Gsi, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(gsi.0)
}

/// The summary.
#[derive(Clone, Debug, Serialize)]
pub struct GuestSummary {
    /// The configuration.
    #[serde(flatten)]
    pub setup: Setup,
    /// The devices, the serial port first.
    pub devices: Vec<DeviceSummary>,
    /// The end of the run.
    pub end: End,
    /// The exit status that the guest reported, if any.
    pub guest_status: Option<u8>,
    /// From the first instruction to the end, in seconds.
    #[serde(serialize_with = "seconds", rename = "elapsed_s")]
    pub elapsed: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl GuestSummary {
    /// The exit status of the program: the guest's status if the guest reported one and ended by itself.
    pub fn exit_status(&self) -> u8 {
        match (self.end, self.guest_status) {
            (End::PowerOff | End::Reset, Some(status)) => status,
            (End::PowerOff, None) => 0,
            (End::Reset | End::TripleFault | End::ConsoleClosed | End::Failed, _) => 1,
            (End::Interrupted, _) => INTERRUPTED,
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (irqchip, source, doorbell) = (self.irqchip, name(&self.source), name(&self.doorbell));
        let plural = if self.cpus == 1 { "" } else { "s" };
        write!(
            f,
            "irqchip {irqchip}, source {source}, doorbell {doorbell}, {} CPU{plural}, {} MiB",
            self.cpus, self.memory_mib
        )
    }
}

impl fmt::Display for DeviceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            raised,
            eois,
            reasserted,
            errors,
        } = self.counts;
        write!(
            f,
            "{}: {}: raised {raised}, EOIs {eois}, reasserted {reasserted}",
            self.name, self.gsi
        )?;
        if errors > 0 {
            write!(f, ", {errors} levels could not be driven")?;
        }
        if self.high {
            write!(f, ", high at the end")?;
        }
        if let Some(GuestCount { count, flow }) = &self.guest {
            write!(f, "; the guest counted {count} ({flow})")?;
        }
        if let Some(why) = &self.trapped {
            write!(f, "; its doorbell is trapped: {why}")?;
        }
        match &self.needed_reset {
            Some(why) => write!(f, "; NEEDED A RESET: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run with two devices.
    pub(crate) fn account() -> GuestSummary {
        let serial = DeviceSummary {
            name: "ttyS0".to_owned(),
            gsi: Gsi(4),
            counts: Counts {
                raised: 9,
                eois: 8,
                reasserted: 1,
                errors: 0,
            },
            high: false,
            guest: Some(GuestCount {
                count: 7,
                flow: "fasteoi".to_owned(),
            }),
            trapped: None,
            needed_reset: None,
        };
        let disk = DeviceSummary {
            name: "virtio0 (disk d)".to_owned(),
            gsi: Gsi(16),
            high: true,
            guest: None,
            needed_reset: Some("the chain at 3 is a loop".to_owned()),
            ..serial.clone()
        };
        GuestSummary {
            setup: Setup {
                host: Host {
                    kernel: "6.18.0".to_owned(),
                    kvm_modules: vec!["kvm_amd".to_owned()],
                    cpus: 2,
                },
                irqchip: Irqchip::Split,
                source: Source::Pin,
                doorbell: DoorbellPath::Trap,
                cpus: 2,
                memory_mib: 256,
            },
            devices: vec![serial, disk],
            end: End::PowerOff,
            guest_status: Some(3),
            elapsed: Duration::from_millis(1500),
        }
    }

    #[test]
    fn the_object_has_the_documented_fields_in_their_order() {
        let mut account = account();
        account.devices.truncate(1);
        assert_eq!(
            serde_json::to_string(&account).unwrap(),
            concat!(
                r#"{"host":"Linux 6.18.0, kvm_amd, 2 CPUs","irqchip":"split","source":"pin","doorbell":"trap","cpus":2,"#,
                r#""memory_mib":256,"devices":[{"name":"ttyS0","gsi":4,"raised":9,"eois":8,"reasserted":1,"errors":0,"#,
                r#""high":false,"guest":{"count":7,"flow":"fasteoi"}}],"end":"power-off","guest_status":3,"elapsed_s":1.5}"#
            )
        );
    }

    #[test]
    fn the_exit_status_is_the_guests_where_it_ended_by_itself() {
        let status = |end, guest_status| {
            GuestSummary {
                end,
                guest_status,
                ..account()
            }
            .exit_status()
        };
        assert_eq!(status(End::PowerOff, None), 0);
        assert_eq!(status(End::PowerOff, Some(3)), 3);
        assert_eq!(status(End::Reset, None), 1);
        assert_eq!(status(End::Reset, Some(0)), 0);
        assert_eq!(status(End::TripleFault, Some(0)), 1);
        assert_eq!(status(End::Interrupted, Some(0)), 130);
    }
}
