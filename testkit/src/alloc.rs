// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counting heap allocations, for "no allocation" tests.
//!
//! ```
//! use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let before = allocations_on_this_thread();
//! let kept = std::hint::black_box(Box::new(7));
//! assert_eq!(allocations_on_this_thread() - before, 1);
//! # drop(kept);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    // A constant without a destructor, so that an access never allocates, even while a thread starts or ends.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system allocator, counting per thread. A test binary installs it with `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

fn add_one() {
    ALLOCATIONS.with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract; counting touches no heap.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller's obligations are those of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller's obligations are those of `System::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        add_one();
        // SAFETY: the caller's obligations are those of `System::realloc`, and `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are those of `System::dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Allocations and reallocations this thread has made so far; meaningful as a difference.
///
/// # Panics
/// When [`CountingAllocator`] is not the program's allocator, because every difference would be 0.
pub fn allocations_on_this_thread() -> u64 {
    let before = ALLOCATIONS.get();
    drop(black_box(Box::new(0_u8)));
    let counted = ALLOCATIONS.get() - before;
    assert_eq!(
        counted, 1,
        "CountingAllocator is not the #[global_allocator] of this program"
    );
    // Exclude the allocation above, which this function made.
    ALLOCATIONS.set(before);
    before
}

#[cfg(test)]
mod tests {
    /// This test program has the standard allocator.
    #[test]
    #[should_panic(expected = "CountingAllocator is not the #[global_allocator]")]
    fn counting_without_the_allocator_is_refused() {
        super::allocations_on_this_thread();
    }
}
