// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry says of a pair.

use std::fmt;
use std::time::Duration;

use super::{EventfdId, Path};
use crate::Gsi;
use crate::forward::LineEnd;

/// The answer to "by which path, since when, and why not by a better one". It displays as one sentence.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The identity.
    pub id: EventfdId,
    /// The device's side, if it is registered.
    pub producer: Option<String>,
    /// The guest's side, if it is registered: the line, the source's label, and where it ends.
    pub line: Option<(Gsi, String, LineEnd)>,
    /// The path that they are connected by.
    pub path: Option<Path>,
    /// Why the interrupt is held back, if it is.
    pub held: Option<String>,
    /// Since when the path is this one.
    pub elapsed: Duration,
    /// How often the path has changed since the first one.
    pub changes: u64,
    /// For each better path why it is not taken, best first.
    pub why_not: Vec<(Path, String)>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.producer, &self.line) {
            (Some(producer), Some((gsi, _, _))) => write!(f, "{producer} to {gsi}: ")?,
            (Some(producer), None) => return write!(f, "{producer}: waits for a line under {}", self.id),
            (None, Some((gsi, label, _))) => return write!(f, "{gsi} ({label}): waits for a device under {}", self.id),
            (None, None) => return write!(f, "{}: nobody", self.id),
        }
        match self.path {
            Some(path) => write!(f, "{path}")?,
            None => f.write_str("not connected")?,
        }
        if let Some((_, _, end)) = &self.line {
            write!(f, ", {end}")?;
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
