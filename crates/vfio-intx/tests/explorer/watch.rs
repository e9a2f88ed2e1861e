// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Notices a sequence that hangs: a lock that is held for ever, or a circle.

use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use crate::search::Sequence;

/// How long one sequence may take. It takes less than a millisecond.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Now {
    number: usize,
    sequence: Option<Sequence>,
}

/// The sequence that is running. Another thread ends the process when it is the same one for too long.
#[derive(Debug)]
pub struct Watch(Arc<Mutex<Now>>);

impl Default for Watch {
    fn default() -> Self {
        let now = Arc::new(Mutex::new(Now {
            number: 0,
            sequence: None,
        }));
        let watched = Arc::downgrade(&now);
        thread::spawn(move || watch(&watched));
        Self(now)
    }
}

impl Watch {
    pub fn note(&self, sequence: &Sequence) {
        let mut now = self.0.lock().unwrap();
        now.number += 1;
        now.sequence = Some(sequence.clone());
    }
}

fn watch(watched: &Weak<Mutex<Now>>) {
    let mut seen = 0;
    while let Some(now) = watched.upgrade() {
        let now = now.lock().unwrap();
        if let (true, Some(sequence)) = (now.number == seen, &now.sequence) {
            eprintln!("hangs: {sequence}");
            std::process::abort();
        }
        seen = now.number;
        drop(now);
        thread::sleep(LIMIT);
    }
}
