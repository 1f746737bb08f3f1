"""A disk so small that it can be filled, in a mount namespace of one process: without root, too."""

import ctypes
import os
from pathlib import Path

__all__ = ["SMALL", "mount_small_disk"]

SMALL = 512 * 1024
"""Bytes of it."""

NEW_MOUNTS, NEW_USERS = 0x20000, 0x10000000
PRIVATE, ALL_BELOW = 1 << 18, 1 << 14


def mount_small_disk(folder: Path) -> bool:
    """Have this process, and no other, see a small disk at a folder; False if it is not allowed.

    To be called while it has one thread alone. Others see it below ``/proc/<pid>/root``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS) != 0:
        if libc.unshare(NEW_MOUNTS | NEW_USERS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    mount, options = libc.mount, f"size={SMALL}".encode()
    return (
        mount(b"none", b"/", None, PRIVATE | ALL_BELOW, None) == 0
        and mount(b"none", os.fsencode(folder), b"tmpfs", 0, options) == 0
    )
