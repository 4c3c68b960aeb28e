"""configs/objectives: an example of each objective, which `germinal train` would take."""

from pathlib import Path

from data.prepare.embedded.names import EMBEDDED
from trainer.config import reading
from trainer.objectives.registry import OBJECTIVES

FOLDER = Path(__file__).parents[3] / "configs" / "objectives"


def test_each_objective_has_an_example_on_a_corpus_that_is_made_on_the_machine() -> None:
    kinds = set()
    for path in sorted(FOLDER.glob("*.yaml")):
        cfg = reading.load(path)
        kinds.add(cfg.objective.kind)
        (source,), (heldout,) = cfg.data.sources, cfg.data.heldout
        corpus = source.path.split("/")[1]
        assert (cfg.name, corpus in EMBEDDED) == (path.stem, True)
        assert (source.path, heldout.path) == (f"corpora/{corpus}/train", f"corpora/{corpus}/heldout")
        text = path.read_text()
        assert f"germinal prepare embedded:{corpus} --out corpora/{corpus}\n" in text
        assert f"germinal train configs/objectives/{path.name}\n" in text
    # Those of marked tokens are for fine-tuning, on labelled corpora, which a machine does not make.
    assert kinds == set(OBJECTIVES) - {"instruction", "tags", "answers"}
