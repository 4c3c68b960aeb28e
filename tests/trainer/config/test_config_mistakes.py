"""Each mistake in a config is one line that names the key, the value and the remedy."""

import re
from pathlib import Path

import pytest

from trainer.config import reading

WRONG = {
    "train.threads=1000000": ["train.threads=1000000", "at most 1024"],
    "train.stpes=3": ["train.stpes=3", "unknown key", "did you mean train.steps?"],
    "lr=3": ["lr=3", "did you mean optim.lr?"],
    "optimizer.lr=3": ["optimizer.lr=3", "did you mean optim.lr?"],
    "model.n_layers=3": ["model.n_layers=3", "did you mean model.layers?"],
    "data.sources[0].wieght=3": ["data.sources[0].wieght=3", "did you mean data.sources[0].weight?"],
    "checkpoint.asynchronous=true": ["did you mean checkpoint.async?"],
    "objective.mask_rate=0.2": ["objective.kind=causal_lm has no such key, masked_lm has it"],
    "model.patch_size=2": ["model.kind=decoder has no such key", "vision has it"],
    "nonsense=1": ["nonsense=1", "unknown key", "known here: name, model"],
    "train.steps=many": ["train.steps='many'", "not an integer"],
    "train.steps=1.5": ["train.steps=1.5", "not an integer"],
    "train.steps=true": ["train.steps=true", "not an integer"],
    "optim.lr=fast": ["optim.lr='fast'", "not a finite number"],
    "optim.lr=.inf": ["optim.lr='.inf'", "not a finite number"],
    "seed=010": ["seed=010", "not an integer", "a leading 0 means octal"],
    "optim.lr=007.5": ["optim.lr='007.5'", "not a finite number"],
    "seed=1:30": ["seed='1:30'", "not an integer"],
    "seed=0x10": ["seed='0x10'", "not an integer"],
    "seed=0b11": ["seed='0b11'", "not an integer"],
    "parallel.zero=03": ["parallel.zero='03'", "not one of 0, 1, 2, 3"],
    "seed=???": ["seed: missing", "give an integer"],
    "track.samples=['???']": ["track.samples[0]: missing", "give a text"],
    "track.project=!!int 5": ["track.project=5", "not a text", "quote it"],
    "track.project=!!bool x": ["track.project=", "not YAML"],
    "name=": ["name: has no value", "give a text"],
    f"name={'x' * 300}": ["name=xxxx", "300 characters", "give at most 200"],
    "data.ledger=3": ["data.ledger=3", "not true or false"],
    "name=[a]": ["name=['a']", "not a text"],
    "name=1_0/2": ["name='1_0/2'", "not a plain folder name"],
    "data.sources=corpora/x": ["data.sources='corpora/x'", "not a list"],
    "data.sources=[x]": ["data.sources[0]='x'", "not a mapping with the keys path, weight"],
    "optim=3": ["optim=3", "not a mapping with the keys name, lr"],
    "train.steps=": ["train.steps: has no value", "an integer"],
    "model.vocab=???": ["model.vocab: missing", "give an integer"],
    "seed=[": ["seed=[", "not YAML"],
    "steps": ["'steps'", "not a key=value: write such as train.steps=100"],
    "data.sources[7].weight=1": ["data.sources[7].weight=1", "no such element", "the whole list"],
    "name=${nothing}": ["name", "'nothing' is not found", "give it there"],
    "name=${oc.env:GERMINAL_NOT_SET}": ["name: the environment variable GERMINAL_NOT_SET is not set: set it"],
    "optim.betas=[${seed}, 1]": ["expected ','", 'quote it: "${key}"'],
    "model.kind=decodr": ["model.kind='decodr'", "did you mean decoder?"],
    "objective.kind=causal": ["objective.kind='causal'", "did you mean causal_lm?"],
    "optim.schedule=cosin": ["optim.schedule='cosin'", "did you mean cosine?"],
    "optim.name=adam": ["optim.name='adam'", "did you mean adamw?"],
    "train.precision=float16": ["train.precision='float16'", "fp32, bf16, fp16"],
    "track.tools=[wandb,tensorbord]": ["track.tools[1]='tensorbord'", "did you mean tensorboard?"],
    "train.steps=0": ["train.steps=0", "at least 1"],
    "train.micro_batch=3": ["train.global_batch=8", "train.micro_batch=3", "2·3 + 2"],
    "train.eval_every=-1": ["train.eval_every=-1", "0 or more"],
    "optim.lr=0": ["optim.lr=0", "above 0"],
    "optim.weight_decay=1e300": ["optim.weight_decay=1e+300", "at most 3.4e38"],
    "optim.weight_decay=1e-60": ["optim.weight_decay=1e-60", "at least 1.2e-38, or 0"],
    "model.init_std=1e300": ["model.init_std=1e+300", "at most 3.4e38"],
    "model.norm_eps=1e-60": ["model.norm_eps=1e-60", "at least 1.2e-38"],
    "model.rope_theta=1e300": ["model.rope_theta=1e+300", "at most 3.4e38"],
    "model.hidden=1e12": ["model.hidden=1000000000000", "parameters", "64 bits"],
    "optim.eps=0": ["optim.eps=0", "above 0"],
    "optim.lr=1" + "0" * 400: ["optim.lr=1", "not a finite number"],
    "train.global_batch=9223372036854775808": ["train.global_batch=9223372036854775808", "64 bits"],
    "data.seq_len=1e30": ["data.seq_len=1e30", "64 bits"],
    "data.seq_len=9223372036854775807": [
        "train.global_batch=8",
        "data.seq_len=9223372036854775807",
        "64 bits",
    ],
    "train.eval_overlap=64": ["train.eval_overlap=64", "below data.seq_len=64"],
    "optim.betas=[0.9]": ["optim.betas=[0.9]", "must have 2 values"],
    "optim.min_lr_ratio=2": ["optim.min_lr_ratio=2", "at most 1"],
    "checkpoint.keep=0": ["checkpoint.keep=0", "at least 1"],
    "name=../escape": ["name='../escape'", "not a plain folder name"],
    "data.sources=[]": ["data.sources"],
    "data.seq_len=0": ["data.seq_len", "0"],
    "model.heads=3": ["model.hidden", "64", "heads 3"],
}


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_one_line_that_helps(path: Path, override: str) -> None:
    with pytest.raises(ValueError) as caught:
        reading.load(path, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(".*".join(map(re.escape, WRONG[override])), message), message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: [", "line 2: not YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("", "missing"),
        ("name: a\nname: b\n", "line 2"),
        ("name: x\n", "model: missing"),
        ("base: nowhere.yaml\n", "nowhere.yaml: no such file"),
        ("base: [a, b]\n", "at most one base"),
        ("\xff\xfe", "not"),
        ("null: 1\n", r"broken\.yaml: Incompatible key type"),
        ("a: !!set {b}\n", r"broken\.yaml: Value 'set'"),
        pytest.param("a: " + "[" * 3000 + "]" * 3000, r"broken\.yaml: nested too deeply", id="deep"),
        pytest.param("seed: " + "9" * 5000, "seed=9+: not an integer", id="long"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=says) as caught:
        reading.load(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbour(path: Path) -> None:
    with pytest.raises(ValueError, match=r"tinny\.yaml: no such file; did you mean .*tiny\.yaml\?"):
        reading.load(path.with_name("tinny.yaml"))
