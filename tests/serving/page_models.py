"""Small models of every kind that the page has a tab for; what is trained knows a few lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from inkstone import api, pipeline
from inkstone.models import gpt2
from inkstone.recipe import Recipe
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train
from inkstone.training.log import JsonLog, StepInfo

LINES = [
    "The river runs to the sea, and the sea keeps every name it is told.\n",
    "A stone, a little water, and the ink is dark enough to write by.\n",
    "Grind slowly: the night is long, and the page is patient.\n",
    "What the brush forgets, the paper remembers for a thousand years.\n",
    "Morning came over the hills, and the letters were dry.\n",
    "She read them twice, folded the page, and walked to the river.\n",
]
HOSTILE = "<img src=x onerror=alert(1)>"
TEXT = "Ada Lovelace met Charles Babbage in London. They spoke of engines all night."


def poet(steps: int) -> api.LanguageModel:
    """A causal model that knows `LINES`."""
    torch.manual_seed(0)
    tokenizer = train(LINES * 20, TokenizerConfig(kind="bpe", vocab_size=400))
    shape = {"vocab_size": tokenizer.vocab_size, "max_seq_len": 256, "d_model": 64}
    model = gpt2.Model(gpt2.Config(**shape, n_layers=2, n_heads=4, dropout=0.0))
    ids = torch.tensor(tokenizer.encode("".join(LINES) * 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        starts = torch.randint(len(ids) - 65, (8,))
        batch = torch.stack([ids[i : i + 65] for i in starts])
        scores = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        optimizer.step()
    return api.LanguageModel(Path("poet"), model.eval(), tokenizer, {"inkstone": "x"})


def trained(
    folder: Path,
    task: dict[str, Any],
    model: dict[str, Any],
    rows: list[dict[str, Any]],
    **more: Any,
) -> api.LanguageModel:
    """A model of a task, after a few steps where it takes steps."""
    folder.mkdir()
    table = folder / "train.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given: dict[str, Any] = {"task": task, "model": model, **more}
    recipe = Recipe.model_validate(given).with_data([str(table)], None)
    pipeline.train(recipe, folder / "run", cache=folder / "cache")
    found: api.LanguageModel = api.load(folder / "run", device="cpu")
    return found


def of_tasks(folder: Path) -> dict[str, api.LanguageModel]:
    """One model for each task that has a tab."""
    neural = {"tokenizer": {"vocab_size": 300}, "training": {"max_steps": 2}}
    small = {"d_model": 32, "n_heads": 2, "d_ff": 64}
    good, bad = ["warm", "bright", "patient"], ["dull", "cold", "empty"]
    reviews = [
        {"text": f"the {noun} was {word} and {other}", "label": label}
        for noun in ("film", "book", "play", "letter")
        for label, words in (("praise", good), ("blame", bad), (HOSTILE, ["odd", "script", "tag"]))
        for word in words
        for other in words
    ]
    names = [
        {"tokens": [first, last, verb, "in", town, "."],
         "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]}
        for first, last in (("Ada", "Lovelace"), ("Charles", "Babbage"), ("Grace", "Hopper"))
        for verb in ("met", "spoke", "wrote")
        for town in ("London", "Paris", "Oslo")
    ]  # fmt: skip
    questions = [
        {"question": "Who wrote?", "context": f"{name} wrote in {town}.", "answers": name}
        for name in ("Ada", "Grace", "Charles") for town in ("London", "Oslo", "Paris", "Rome")
    ]  # fmt: skip
    captions = [{"en": f"{n} dogs run.", "de": f"{n} Hunde laufen."} for n in range(40)]
    mails = [
        {"text": [f"Dear {who}.", f"The meeting is at {n}.", "Bring cake."],
         "summary": f"The meeting is at {n}."}
        for n in range(12) for who in ("all", "Ada")
    ]  # fmt: skip
    bag = {"family": "bag_of_words"}
    reader = {"family": "bert", "n_layers": 1, **small}
    writer = {"family": "transformer", "n_layers": 1, "n_decoder_layers": 2, **small}
    pair = {"name": "translation", "source_field": "en", "target_field": "de"}
    return {
        "reviews": trained(folder / "a", {"name": "classification"}, bag, reviews),
        "names": trained(
            folder / "b", {"name": "tagging"}, {"family": "crf", "min_count": 1}, names
        ),
        "answers": trained(
            folder / "c", {"name": "question_answering"}, reader, questions, **neural
        ),
        "german": trained(folder / "d", pair, writer, captions, **neural),
        "short": trained(folder / "e", {"name": "extractive_summarization"}, bag, mails),
    }


class FakeRun:
    """The log of a run that is in training, written as training writes it."""

    def __init__(self, folder: Path, floor: float, max_steps: int = 400) -> None:
        folder.mkdir(parents=True)
        self.log = JsonLog(folder / "log.jsonl", 0, print)
        self.floor, self.max_steps, self.step = floor, max_steps, 0

    def go_on(self, steps: int) -> None:
        """So many more."""
        for _ in range(steps):
            self.step += 1
            at = self.step
            noise = 0.12 * math.sin(at * 1.7) * math.exp(-at / 200)
            loss = self.floor + 4 * math.exp(-at / 60) + noise
            left = (self.max_steps - at) * 0.5
            info = StepInfo(at, self.max_steps, loss, 1e-3, 1.0, at * 4096, 8192.0, 0.3, at / 100,
                            at * 0.5, left)  # fmt: skip
            self.log.on_step(info)
            if at % 20 == 0:
                self.log.on_eval(at, {"nats_per_token": loss + 0.1 + at / 4000})
