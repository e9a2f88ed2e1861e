#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Boots the same kernel, initrd and 64 MiB disk with vmm-ref and with QEMU, in turn, and prints medians: seconds from the start of the
# VMM to the first line of the initrd, and seconds for reading the disk past the page cache.
#
#   cargo build --release -p vmm-ref && cargo xtask lab --time-limit 1200 -- sh vmm-ref/scripts/compare-qemu.sh [ROUNDS]
set -eu

rounds=${1:-3}
vmm=target/release/vmm-ref
kernel=$IRQ_TEST_GUEST_KERNEL initrd=$IRQ_TEST_GUEST_INITRD
disk=/run/compare-disk results=/run/compare-results
line="console=ttyS0 panic=-1 quiet work=speed"
: >"$results"
for _ in 1 2 3 4; do cat "$IRQ_TEST_GUEST_DISK"; done >"$disk"

# The firmware of a QEMU that is unpacked and not installed lies beside it.
program=$(eval "for word in $IRQ_TEST_QEMU; do :; done; echo \"\$word\"")
share=${program%/bin/*}/share

# run NAME COMMAND...: notes when the guest's first line came, and how long its reads took.
run() {
    name=$1
    shift
    read -r start _ </proc/uptime
    "$@" </dev/null 2>&1 | while read -r first words; do
        case "$first $words" in
            "guest: init"*)
                read -r now _ </proc/uptime
                echo "$name init $start $now" >>"$results"
                ;;
            "guest: dd "*)
                # dd TIMES times COUNT of SIZE from SECONDS to SECONDS
                set -- $words
                echo "$name read-$2x$4x$6 $8 ${10%%[!0-9.]*}" >>"$results"
                ;;
        esac
    done
}

qemu() {
    machine=$1
    shift
    eval "exec timeout 120 $IRQ_TEST_QEMU"' -L "$share/qemu" -L "$share/seabios" -M "$machine" -accel kvm -cpu host -m 256 -smp 1 \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio -kernel "$kernel" -initrd "$initrd" -append "$line" \
        -drive "id=disk,file=$disk,format=raw,if=none" "$@"'
}

mmio="-device virtio-blk-device,drive=disk"
n=0
while [ "$n" -lt "$rounds" ]; do
    n=$((n + 1))
    for doorbell in ioeventfd trap; do
        run "vmm-ref-$doorbell" "$vmm" run --kernel "$kernel" --initrd "$initrd" --disk "$disk" --cmdline "$line" --doorbell "$doorbell"
    done
    run vmm-ref-split "$vmm" run --kernel "$kernel" --initrd "$initrd" --disk "$disk" --cmdline "$line" --irqchip split
    # As it comes, and without the clock, timer and 8259 that this kernel looks for in vain.
    (run qemu-microvm qemu microvm $mmio)
    (run qemu-microvm-bare qemu microvm,rtc=off,pit=off,pic=off $mmio)
    (run qemu-q35 qemu q35 -device virtio-blk-pci,drive=disk)
done

sort "$results" | awk '
    { key = $1 " " $2; if (key != last) flush(); last = key; values[++count] = $4 - $3 }
    function flush(   i, j, swap) {
        if (!count) return
        for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++) if (values[j] < values[i]) { swap = values[i]; values[i] = values[j]; values[j] = swap }
        printf "%-28s median %6.2f s  (min %.2f, max %.2f, of %d)\n", last, values[int((count + 1) / 2)], values[1], values[count], count
        count = 0
    }
    END { flush() }'
