// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI cards of the lab, passed through to a stock Linux, whose own drivers serve their INTx: two e1000, an rtl8139, and a
//! UHCI with a USB stick.
//!
//! The guest (xtask/src/lab/guest-init.sh) pings the neighbour of each network card, gets 16 MiB over TCP, and sends these
//! back; over the rtl8139, each access to whose registers is an exit, 1 MiB. A boot takes ten seconds in the lab, so that each
//! test asks for several things.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Once;
use std::time::Duration;

use serde_json::Value;
use testkit::harness::Suite;
use testkit::need::Need;

/// For one boot and its transfers. On an idle machine it is 15 s.
const BOOT: Duration = Duration::from_secs(300);

/// The network cards by their links.
const E1000: &str = "vfio:0000:00:0a.0";
const SECOND_E1000: &str = "vfio:0000:00:0c.0";
const RTL8139: &str = "vfio:0000:00:0e.0";
const RTL8139_LINK: u8 = 3;
const UHCI: &str = "vfio:0000:00:14.0";

const PINGS: usize = 20;

/// What a link moves each way, in MiB.
fn mib_of(link: u8) -> u8 {
    match link {
        RTL8139_LINK => 1,
        _ => 16,
    }
}

fn variable(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os(name).ok_or_else(|| format!("no {name}; it is set in cargo xtask lab"))?;
    Ok(path.into())
}

fn cards() -> Result<(), String> {
    variable("IRQ_TEST_NEIGHBOURS").map(drop)
}

fn main() -> ExitCode {
    let needs = |irqchip| [Need::Host("cards", cards), Need::GenuineLapicEoi, irqchip];
    let (full, split) = (needs(Need::FullIrqchip), needs(Need::SplitIrqchip));
    Suite::new("vmm-ref::nic")
        .serial()
        .test_within(BOOT, "the_kernel_loop_serves_an_e1000_and_a_uhci", &full, || {
            serves("--irqchip kernel --forward kernel", [UHCI, E1000], &[1], "kernel loop")
        })
        .test_within(BOOT, "the_split_kick_serves_an_e1000_and_an_rtl8139", &split, || {
            serves(
                "--irqchip split --forward split-kick",
                [SECOND_E1000, RTL8139],
                &[2, RTL8139_LINK],
                "split kick",
            )
        })
        .test_within(
            BOOT,
            "two_cards_share_a_gsi_of_the_kernel_while_their_paths_change",
            &full,
            || changes("--irqchip kernel"),
        )
        .test_within(
            BOOT,
            "two_cards_share_a_gsi_of_our_ioapic_while_their_paths_change",
            &split,
            || changes("--irqchip split"),
        )
        .run()
}

fn neighbours() {
    static UP: Once = Once::new();
    UP.call_once(|| {
        let status = Command::new(variable("IRQ_TEST_NEIGHBOURS").unwrap()).status().unwrap();
        assert!(status.success(), "{status}");
    });
}

/// Runs the lab's guest with these cards, to do `work`: its console, and the object of `--json`.
fn run(arguments: &str, cards: [&str; 2], work: &str) -> (String, Value) {
    neighbours();
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(["run", "--json"])
        .args(arguments.split_whitespace())
        .args(cards.iter().flat_map(|card| ["--device", card]))
        .arg("--kernel")
        .arg(variable("IRQ_TEST_GUEST_KERNEL").unwrap())
        .arg("--initrd")
        .arg(variable("IRQ_TEST_GUEST_INITRD").unwrap())
        .args([
            "--cmdline",
            &format!(
                "console=ttyS0 panic=-1 quiet work={work} pings={PINGS} mib_{RTL8139_LINK}={}",
                mib_of(RTL8139_LINK)
            ),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout);
    let object: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{console}"));
    assert_eq!(
        (output.status.code(), &object["end"]),
        (Some(0), &Value::from("power-off")),
        "{console}\n{object}"
    );
    (console, object)
}

/// The checksum of the first MiB of the lab's disk, by this program of coreutils.
fn sum_of_disk(program: &str, mib: u8) -> String {
    let disk = variable("IRQ_TEST_GUEST_DISK").unwrap();
    let script = format!("head -c {mib}M \"$0\" | {program}");
    let output = Command::new("sh").args(["-c", &script]).arg(disk).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

/// No ping and no byte was lost, in either direction.
fn assert_all_arrived(console: &str, links: &[u8]) {
    for link in links {
        let sum = sum_of_disk("md5sum", mib_of(*link));
        let moved = format!("guest: link {link} got {sum} and gave back {sum}");
        assert!(console.contains(&moved), "no {moved:?}: {console}");
        let replies = format!("bytes from 10.0.{link}.1: seq=");
        assert_eq!(console.matches(&replies).count(), PINGS, "{console}");
    }
}

fn number(object: &Value, field: &str) -> u64 {
    object[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {object}"))
}

/// Interrupts after the guest had printed its counts, when its drivers switch the cards off.
const LATE: u64 = 8;

/// Each interrupt of a line was served once by the guest's handler, and had one EOI. The host counts fewer: when a card
/// still asserts at the unmask, vfio-pci signals at once, without another interrupt of the host. Cards that interrupt at the
/// same time are served by one run of the handler.
fn assert_agrees(cards: &[Value]) {
    let guest = &cards[0]["guest"];
    assert_eq!(guest["flow"], "fasteoi", "{cards:?}");
    let count = number(guest, "count");
    for card in cards {
        let eois = number(card, "eois");
        assert!((count..=count + LATE).contains(&eois), "{count} served: {cards:?}");
        // The pin of the UHCI shares a line of the lab's chipset with neighbours, whose interrupts the host counts too.
        if !UHCI.ends_with(card["name"].as_str().unwrap()) {
            assert!(number(card, "host") <= count + LATE, "{count} served: {cards:?}");
        }
    }
}

/// Each card on a line of its own.
fn serves(arguments: &str, with: [&str; 2], links: &[u8], path: &str) {
    let stick = with.contains(&UHCI);
    let work = format!("cards,ping,transfer,{}interrupts", if stick { "stick," } else { "" });
    let (console, object) = run(arguments, with, &work);
    assert_all_arrived(&console, links);
    if stick {
        let read = format!("guest: stick {}", sum_of_disk("sha256sum", 1));
        assert!(console.contains(&read), "no {read:?}: {console}");
    }
    for card in object["cards"].as_array().unwrap() {
        assert_eq!(
            (&card["path"], number(card, "changes")),
            (&Value::from(path), 0),
            "{card}"
        );
        assert!(number(card, "host") > 100, "{card}");
        assert_agrees(std::slice::from_ref(card));
    }
}

/// Both cards on one GSI, under load at once; a change of path after every 50 EOIs.
fn changes(irqchip: &str) {
    let arguments = format!("{irqchip} --share-irq --swap-every 50");
    let (console, object) = run(&arguments, [E1000, SECOND_E1000], "cards,ping,transfer,interrupts");
    assert_all_arrived(&console, &[1, 2]);
    let cards = object["cards"].as_array().unwrap();
    assert_eq!(cards[0]["gsi"], cards[1]["gsi"], "{object}");
    for card in cards {
        assert!(number(card, "changes") >= 5, "{card}");
    }
    assert_agrees(cards);
}
