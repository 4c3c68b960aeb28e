"""Local files mapped into memory: watched for changes, and never the end of the process without a word.

A mapped file that another program cuts short leaves pages with nothing behind them. Touching one raises
SIGBUS, which ends the process before Python can say anything: `map_file` installs a handler that names the
file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import signal
import sys
import weakref
from pathlib import Path
from typing import Any


class MappedFile:
    """A file's bytes, mapped read-only, and whether they may have changed since.

    `view`: the bytes. A file that is deleted or replaced under its name stays readable here as it was; what
    is written into the file itself shows in `view`, and in `version`. `stamp`: where the file at a path has
    the same one as before, it is the same file, and was not written to.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be opened, RuntimeError where it has too many open."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # Not an OSError: to its callers that is a file that is missing or damaged.
            raise RuntimeError(too_many_open_files(str(path))) from None
        weakref.finalize(self, os.close, self._descriptor)
        self._stamp = self._look()  # before it is mapped: what changes from here on is noticed
        self._version = 0
        file = os.fstat(self._descriptor)
        self.stamp = (file.st_dev, file.st_ino, *self._stamp)
        self.view = _map(self._descriptor, path)

    def version(self) -> int:
        """A number that grows when the file was written to since the last call.

        The time stamps of the open file tell: the kernel sets them before it writes, so bytes that were
        copied out of `view` before a call that returns the old number are the old bytes. On a network file
        system they are as old as its attribute cache allows. Raises RuntimeError where the file has another
        length.
        """
        found = self._look()
        if found != self._stamp:
            # A name that was removed, as when a cache evicts the file, changes nothing that is read here.
            removed = found[:2] == self._stamp[:2] and found[3] < self._stamp[3]
            if found[0] != len(self.view):
                raise RuntimeError(
                    f"{self._path} had {len(self.view)} bytes when it was opened and has {found[0]} now: cut "
                    "short or written to during the run; restore it"
                )
            self._stamp = found
            self._version += not removed
        return self._version

    def _look(self) -> tuple[int, int, int, int]:
        found = os.fstat(self._descriptor)
        # The change time too: programs that write in place set the modification time back (rsync, cp -p).
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink


def too_many_open_files(what: str) -> str:
    """What to say where `what` cannot be opened because this process has as many files open as it may."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"{what} cannot be opened: this process may have {limit} files open at a time: raise the limit "
        "(`ulimit -n`; in a SLURM job or a container its own setting), or lower data.shuffle_blocks"
    )


def map_file(path: Path) -> memoryview:
    """The bytes of a file, memory-mapped, read-only. Raises OSError where it cannot be opened."""
    with open(path, "rb") as file:
        return _map(file.fileno(), path)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value

_mapped: weakref.WeakValueDictionary[int, ctypes.Array[Any]] = weakref.WeakValueDictionary()  # by address
_paths: dict[int, Path] = {}
_kept: list[Any] = []  # what the installed handler needs, for as long as the process lives
_SIGINFO = 4  # SA_SIGINFO: the handler is told the address


def _map(descriptor: int, path: Path) -> memoryview:
    """By the C library: Python's own mappings keep a descriptor each, of which a process may have few."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return memoryview(b"")
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    # Whatever looks at the bytes keeps the array. At exit other threads may still look.
    weakref.finalize(mapped, _libc.munmap, address, size).atexit = False
    _mapped[address], _paths[address] = mapped, path
    if len(_paths) > 2 * len(_mapped) + 100:
        for gone in _paths.keys() - _mapped.keys():
            del _paths[gone]
    if not _kept:
        _install()
    return memoryview(mapped).cast("B").toreadonly()


class _Action(ctypes.Structure):
    """struct sigaction of Linux's C libraries on 64-bit machines."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def _install() -> None:
    """Have SIGBUS in a mapped file end the process with one line. Elsewhere the former handler has it.

    Not by Python's `signal`, whose handlers run when the interpreter goes on, and here it never does: the
    faulting instruction would be repeated for ever.
    """
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        _kept.append(None)
        return
    sigaction = _libc.sigaction
    before = _Action()

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p)
    def handler(number: int, info: Any, context: int) -> None:
        touched = info[2]  # siginfo_t.si_addr
        for address, mapped in list(_mapped.items()):
            if address <= touched < address + len(mapped):
                line = (
                    f"error: {_paths[address]} was cut short while it was read, at byte {touched - address}: "
                    "restore it; a run then goes on from its last checkpoint\n"
                )
                with contextlib.suppress(OSError):  # who reads it may be gone
                    os.write(2, line.encode())
                os._exit(1)
        sigaction(number, ctypes.byref(before), None)

    wanted = _Action(ctypes.cast(handler, ctypes.c_void_p), flags=_SIGINFO)
    if sigaction(int(signal.SIGBUS), ctypes.byref(wanted), ctypes.byref(before)) == 0:
        _kept.extend((handler, before))
