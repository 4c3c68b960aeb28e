"""Local files mapped into memory: changes are noticed, and an error names the file that was cut short.

MappedFile(path)   a file that may change while it is read
map_file(path)     the bytes of one that does not

Where another program cuts a mapped file short, its last pages have no bytes any more. Reading one of them
raises SIGBUS, which ends the process before Python can print an error. So the first mapping installs a
handler for SIGBUS that prints one line with the file's name.
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
from typing import Any, cast

from common.retry import repeats


class MappedFile:
    """A file's bytes, mapped read-only, and whether they may have changed since.

    A file that is deleted or replaced under its name stays readable here as it was. Bytes that are written
    into the file itself appear in `view`, and `version` grows.

    view: the bytes.
    stamp: device, inode, length, times and links. A file at the same path with an equal stamp is the same
        file, and was not written to.

    Raises OSError where the file cannot be opened, RuntimeError where the process has too many files open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # Not an OSError, which callers take for a file that is missing or damaged.
            raise RuntimeError(too_many_open_files(str(path))) from None
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._stat()  # before it is mapped: a change from here on is noticed
        self._version = 0
        file = os.fstat(self._descriptor)
        self.stamp = (file.st_dev, file.st_ino, *self._state)
        self.view = _map(self._descriptor, path)

    def version(self) -> int:
        """A number that grows when the file was written to since the last call.

        Found by the time stamps of the open file. The kernel sets them before it writes, so bytes that were
        copied out of `view` before a call that returns the old number are the old bytes. On a network file
        system the stamps are as old as its attribute cache allows.

        Raises RuntimeError where the file has another length.
        """
        found = self._stat()
        if found != self._state:
            # Where only a name was removed, as when a cache evicts the file, the bytes are the same.
            removed = found[:2] == self._state[:2] and found[3] < self._state[3]
            if found[0] != len(self.view):
                raise repeats(
                    RuntimeError(
                        f"{self._path} had {len(self.view)} bytes when it was opened and has {found[0]} now: "
                        "cut short or written to during the run; restore it"
                    )
                )
            self._state = found
            self._version += not removed
        return self._version

    def forget(self) -> None:
        """Give back the memory of the pages that were read; the next reader of `view` maps them anew.

        Else a program that reads a large file through counts as large as the file.
        """
        if self.view:
            _libc.madvise(ctypes.addressof(cast(Any, self.view.obj)), len(self.view), mmap.MADV_DONTNEED)

    def _stat(self) -> tuple[int, int, int, int]:
        """Length, time of modification, time of change (nanoseconds), names of the open file."""
        found = os.fstat(self._descriptor)
        # The change time too: programs that write in place set the modification time back (rsync, cp -p).
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink


def too_many_open_files(what: str) -> str:
    """The message where `what` cannot be opened because this process has as many files open as it may."""
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
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value

_mapped: weakref.WeakValueDictionary[int, ctypes.Array[Any]] = weakref.WeakValueDictionary()  # by address
_paths: dict[int, Path] = {}
_kept: list[Any] = []  # the installed handler and the former one, for as long as the process lives
_SIGINFO = 4  # SA_SIGINFO: the handler gets the address


def _map(descriptor: int, path: Path) -> memoryview:
    """The bytes of an open file, mapped by the C library: each of Python's own mappings keeps a descriptor,
    and a process may have few.
    """
    size = os.fstat(descriptor).st_size
    if size == 0:
        return memoryview(b"")
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    # Every view of the bytes keeps the array alive. At exit other threads may still read them.
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
    """Install a handler that ends the process with one line at a SIGBUS inside a mapped file. For any other
    SIGBUS the handler restores the one that was installed before.

    Not by Python's `signal`: its handlers run when the interpreter continues, and here it does not: the
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
                with contextlib.suppress(OSError):  # nobody may read standard error any more
                    os.write(2, line.encode())
                os._exit(1)
        sigaction(number, ctypes.byref(before), None)

    wanted = _Action(ctypes.cast(handler, ctypes.c_void_p), flags=_SIGINFO)
    if sigaction(int(signal.SIGBUS), ctypes.byref(wanted), ctypes.byref(before)) == 0:
        _kept.extend((handler, before))
