"""Places that fail, as they really do: disks that fill at any page or file, that cannot be written, that go away; each
under each command, in a process with mounts of its own.

By hand, all of them, or those that a regex ONLY finds: [ONLY=...] python tests/places.py
"""

import ctypes
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_folders import forked

PAGE = 4096
NEWNS, NEWUSER, PRIVATE, REMOUNT, RDONLY = 0x20000, 0x10000000, 0x40000, 32, 1
NOT_RUN = "NOT RUN: this process may not mount a tmpfs: run as root, or allow user namespaces (unshare -Urm true)"


def own_mounts() -> None:
    """What this process mounts from now on is its own, and gone with it.

    Raises:
        OSError: that is not allowed here.
    """
    user, group = os.getuid(), os.getgid()
    _ask("unshare", NEWNS | (NEWUSER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _ask("mount", b"none", b"/", None, 0x4000 | PRIVATE, None)


def disk(at: Path, **options: int) -> None:
    """A tmpfs of its own at `at`: size, nr_inodes."""
    at.mkdir(exist_ok=True)
    _ask("mount", b"tmpfs", os.fsencode(at), b"tmpfs", 0, _options(options))


def change(at: Path, flags: int = 0, **options: int) -> None:
    """Other options for it; flags: RDONLY."""
    _ask("mount", b"tmpfs", os.fsencode(at), b"tmpfs", REMOUNT | flags, _options(options))


def unprivileged() -> None:
    """From now on the permissions of files are true for this process too."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _ask("capset", header, none)


def _options(given: dict[str, int]) -> bytes:
    return ",".join(f"{key}={value}" for key, value in given.items()).encode()


def _ask(name: str, *words: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def apart(act: Callable[[], Any]) -> Any:
    """What `act` gives, as JSON can hold it, from a process with mounts of its own.

    Raises:
        RuntimeError: what it raised; PermissionError: no mounts here.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            try:
                own_mounts()
            except OSError as error:
                told = {"forbidden": str(error)}
            else:
                told = {"gives": act()}
        except BaseException:
            told = {"raised": traceback.format_exc()}
        with os.fdopen(write, "w") as out:
            json.dump(told, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as held:
        told = json.load(held)
    os.waitpid(pid, 0)
    if "forbidden" in told:
        raise PermissionError(told["forbidden"])
    if "raised" in told:
        raise RuntimeError(told["raised"])
    return told["gives"]
