#!/bin/sh
# Process 1 of a lab guest. The kernel's command line gives, as environment:
#   UDRBD_LAB_CTL   the guest's control directory on the host
#   UDRBD_LAB_SELF  this file on the host
# The host's root is mounted read-only (hostfs). An overlay in the guest's memory goes above it, so that nothing that is
# done here reaches the host except through /lab (shared directory), /.ctl (control directory) and the disks.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022

power_off() {
    sync
    echo 1 >/proc/sys/kernel/sysrq 2>/dev/null
    echo o >/proc/sysrq-trigger
    sleep 5
    exit 1
}

die() {
    echo "guest-init: $*" >/dev/console
    power_off
}

if [ "$1" != main ]; then
    mount -t proc proc /proc || die "cannot mount /proc"
    if ! grep -qw overlay /proc/filesystems; then
        insmod "/usr/lib/uml/modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko" || die "no overlayfs in this kernel"
    fi
    # /mnt exists on every host; it is covered inside the guest only.
    mount -t tmpfs -o size=75%,mode=755 tmpfs /mnt || die "cannot mount a tmpfs"
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || die "cannot mount the overlay"
    mkdir -p /mnt/root/.ctl /mnt/root/lab /mnt/root/.old
    mount -t hostfs -o "$UDRBD_LAB_CTL" none /mnt/root/.ctl || die "cannot mount the control directory"
    mount -t hostfs -o "$(cat /mnt/root/.ctl/share)" none /mnt/root/lab || die "cannot mount the shared directory"
    umount /proc
    cd /mnt/root && pivot_root . .old || die "cannot change the root"
    [ -c /dev/console ] || mount -t devtmpfs dev /dev
    exec <>/dev/console >&0 2>&1
    umount -l /.old
    exec /bin/sh "$UDRBD_LAB_SELF" main
fi

mount -t proc proc /proc
mount -t sysfs sys /sys
grep -q ' /dev devtmpfs' /proc/mounts || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/drbd /var/lib/drbd
ln -sf /proc/self/fd /dev/fd
set -a
. /.ctl/env
set +a

# Debian keeps the modules of its user-mode kernel where modprobe does not look.
release=$(uname -r)
if [ ! -e "/lib/modules/$release" ] && [ -d "/usr/lib/uml/modules/$release" ]; then
    mkdir -p /lib/modules
    ln -s "/usr/lib/uml/modules/$release" "/lib/modules/$release"
fi
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t configfs configfs /sys/kernel/config 2>/dev/null

hostname "$LAB_HOST"
echo 1 >/proc/sys/kernel/panic_on_oops
ip link set lo up
ip link set vec0 address "$LAB_MAC"
ip addr add "$LAB_ADDR/24" dev vec0
ip link set vec0 up

# Commands come as one identifier a line on the second serial line; the script of command ID is /.ctl/ID.sh, its output
# /.ctl/ID.out, and its exit code is reported on the first serial line.
stty -F /dev/ttyS0 raw -echo
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1 4>/dev/ttyS0
cd /lab || die "no shared directory"
echo "ready 0" >&4
while IFS= read -r id <&3; do
    case $id in
    off) break ;;
    c[0-9]*)
        (
            exec 3<&-
            bash "/.ctl/$id.sh" >"/.ctl/$id.out" 2>&1 </dev/null 4>&-
            echo "$id $?" >&4
        ) &
        ;;
    esac
done
dmesg >/.ctl/dmesg 2>/dev/null
power_off
