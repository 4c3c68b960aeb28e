"""docs/config.md is made of the fields of the config's dataclasses, all of them, as they are now."""

import re
import subprocess
import sys
from pathlib import Path

from trainer.config import keys
from trainer.config.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_config_keys_is_what_the_fields_say() -> None:
    command = [sys.executable, "-m", "launch.cli", "config", "--markdown"]
    made = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, timeout=60, cwd=ROOT
    ).stdout
    page = (ROOT / "docs/config.md").read_text()
    assert page == made, "run: germinal config --markdown > docs/config.md"
    assert {key.name for key in keys.keys(RunConfig)} <= set(
        re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)
    )


def test_every_key_says_what_it_means() -> None:
    assert [key.name for key in keys.keys(RunConfig) if not key.meaning.strip()] == []
