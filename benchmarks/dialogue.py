"""A LaMDA in minutes: talks, then ratings; good replies told from bad ones by its own scores.

    python -m benchmarks.dialogue talk     # pre-training: DailyDialog and Schema-Guided Dialogue
    python -m benchmarks.dialogue rate     # fine-tuning: answers, and ratings of replies
    python -m benchmarks.dialogue score    # ranking of held-out replies

DailyDialog++ gives each context five good replies, five adversarial ones (which share its words and
make no sense there) and five random ones. A fifth of the contexts is held out. "pairs" is the share
of (good, bad) pairs in which the good reply ranks higher (chance: 50 %), "first" the share of good
replies that rank above all five bad ones (chance: 1/6); intervals are a bootstrap over contexts.
Ranked by P(sensible), beside log P(reply | context), per token and in sum, of the same model and of
the one that was only pre-trained. The last row looks things up: the sentence that answers a
question, among all sentences of SQuAD's development questions, by BM25.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

MINUTES = 3.0
LONG = 25  # characters of a turn that two conversations do not share by chance
KINDS = {"adversarial": "adversarial_negative_responses", "random": "random_negative_responses"}


def parts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Contexts to learn from, and every fifth that is held out."""
    rows = common.rows("dailydialog-pp-dev/dev.jsonl.gz")
    return [r for i, r in enumerate(rows) if i % 5], rows[::5]


def rated(folder: Path) -> Path:
    """The table of ratings: good replies are sensible, the others are not."""
    path = folder / "rated.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for row in parts()[0]:
            for field in ("positive_responses", *KINDS.values()):
                for reply in row[field]:
                    line = {"context": row["context"], "response": reply, "attribute": "sensible",
                            "rating": int(field == "positive_responses")}  # fmt: skip
                    file.write(json.dumps(line) + "\n")
    return path


def talks(folder: Path) -> Path:
    """DailyDialog without the conversations that a held-out context is taken from."""

    def plain(text: str) -> str:
        return re.sub(r"\W+", "", text.casefold())

    held = {plain(turn) for row in parts()[1] for turn in row["context"]}
    held = {turn for turn in held if len(turn) > LONG}
    path = folder / "dailydialog.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for row in common.rows("dailydialog/train.jsonl"):
            if held.isdisjoint(map(plain, row["utterances"])):
                file.write(json.dumps({"utterances": row["utterances"]}) + "\n")
    return path


def train(folder: Path, stage: str, minutes: float) -> None:
    import inkstone as ink
    from inkstone.cli.progress import observer

    data = [talks(folder)]
    settings: dict[str, Any] = {}
    if stage == "talk":
        data.append(common.SHARED_DATA / "sgd-dialogues" / "train.jsonl.gz")
        settings |= {"tokenizer.vocab_size": 4096, "corpus.seq_len": 256}
    else:
        data.append(rated(folder))
        settings |= {"model.pretrained": str(folder / "talk"), "task.learn": "answers",
                     "corpus.seq_len": 192, "training.epochs": 4, "training.lr": 5e-4}  # fmt: skip
    ink.train(
        "lamda-dialogue", data=data, minutes=minutes, run=folder / stage, cache=folder / "cache",
        settings=settings, observer=observer(quiet=False),
    )  # fmt: skip


Judge = Callable[[list[str], list[str]], list[float]]
"""(context, replies) → what each is ranked by."""


def by_score(model: Any) -> Judge:
    talk = model.conversation(candidates=2)

    def judge(context: list[str], replies: list[str]) -> list[float]:
        ids = model.tokenizer.chat_ids(messages(context))
        return [scores["sensible"] for scores in talk._rate(ids, replies)]

    return judge


def by_likelihood(model: Any, *, each: bool) -> Judge:
    from inkstone.inference.scoring import logprobs
    from inkstone.tasks._turns import Frame

    end = Frame(model.tokenizer).end

    def judge(context: list[str], replies: list[str]) -> list[float]:
        ids = model.tokenizer.chat_ids(messages(context))
        rows = [(0, [*own, end]) for own in model.tokenizer.encode_batch(replies)]
        found = logprobs(model.model, [ids], rows, [len(own) for _, own in rows])
        return [sum(row) / (len(row) if each else 1) for row in found]

    return judge


def messages(context: Sequence[str]) -> list[dict[str, str]]:
    """The last turn is the user's."""
    names = ("user", "assistant")
    last = len(context) - 1
    return [{"role": names[(last - i) % 2], "content": t.strip()} for i, t in enumerate(context)]


def ranking(judge: Judge, kind: str) -> dict[str, str]:
    import numpy as np

    pairs, first = [], []
    for row in parts()[1]:
        good, bad = row["positive_responses"], row[KINDS[kind]]
        values = np.array(judge(row["context"], [*good, *bad]))
        better = values[: len(good), None] > values[None, len(good) :]
        pairs.append(better.mean())
        first.append(better.all(1).mean())
    return {"pairs": _shown(pairs), "first": _shown(first)}


def _shown(values: list[float]) -> str:
    import numpy as np

    random = np.random.default_rng(0)
    means = [np.mean(random.choice(values, len(values))) for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * np.mean(values):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def score(folder: Path) -> None:
    import inkstone as ink

    talk, lamda = ink.load(folder / "talk"), ink.load(folder / "rate")
    judges = {
        "P(sensible)": by_score(lamda),
        "log P per token": by_likelihood(lamda, each=True),
        "log P": by_likelihood(lamda, each=False),
        "log P per token, pre-trained only": by_likelihood(talk, each=True),
    }
    rows = [
        {"ranked by": name, "bad replies": kind, **ranking(judge, kind)}
        for name, judge in judges.items()
        for kind in KINDS
    ]
    common.report(
        "dialogue", rows, contexts=len(parts()[1]), parameters=lamda.n_parameters, **looked_up()
    )
    for text in ("Would you like to go to the cinema tonight ?", "I have a terrible headache ."):
        said = lamda.chat(
            [{"role": "user", "content": text}], candidates=8, seed=0, max_tokens=30, top_k=40,
            temperature=1.0,
        )  # fmt: skip
        print(f"\n{text}")
        for c in said.candidates:
            print(f"  {c.scores['sensible']:.2f}  {c.text}")


def looked_up() -> dict[str, float]:
    """How often BM25 finds the sentence that answers a question: first, or among three."""
    from inkstone.inference.grounding import Library, Passage

    rows = [
        *common.rows("squad-dev-sentences/train.jsonl.gz"),
        *common.rows("squad-dev-sentences/test.jsonl"),
    ]
    texts = list(dict.fromkeys(row["context"] for row in rows))
    library = Library(Passage("squad", i, text) for i, text in enumerate(texts))
    ranks = []
    for row in list(common.rows("squad-dev-sentences/test.jsonl")):
        found = [f.passage.text for f in library.search(row["question"], 3)]
        ranks.append(found.index(row["context"]) if row["context"] in found else 3)
    return {
        "sentences": len(texts), "questions": len(ranks),
        "found first": sum(r == 0 for r in ranks) / len(ranks),
        "found among three": sum(r < 3 for r in ranks) / len(ranks),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("talk", "rate", "score"))
    parser.add_argument("--folder", type=Path, default=common.OUT / "lamda")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "score":
        score(arguments.folder)
    else:
        train(arguments.folder, arguments.stage, arguments.minutes)


if __name__ == "__main__":
    main()
