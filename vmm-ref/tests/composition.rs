// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which compositions can work, and how options read on the command line and in JSON.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use clap::ValueEnum;
use interrupt_core::Irqchip;
use serde::Serialize;
use vmm_ref::composition::check::Impossible;
use vmm_ref::composition::options::{
    Composition, Controller, DeviceKind, DoorbellPath, Eoi, Forward, MAX_DEVICES, MachineKind, Source, Wait, Without,
    name,
};
use vmm_ref::composition::pci_address::PciAddress;
use vmm_ref::composition::socket_path::SocketPath;

fn base() -> Composition {
    Composition::in_kernel(Controller::Pic)
}

/// Every combination that can work; all others are refused with a reason.
#[test]
fn every_combination_is_decided() {
    use Controller::{Ioapic, Pic};
    use Eoi::{Gsi, Key, Resamplefd};
    use Irqchip::{Kernel, Split, User};
    use MachineKind::{Kvm, Soft};
    use Source::{Irqfd, Line, Pin, Resample};
    let mut works = Vec::new();
    for machine in MachineKind::value_variants() {
        for irqchip in Kvm.irqchips() {
            for controller in Controller::value_variants() {
                for source in Source::value_variants() {
                    for eoi in Eoi::value_variants() {
                        let composition = Composition {
                            source: *source,
                            eoi: *eoi,
                            ..Composition::new(*machine, *irqchip, *controller)
                        };
                        if composition.check().is_ok() {
                            works.push((*machine, *irqchip, *controller, *source, *eoi));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(
        works,
        [
            (Kvm, Kernel, Ioapic, Resample, Resamplefd),
            (Kvm, Kernel, Ioapic, Resample, Gsi),
            (Kvm, Kernel, Ioapic, Line, Gsi),
            (Kvm, Kernel, Pic, Resample, Resamplefd),
            (Kvm, Kernel, Pic, Resample, Gsi),
            (Kvm, Kernel, Pic, Line, Gsi),
            (Kvm, Split, Ioapic, Pin, Gsi),
            (Kvm, Split, Ioapic, Pin, Key),
            (Kvm, Split, Ioapic, Irqfd, Gsi),
            (Kvm, User, Pic, Pin, Gsi),
            (Kvm, User, Pic, Pin, Key),
            (Soft, User, Ioapic, Pin, Gsi),
            (Soft, User, Ioapic, Pin, Key),
            (Soft, User, Pic, Pin, Gsi),
            (Soft, User, Pic, Pin, Key),
        ]
    );
}

#[test]
fn what_is_not_asked_for_can_work() {
    for machine in MachineKind::value_variants() {
        for irqchip in machine.irqchips() {
            for controller in machine.controllers(*irqchip) {
                Composition::new(*machine, *irqchip, *controller).check().unwrap();
            }
        }
    }
}

/// As above, for a device of VFIO.
#[test]
fn every_way_to_forward_is_decided() {
    use Forward::{Auto, Kernel as Loop, Relay, SplitKick};
    use Irqchip::{Kernel, Split, User};
    use Source::{Irqfd, Pin, Resample};
    let device: DeviceKind = "vfio:0000:00:02.0".parse().unwrap();
    let mut works = Vec::new();
    for irqchip in MachineKind::Kvm.irqchips() {
        let controller = MachineKind::Kvm.controllers(*irqchip)[0];
        for forward in Forward::value_variants() {
            for source in Source::value_variants() {
                for eoi in Eoi::value_variants() {
                    let composition = Composition {
                        device,
                        forward: *forward,
                        source: *source,
                        eoi: *eoi,
                        ..Composition::new(MachineKind::Kvm, *irqchip, controller)
                    };
                    if composition.check().is_ok() {
                        works.push((*irqchip, *forward, *source, *eoi));
                    }
                }
            }
        }
        let forward = Forward::default_of(device);
        let source = Source::default_with(*irqchip, forward);
        assert!(works.contains(&(*irqchip, forward, source, Eoi::default_of(source))));
    }
    assert_eq!(
        works,
        [
            (Kernel, Auto, Resample, Eoi::Resamplefd),
            (Kernel, Relay, Resample, Eoi::Resamplefd),
            (Kernel, Loop, Resample, Eoi::Resamplefd),
            (Split, Auto, Pin, Eoi::Key),
            (Split, Auto, Irqfd, Eoi::Gsi),
            (Split, Relay, Pin, Eoi::Key),
            (Split, Relay, Irqfd, Eoi::Gsi),
            (Split, SplitKick, Irqfd, Eoi::Gsi),
            (User, Auto, Pin, Eoi::Key),
            (User, Relay, Pin, Eoi::Key),
        ]
    );
}

#[test]
fn what_a_device_cannot_be_combined_with() {
    let vfio = Composition {
        device: "vfio:0000:00:02.0".parse().unwrap(),
        forward: Forward::Kernel,
        ..base()
    };
    assert_eq!(vfio.check(), Ok(()));
    let check = |composition: Composition| composition.check();
    assert_eq!(
        check(Composition { sharers: 2, ..vfio }),
        Err(Impossible::OneForwardedDevice(2))
    );
    assert_eq!(check(Composition { sharers: 0, ..vfio }), Err(Impossible::NoSharers));
    assert_eq!(
        check(Composition {
            forward: Forward::Relay,
            ..base()
        }),
        Err(Impossible::NothingToForward)
    );
    let soft = Composition::new(MachineKind::Soft, Irqchip::User, Controller::Pic);
    assert_eq!(
        check(Composition {
            device: vfio.device,
            forward: Forward::Relay,
            ..soft
        }),
        Err(Impossible::SoftHasNoBar)
    );
}

#[test]
fn sharers_have_both_bounds() {
    let check = |sharers| Composition { sharers, ..base() }.check();
    assert_eq!(check(0), Err(Impossible::NoSharers));
    assert_eq!(check(1), Ok(()));
    assert_eq!(check(MAX_DEVICES), Ok(()));
    assert_eq!(check(MAX_DEVICES + 1), Err(Impossible::TooManySharers(MAX_DEVICES + 1)));
}

#[test]
fn a_reason_is_one_line_and_says_the_way_out() {
    for reason in [
        Impossible::SoftHasNoDoorbell,
        Impossible::SoftHasNoKernel,
        Impossible::NoGic,
        Impossible::NoPc,
        Impossible::GicIsWhole,
        Impossible::GicHasNoDoorbell,
        Impossible::ControlOfGic(Without::Level),
        Impossible::UserHasNoLapic,
        Impossible::SplitHasNoPic,
        Impossible::NoKernelPins,
        Impossible::NoUserPins,
        Impossible::IrqfdIsForSplit,
        Impossible::LineHasNoResamplefd,
        Impossible::NoResamplefd,
        Impossible::NoKey,
        Impossible::NoSharers,
        Impossible::TooManySharers(99),
        Impossible::NothingToForward,
        Impossible::NotForwarded,
        Impossible::SoftHasNoBar,
        Impossible::KernelLoopNeedsResample,
        Impossible::SplitKickNeedsIrqfd,
        Impossible::RelayNeedsLoweringEoi,
        Impossible::ForwarderListens,
        Impossible::OneForwardedDevice(2),
        Impossible::NoSwap(Forward::Relay),
    ] {
        let reason = reason.to_string();
        assert_eq!(reason.lines().count(), 1, "{reason}");
        assert!(reason.contains("; use "), "{reason}");
    }
}

#[test]
fn a_device_reads_as_it_is_written() {
    for text in [
        "embedded",
        "model",
        "vfio:0000:00:02.0",
        "vfio:10000:fe:1f.7",
        "vfio-user:/run/edu.sock",
    ] {
        let device: DeviceKind = text.parse().unwrap();
        assert_eq!(device.to_string(), text);
        assert_eq!(serde_json::to_value(device).unwrap(), text);
    }
    for text in ["", "vfio", "vfio:", "00:02.0", "edu"] {
        let error = text.parse::<DeviceKind>().unwrap_err();
        assert!(
            error.contains("vfio:0000:00:02.0") || error.contains("0000:00:02.0"),
            "{error}"
        );
    }
}

#[test]
fn json_and_command_line_use_the_same_names() {
    fn check<T: ValueEnum + Serialize>() {
        for value in T::value_variants() {
            assert_eq!(serde_json::to_value(value).unwrap(), name(value));
        }
    }
    check::<MachineKind>();
    check::<Controller>();
    check::<Without>();
    check::<Source>();
    check::<Eoi>();
    check::<Wait>();
    check::<DoorbellPath>();
    check::<Forward>();
}

#[test]
fn an_address_is_read_as_it_is_written() {
    for text in ["0000:00:02.0", "ffff:ff:1f.7", "10000:e1:00.0"] {
        assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
    }
}

#[test]
fn what_is_no_address_is_refused_with_an_example() {
    for text in [
        "",
        "00:02.0",
        "0000:00:02",
        "0000:00:02.8",
        "0000:00:20.0",
        "0000:0:2.0",
        "0000:00:+2.0",
        "0000:00:02.0 ",
        "0000:00:02.0/..",
        "123456789:00:02.0",
    ] {
        let error = text.parse::<PciAddress>().unwrap_err();
        assert!(error.contains("as 0000:00:02.0"), "{error}");
    }
}

/// The longest path of a Unix socket (unix(7)).
const LONGEST: usize = 107;

#[test]
fn a_socket_path_is_read_as_it_is_written() {
    for text in ["/run/edu.sock".to_owned(), "e".repeat(LONGEST)] {
        assert_eq!(text.parse::<SocketPath>().unwrap().to_string(), text);
    }
}

#[test]
fn what_no_socket_can_have_is_refused_in_one_line() {
    assert!(
        "".parse::<SocketPath>()
            .unwrap_err()
            .contains("vfio-user:/run/edu.sock")
    );
    let error = "e".repeat(LONGEST + 1).parse::<SocketPath>().unwrap_err();
    assert!(error.contains("107") && error.contains("108"), "{error}");
}
