"""The files of a checkpoint: their sizes and hashes. No torch here.

`FILES.txt` has them of all files of tensors, in rows of one length:

    rank-00000.safetensors 827216962 8d3f…  1c90…
    rank-00001.safetensors 827208786 07be…  e4a2…

Name, bytes, xxh3_128, and the hash of the row behind the mark of its checkpoint. A row thus proves itself: a
rank reads those of the files that it needs, and no other. All ranks have as many rows as one has at most,
those of files that there are not with "-", so that the place of a row is a product.
"""

import errno
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

TABLE = "FILES.txt"

_FILE = re.compile(r"rank-(\d{5,})(?:-(\d+))?\.safetensors")
_NONE = "-"  # bytes and hash of a file that there is not
_PROOF = 1 + 32 + 1  # bytes at the end of a row: a blank, its hash, the line's end


class DamagedError(RuntimeError):
    """A checkpoint is not what was written: its bytes, or one of its files."""


def is_away(error: Exception) -> bool:
    """Whether an error, or what it was raised from, is only that a file server did not answer: that says
    nothing of the bytes.
    """
    found = error if isinstance(error, OSError) else error.__cause__
    return isinstance(found, OSError) and found.errno in (errno.ESTALE, errno.ETIMEDOUT)


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint: its size, and the xxh3_128 of its bytes in hexadecimal."""

    bytes: int
    xxh3_128: str


def digest(data: bytes | memoryview) -> str:
    """xxh3_128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def file_name(rank: int, number: int) -> str:
    """Return the name of a rank's file of tensors; its first is number 0."""
    return f"rank-{rank:05d}-{number}.safetensors" if number else f"rank-{rank:05d}.safetensors"


def written_by(file: str) -> int | None:
    """Return the rank that wrote a file of tensors; None for another file."""
    match = _FILE.fullmatch(file)
    return int(match[1]) if match else None


class Files(Mapping[str, FileEntry]):
    """All files of a checkpoint but its manifest. As a mapping: name → entry, whose length and iteration take
    O(files).

    common: those that are no rank's files of tensors.
    ranks: as many have written files of tensors: 0, 1, …
    most: of files that one of them has written.
    """

    def __init__(self, common: Mapping[str, FileEntry], ranks: int, most: int) -> None:
        self.common, self.ranks, self.most = dict(common), ranks, most

    @abstractmethod
    def of_rank(self, rank: int) -> dict[str, FileEntry]:
        """Return the files of tensors that a rank wrote, in order. DamagedError, one line, where they cannot
        be told.
        """

    def __getitem__(self, name: str) -> FileEntry:
        rank = written_by(name)
        return self.common[name] if rank is None else self.of_rank(rank)[name]

    def __iter__(self) -> Iterator[str]:
        for rank in range(self.ranks):
            yield from self.of_rank(rank)
        yield from self.common

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def share_of(self, rank: int, ranks: int, *, shift: int = 0) -> list[str]:
        """Return the files that `rank` of `ranks` proves; each file is one rank's. Where as many ranks wrote
        them, those that the rank of its place wrote. Rank 0 proves the table of all files.

        shift: those of the rank so many places further on.
        """
        place, places = (rank + shift) % ranks, self.ranks * self.most
        found = []
        for at in range(-(-place * places // ranks), -(-(place + 1) * places // ranks)):
            writer, number = divmod(at, self.most)
            found += list(self.of_rank(writer))[number : number + 1]
        return found + [name for name in self.common if (rank if name == TABLE else place) == 0]


class Listed(Files):
    """Files whose entries are all in memory."""

    def __init__(self, files: Mapping[str, FileEntry]) -> None:
        self._by_rank: dict[int, dict[str, FileEntry]] = {}
        common: dict[str, FileEntry] = {}
        for name in sorted(files, key=_in_order):
            rank = written_by(name)
            into = common if rank is None else self._by_rank.setdefault(rank, {})
            into[name] = files[name]
        most = max((len(each) for each in self._by_rank.values()), default=0)
        super().__init__(common, 1 + max(self._by_rank, default=-1), most)

    def of_rank(self, rank: int) -> dict[str, FileEntry]:
        return self._by_rank.get(rank, {})


def _in_order(name: str) -> tuple[str, int]:
    """rank-00000-10 comes after rank-00000-9."""
    match = _FILE.fullmatch(name)
    return (match[1], int(match[2] or 0)) if match else (name, 0)


class Table(Files):
    """Files by the rows of `FILES.txt`, read when they are asked for.

    folder: of the checkpoint.
    common: has the table's own entry.
    ranks, most: as of `Files`; they say where a rank's rows are.
    mark: of the checkpoint.
    """

    def __init__(
        self, folder: Path, common: Mapping[str, FileEntry], ranks: int, most: int, mark: str
    ) -> None:
        super().__init__(common, ranks, most)
        self._path, self._mark = folder / TABLE, mark
        self._known: dict[int, dict[str, FileEntry]] = {}

    def of_rank(self, rank: int) -> dict[str, FileEntry]:
        if rank not in self._known:
            self._known[rank] = self._read(rank) if rank in range(self.ranks) else {}
        return self._known[rank]

    def _read(self, rank: int) -> dict[str, FileEntry]:
        size = self.common[TABLE].bytes
        length = size // (self.ranks * self.most)
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor).st_size
                data = os.pread(descriptor, length * self.most, rank * length * self.most)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise DamagedError(f"{self._path}: missing") from None
        except OSError as error:
            raise DamagedError(f"{self._path}: cannot be read: {error.strerror}") from error
        if found != size or len(data) != length * self.most:
            raise DamagedError(f"{self._path}: {found} bytes, {size} were written: cut short or replaced")
        rows = [data[at * length : (at + 1) * length] for at in range(self.most)]
        if any(row != _proven(row[:-_PROOF], self._mark) for row in rows):
            raise DamagedError(
                f"{self._path}: damaged, or of another checkpoint: the rows of rank {rank} do not match "
                "their hashes"
            )
        entries = {}
        for number, row in enumerate(rows):
            name, held, content, _ = row.decode().split()
            if name != file_name(rank, number):
                raise DamagedError(f"{self._path}: damaged: a row of {name} among those of rank {rank}")
            if held != _NONE:
                entries[name] = FileEntry(int(held), content)
        return entries


def encode_table(files: Files, of: str) -> tuple[bytes, str]:
    """Return the table of all files of tensors, and its mark. For rank 0: O(ranks).

    of: what is the table's alone, besides the rows.
    """
    rows = []
    for rank in range(files.ranks):
        written = files.of_rank(rank)
        assert list(written) == [file_name(rank, number) for number in range(len(written))]
        for number in range(files.most):
            name = file_name(rank, number)
            entry = written.get(name)
            rows.append((name, str(entry.bytes), entry.xxh3_128) if entry else (name, _NONE, _NONE))
    name_width, size_width = (max((len(row[at]) for row in rows), default=0) for at in (0, 1))
    texts = [
        f"{name:<{name_width}} {size:>{size_width}} {content:<32}".encode() for name, size, content in rows
    ]
    mark = digest(b"\n".join([of.encode(), *texts]))
    return b"".join(_proven(text, mark) for text in texts), mark


def _proven(text: bytes, mark: str) -> bytes:
    """The row."""
    return text + f" {digest(mark.encode() + text)}\n".encode()
