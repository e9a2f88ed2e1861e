// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this process does at a resample of one GSI.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use interrupt_core::{EveryStep, Gsi, Listeners};

use crate::line::irq_line::IrqLine;

/// The callbacks that listen to one GSI, and the line that KVM_IRQ_LINE drives there, if there is one now. Callbacks
/// outlive lines.
pub(crate) struct Resampled {
    gsi: Gsi,
    pub(crate) listeners: Listeners,
    pub(crate) line: ArcSwapOption<IrqLine>,
    /// How many resamples of the GSI were served, also by others than this.
    served: Arc<AtomicU64>,
}

impl Resampled {
    pub(crate) fn new(gsi: Gsi, line: Option<Arc<IrqLine>>, served: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            gsi,
            listeners: Listeners::new(),
            line: ArcSwapOption::new(line),
            served,
        })
    }

    /// Tells all listeners, then drives a level that is still high once more: a resampler on the GSI makes KVM's IOAPIC
    /// forget a pending level at an unmask (since Linux 6.3). A listener that cannot be told keeps no level from that.
    pub(crate) fn serve(&self) -> interrupt_core::Result<()> {
        self.served.fetch_add(1, Ordering::Relaxed);
        let line = self.line.load_full();
        let mut steps = EveryStep::default();
        let of_line = steps.take(|| line.as_ref().map_or(Ok(()), |line| line.eoi().map(drop)));
        let of_gsi = steps.take(|| self.listeners.notify(self.gsi).map(drop));
        let restated = steps.take(|| line.map_or(Ok(()), |line| line.reassert().map(drop)));
        steps.end();
        [of_line, of_gsi, restated].into_iter().flatten().collect()
    }
}
