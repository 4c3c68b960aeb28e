"""Pauses of saves, as short as tests need them."""

import pytest


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.saving.save.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("trainer.checkpoint.folder.RENAME_SECONDS", 0.01)
    monkeypatch.setattr("trainer.checkpoint.saving.board.RENAME_SECONDS", 0.01)
