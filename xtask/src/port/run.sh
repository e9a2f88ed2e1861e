# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Functions of the script that runs VMMs with an assigned card in the lab. Standard output has the guests' consoles, and
# between lines "port: .." what the lab's kernel counted.

tracing=/sys/kernel/tracing
exits=$tracing/events/kvm/kvm_userspace_exit
ioctls=$tracing/events/syscalls/sys_enter_ioctl
calls=$tracing/events/raw_syscalls/sys_enter

# counts NAME FILE..: the VMM's threads, and histograms of what has happened since the turn began.
counts() {
    echo "port: counts $1"
    shift
    for thread in $threads; do
        echo "thread ${thread##*/}"
    done
    cat "$@"
    echo "port: counted"
}

# turn COMMAND..: runs a VMM. The counts before the guest's first ping and after its last are taken when the guest says so on
# its console, whose characters count too, and once more when the guest meets the neighbour, if its card works.
turn() {
    for event in "$exits" "$ioctls" "$calls"; do
        read -r histogram _ <"$event/trigger"
        echo "$histogram:clear" >>"$event/trigger"
    done
    echo "port: turn"
    rm -f console met.*
    mkfifo console
    "$@" </dev/null >console 2>&1 &
    vmm=$!
    while read -r line; do
        threads=$(echo /proc/"$vmm"/task/*)
        case $line in
            "guest: pings on link"*) counts before "$exits/hist" "$ioctls/hist" "$calls/hist" ;;
            "guest: pinged on link"*)
                counts after "$exits/hist" "$ioctls/hist" "$calls/hist"
                [ -e met.1 ] && counts before met.0 && counts after met.1
                ;;
        esac
        printf '%s\n' "$line"
    done <console
    wait "$vmm"
    echo "port: ended $?"
}

# cloud_hypervisor CARD COMMAND-LINE PROGRAM
cloud_hypervisor() {
    turn "$3" --kernel "$IRQ_TEST_GUEST_KERNEL" --initramfs "$IRQ_TEST_GUEST_INITRD" --cmdline "$2" --cpus boot=1 \
        --memory size=256M --serial tty --console off --device "path=/sys/bus/pci/devices/$1"
}

# qemu CARD COMMAND-LINE
qemu() {
    card=$1 append=$2
    eval "set -- $IRQ_TEST_QEMU"
    turn "$@" -nodefaults -no-user-config -display none -machine q35,accel=kvm,kernel-irqchip=split -cpu host -smp 1 -m 256 \
        -serial stdio -kernel "$IRQ_TEST_GUEST_KERNEL" -initrd "$IRQ_TEST_GUEST_INITRD" -append "$append" \
        -device "vfio-pci,host=$card"
}

echo 'hist:keys=reason' >"$exits/trigger" &&
    echo 'hist:keys=common_pid,cmd' >"$ioctls/trigger" &&
    echo 'hist:keys=common_pid,id' >"$calls/trigger" &&
    "$IRQ_TEST_NEIGHBOURS" && mkdir /run/port && cd /run/port || exit
# The guest waits until this has ended.
/run/lab/bin/busybox nc -ll -p 7000 -e /bin/sh -c \
    "cat '$exits/hist' '$ioctls/hist' '$calls/hist' >/run/port/met.\$(ls /run/port | grep -c met)" </dev/null >/dev/null 2>&1 &
