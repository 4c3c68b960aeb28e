"""YAML and key=value → RunConfig: what is accepted, and one line that helps for everything else."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import hypothesis
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from small_config import YAML
from trainer.config import checks, reading, schema, sections
from trainer.config import run_config as config
from trainer.config.run_config import RunConfig
from trainer.optim.schedule import SCHEDULES


def test_values_come_from_the_file_the_overrides_and_the_defaults(path: Path) -> None:
    cfg = reading.load(path, ["optim.lr=3e-4", "data.sources[1].weight=2", "train.steps=1e3"])
    assert (cfg.model.layers, cfg.optim.lr, cfg.train.steps) == (2, 3e-4, 1000)
    assert [source.weight for source in cfg.data.sources] == [3.0, 2.0]
    assert cfg.checkpoint.asynchronous is False
    assert cfg.optim.betas == [0.9, 0.95]
    assert cfg.folder == Path("runs/tiny")


def test_a_later_override_wins_and_a_mapping_is_merged(path: Path) -> None:
    cfg = reading.load(path, ["train={steps: 20}", "train.steps=30", "optim={lr: 1, clip: 0}"])
    assert (cfg.train.steps, cfg.train.global_batch, cfg.optim.lr, cfg.optim.clip) == (30, 8, 1.0, 0.0)


def test_the_name_defaults_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "from-file.yaml"
    file.write_text(YAML.replace("name: tiny\n", ""))
    assert reading.load(file).name == "from-file"
    assert reading.load(file, ["run_dir=/somewhere"]).folder == Path("/somewhere")


def test_a_base_is_read_first_and_may_have_a_base(path: Path) -> None:
    child = path.with_name("child.yaml")
    child.write_text("base: tiny.yaml\nname: child\ntrain: {steps: 99}\n")
    cfg = reading.load(child)
    assert (cfg.name, cfg.train.steps, cfg.train.global_batch) == ("child", 99, 8)
    grandchild = path.with_name("grandchild.yaml")
    grandchild.write_text("base: child.yaml\nname: grandchild\n")
    cfg = reading.load(grandchild)
    assert (cfg.name, cfg.train.steps, cfg.train.global_batch) == ("grandchild", 99, 8)


def test_bases_that_lead_back_are_one_line(path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a"), ("self", "self")):
        path.with_name(f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    for name in ("a", "self"):
        with pytest.raises(ValueError, match=r"lead back to themselves: \S+ → \S+") as caught:
            reading.load(path.with_name(f"{name}.yaml"))
        assert "\n" not in str(caught.value)


def test_a_base_is_found_from_its_own_file(path: Path) -> None:
    folder = path.parent / "deeper"
    folder.mkdir()
    (folder / "middle.yaml").write_text("base: ../tiny.yaml\ntrain: {steps: 7}\n")
    top = path.with_name("top.yaml")
    top.write_text("base: deeper/middle.yaml\n")
    assert reading.load(top).train.steps == 7


def test_a_base_hands_neither_its_name_nor_its_run_folder_down(path: Path) -> None:
    path.write_text(YAML + "run_dir: /elsewhere/tiny\ntrack: {group: '${name}'}\n")
    for name, base in (("child", "tiny"), ("grandchild", "child")):
        file = path.with_name(f"{name}.yaml")
        file.write_text(f"base: {base}.yaml\ntrain: {{steps: 99}}\n")
        cfg = reading.load(file)
        assert (cfg.name, cfg.run_dir, cfg.track.group) == (name, f"runs/{name}", name)
    assert reading.load(file, ["name=other"]).run_dir == "runs/other"
    assert reading.load(path).run_dir == "/elsewhere/tiny"


def test_interpolation_and_a_dump_that_reads_back(path: Path) -> None:
    cfg = reading.load(path, ["name=run-${train.steps}"])
    assert cfg.name == "run-10"
    again = path.with_name("dumped.yaml")
    again.write_text(reading.dump(cfg))
    assert "async: false" in reading.dump(cfg)
    assert reading.load(again) == cfg


@pytest.mark.parametrize("lr", ["${train.steps}", "[1, ${train.steps}]"])
def test_an_interpolation_in_braces_is_told_to_be_quoted(path: Path, lr: str) -> None:
    file = path.with_name("braces.yaml")
    file.write_text(f"base: {path.name}\noptim: {{lr: {lr}}}\n")
    with pytest.raises(ValueError, match=r'braces.yaml, line 2: not YAML: .* quote it: "\$\{key\}"'):
        reading.load(file)


TEXTS = st.text(st.sampled_from("\\${}.:a0?~")) | st.text()


@hypothesis.settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@example(
    [
        "def f(${seed}):",
        "\\\\${5}\\",
        "${",
        "1.10",
        "null",
        "yes",
        "",
        " a",
        "a\r\n\x85b",
        "\ufeff",
        "\x85",
        "a\u2028 b\u2029",
    ]
)
@given(st.lists(TEXTS.filter(lambda text: text != schema.MISSING), max_size=30))
def test_any_text_is_read_back_as_it_was(path: Path, texts: list[str]) -> None:
    cfg = reading.load(path)
    cfg.track.samples = texts
    again = path.with_name("dumped.yaml")
    again.write_text(reading.dump(cfg), encoding="utf-8")
    assert reading.load(again) == cfg


# What YAML 1.1 makes numbers, truths and dates of, in another spelling.
TYPED = [
    "2024_01",
    "1.10",
    "007",
    "1e3",
    "0x10",
    "0b11",
    "yes",
    "2024-01-01",
    "1_000.50",
    "True",
    "0o7",
    "+5",
]


@pytest.mark.parametrize("text", [*TYPED, "12:30:00", ".inf", "="])
def test_a_text_is_kept_as_it_is_typed(path: Path, text: str) -> None:
    path.write_text(YAML + f"track: {{notes: {text}, samples: [{text}]}}\n")
    for cfg in (reading.load(path), reading.load(path, [f"track={{notes: {text}, samples: [{text}]}}"])):
        assert (cfg.track.notes, cfg.track.samples) == (text, [text])
    assert reading.load(path, [f"track.notes={text}"]).track.notes == text
    if text in TYPED[:9]:
        cfg = reading.load(path, [f"name={text}", "track.group=${name}"])
        assert (cfg.folder, cfg.track.group) == (Path("runs") / text, text)


def test_a_number_may_be_typed_in_several_ways(path: Path) -> None:
    for text, number in (("1_000", 1000), ("1e3", 1000), ("+5", 5), ("'7'", 7), ("2.0", 2), ("0", 0)):
        assert reading.load(path, [f"seed={text}"]).seed == number
    path.write_text(YAML + "seed: 9223372036854775807\nparallel: {zero: 2.0, async_tp: off}\n")
    cfg = reading.load(path, ["optim.lr=.5E-03"])
    assert (cfg.seed, cfg.parallel.zero, cfg.parallel.async_tp, cfg.optim.lr) == (2**63 - 1, 2, False, 5e-4)


def test_an_environment_variable_is_read_once_and_its_value_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(YAML + "run_dir: ${oc.env:GERMINAL_TEST_SCRATCH}/runs/tiny\n")
    with pytest.raises(ValueError, match=r"^[^\n]*run_dir: [^\n]*GERMINAL_TEST_SCRATCH[^\n]*$"):
        reading.load(path)
    monkeypatch.setenv("GERMINAL_TEST_SCRATCH", "/scratch")
    cfg = reading.load(path)
    assert cfg.run_dir == "/scratch/runs/tiny"
    monkeypatch.delenv("GERMINAL_TEST_SCRATCH")
    (tmp_path / "dumped.yaml").write_text(reading.dump(cfg))
    assert reading.load(tmp_path / "dumped.yaml") == cfg


def test_the_settings_are_what_shapes_the_curve_and_nothing_else(path: Path) -> None:
    plain = config.settings(reading.load(path))
    for same in (
        "name=other",
        "parallel.tp=2",
        "train.micro_batch=4",
        "checkpoint.every=7",
        "data.ledger=true",
    ):
        assert config.settings(reading.load(path, [same])) == plain, same
    for other in ("optim.lr=2", "train.global_batch=4", "data.seq_len=32", "train.steps=9"):
        assert config.settings(reading.load(path, [other])) != plain, other


# override → what the one line must say, in this order
@pytest.mark.parametrize(
    ("override", "world", "says"),
    [
        ("parallel.dp_shard=3", 4, "= 3, but the world has 4"),
        ("parallel.tp=3", 3, "model.heads=4"),
        ("parallel.pp=3", 3, "model.layers=2"),
        ("train.micro_batch=8", 2, "train.global_batch=8"),
    ],
)
def test_a_layout_that_cannot_be_shows_its_arithmetic(
    path: Path, override: str, world: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        checks.layout(reading.load(path, [override]), world)


def test_a_layout_is_resolved(path: Path) -> None:
    assert checks.layout(reading.load(path, ["parallel.tp=2"]), 4).dp == 2


def test_names_that_two_rooms_know_are_the_same() -> None:
    assert get_args(sections.Schedule) == SCHEDULES


def test_every_key_reads_back_under_its_own_name() -> None:
    keys = schema.dotted_keys(RunConfig)
    assert {"checkpoint.async", "data.sources[0].path", "model.layers", "optim.lr"} <= set(keys)


@dataclass
class Needs:
    size: int = schema.MISSING  # type: ignore[assignment]
    limit: float | None = None


def test_a_value_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"needs\.size: missing; give an integer"):
        schema.build(Needs, {}, "needs")
    assert schema.build(Needs, {"size": 3, "limit": None}) == Needs(3, None)


CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_configs_of_the_house_are_right_and_named_after_their_file(file: Path) -> None:
    cfg = reading.load(file)
    assert cfg.name == file.stem
    for world in (1,) if file.stem == "quickstart" else (1, 8):  # the quickstart is one process's
        checks.layout(cfg, world)
