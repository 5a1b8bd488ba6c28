"""Nothing of a text is lost by moving its middle, and only what is drawn is moved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone import pipeline
from inkstone.cli.main import main
from inkstone.errors import UsageError
from inkstone.inference import Generator, SamplingConfig
from inkstone.inference.middle import Infill, fill_between
from inkstone.inference.stream import Generation
from inkstone.models import llama
from inkstone.recipe import load
from inkstone.tasks.fill_in_the_middle import ROLES, Config, Marks, Objective
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TEXT = "def area(radius):\n    return 3.14 * radius ** 2\n\n\nprint('größer', area(2))\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([TEXT] * 9, TokenizerConfig(vocab_size=330), roles=ROLES)


@pytest.fixture
def generator(tokenizer: Tokenizer) -> Generator:
    """Weights that have learned nothing."""
    shape = llama.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=64
    )
    return Generator(llama.Model(shape), tokenizer)


def put_back(ids: list[int], tokenizer: Tokenizer) -> tuple[str, str]:
    """The text of an arranged document and how it was arranged, by an independent reading."""
    marks = Marks(tokenizer)
    if ids[0] != marks.prefix:
        return tokenizer.decode(ids), "plain"
    suffix, middle = ids.index(marks.suffix), ids.index(marks.middle)
    assert ids[-1] == tokenizer.eos_id
    before, after, rest = ids[1:suffix], ids[suffix + 1 : middle], ids[middle + 1 :]
    kind = "psm" if before else "spm"  # with an empty prefix both are the same
    return tokenizer.decode(before) + tokenizer.decode(rest) + tokenizer.decode(after), kind


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 40), number=st.integers(0, 1 << 40))
def test_no_character_is_lost(tokenizer: Tokenizer, seed: int, number: int) -> None:
    objective = Objective(Config(fim_rate=1.0), tokenizer, 256)
    ids = np.asarray([*tokenizer.encode(TEXT), tokenizer.eos_id])
    made = objective.arrange(ids, objective.random(seed, number)).tolist()
    assert put_back(made, tokenizer)[0] == TEXT
    again = objective.arrange(ids, objective.random(seed, number)).tolist()
    assert made == again


def test_rates_are_those_of_the_settings_and_documents_are_moved_one_by_one(
    tokenizer: Tokenizer,
) -> None:
    objective = Objective(Config(fim_rate=0.5, spm_rate=0.5), tokenizer, 4096)
    one = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    seen: list[str] = []
    for number in range(100):
        made = objective.arrange(np.asarray(one * 4), objective.random(0, number))
        for part in np.split(made, np.flatnonzero(made[:-1] == tokenizer.eos_id) + 1):
            text, kind = put_back(part.tolist(), tokenizer)
            assert text == TEXT
            seen.append(kind)
    assert len(seen) == 400
    assert seen.count("plain") / 400 == pytest.approx(0.5, abs=0.08)
    assert seen.count("spm") / 400 == pytest.approx(0.25, abs=0.07)
    untouched = Objective(Config(fim_rate=0.0), tokenizer, 4096)
    assert untouched.arrange(np.asarray(one), untouched.random(0, 0)).tolist() == one


def test_cuts_fall_inside_tokens(tokenizer: Tokenizer) -> None:
    objective = Objective(Config(), tokenizer, 256)
    ids = tokenizer.encode(TEXT)
    ends = {len(tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)}
    cuts = [objective.cut(ids, objective.random(0, n)) for n in range(60)]
    inside = [c for c in cuts if c is not None and len(c[0]) not in ends]
    assert len(inside) > 5
    broken = [
        t for t in tokenizer.encode("ö") if tokenizer.decode([t]) == "\N{REPLACEMENT CHARACTER}"
    ]
    if broken:  # half of a character is no text
        assert objective.cut([*broken[:1], *ids], objective.random(0, 0)) is None


def test_targets_are_the_next_tokens_and_padding_is_none(tokenizer: Tokenizer) -> None:
    objective = Objective(Config(fim_rate=1.0), tokenizer, 64)
    rows = [np.asarray(tokenizer.encode(TEXT)[:n]) for n in (20, 5)]
    batch = objective.collate([3, 4], rows, 7)
    assert batch.attention_mask is not None
    for number, row in enumerate(rows):
        made = objective.arrange(row, objective.random(7, 3 + number)).tolist()
        real = batch.attention_mask[number]
        assert batch.input_ids[number][real].tolist() == made[:-1]
        assert batch.targets[number][real].tolist() == made[1:]
        assert (batch.targets[number][~real] == -100).all()


def test_loss_is_that_of_language_modelling(tokenizer: Tokenizer) -> None:
    objective = Objective(Config(fim_rate=1.0), tokenizer, 64)
    torch.manual_seed(0)
    model = llama.Model(llama.Config(vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1,
                                     n_heads=2, max_seq_len=64))  # fmt: skip
    batch = objective.collate([0, 1], [np.asarray(tokenizer.encode(TEXT)[:n]) for n in (30, 9)], 0)
    total, count = objective.loss(model, batch)
    logits = model(batch.input_ids).float()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum"
    )
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert count == int((batch.targets != -100).sum())


def test_a_long_prompt_keeps_what_is_near_the_middle(
    tokenizer: Tokenizer, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Marks(tokenizer)
    asked: list[list[int]] = []
    real = generator.generate
    monkeypatch.setattr(
        generator,
        "generate",
        lambda prompts, config: asked.extend(prompts) or real(prompts, config),
    )
    far, near = "print(1)\n" * 40, "return"
    found = fill_between(generator, [(far + near, near + far), ("", near)],
                         SamplingConfig(max_tokens=8, temperature=0.0))  # fmt: skip
    long, short = asked
    assert len(long) + 8 == 64 and short == [
        tokenizer.eos_id, marks.prefix, marks.suffix, *tokenizer.encode(near), marks.middle
    ]  # fmt: skip
    cut = long.index(marks.middle)
    assert tokenizer.decode(long[cut + 1 :]).endswith(near)
    assert tokenizer.decode(long[3:cut]).startswith(near)
    fill_between(generator, [(near, near)], SamplingConfig(max_tokens=8), suffix_first=False)
    parts = tokenizer.encode(near)
    assert asked[2] == [tokenizer.eos_id, *marks.psm(parts, parts)]
    assert str(found[0]).startswith(far) and str(found[0]).endswith(far)


def test_blanks_before_the_cursor_are_not_written_twice(
    tokenizer: Tokenizer, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Marks(tokenizer)
    asked: list[list[int]] = []

    def answers(prompts: list[list[int]], config: SamplingConfig) -> list[Generation]:
        asked.extend(prompts)
        return [Generation("    return 3", [], "stop") for _ in prompts]

    monkeypatch.setattr(generator, "generate", answers)
    pairs = [("def f():\n    ", "\n"), ("def f():\n", "\n")]
    typed, empty = fill_between(generator, pairs, SamplingConfig(max_tokens=8))
    assert asked[0] == asked[1] and marks.prefix in asked[0]
    assert str(typed) == str(empty) == "def f():\n    return 3\n"


def test_a_model_without_the_marks_says_so() -> None:
    plain = train([TEXT] * 9, TokenizerConfig(vocab_size=330))
    with pytest.raises(UsageError, match="not trained to fill"):
        Marks(plain)


def test_a_run_learns_to_fill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four texts that it knows by heart, what belongs between two pieces is certain."""
    texts = [
        "The river runs to the sea.", "A stone lies in the garden.",
        "Winter comes before spring.", "def area(r): return 3 * r * r",
    ]  # fmt: skip
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 100))
    recipe = load("code-python", [
        "tokenizer.vocab_size=300", "corpus.seq_len=64", "model.d_model=64", "model.n_layers=2",
        "model.n_heads=2", "training.tokens_per_step=1024", "training.precision=fp32",
        "training.max_steps=500", "task.fim_rate=1.0", "evaluation.baselines=false",
        "text.dedup='none'", "text.valid_fraction=0",
    ]).with_data([data])  # fmt: skip
    result = pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    assert result["objective"] == "fill_in_the_middle"
    model = ink.load(tmp_path / "run", device="cpu")
    cuts = [(t, a, b) for t in texts for a, b in ((6, 12), (9, 20), (12, 17))]
    found = [model.fill(t[:a], t[b:], temperature=0.0) for t, a, b in cuts]
    assert all(isinstance(x, Infill) for x in found)
    right = sum(x.text == t[a:b] for x, (t, a, b) in zip(found, cuts, strict=True))
    assert right >= 9, [(x.prefix, x.text, x.suffix) for x in found]
    assert model.suffix_first  # as half of what it has read
    t, a, b = cuts[0]
    ask = ["generate", str(tmp_path / "run"), t[:a], "--temperature", "0"]
    assert main([*ask, "--suffix", t[b:], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == found[0].text and row["filled"] == str(found[0])
