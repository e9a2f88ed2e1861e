#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# The lab's first process. It loads the modules, binds the devices of /vfio to vfio-pci, makes the build machine's files its own
# (read from 9p, written to memory), runs one command there, and tells the outside how that ended. The outside then ends the
# emulated PC: it alone knows that all output has arrived.

/bin/busybox mkdir -p /proc /sys /dev /lower /upper /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracefs /sys/kernel/tracing

# The log is the place to say why; without an exit status the outside shows its last lines.
fail() {
    echo "lab: $*"
    echo o >/proc/sysrq-trigger
    sleep 60
}

while read -r module; do
    insmod "/modules/$module" || fail "cannot load the module $module"
done </order || fail "cannot read the list of modules"

for port in /sys/class/virtio-ports/*; do
    case "$(cat "$port/name")" in
        lab.stdout) stdout=/dev/${port##*/} ;;
        lab.stderr) stderr=/dev/${port##*/} ;;
        lab.control) exec 9>"/dev/${port##*/}" ;;
    esac
done

while read -r address; do
    echo vfio-pci >"/sys/bus/pci/devices/$address/driver_override"
    echo "$address" >/sys/bus/pci/drivers/vfio-pci/bind || fail "vfio-pci refuses $address"
done </vfio || fail "cannot read the list of devices"

ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower || fail "cannot mount the host's files"
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root || fail "cannot mount the overlay"
mount --rbind /dev /root/dev
mount --rbind /proc /root/proc
mount --rbind /sys /root/sys
mount -t tmpfs run /root/run
# What the initramfs has: busybox, more modules, the command.
mkdir /root/run/lab
mount --bind / /root/run/lab || fail "cannot show the initramfs"

# The build machine's own programs are for another processor: busybox takes their place.
if [ "$(uname -m)" != x86_64 ]; then
    for directory in bin usr/bin; do
        [ -L "/root/$directory" ] || mount --bind /bin "/root/$directory"
    done
fi

# As in a login shell; the kernel's own limits are 1024 and 4096.
ulimit -S -n 1024
ulimit -H -n 1048576

echo up >&9
while sleep 5; do echo alive; done >&9 &

# tee counts what passes, so that the outside knows when it has everything.
mkfifo /stdout /stderr
tee "$stdout" </stdout | wc -c >/stdout.bytes &
out=$!
tee "$stderr" </stderr | wc -c >/stderr.bytes &
err=$!
chroot /root /bin/sh /run/lab/command </dev/null >/stdout 2>/stderr 9>&-
status=$?

# What the command left behind would hold its output open.
for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/root")" = /root ]; then
        kill -9 "${process##*/}"
    fi
done
wait "$out" "$err"
stdout=$(cat /stdout.bytes) stderr=$(cat /stderr.bytes)
# Nothing is counted when the command killed everything that it could reach.
echo "exit $status ${stdout:-0} ${stderr:-0}" >&9
while true; do sleep 60; done
