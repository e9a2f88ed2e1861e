// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters of this process with all its threads: system calls, context switches, allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use perf_event::events::{Event, Software, Tracepoint};
use perf_event::{Builder, Counter};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, counting. A program installs it with `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

fn add(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as i64, Ordering::Relaxed);
}

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's obligations are those of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's obligations are those of `System::dealloc`, and `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes on the heap, under [`Counting`].
pub fn heap_bytes() -> i64 {
    BYTES.load(Ordering::Relaxed)
}

/// Counters of this process.
#[derive(Debug)]
pub struct Counters {
    counters: Result<[Counter; 2], String>,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// System calls; `None` on a host that does not count them.
    pub system_calls: Option<u64>,
    /// Context switches, voluntary and not; `None` likewise.
    pub context_switches: Option<u64>,
    /// Allocations and reallocations.
    pub allocations: u64,
}

impl Counters {
    /// Starts counting for this thread and the threads that it starts from now on.
    pub fn new() -> Self {
        let counters = system_calls().and_then(|calls| Ok([calls, count(Software::CONTEXT_SWITCHES)?]));
        Self {
            counters: counters.map_err(|error| {
                format!("{error}; be root, and have tracefs: mount -t tracefs none /sys/kernel/tracing")
            }),
        }
    }

    /// Why system calls and context switches are not counted; `None` when they are.
    pub fn missing(&self) -> Option<&str> {
        self.counters.as_ref().err().map(String::as_str)
    }

    /// The current counts.
    pub fn read(&mut self) -> Reading {
        let [system_calls, context_switches] = match &mut self.counters {
            Ok(counters) => counters.each_mut().map(|counter| counter.read().ok()),
            Err(_) => [None, None],
        };
        Reading {
            system_calls,
            context_switches,
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Reading {
    /// The difference to an earlier reading.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            system_calls: difference(self.system_calls, before.system_calls),
            context_switches: difference(self.context_switches, before.context_switches),
            allocations: self.allocations - before.allocations,
        }
    }
}

fn difference(now: Option<u64>, before: Option<u64>) -> Option<u64> {
    now.zip(before).map(|(now, before)| now - before)
}

fn system_calls() -> io::Result<Counter> {
    const ID: &str = "events/raw_syscalls/sys_enter/id";
    let read = |mount: &str| fs::read_to_string(format!("{mount}/{ID}"));
    let id = read("/sys/kernel/tracing").or_else(|_| read("/sys/kernel/debug/tracing"))?;
    let id = id.trim().parse().map_err(io::Error::other)?;
    count(Tracepoint::with_id(id))
}

/// Opens a counter of an event in this thread and the threads that it starts from now on.
fn count(event: impl Event) -> io::Result<Counter> {
    let mut counter = Builder::new(event).inherit(true).include_kernel().build()?;
    counter.enable()?;
    Ok(counter)
}
