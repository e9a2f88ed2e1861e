// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which path is chosen, and why no better one: the whole table.

use std::sync::Arc;

use interrupt_core::Irqchip;
use interrupt_core::forward::InterruptInfo;
use interrupt_core::forward::{ConsumerInfo, DeviceIrq, Limits, Path, ProducerInfo, decide};

fn producer(level: bool, unmask_fd: bool, relay: bool) -> ProducerInfo {
    ProducerInfo {
        interrupt: InterruptInfo {
            level,
            maskable: level,
            automasked: level,
            unmask_fd,
        },
        relay,
        irq: Some(DeviceIrq {
            device: 3,
            index: 0,
            sub: 0,
        }),
    }
}

fn consumer(irqchip: Irqchip, trigger: bool, host: bool) -> ConsumerInfo {
    ConsumerInfo {
        irqchip,
        relay_only: None,
        trigger,
        host_forward: host.then_some(()).ok_or_else(|| "no attribute".into()),
    }
}

/// One line for each combination of what the two sides can do.
fn table() -> String {
    let mut table = String::new();
    let devices = [
        ("level, unmask eventfd", producer(true, true, true)),
        ("level", producer(true, false, true)),
        ("pulse", producer(false, false, true)),
        ("level, unmask eventfd, no relay", producer(true, true, false)),
    ];
    let lines = [
        ("kernel, host forwards", consumer(Irqchip::Kernel, true, true)),
        ("kernel", consumer(Irqchip::Kernel, true, false)),
        ("kernel, no trigger", consumer(Irqchip::Kernel, false, false)),
        ("split", consumer(Irqchip::Split, true, false)),
        ("process", {
            let relay_only = Some("no kernel".into());
            ConsumerInfo {
                relay_only,
                ..consumer(Irqchip::User, false, false)
            }
        }),
    ];
    for (device, producer) in &devices {
        for (line, consumer) in &lines {
            let decision = decide(producer, consumer, &Limits::default());
            let path = decision.path.map_or("none".to_owned(), |path| path.to_string());
            let why_not: Vec<_> = decision
                .why_not
                .iter()
                .map(|(path, why)| format!("{path}: {why}"))
                .collect();
            table += &format!("{device} -> {line} = {path} [{}]\n", why_not.join("; "));
        }
    }
    table
}

#[test]
fn every_combination_is_decided() {
    let table = table();
    println!("{table}");
    let paths: Vec<_> = table
        .lines()
        .map(|line| line.split(" = ").nth(1).unwrap().split(" [").next().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            // A level that an eventfd unmasks.
            "host forward",
            "kernel loop",
            "relay",
            "split kick",
            "relay",
            // One that this process unmasks.
            "relay",
            "relay",
            "relay",
            "relay",
            "relay",
            // A pulse.
            "relay",
            "relay",
            "relay",
            "relay",
            "relay",
            // Without an event loop there is no last resort.
            "host forward",
            "kernel loop",
            "none",
            "split kick",
            "none",
        ]
    );
    assert!(table.contains(
        "level, unmask eventfd -> split = split kick [host forward: the line is of a split irqchip; \
         kernel loop: the line is of a split irqchip]"
    ));
    assert!(table.contains("pulse -> kernel = relay [host forward: the device pulses and has no level to restate; "));
    assert!(table.contains("level, unmask eventfd -> process = relay [host forward: no kernel; "));
}

#[test]
fn there_is_one_reason_for_each_better_path_and_none_for_a_worse_one() {
    for line in table().lines() {
        let path = line.split(" = ").nth(1).unwrap().split(" [").next().unwrap();
        let reasons = line.split(" [").nth(1).unwrap().trim_end_matches(']');
        let reasons = if reasons.is_empty() {
            0
        } else {
            reasons.split("; ").count()
        };
        let better = Path::ALL.iter().position(|other| other.to_string() == path);
        assert_eq!(reasons, better.unwrap_or(Path::ALL.len()), "{line}");
    }
}

#[test]
fn what_is_asked_for_excludes_all_but_the_relay() {
    let (producer, consumer) = (producer(true, true, true), consumer(Irqchip::Kernel, true, true));
    for only in Path::ALL {
        let mut limits = Limits {
            only: Some(only),
            failed: Vec::new(),
        };
        let possible = only != Path::SplitKick;
        let expected = if possible { only } else { Path::Relay };
        assert_eq!(decide(&producer, &consumer, &limits).path, Some(expected));
        let error = interrupt_core::Error::Unsupported {
            operation: "test",
            gsi: interrupt_core::Gsi(1),
            reason: String::new(),
        };
        limits.failed.push((only, Arc::new(error)));
        let left = (only != Path::Relay).then_some(Path::Relay);
        assert_eq!(decide(&producer, &consumer, &limits).path, left);
    }
}
