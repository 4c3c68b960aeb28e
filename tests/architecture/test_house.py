"""What no linter checks: names, torch-free files, who reads the environment. test_rooms.py has the rooms."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("trainer", "parallel", "data", "launch", "common")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TORCH_FREE = [
    "common.model_plan",
    "common.module_interfaces",
    "common.objective",
    "common.precision",
    "trainer.config.keys",
    "trainer.config.schema",
    "trainer.config.sections",
    "trainer.models.registry",
    "trainer.models.decoder.plan",
    "parallel.layout.layout",
    "data.prepare.recipe",
]
TORCH_FREE += [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in FILES
    if file.name == "config.py" or ("launch" in file.parts[-3:] and file.name != "__init__.py")
]
HEAVY = (
    "torch",
    "numpy",
    "accelerate",
    "deepspeed",
    "transformers",
    "wandb",
    "webdataset",
    "pyarrow",
    "omegaconf",
)


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(node: ast.AST) -> set[str]:
    """Absolute module names that the statements below `node` import, those inside functions too."""
    found: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            found.add(child.module or "")
    return found


def test_the_torch_free_rooms_import_nothing_heavy() -> None:
    code = "import importlib, json, sys\n"
    code += f"for module in {TORCH_FREE}:\n"
    code += "    importlib.import_module(module)\n"
    code += f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
    code += "    assert not heavy, f'{module} imports {heavy}'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "trainer/models").rglob("*.py")), ids=name)
def test_model_files_import_torch_common_and_each_other_only(file: Path) -> None:
    allowed = {"torch", "common", *sys.stdlib_module_names}
    foreign = {
        module
        for module in imports(tree(file))
        if module.split(".")[0] not in allowed and not module.startswith("trainer.models")
    }
    assert not foreign


DOCUMENTS = ["Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    roots = "|".join([*PACKAGES, "tests", "bench", "configs", "docs"])
    named = set(
        re.findall(
            rf"(?<![\w/.-])(?:{roots})/[a-z0-9_/.-]*\.(?:py|md|yaml|json|tar\.gz)\b",
            (ROOT / document).read_text(),
        )
    )
    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_module_can_be_imported() -> None:
    """mypy lets an import of a deleted module pass; in a branch that rarely runs nothing else sees it."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
    rest = [module for module in modules if module != "trainer.__main__"]
    code = f"import importlib\nfor module in {rest}:\n    importlib.import_module(module)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    named = {name for file in FILES for name in project_imports(tree(file))}
    assert not {name for name in named if not is_there(name)}


def project_imports(node: ast.AST) -> set[tuple[str, str]]:
    """(module, name) of everything that is imported from the project, inside functions too."""
    return {
        (child.module, alias.name)
        for child in ast.walk(node)
        if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] in PACKAGES
        for alias in child.names
    }


def is_there(imported: tuple[str, str]) -> bool:
    """Whether a file of the project is the module, or has the name at its top level."""
    module, name = imported
    path = ROOT / module.replace(".", "/")
    if (path / f"{name}.py").exists() or (path / name / "__init__.py").exists():
        return True
    file = path.with_suffix(".py")
    return file.exists() and name in defined(file)


@functools.cache
def defined(file: Path) -> set[str]:
    """The names that a file has at its top level."""
    names = set()
    for node in tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    return names


@functools.cache
def dependencies() -> set[str]:
    """Import names of every distribution that germinal requires, extras included."""
    required = importlib.metadata.requires("germinal") or []
    names = {canonicalize_name(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in required}
    return {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if any(canonicalize_name(distribution) in names for distribution in distributions)
    } - set(PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_module_is_named_after_the_standard_library_or_a_dependency(file: Path) -> None:
    taken = set(sys.stdlib_module_names) | dependencies()
    assert "torch" in taken
    assert file.stem not in taken


@pytest.mark.parametrize("file", FILES, ids=name)
def test_the_environment_is_read_by_the_runtime_and_the_launchers_alone(file: Path) -> None:
    if name(file).startswith(("parallel/world/", "launch/")):
        return
    reads = [
        node.lineno
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("os", "environ"), ("os", "getenv"), ("os", "environb")}
    ]
    assert not reads, f"{name(file)} lines {reads}: take it as an argument"


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=name)
def test_init_files_say_what_is_inside_and_do_nothing(file: Path) -> None:
    """Importing a room costs nothing, and a name has one place that it is imported from."""
    body = tree(file).body
    assert [type(node) for node in body] == [ast.Expr], f"{name(file)}: a docstring, and nothing else"
    assert ast.get_docstring(tree(file))


def test_test_files_have_unique_names_and_no_package() -> None:
    files = [file for file in (ROOT / "tests").rglob("*.py") if "__pycache__" not in file.parts]
    names = [file.name for file in files]
    assert "__init__.py" not in names
    names = [name for name in names if name != "conftest.py"]  # pytest's own name, one a folder
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


@pytest.mark.parametrize("file", FILES, ids=name)
def test_only_declared_dependencies_are_imported(file: Path) -> None:
    known = {*sys.stdlib_module_names, *PACKAGES, *dependencies()}
    assert {module.split(".")[0] for module in imports(tree(file))} <= known
