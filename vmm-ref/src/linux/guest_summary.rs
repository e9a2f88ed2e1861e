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
use crate::passthrough::path_changes::Account;
use crate::pci::host::Card;
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

/// The interrupts of a PCI device.
#[derive(Clone, Debug, Serialize)]
pub struct CardSummary {
    /// The device: its address on the host's bus, or its server.
    pub name: String,
    /// Vendor and device ID.
    pub id: String,
    /// The address on the guest's bus.
    pub address: String,
    /// The GSI of the device's line.
    #[serde(serialize_with = "number")]
    pub gsi: Gsi,
    /// The path of the interrupt at the end of the run; `null` when it had none.
    pub path: Option<String>,
    /// How often the path was changed.
    pub changes: u64,
    /// Why the interrupt took no better path, best first.
    pub why_not: Vec<WhyNot>,
    /// The EOIs of the line, whichever device had interrupted.
    pub eois: u64,
    /// The interrupts that the host's kernel counted for the device; `null` for a device of a server.
    pub host: Option<u64>,
    /// The guest's count of the line, for all its devices together; `null` when the guest printed none.
    pub guest: Option<GuestCount>,
    /// How often the guest enabled MSI-X, during which the device has no INTx; absent without `--msi on` or MSI-X.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msix: Option<u64>,
    /// The changes of path; absent without `--swap-every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swaps: Option<Account>,
}

/// Why a path is not taken.
#[derive(Clone, Debug, Serialize)]
pub struct WhyNot {
    /// The path.
    pub path: String,
    /// The reason.
    pub reason: String,
}

impl CardSummary {
    /// What this process knows of a device.
    pub fn new(card: &Card) -> Self {
        let explanation = card.forwarding.explanation();
        let why_not = explanation.iter().flat_map(|pair| &pair.why_not);
        Self {
            name: card.name.clone(),
            id: card.id.clone(),
            address: format!("00:{:02x}.0", card.number),
            gsi: card.eois.gsi,
            path: explanation
                .as_ref()
                .and_then(|pair| pair.path)
                .map(|path| path.to_string()),
            changes: explanation.as_ref().map_or(0, |pair| pair.changes),
            why_not: why_not
                .map(|(path, reason)| WhyNot {
                    path: path.to_string(),
                    reason: reason.clone(),
                })
                .collect(),
            eois: card.eois.count(),
            host: None,
            guest: None,
            msix: card.msix.as_ref().map(|msix| msix.enabled()),
            swaps: None,
        }
    }
}

impl fmt::Display for CardSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_deref().unwrap_or("no path");
        let (name, id, address, gsi, eois) = (&self.name, &self.id, &self.address, self.gsi, self.eois);
        write!(f, "{name} ({id}) as {address}: {gsi}, {path}")?;
        if let Some(Account { swaps, every, .. }) = self.swaps {
            write!(f, ", {swaps} changes of path, one every {every} EOIs")?;
        }
        match self.msix {
            None | Some(0) => {}
            Some(1) => write!(f, ", MSI-X enabled once")?,
            Some(times) => write!(f, ", MSI-X enabled {times} times")?,
        }
        write!(f, ": ")?;
        if let Some(host) = self.host {
            write!(f, "the host counted {host}, ")?;
        }
        write!(f, "EOIs {eois}")?;
        match &self.guest {
            Some(GuestCount { count, flow }) => write!(f, "; the guest counted {count} ({flow})"),
            None => Ok(()),
        }
    }
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
    /// The PCI devices, in the order of their addresses; absent without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<CardSummary>,
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
            cards: vec![],
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
