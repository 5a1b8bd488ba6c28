"""A handful of what `make prove-resume` and `make prove-save` do in full."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import prove_resume, prove_save


def test_a_handful_of_kills_change_nothing(tmp_path: Path) -> None:
    facts = prove_resume.prove(tmp_path / "proof", kills=4, parallel=1)
    assert facts["kills"] >= 4 and facts["runs"] >= 1 and facts["different"] == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("kind", [prove_save.Checkpoint, prove_save.Folder])
def test_some_system_calls_of_a_save_fail(tmp_path: Path, kind: type[prove_save.Scene]) -> None:
    facts = prove_save.prove(kind, tmp_path / "proof", every=15, say=lambda text: None)
    assert facts["experiments"] >= 30 and facts["wrong"] == []
    assert any("old one loads" in outcome for outcome in facts["outcomes"])
