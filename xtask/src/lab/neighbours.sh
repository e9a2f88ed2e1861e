#!/run/lab/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Brings up the neighbours of the lab's network cards, in the lab: on link N, 10.0.N.1/24. Port 7001 sends up to 16 MiB, and
# port 7002 reads up to the end and answers with the checksum.

busybox=/run/lab/bin/busybox
if [ ! -e /sys/module/e1000 ]; then
    while read -r module; do
        $busybox insmod "/run/lab/modules/$module" || exit
    done </run/lab/order.neighbours
fi
for interface in /sys/class/net/eth*; do
    name=${interface##*/}
    IFS=: read -r _ _ _ _ link _ <"$interface/address"
    [ "$(cat "$interface/operstate")" = up ] && continue
    # No packets but those that are asked for.
    echo 1 >"/proc/sys/net/ipv6/conf/$name/disable_ipv6"
    $busybox ip address add "10.0.$((0x$link)).1/24" dev "$name" 2>/dev/null
    $busybox ip link set "$name" up || exit
done
$busybox nc -ll -p 7001 -e $busybox cat "$IRQ_TEST_GUEST_DISK" </dev/null >/dev/null 2>&1 &
$busybox nc -ll -p 7002 -e $busybox md5sum </dev/null >/dev/null 2>&1 &
