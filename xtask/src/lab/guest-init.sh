#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# The first process of a Linux guest in the lab. It does what the kernel's command line asks for, as in work=read,write, in that
# order, says so on the console, and switches the machine off:
#
#   interrupts    prints /proc/interrupts
#   read          prints the SHA-256 of each disk
#   write         writes 16 MiB of one line to the first disk and flushes
#   share         reads from the first disk and from the entropy device at the same time
#   move          moves the lines of the virtio devices to the last CPU
#   echo          reads a line from the console and says what it was
#   speed         reads the first disk, of 64 MiB, four times in pieces of 1 MiB, then 4 MiB in pieces of 4 KiB, past the page cache
#   hold          writes 4 MiB to the first disk and flushes, writes on without flushing, and does not end
#   status        gives the run the exit status 7

/bin/busybox echo "guest: init"
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

while read -r module; do
    insmod "/modules/$module"
done </order

lines() { yes "written by the guest"; }

for step in $(echo "${work:-read,interrupts}" | tr , ' '); do
    case $step in
        interrupts)
            cat /proc/interrupts
            ;;
        read)
            for disk in /dev/vd?; do
                echo "guest: read $(sha256sum "$disk")"
            done
            ;;
        write)
            lines | dd of=/dev/vda bs=1M count=16 iflag=fullblock conv=fsync 2>/dev/null && echo "guest: wrote"
            ;;
        share)
            dd if=/dev/hwrng of=/dev/null bs=512 count=100 2>/dev/null &
            dd if=/dev/vda of=/dev/null bs=16k count=300 iflag=direct 2>/dev/null && wait && echo "guest: shared"
            ;;
        move)
            cpus=$(grep -c ^processor /proc/cpuinfo)
            for line in /proc/irq/*/virtio*; do
                echo $((cpus - 1)) >"${line%/*}/smp_affinity_list" && echo "guest: moved ${line##*/}"
            done
            ;;
        echo)
            echo "guest: type"
            read -r typed </dev/ttyS0
            echo "guest: heard $typed"
            ;;
        speed)
            for size in "1M 64 4" "4k 1024 1"; do
                read -r piece count times <<END
$size
END
                read -r before _ </proc/uptime
                for _ in $(seq "$times"); do
                    dd if=/dev/vda of=/dev/null bs="$piece" count="$count" iflag=direct 2>/dev/null || continue 2
                done
                read -r after _ </proc/uptime
                echo "guest: dd $times times $count of $piece from $before to $after"
            done
            ;;
        hold)
            lines | dd of=/dev/vda bs=1M count=4 iflag=fullblock conv=fsync 2>/dev/null
            echo "guest: flushed"
            while true; do
                lines | dd of=/dev/vda bs=4k seek=1024 count=256 iflag=fullblock oflag=direct 2>/dev/null
            done
            ;;
        status)
            printf '\007' | dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null
            ;;
    esac
done
poweroff -f
