// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The progress bar, which only a person at a terminal sees.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `count` steps on standard error; hidden unless standard error and standard output are both terminals.
pub fn bar(count: u64) -> ProgressBar {
    if !(io::stdout().is_terminal() && io::stderr().is_terminal()) {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr_with_hz(10));
    // The template is a constant. An invalid template would fall back to the default style.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} round trips, {per_sec}, {eta} to go")
    {
        bar.set_style(style);
    }
    bar
}
