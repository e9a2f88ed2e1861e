// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask port cloud-hypervisor`: cloud-hypervisor as it is and with the patches of `ports/`, in the lab.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::build::Trees;
use super::runs::{self, Card, Vmm};
use super::table;
use crate::cargo::Workspace;
use crate::lab::{Arch, Lab, Setup};

/// A guest's network card on INTx in cloud-hypervisor, before and after the patches.
///
/// The VMM is built as it is and with the patches, in target/ports. In the lab each of the two assigns a network card to a
/// Linux guest, in turns, and the guest pings the neighbour at the other end of the card's link. The table shows for each
/// how many pings were answered; the interrupts that the guest's driver got; the EOIs that KVM reported to the VMM, the
/// ioctls that changed KVM's routes, all other ioctls but KVM_RUN, and all other system calls of the VMM, between the first
/// ping and the last; and the median round trip.
#[derive(Debug, Args)]
#[command(after_help = "\
The patches of ports/cloud-hypervisor are for cloud-hypervisor's commit ae44c29:
--source is a checkout of that commit, or a tar file of its tree.

Examples:
  git clone https://github.com/cloud-hypervisor/cloud-hypervisor && git -C cloud-hypervisor checkout ae44c29
  cargo xtask port cloud-hypervisor --source cloud-hypervisor
  cargo xtask port cloud-hypervisor --source cloud-hypervisor.tar.zst --micro-http micro-http.tar.zst
  cargo xtask port cloud-hypervisor --source cloud-hypervisor --card e1000 --release --rounds 3 --qemu-too")]
pub struct Options {
    /// The VMM's sources: a checkout, or a tar file of one folder (any compression that this machine's tar knows)
    #[arg(long, value_name = "TARBALL-OR-CHECKOUT")]
    source: PathBuf,

    /// The sources of micro-http, cloud-hypervisor's one dependency from git; without it, cargo fetches them
    #[arg(long, value_name = "TARBALL-OR-CHECKOUT")]
    micro_http: Option<PathBuf>,

    /// The cards; e1000e has MSI-X too, which its guest does not use here
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Card::E1000, Card::E1000e])]
    card: Vec<Card>,

    /// The number of pings of a guest
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pings: u32,

    /// How often each card and VMM has its turn twice: before, after, after, before
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Measure QEMU with its split irqchip too
    #[arg(long)]
    qemu_too: bool,

    /// Build the VMM with its release profile
    #[arg(long)]
    release: bool,

    /// Build and test the VMM after each patch, and do not run the VMM
    #[arg(long, conflicts_with_all = ["qemu_too", "rounds"])]
    each_patch: bool,

    /// Print JSON instead of the table
    #[arg(long, conflicts_with = "each_patch")]
    json: bool,

    /// Show the consoles of the PC and its guests on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// The limit of the PC's own time for one guest.
const GUEST_LIMIT: Duration = Duration::from_secs(300);

/// Builds, measures and prints. The exit code says whether the patched VMM's guests got all answers.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let trees = Trees::lay_out(
        &workspace,
        &options.source,
        options.micro_http.as_deref(),
        options.release,
    )?;
    if options.each_patch {
        return trees.test_each_patch().map(|()| ExitCode::SUCCESS);
    }
    let mut vmms = vec![
        Vmm::upstream(trees.build_upstream()?),
        Vmm::patched(trees.build_patched()?),
    ];
    if options.qemu_too {
        vmms.push(Vmm::qemu());
    }
    let turns = runs::turns(&options.card, &vmms, options.rounds);
    let limit = GUEST_LIMIT * u32::try_from(turns.len())?;
    let lab = Lab::open(workspace.target(), &Setup::of(Arch::X86_64))?;
    let results = runs::run(&lab, &turns, options.pings, limit, options.verbose)?;
    let rows = table::rows(&results);
    if options.json {
        println!("{}", table::json(&rows)?);
    } else {
        print!("{}", table::text(&rows));
    }
    let works = rows
        .iter()
        .filter(|row| row.vmm == runs::PATCHED)
        .all(|row| row.answered == row.pings);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
