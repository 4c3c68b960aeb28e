"""`germinal config`: every key, a section, one key; as tables and as JSON."""

import json
import subprocess
import sys

import pytest

from launch import cli
from launch.look import reference


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["config", *arguments]) == 0
    return capfd.readouterr().out


def test_a_section_and_a_key_and_all(capfd: pytest.CaptureFixture[str]) -> None:
    every = shown(capfd)
    assert "base " in every and "model.layers" in every and "data.sources[].weight" in every
    section = shown(capfd, "optim")
    assert "optim.lr" in section and "The optimiser and its learning rate" in section
    assert "train.steps" not in section
    key = shown(capfd, "train.eval_overlap")
    assert all(word in key for word in ("integer ≥ 0, < data.seq_len", "tokens", "context that")), key
    assert "train.steps" not in key
    assert "number ≥ 0" in shown(capfd, "data.sources[3].weight")


def test_json_for_scripts(capfd: pytest.CaptureFixture[str]) -> None:
    found = {key["key"]: key for key in json.loads(shown(capfd, "--json"))}
    assert found["parallel.zero"]["choices"] == [0, 1, 2, 3]
    assert found["data.sources"]["required"] and found["checkpoint.every"]["default"] == 100
    assert found["checkpoint.every"]["unit"] == "steps"
    assert "needs train.precision=bf16 (what is not in fp8)" in found["train.fp8"]["rules"]
    assert found["track.tools"]["type"].startswith("list of jsonl | wandb")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("optm", "did you mean optim?"),
        ("optim.learning_rate", "did you mean optim.lr?"),
        ("lr", "did you mean optim.lr?"),
        ("zzz", "see `germinal config`"),
    ],
)
def test_a_key_that_is_none_names_the_nearest(
    capfd: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    assert cli.main(["config", name]) == 2
    out, err = capfd.readouterr()
    assert not out and err == f"error: {name}: no such key; {says}\n"


def test_it_imports_nothing_heavy() -> None:
    code = "import sys; from launch import cli; cli.main(['config', 'optim']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "omegaconf"} & set(done.stdout.splitlines()[-1].split())


def test_every_section_is_described() -> None:
    for section, _ in reference.by_section(reference.selected(None)):
        assert not section or all(reference.about(section).values()), section


def test_a_key_that_kinds_declare_differently_is_told_of_each(capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capfd, "model.window", "--json"))
    assert [(key["default"], key["kinds"][0]) for key in found] == [(0, "decoder"), (64, "encoder")]
    assert {"text_classes", "text_pair"} < set(found[1]["kinds"]) and found[0]["kinds"] == ["decoder"]
    (alike,) = json.loads(shown(capfd, "objective.z_loss", "--json"))
    assert alike["kinds"][:4] == ["causal_lm", "fill_in_the_middle", "span_corruption", "masked_lm"]
    (kind,) = json.loads(shown(capfd, "model.kind", "--json"))
    assert kind["kinds"] == [] and "vision" in kind["choices"]
    (nested,) = json.loads(shown(capfd, "model.text.causal", "--json"))
    assert nested["kinds"] == ["image_text"]
    text = shown(capfd, "objective")
    assert (
        "\nobjective.kind=siglip: What is minimised: the binary cross-entropy" in text and "of kind" in text
    )
    assert "\\n" not in text and "objective.kind=siglip" not in shown(capfd, "objective.rate")
    assert "of kind" not in shown(capfd, "optim")
