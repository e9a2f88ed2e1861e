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
#   cards         loads the drivers of the PCI cards, gives 10.0.LINK.2/24 to each network card, and waits for the links
#   ping          sends pings=N (100) echo requests to the neighbour of each card, each when the answer to the last is there,
#                 or has not come for interval=S (1) seconds
#   transfer      gets mib=N (16, the most) MiB from each neighbour and sends these back, over all links at once; both sides say
#                 the checksum; mib_LINK=N is for one link
#   stick         prints the SHA-256 of the USB stick's first MiB
#   status        gives the run the exit status 7
#
# Before and after the pings and each half of a transfer the guest meets the neighbour: it connects to port 7000 and goes on
# when the neighbour closes the connection, or at once when nobody listens there.

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

load() {
    case " $loaded " in *" $1 "*) return ;; esac
    loaded="$loaded $1"
    while read -r module; do
        insmod "/modules/$module"
    done <"/order.$1"
}

# Polls, because busybox has no notification of links and disks. Fails after 2000 polls, which is 10 s or more.
until_there() {
    for _ in $(seq 2000); do
        eval "$1" && return
        usleep 5000
    done
    false
}

# /links has "INTERFACE LINK" for each network card.
up() {
    interface=${1##*/}
    IFS=: read -r _ _ _ _ link _ <"$1/address"
    link=$((0x$link))
    # No packets but those that are asked for.
    echo 1 >"/proc/sys/net/ipv6/conf/$interface/disable_ipv6"
    ip address add "10.0.$link.2/24" dev "$interface"
    ip link set "$interface" up
    echo "$interface $link" >>/links
}

meet() { nc -w 5 "10.0.$1.1" 7000 </dev/null 2>/dev/null; }

transfer() {
    eval "size=\${mib_$1:-${mib:-16}}m"
    meet "$1"
    # nc ends when head does.
    nc -w 5 "10.0.$1.1" 7001 </dev/null 2>/dev/null | head -c "$size" >"/got.$1"
    meet "$1"
    theirs=$(nc -w 5 "10.0.$1.1" 7002 <"/got.$1")
    meet "$1"
    ours=$(md5sum <"/got.$1")
    echo "guest: link $1 got ${ours%% *} and gave back ${theirs%% *}"
}

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
        cards)
            for device in /sys/bus/pci/devices/*; do
                read -r vendor <"$device/vendor"
                read -r model <"$device/device"
                case $vendor:$model in
                    0x8086:0x100e) load e1000 ;;
                    0x8086:0x10d3) load e1000e ;;
                    0x10ec:0x8139) load 8139cp ;;
                    0x8086:0x7020) load uhci ;;
                esac
            done
            for interface in /sys/class/net/eth*; do
                [ -e "$interface" ] && up "$interface"
            done
            while read -r interface link; do
                until_there '[ "$(cat /sys/class/net/$interface/carrier)" = 1 ]' && echo "guest: $interface is up on link $link"
            done </links
            ;;
        ping)
            while read -r interface link; do
                echo "guest: pings on link $link"
                meet "$link"
                ping -A -c "${pings:-100}" -i "${interval:-1}" -W 1 "10.0.$link.1" >/pinged
                meet "$link"
                echo "guest: pinged on link $link"
                cat /pinged
            done </links
            ;;
        transfer)
            while read -r interface link; do
                transfer "$link" &
            done </links
            wait
            ;;
        stick)
            until_there '[ -e /dev/sda ]' && echo "guest: stick $(dd if=/dev/sda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)"
            ;;
        status)
            printf '\007' | dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null
            ;;
    esac
done
poweroff -f
