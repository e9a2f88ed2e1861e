// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card on INTx, passed through to a stock Linux guest: this workspace's VMM beside QEMU, in the lab.
//!
//! All VMMs boot the same kernel and initrd on one processor with the same memory, and get the same card. The card's
//! neighbour is in the lab's own Linux. The VMMs run in turns, forwards and then backwards (ABBA), so that a host that
//! becomes slower or faster affects all of them alike.

mod boot;
mod host;
pub mod table;
mod vmm;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};

use self::boot::{MIB_MOVED, Measured, Meetings, boot};
pub use self::vmm::{Vmm, all};
use crate::Result;
use crate::results::{LeftOut, Nic, NicFigures, Spread};

/// What `--only` asks for these figures with. Nothing else does, because they take half an hour.
pub const ONLY: &str = "nic";

/// The pings of a phase. There are two phases: the first is timed, the exits of the second are counted.
const PINGS: u32 = 300;

/// Measures all VMMs in `rounds` rounds, at least 1. `on_step` is called before each boot. A VMM that cannot run is left
/// out, with its reason.
///
/// # Errors
/// When the lab's cards or counters cannot be used, and when a QEMU fails: there is nothing to compare with then.
pub fn measure(
    vmms: &[Vmm],
    rounds: usize,
    interrupted: &AtomicBool,
    on_step: &mut dyn FnMut(&str),
) -> Result<(Nic, Vec<LeftOut>)> {
    host::bring_up_neighbours()?;
    let (meetings, sum) = (Meetings::new()?, host::checksum(MIB_MOVED)?);
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); vmms.len()];
    let mut left_out: Vec<LeftOut> = Vec::new();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..vmms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for n in order {
            if interrupted.load(Ordering::Acquire) {
                bail!("interrupted");
            }
            let vmm = &vmms[n];
            if left_out.iter().any(|left_out| left_out.what == vmm.name) {
                continue;
            }
            on_step(&vmm.name);
            match boot(vmm, PINGS, &sum, &meetings) {
                Ok(one) => measured[n].push(one),
                Err(error) if vmm.compared_with.is_some() => {
                    left_out.push(LeftOut::new(&vmm.name, format!("{error:#}")));
                }
                Err(error) => return Err(error).with_context(|| vmm.name.clone()),
            }
        }
    }
    let vmms = vmms
        .iter()
        .zip(&measured)
        .filter(|(_, measured)| !measured.is_empty())
        .map(|(vmm, measured)| figures(vmm, measured))
        .collect();
    Ok((
        Nic {
            rounds,
            pings: PINGS,
            vmms,
        },
        left_out,
    ))
}

fn figures(vmm: &Vmm, measured: &[Measured]) -> NicFigures {
    let spread = |of: &dyn Fn(&Measured) -> f64| Spread::of(&measured.iter().map(of).collect::<Vec<_>>());
    let per_ping = |of: &dyn Fn(&Measured) -> u64| spread(&|one| of(one) as f64 / f64::from(PINGS)).median;
    let reasons = measured.iter().flat_map(|one| one.exits.keys());
    let exits = reasons.map(|reason| {
        (
            reason.clone(),
            per_ping(&|one| one.exits.get(reason).copied().unwrap_or(0)),
        )
    });
    NicFigures {
        name: vmm.name.clone(),
        compared_with: vmm.compared_with.map(str::to_owned),
        ping_us: spread(&|of| of.ping_us),
        boot_s: spread(&|of| of.boot_s),
        receive_mib_s: spread(&|of| of.receive_mib_s),
        send_mib_s: spread(&|of| of.send_mib_s),
        exits_per_ping: exits.collect(),
        card_interrupts_per_ping: per_ping(&|of| of.counts.of_card),
        host_interrupts_per_ping: per_ping(&|of| of.counts.interrupts),
        context_switches_per_ping: per_ping(&|of| of.counts.switches),
    }
}
