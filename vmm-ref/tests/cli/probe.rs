// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm-ref probe`, against what the test harness finds by its own means.

use serde_json::Value;
use testkit::need::Need;

use crate::program::{run, run_json};

pub fn agrees() {
    let (status, object) = run_json("probe");
    assert_eq!(status, 0, "{object}");
    let available = |name: &str| match &object["capabilities"][name]["available"] {
        Value::Bool(available) => *available,
        other => panic!("{name} is {other}: {object}"),
    };
    for (name, need) in [
        ("kvm", Need::Kvm),
        ("irqchip-kernel", Need::FullIrqchip),
        ("resample-irqfd-kernel", Need::FullIrqchip),
        ("irqchip-split", Need::SplitIrqchip),
        ("eoi-ioapic", Need::GenuineLapicEoi),
        ("eoi-pic", Need::GenuinePicEoi),
        ("unmask-resample", Need::KernelAtLeast(6, 3)),
        ("irqfd-exclusive", Need::KernelAtLeast(6, 17)),
    ] {
        assert_eq!(available(name), need.probe().is_ok(), "{name}: {object}");
    }
    assert!(
        !available("resample-irqfd-split"),
        "no kernel since 5.2 takes it: {object}"
    );
    for name in ["irq-line-status", "gsi-routing", "ioeventfd", "ioeventfd-any-length"] {
        assert!(available(name), "{name}: {object}");
    }
    assert_eq!(
        available("vfio"),
        std::path::Path::new("/dev/vfio/vfio").exists(),
        "{object}"
    );

    // The same for people: one line for each, after the host's.
    let ended = run("probe");
    let names = object["capabilities"].as_object().unwrap();
    assert_eq!(ended.stdout.lines().count(), names.len() + 1, "{}", ended.stdout);
    for (name, found) in names {
        let line = ended
            .stdout
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap();
        let answer = if found["available"] == true { " yes " } else { " no " };
        assert!(line.contains(answer), "{line}");
    }
    assert!(!ended.stdout.contains('\x1b'), "{}", ended.stdout.escape_debug());
}

pub fn without_kvm() {
    let (status, object) = run_json("probe --kvm-device /nonexistent");
    assert_eq!(status, 0, "{object}");
    assert_eq!(object["capabilities"]["kvm"]["available"], false, "{object}");
    assert!(object["capabilities"].get("irqchip-kernel").is_none(), "{object}");
}
