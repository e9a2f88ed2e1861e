// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A job that is done to its end although a caller's code panics in the middle.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Takes every step of a job, also after a step has panicked in a caller's code (a listener, an output, a hook). The
/// first panic goes on when the job has ended.
///
/// An EOI is such a job: a callback that panics must not keep the other listeners from being told, nor leave the pin in
/// service. With `panic = "abort"` there is no step after a panic, and no process.
///
/// ```
/// use interrupt_core::EveryStep;
///
/// let mut done = false;
/// let job = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
///     let mut steps = EveryStep::default();
///     assert!(steps.take(|| panic!("a listener's fault")).is_none());
///     steps.take(|| done = true);
///     steps.end();
/// }));
/// assert!(done && job.is_err());
/// ```
#[derive(Debug, Default)]
#[must_use = "`end` lets a panic go on"]
pub struct EveryStep {
    panic: Option<Box<dyn Any + Send>>,
}

impl EveryStep {
    /// Takes one step. Returns nothing when the step has panicked.
    ///
    /// What the step was changing is as the panic left it, so each step has to be one whose state the next step can
    /// deal with.
    pub fn take<R>(&mut self, step: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.panic.get_or_insert(panic);
                None
            }
        }
    }

    /// Ends the job. Lets the first panic of a step go on.
    pub fn end(self) {
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }
}
