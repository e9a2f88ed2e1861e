// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx as one side of a registry's pair.

use interrupt_core::forward::{Consumer, Now, Path, Producer, ProducerInfo};
use interrupt_core::{Error, Gsi, Result};

use crate::intx::Intx;

/// A registry stops INTx by parking it: the device signals the relay, which forwards nothing. It starts it by wiring the path and
/// unmasking. What was asked of it meanwhile (enabled, masked, Interrupt Disable) is kept and holds after the start.
///
/// A path that fails at the start leaves INTx on the relay, and is reported; the registry then tries the next one. One that fails
/// later, when INTx is unmasked say, leaves it on the relay as well, which the registry finds when it is next asked.
impl Producer for Intx {
    fn label(&self) -> &str {
        self.device_label()
    }

    fn info(&self) -> ProducerInfo {
        self.producer_info()
    }

    fn now(&self) -> Now {
        self.producer_now()
    }

    fn stop(&self) -> Result<()> {
        Intx::stop(self).map(drop).map_err(|error| self.to_core("stop", error))
    }

    fn connect(&self, path: Path, consumer: &dyn Consumer) -> Result<()> {
        let connected = self.lead_to(Some(consumer.line().clone()), Some(path));
        connected.map(drop).map_err(|error| self.to_core("connect", error))
    }

    fn disconnect(&self) {
        if let Err(error) = self.lead_to(None, None) {
            log::error!("take INTx of {} off its line: {error}", self.device_label());
        }
    }

    fn start(&self) -> Result<()> {
        match Intx::start(self) {
            Ok(None) => Ok(()),
            Ok(Some(failed)) => Err(Error::Backend {
                operation: "start",
                gsi: self.gsi(),
                errno: failed.errno(),
                source: Box::new(failed),
            }),
            Err(error) => Err(self.to_core("start", error)),
        }
    }
}

impl Intx {
    fn gsi(&self) -> Gsi {
        // There is one whenever something can fail.
        self.status().line.map_or(Gsi(u32::MAX), |(gsi, _)| gsi)
    }

    fn to_core(&self, operation: &'static str, error: crate::Error) -> Error {
        Error::Backend {
            operation,
            gsi: self.gsi(),
            errno: error.errno(),
            source: Box::new(error),
        }
    }
}
