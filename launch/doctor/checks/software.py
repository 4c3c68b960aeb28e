"""Versions against each other: what is installed, and what each package says that it needs. Imports no torch.

What is installed and unfit is found as `pip check` finds it, by the packages' own metadata, for everything
that this project requires, directly or through others.
"""

import contextlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from launch.doctor.check import Circumstances
from launch.doctor.finding import Finding, error, note, ok, warning

PROJECT = "germinal"
# What decides how a run computes: nodes are compared by these.
TOLD = ("torch", "numpy", "accelerate", "deepspeed", "transformers", "torchao", "safetensors")
EXTRAS = ("clean", "deepspeed", "fp8", "http", "s3")  # not `dev`, which a cluster needs nothing of


def check(at: Circumstances) -> Iterator[Finding]:
    """Python, the packages and what they require of each other, the CUDA that torch was built for."""
    versions = {name: version for name in TOLD if (version := installed(name))}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    python = platform.python_version()
    yield ok(
        "software.versions",
        f"Python {python}, {told}",
        same={"Python": python, **versions, PROJECT: installed(PROJECT) or ""},
    )
    yield from _python()
    unfit = list(misfits(installed))
    yield from unfit
    if not unfit:
        yield ok("software.packages", "every installed package is one that the others can work with")
    yield from _nccl()


def installed(name: str) -> str | None:
    """The installed version of a distribution; None where it is missing."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def misfits(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Yield a finding for each package that is missing, or installed in a version that another refuses.

    Of several that refuse it, the one nearest to this project is named.

    version_of: distribution → its installed version, or None.
    """
    seen: set[str] = set()
    told: set[str] = set()
    waiting = [(PROJECT, ""), *((PROJECT, extra) for extra in EXTRAS)]
    while waiting:
        owner, extra = waiting.pop(0)
        for need in needs(owner, extra):
            name, version = canonicalize_name(need.name), version_of(need.name)
            if version is None:
                unasked = owner == PROJECT and extra
                if not unasked and name not in told:
                    told.add(name)
                    yield _unfit(need, owner, "is not installed", at_start=True)
                continue
            if not need.specifier.contains(Version(version), prereleases=True) and name not in told:
                told.add(name)
                yield _unfit(need, owner, f"is {version}", at_start=not extra)
            for inner in ("", *sorted(need.extras)):
                if (key := f"{name}[{inner}]") not in seen:
                    seen.add(key)
                    waiting.append((need.name, inner))


def needs(owner: str, extra: str) -> list[Requirement]:
    """What the installed distribution `owner` requires on this machine: by itself, or for `extra` alone."""
    try:
        texts = importlib.metadata.requires(owner) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for text in texts:
        need = Requirement(text)
        plain = need.marker is None or need.marker.evaluate({"extra": ""})
        if plain if not extra else (need.marker and not plain and need.marker.evaluate({"extra": extra})):
            found.append(need)
    return found


def _unfit(need: Requirement, owner: str, how: str, *, at_start: bool) -> Finding:
    make = error if at_start and owner == PROJECT else warning
    asked = f"{need.name}{need.specifier}"
    return make(
        f"software.{need.name}", f"{need.name} {how}; {owner} needs {asked}", f"pip install '{asked}'"
    )


def _python() -> Iterator[Finding]:
    asked = importlib.metadata.metadata(PROJECT)["Requires-Python"] or ">=3.11"
    if not Requirement(f"python{asked}").specifier.contains(platform.python_version(), prereleases=True):
        found = f"Python {platform.python_version()} at {sys.executable}; {PROJECT} needs {asked}"
        yield error("software.python", found, f"make an environment with a Python {asked}")


def torch_cuda(folder: Path | None = None) -> str | None:
    """The CUDA release that torch was built for, such as 12.8; "" for a torch without; None where unknown.

    Read from the file that torch's build writes (torch/version.py), since importing torch takes seconds.
    """
    try:
        file = folder or Path(str(importlib.metadata.distribution("torch").locate_file("torch")))
        text = (file / "version.py").read_text()
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    found = re.search(r"^cuda(?:\s*:[^=]*)?\s*=\s*(None|['\"]([\d.]+)['\"])", text, flags=re.MULTILINE)
    return None if found is None else found[2] or ""


def _nccl() -> Iterator[Finding]:
    """Two distributions bring one libnccl.so.2: the one that was unpacked last is used by both."""
    found = {f"nvidia-nccl-cu{release}": installed(f"nvidia-nccl-cu{release}") for release in (11, 12, 13)}
    there = {name: version for name, version in found.items() if version}
    told = ", ".join(f"{name} {version}" for name, version in there.items())
    if len(set(there.values())) > 1:
        remedy = "uninstall both and install torch again, which brings its own"
        yield note("software.nccl", f"two NCCL packages: {told}", remedy)
    elif there:
        yield ok("software.nccl", f"NCCL: {told}", same=there)
