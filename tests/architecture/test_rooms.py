"""Rooms: how large they may be, who may import whom, and whether docs/architecture.md shows them."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "trainer", "parallel", "data", "common")
MOST_FILES, MOST_LINES = 14, 300
MOST_LINES_OF_A_FUNCTION = 60  # besides its docstring
# Lists of parts and arguments, one after another.
WIRING = {
    ("trainer/run.py", "assemble"),
    ("parallel/build.py", "build_engine"),
    ("parallel/deepspeed_engine/build.py", "build_deepspeed_engine"),
}
FOLDERS = [*PACKAGES, "tests", "bench", "configs", "docs"]
PICTURE = ROOT / "docs/architecture.md"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]


def files(folder: str) -> Iterator[Path]:
    for path in (ROOT / folder).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_no_folder_has_more_files_than_a_reader_takes_in() -> None:
    counts: dict[Path, int] = {}
    for folder in FOLDERS:
        for path in files(folder):
            counts[path.parent] = counts.get(path.parent, 0) + 1
    large = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_FILES}
    assert not large


def test_no_file_is_too_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in FOLDERS
        for path in files(folder)
        if path.suffix == ".py"
    }
    assert len(lines) > 300
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_no_function_is_too_long() -> None:
    long = {}
    for package in [*PACKAGES, "bench"]:
        for path in files(package):
            if path.suffix == ".py":
                name = str(path.relative_to(ROOT))
                for node in ast.walk(parsed(path)):
                    if isinstance(node, ast.FunctionDef) and (name, node.name) not in WIRING:
                        documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
                        long[name, node.name] = (node.end_lineno or 0) - node.lineno + 1 - documented
    assert len(long) > 1000
    assert not {place: lines for place, lines in long.items() if lines > MOST_LINES_OF_A_FUNCTION}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module, modules: set[str]) -> set[str]:
    """The project's modules that `tree` imports, anywhere in it but for annotations alone."""
    only_types = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in only_types:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
    return found & modules


def graph() -> dict[str, set[str]]:
    """Module → the project's modules that it imports."""
    paths = {module_of(path): path for package in PACKAGES for path in files(package) if path.suffix == ".py"}
    return {name: imports_of(parsed(path), set(paths)) for name, path in paths.items()}


def room_of(module: str) -> str:
    """`data.stream.rows` → `data.stream`; a file of a package itself (`trainer.loop`) is a room too."""
    return ".".join(module.split(".")[:2])


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Sets of more than one node that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        reached[start], waiting = set(), list(edges[start])
        while waiting:
            node = waiting.pop()
            if node not in reached[start]:
                reached[start].add(node)
                waiting += edges.get(node, ())
    found = []
    for start in edges:
        circle = {node for node in reached[start] if start in reached.get(node, ())}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    between: dict[str, set[str]] = {}
    for module, imported in edges.items():
        room = room_of(module)
        between.setdefault(room, set()).update({room_of(other) for other in imported} - {room})
    return between


def test_neither_files_nor_rooms_import_in_circles() -> None:
    edges = graph()
    assert circles(edges) == []
    assert circles(rooms(edges)) == []


def test_a_circle_is_found() -> None:
    edges = graph()
    edges["data.corpus.scan"].add("data.verify.verify")
    edges["parallel.layout.mesh"].add("parallel.torch_engine.engine")
    assert {"data.corpus.scan", "data.verify.verify"} in circles(edges)
    assert any({"parallel.layout", "parallel.torch_engine"} <= circle for circle in circles(rooms(edges)))


def layers_of(container: str) -> list[list[str]]:
    """The rooms of a package from the top down, as the contract has them."""
    contract = next(one for one in CONTRACTS if one.get("containers") == [container])
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "common"])
def test_every_room_has_its_place_in_a_contract(package: str) -> None:
    placed = {room for layer in layers_of(package) for room in layer}
    free = {room.split(".")[1] for room in rooms(graph()) if room.startswith(f"{package}.")} - placed
    assert not free, f"name {free} in the contract of pyproject.toml"


def drawn(package: str) -> list[list[str]]:
    """The rows of a package in the picture: `| rooms | what is in them |`, from the top down."""
    section = (
        PICTURE.read_text().split(f"### `{package}/`\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    )
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    return [re.findall(r"`([a-z_0-9.]+?)(?:/|\.py)?`", row) for row in rows]


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "common"])
def test_the_picture_shows_the_rooms_as_the_contracts_have_them(package: str) -> None:
    assert [sorted(row) for row in drawn(package)] == [sorted(layer) for layer in layers_of(package)]


def arrows() -> list[list[str]]:
    """The walks in the picture: lists of files, each of which hands on to the next."""
    text = PICTURE.read_text()
    walks = re.findall(r"```walk\n(.*?)```", text, flags=re.DOTALL)
    return [re.findall(r"^ *(?:→ )?(\S+\.py)\b", walk, flags=re.MULTILINE) for walk in walks]


def test_the_walks_in_the_picture_follow_imports() -> None:
    """Each file imports one of those before it, or is imported by one; or a third file imports both, or both
    import a third.
    """
    edges = graph()
    walks = arrows()
    assert len(walks) == 2
    for walk in walks:
        assert len(walk) > 8
        modules = [module_of(ROOT / name) for name in walk]
        assert not [name for name, module in zip(walk, modules) if module not in edges]
        for number, module in enumerate(modules[1:], start=1):
            assert any(
                module in edges[before]
                or before in edges[module]
                or any({before, module} <= imported for imported in edges.values())
                or edges[before] & edges[module]
                for before in modules[:number]
            ), f"{module} meets none of those before it"


# In which room, what, and which contract finds it.
PLANTED = [
    ("data", "import trainer.state"),
    ("data/corpus", "import data.stream.order"),
    ("data/stream", "import data.prepare.recipe"),
    ("data/prepare/report", "import data.prepare.encode"),
    ("parallel", "import data.stream.batch"),
    ("parallel/layout", "import parallel.torch_engine.engine"),
    ("parallel/torch_engine", "import parallel.deepspeed_engine.engine"),
    ("trainer/models", "import trainer.config.run_config"),
    ("trainer/config", "import trainer.checkpoint.store"),
    ("trainer/checkpoint", "import trainer.run"),
    ("launch", "import torch"),
    ("launch/local", "import launch.cli"),
    ("common", "import data.stream.order"),
]


def test_breaches_of_the_contracts_are_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        for file in files(package):
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for number, (room, planted) in enumerate(PLANTED):
        (tmp_path / room / f"planted{number}.py").write_text(planted + "\n")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode != 0
    missed = [
        (room, planted)
        for number, (room, planted) in enumerate(PLANTED)
        if f"{room.replace('/', '.')}.planted{number} -> " not in done.stdout
    ]
    assert not missed, done.stdout


def test_the_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
