// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log records of this process, for tests that ask whether something was reported.

use std::sync::{Mutex, Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Collector(Mutex<Vec<(Level, String)>>);

static COLLECTOR: Collector = Collector(Mutex::new(Vec::new()));

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap().push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Starts to collect. Every test that asks [`containing`] calls it first.
pub fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&COLLECTOR).unwrap();
        log::set_max_level(LevelFilter::Trace);
    });
}

/// The records so far that contain `text`. Tests run side by side: make it something that only this test logs, such as
/// its address.
pub fn containing(text: &str) -> Vec<(Level, String)> {
    let records = COLLECTOR.0.lock().unwrap();
    records
        .iter()
        .filter(|(_, message)| message.contains(text))
        .cloned()
        .collect()
}
