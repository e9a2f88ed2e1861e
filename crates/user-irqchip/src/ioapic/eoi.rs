// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of an interrupt: the chip asks the sources for their level, and sends the interrupts of the lines that are
//! high.

use std::time::Duration;

use interrupt_core::{EveryStep, Line};

use super::Ioapic;
use super::pin::{IoapicPin, Locked};
use super::pin_state::AfterEoi;

/// The time that the hook of [`IoapicBuilder::on_delayed_eoi`](super::IoapicBuilder::on_delayed_eoi) is given, as in
/// Linux.
pub const EOI_DELAY: Duration = Duration::from_millis(10);

impl Ioapic {
    /// Ends **level-triggered** interrupts of this vector. Call this for KVM_EXIT_IOAPIC_EOI on a split irqchip, and
    /// for the EOI broadcast of a local APIC otherwise. Tells the listeners, and sends the interrupt again if the line
    /// is high after that.
    ///
    /// The cost grows with the number of pins that have this vector. An EOI of a vector that no pin has costs two loads.
    pub fn eoi(&self, vector: u8) {
        let mut steps = EveryStep::default();
        let refused = self.shared.refused();
        for pin in self.shared.pins_of(vector) {
            if let Some(line) = self.lines.get(pin) {
                steps.take(|| self.end(line, vector));
            }
        }
        self.tell_again(refused, &mut steps);
        steps.end();
    }

    /// Ends **edge-triggered** interrupts of this vector: tells the listeners, and nothing else. A level pin that
    /// shares the vector keeps its remote IRR. KVM's own irqchip tells its IOAPIC of these EOIs; hardware and a split
    /// irqchip do not. See [`IoapicBuilder::edge_eois`](super::IoapicBuilder::edge_eois).
    pub fn edge_eoi(&self, vector: u8) {
        let mut steps = EveryStep::default();
        for pin in self.shared.pins_of(vector) {
            if let Some(line) = self.lines.get(pin) {
                steps.take(|| self.resample(line));
            }
        }
        steps.end();
    }

    /// Ends a delay: sends the interrupts whose lines are still high. Call this when [`EOI_DELAY`] has passed since the
    /// hook of [`IoapicBuilder::on_delayed_eoi`](super::IoapicBuilder::on_delayed_eoi) ran.
    pub fn delayed_eoi(&self) {
        let mut steps = EveryStep::default();
        for line in &self.lines {
            steps.take(|| line.pin().delay_over());
        }
        steps.end();
    }

    /// Tries again what the output had refused: no assertion raises a line that is high already.
    pub(super) fn tell_again(&self, refused: impl Iterator<Item = usize>, steps: &mut EveryStep) {
        for pin in refused {
            if let Some(line) = self.lines.get(pin) {
                steps.take(|| line.pin().tell_again());
            }
        }
    }

    /// Asks the sources of a line to state their level: lowers the sources that an EOI lowers, and tells the listeners.
    pub(super) fn resample(&self, line: &Line<IoapicPin>) {
        self.shared.counters.listener_errors.count_error(line.eoi());
    }

    fn end(&self, line: &Line<IoapicPin>, vector: u8) {
        let hook = self.on_delayed_eoi.as_ref();
        let look = |pin: &mut Locked| pin.step(|state| state.end(vector, hook.is_some()));
        let told = line.eoi_then(look, |after| {
            let mut steps = EveryStep::default();
            let delayed = steps.take(|| line.pin().ended(after)) == Some(true);
            if after == AfterEoi::Program {
                // An irqfd on the pin's GSI may have signalled by the old message, whose EOI KVM before 6.2 does not tell.
                let told = steps.take(|| line.resample_gsi()).unwrap_or(Ok(()));
                self.shared.counters.listener_errors.count_error(told);
            }
            if let (true, Some(hook)) = (delayed, hook) {
                if steps.take(|| hook(EOI_DELAY)).is_none() {
                    // Nobody has started a timer.
                    line.pin().delay_over();
                }
            }
            steps.end();
        });
        self.shared.counters.listener_errors.count_error(told);
    }
}
