// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any driver at all: whatever is in the table and in the ring, each request that is offered is done, or the device
//! needs a reset.

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_ref::linux::virtio::backend::Backend;
use vmm_ref::linux::virtio::block::Block;
use vmm_ref::linux::virtio::disk::Disk;
use vmm_ref::linux::virtio::entropy::Entropy;

use crate::driver::{CAN_FLUSH, Descriptor, Driver, HEADER, MEMORY, QUEUE_SIZE, TestDisk, VERSION_1};

/// Near the edges, more often than not.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0x4000..MEMORY,
        2 => Just(HEADER),
        1 => MEMORY - 600..MEMORY + 10,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => Just(16),
        3 => Just(512),
        2 => 0_u32..1100,
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let next = prop_oneof![9 => 0..QUEUE_SIZE, 1 => any::<u16>()];
    (address(), length(), 0_u16..8, next).prop_map(|(at, length, flags, next)| Descriptor(at, length, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn every_request_is_done_or_the_device_needs_a_reset(
        table in proptest::collection::vec(descriptor(), QUEUE_SIZE as usize),
        heads in proptest::collection::vec(0..QUEUE_SIZE + 1, 1..20),
        kind in 0_u32..6,
        sector in prop_oneof![0_u64..10, any::<u64>()],
        entropy in any::<bool>(),
    ) {
        let disk = TestDisk::of_sectors(8);
        let backend: Box<dyn Backend> = match entropy {
            true => Box::new(Entropy),
            false => Box::new(Block::new(Disk::open(&disk.0, false).unwrap())),
        };
        let mut driver = Driver::of(backend);
        driver.set_up(VERSION_1 | if entropy { 0 } else { CAN_FLUSH });
        driver.header(kind, sector);
        for (index, descriptor) in table.iter().enumerate() {
            driver.describe(index as u16, *descriptor);
        }
        for (before, head) in heads.into_iter().enumerate() {
            driver.offer(head);
            if driver.device.shared().needs_reset() {
                break;
            }
            // A request may have written the used ring's own bytes only where the driver gave it those.
            let used: u16 = driver.memory.read_obj(GuestAddress(crate::driver::USED + 2)).unwrap();
            prop_assert_eq!(usize::from(used), before + 1);
        }
        prop_assert_eq!(disk.content().len(), 8 * 512);
    }
}
