"""`model.kind: package.module:ConfigClass`: found in the working directory, checked, refused in one line."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config import reading
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig

MINE = """
from dataclasses import dataclass
from typing import Annotated, ClassVar
from trainer.models.decoder.config import DecoderConfig

@dataclass
class Mine(DecoderConfig):
    model_class: ClassVar[str] = "{module}:made"
    scale: Annotated[float, "of the branch", "> 0"] = 1.0

@dataclass
class Half:
    kind: str = ""
    layers: int = 2

@dataclass
class Unreadable(DecoderConfig):
    size: "Nowhere" = 1

def made(cfg):
    return (cfg.scale, cfg.layers)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not on the path, with a module of the user's that no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def written(folder: Path, kind: str) -> Path:
    (folder / "own.yaml").write_text(
        f"model: {{kind: '{kind}', layers: 2}}\ndata: {{sources: [{{path: x}}]}}\n"
    )
    return folder / "own.yaml"


def module(folder: Path, name: str, text: str = MINE) -> str:
    (folder / f"{name}.py").write_text(text.replace("{module}", name))
    return name


def test_it_is_found_in_the_working_directory_and_written_as_it_was_given(here: Path) -> None:
    name = module(here, "own_found")
    cfg = reading.load(written(here, f"{name}:Mine"), ["model.scale=0.5"])
    assert (type(cfg.model).__name__, cfg.model.kind, cfg.model.plan().towers[0].blocks) == (
        "Mine", f"{name}:Mine", "layers",
    )  # fmt: skip
    assert pkgutil.resolve_name(cfg.model.model_class)(cfg.model) == (0.5, 2)
    (here / "again.yaml").write_text(reading.dump(cfg))
    assert reading.load(here / "again.yaml").model == cfg.model


@pytest.mark.parametrize(("kind", "override", "message"), [
    ("{}:Mime", "", "own_refused.py has no Mime; did you mean own_refused:Mine?"),
    ("{}:Half", "", "Half has no model_class, offers, vocab, check, check_seq_len, check_layout, "),
    ("{}:made", "", "made is not a dataclass"),
    ("{}:Unreadable", "", "Unreadable has a field whose type cannot be read: name 'Nowhere' is not defined"),
    ("{}.deeper:Mine", "", "no module 'own_refused.deeper': the package is"),
    ("data.own_refused:Mine", "", "no module 'data.own_refused': the package is"),
    ("nowhere_at_all:Mine", "", "no module 'nowhere_at_all', neither installed nor in the working directory"),
    ("own_raises:Mine", "", "its import fails: ZeroDivisionError: division by zero (/"),
    ("own_raises:Mine", "", "own_raises.py, line 2)"),
    ("own_needs:Mine", "", "its import fails: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("own_torn:Mine", "", "its import fails: SyntaxError: '(' was never closed (/"),
    ("own-refused:Mine", "", "not of the form package.module:ConfigClass"),
    ("mine", "", "not one of decoder"),
    ("mine", "", "or a class of your own as package.module:ConfigClass"),
    ("{}:Mine", "model.scale=0", "model.scale=0: must be above 0"),
    ("{}:Mine", "model.scal=1", "model.scal=1: unknown key; did you mean model.scale?"),
    ("{}:Mine", "model.heads=3", "model.hidden: 256 is not divisible by model.heads 3"),
])  # fmt: skip
def test_a_mistake_is_one_line(here: Path, kind: str, override: str, message: str) -> None:
    name = module(here, "own_refused")
    module(here, "own_raises", "x = 1\n1 / 0\n")
    module(here, "own_needs", "import nowhere_at_all\n")
    module(here, "own_torn", "x = (\n")
    config = written(here, kind.replace("{}", name))
    with pytest.raises(ValueError, match=r"^model\.[^\n]*$") as caught:
        reading.load(config, [override] if override else [])
    assert message in str(caught.value)


def test_the_working_directory_hides_no_installed_module(here: Path) -> None:
    """Ranks start with -P; a folder named as the standard library's modules are must not stop them."""
    (here / "json.py").write_text("raise SystemExit('hidden')\n")
    name = module(here, "own_behind")
    written(here, f"{name}:Mine")
    code = "from trainer.config import reading; cfg = reading.load('own.yaml'); print(cfg.model.kind)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=here, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{name}:Mine\n", "")


class Norms(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 2), WRONG[cfg.kind]())


def buffered() -> nn.Module:
    made = nn.Linear(2, 2)
    made.register_buffer("table", torch.zeros(2))
    return made


WRONG = {
    "batch": lambda: nn.BatchNorm2d(4),
    "sync": lambda: nn.SyncBatchNorm(4),
    "dropout": lambda: nn.Dropout(0.1),
    "buffer": buffered,
    "right": lambda: nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.0)),
}


@pytest.mark.parametrize(("which", "message"), [
    ("batch", "module 'stem.1' is a BatchNorm2d: its result depends on which rows share a micro-batch"),
    ("sync", "module 'stem.1' is a SyncBatchNorm: its result depends"),
    ("dropout", "module 'stem.1' is a Dropout, p=0.1: it draws from a rank's own generator"),
    ("buffer", "buffer 'stem.1.table': make it a parameter, or compute it in forward"),
])  # fmt: skip
def test_what_would_break_law_1_is_refused_by_name(
    which: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderConfig, "model_class", f"{__name__}:Norms")
    with pytest.raises(ValueError, match=r"^model\.kind=[^\n]*$") as caught:
        build_model(DecoderConfig(kind=which))  # type: ignore[arg-type]
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="its blocks in 'layers', and there is none"):  # nothing else
        build_model(DecoderConfig(kind="right"))  # type: ignore[arg-type]


def test_a_class_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderConfig, "model_class", "trainer.models.build:Nothing")
    with pytest.raises(ValueError, match=r"^model\.kind='decoder': its model_class 'trainer\.[^\n]*Nothing"):
        build_model(DecoderConfig())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "class A(\n",
            r"the import of own_broken_\d:A fails: SyntaxError: .* \(.*own_broken_\d\.py, line 1\)",
        ),
        (
            "import torch\n1 / 0\n",
            r"fails: ZeroDivisionError: division by zero \(.*own_broken_\d\.py, line 2\)",
        ),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    name = module(here, f"own_broken_{len(text) % 10}", text)
    sys.path.append(str(here))
    monkeypatch.setattr(DecoderConfig, "model_class", f"{name}:A")
    with pytest.raises(ValueError, match=said) as caught:
        build_model(DecoderConfig(layers=1, hidden=8, heads=1, vocab=16))
    assert "\n" not in str(caught.value)
