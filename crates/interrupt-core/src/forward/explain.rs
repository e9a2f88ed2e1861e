// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a connection takes the path that it takes.

use std::fmt;
use std::time::Duration;

use super::{EventfdId, Path};
use crate::{Gsi, Irqchip};

/// Which path connects a device and a line, since when, and why no better one. Displays as one sentence.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The identity in a registry.
    pub id: Option<EventfdId>,
    /// The device's end.
    pub producer: Option<String>,
    /// The guest's end: the line, the source's label, and where the line's irqchip is.
    pub line: Option<(Gsi, String, Irqchip)>,
    /// The path that connects the two.
    pub path: Option<Path>,
    /// Why the interrupt is held back, if it is.
    pub held: Option<String>,
    /// How long the path has been this one.
    pub elapsed: Duration,
    /// How often the path has changed since the first one.
    pub changes: u64,
    /// For each better path the reason why it is not taken, best first.
    pub why_not: Vec<(Path, String)>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under = self.id.map_or(String::new(), |id| format!(" under {id}"));
        match (&self.producer, &self.line) {
            (Some(producer), Some((gsi, _, _))) => write!(f, "{producer} to {gsi}: ")?,
            (Some(producer), None) => return write!(f, "{producer}: waits for a line{under}"),
            (None, Some((gsi, label, _))) => return write!(f, "{gsi} ({label}): waits for a device{under}"),
            (None, None) => return write!(f, "nobody{under}"),
        }
        match self.path {
            Some(path) => write!(f, "{path}")?,
            None => f.write_str("not connected")?,
        }
        if let Some((_, _, irqchip)) = &self.line {
            write!(f, ", {irqchip} irqchip")?;
        }
        write!(f, "; for {:.3} s", self.elapsed.as_secs_f64())?;
        match self.changes {
            0 => f.write_str(", never changed")?,
            1 => f.write_str(", changed once")?,
            more => write!(f, ", changed {more} times")?,
        }
        if let Some(held) = &self.held {
            write!(f, "; held back: {held}")?;
        }
        for (path, reason) in &self.why_not {
            write!(f, "; not {path}: {reason}")?;
        }
        Ok(())
    }
}
