"""Summaries: how texts are read and cut, which sentences are nearest, what is chosen and copied."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import inkstone as ink
from inkstone import pipeline, recipe
from inkstone.errors import DataError, UsageError
from inkstone.evaluation import scores
from inkstone.models import bag_of_words, pointer_generator
from inkstone.recipe import Recipe
from inkstone.tasks import extractive_summarization as extractive
from inkstone.tasks import phrase_extraction as phrases
from inkstone.tasks import summarization
from inkstone.tasks._codec import Codec
from inkstone.tasks._summaries import Example
from inkstone.text import rouge
from inkstone.text.config import TextConfig
from inkstone.text.sentences import split
from inkstone.text.table import Record, read_table
from inkstone.tokenizers.tokenizer import Tokenizer

TASKS = [room.Task(room.Config()) for room in (summarization, extractive, phrases)]
every = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.NAME)


def record(**values: Any) -> Record:
    return Record(values, tuple(values), "mails.jsonl", 7)


# --- reading -------------------------------------------------------------------------------------


@given(st.text("ab e.g.!?。！”\n  ()", max_size=60))
def test_sentences_together_are_the_text(text: str) -> None:
    assert "".join(split(text)).strip() == text.strip()
    assert all(sentence.strip() for sentence in split(text)) or not text.strip()


def test_sentences_end_where_they_should() -> None:
    english = (
        'He said "no." it cost 3.14 or 2. then, e.g. by 9 p.m. (Li et al. 2019), so!  Why?\nEnd'
    )
    assert [s.strip() for s in split(english)] == [
        'He said "no."', "it cost 3.14 or 2.", "then, e.g. by 9 p.m. (Li et al. 2019), so!",
        "Why?", "End",
    ]  # fmt: skip
    assert split("今天好。“真的？”是！！  对") == ("今天好。", "“真的？”", "是！！  ", "对")
    assert split("") == ("",)


@every
def test_a_text_may_be_a_list_of_sentences_and_have_several_summaries(task: Any) -> None:
    found = task.read(record(text=["One. Two", "今天。", "", "Three."], summary=["a", " ", "b"]))
    assert found == Example(("One. Two ", "今天。", "Three. "), ("a", "b"))
    assert task.read(record(text="One. Two.", summary="a")) == Example(("One. ", "Two."), ("a",))
    assert task.read(record(text="One."), labelled=False) == Example(("One.",))


@every
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a"}, "has the fields 'text'; .* needs 'text' and 'summary'"),
        ({"text": " ", "summary": "b"}, "line 7: an empty text"),
        ({"text": [], "summary": "b"}, "an empty text"),
        ({"text": "a", "summary": ""}, "an empty summary"),
        ({"text": "a", "summary": ["", " "]}, "an empty summary"),
        ({"text": ["a", 3], "summary": "b"}, "the list in field 'text' holds .*number"),
        ({"text": "a", "summary": [None]}, "the list in field 'summary' holds"),
        ({"text": {"a": 1}, "summary": "b"}, "field 'text' holds"),
    ],
)
def test_what_is_no_example_is_told(task: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.read(record(**values))


@every
def test_the_baseline_is_the_beginning(task: Any) -> None:
    examples = [
        Example(("A b. ", "C. ", "D. ", "E."), ("a b c",)),
        Example(("今。", "天。"), ("今",)),
    ]
    assert task.simplest(examples) == ("the first 3 sentences", [("A b. C. D.",), ("今。天。",)])
    one = type(task)(type(task.config)(lead_sentences=1))
    name, found = one.simplest(examples)
    assert (name, found[0]) == ("the first sentence", ("A b.",))
    row = scores.score(one, found, [one.given(x) for x in examples], resamples=20)[0]
    assert row.name == "rougeL" and row.scale == 100.0 and row.low <= row.value <= row.high
    assert row.value == pytest.approx((2 * 2 / 5 + 1) / 2)


# --- choosing ------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), min_size=1, max_size=5),
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6),
)
def test_one_nearest_sentence_is_the_best_one(text: list[list[str]], summary: list[str]) -> None:
    example = Example(tuple(f"{' '.join(s)}. " for s in text), (" ".join(summary),))

    def total(places: tuple[int, ...]) -> float:
        said = extractive.joined(example, places)
        return sum(rouge.best(kind, said, example.summaries) for kind in rouge.KINDS)

    (best,) = extractive.closest(example, 1)
    assert total((best,)) == pytest.approx(max(total((i,)) for i in range(len(text))))
    more = tuple(sorted(extractive.closest(example, 3)))
    assert best in more and len(more) <= 3 and total(more) >= total((best,)) - 1e-12


def test_the_likeliest_are_taken_in_order_and_nothing_twice() -> None:
    example = Example(("We show a new way. ", "Nothing. ", "Here we show a new one. ", "It works."))
    p = [0.9, 0.1, 0.8, 0.7]
    chosen = extractive.Task(extractive.Config(sentences=2)).choose(example, p)
    assert chosen.places == (0, 3) and chosen.text == "We show a new way. It works."
    assert chosen.score == pytest.approx(0.8)
    plain = extractive.Task(extractive.Config(sentences=2, block_repeats=False)).choose(example, p)
    assert plain.places == (0, 2)
    everything = extractive.Task(extractive.Config(sentences=99)).choose(example, p)
    assert everything.places == (0, 1, 3)


def test_a_row_holds_whole_sentences_each_with_its_own_start(
    tokenizers: dict[str, Tokenizer],
) -> None:
    blank = extractive.Task(extractive.Config(sentences=1))
    sentences = tuple(f"the old walker walked {'slowly ' * n}over hills. " for n in range(1, 7))
    example = Example(sentences, ("walked slowly slowly slowly over hills",))
    task = blank.learn([example])
    codec = Codec(tokenizers["bert"], 40)
    rows = task.encode([example], codec)[0]
    assert len(rows) > 1 and all(len(row["ids"]) <= 40 for row in rows)
    labels = [label for row in rows for label in row["labels"]]
    assert [task.labels[i] for i in labels] == list(task.answers(example))
    assert labels.count(task.ids[extractive.CHOSEN]) == 1
    batch = task.collate(rows, codec.pad_id)
    assert batch.n_targets == len(sentences) == int((batch.input_ids == codec.start_id).sum())

    class Known:
        """Says of each token's label 1 what its id is."""

        def __call__(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.stack((torch.zeros_like(input_ids), input_ids), -1) / 100

    found = [p for part in task.outputs(Known(), batch, rows) for p in part]
    pieces = codec.tokenizer.encode_batch([s.strip() for s in sentences])
    for p, piece in zip(found, pieces, strict=True):
        assert p == pytest.approx(1 / (1 + np.exp(-np.mean(codec.one(piece)) / 100)))


@given(
    st.lists(st.text("ab，氧-. ", min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 5),
    st.floats(0.5, 9),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_the_phrase_has_the_highest_score_of_all(
    sentences: list[str], most: int, length: float, reach: int, random: Any
) -> None:
    task = phrases.Task(phrases.Config(words=most, length=length, reach=reach))
    example = Example(tuple(sentences))
    words = task._words(example)
    assert sum(map(len, words)) <= reach
    p = np.array([random.random() for some in words for _ in some])
    found = task.choose(example, p)
    values = {}
    begin = 0
    for number, some in enumerate(words):
        for first, last in itertools.combinations_with_replacement(range(len(some)), 2):
            said = [rouge.units(m.group()) for m in some[first : last + 1]]
            size = sum(map(len, said))
            if said[0] and said[-1] and (size <= most or first == last):
                first_p = {w: p[begin + i] for i in range(last, first - 1, -1)
                           for w in rouge.units(some[i].group())}  # fmt: skip
                text = sentences[number][some[first].start() : some[last].end()]
                values[number, text] = max(
                    values.get((number, text), 0), 2 * sum(first_p.values()) / (size + length)
                )
        begin += len(some)
    if not values:
        assert found.text == example.text.strip()
        return
    assert values[found.places[0], found.text] == pytest.approx(max(values.values()))


def test_words_of_a_summary_are_found_with_where_and_how_often() -> None:
    example = Example(("Meet at noon? ", "Bring the noon-cake. "), ("Noon cake", "else"))
    task = phrases.Task(phrases.Config(reach=6)).learn([example])
    assert list(task.answers(example)) == ["other", "other", "summary", "other", "other", "other"]
    assert task.config.length == 2.0
    one, two = task._sentences(example)
    assert (one.tokens, one.marks) == (("Meet", "at", "noon", "?"), ("0.1", "1.1", "2.1", "2.1"))
    assert (two.tokens, two.tags) == (("Bring", "the"), ("other", "other"))


# --- whole runs ----------------------------------------------------------------------------------


def write(folder: Path, count: int = 150) -> str:
    """Texts in which the sentence that begins with "we" is the summary, wherever it stands."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        text = [f"item {i % 7} is old.", f"nobody wants item {i % 5}.", f"it rains {i % 3}."]
        text.append(f"we mend item {i % 11}.")
        rows.append({"text": list(random.permutation(text)), "summary": [text[3][:-1]]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("family", ["bag_of_words", "bert", "bilstm"])
def test_the_sentence_that_matters_is_found(family: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {"path": (write(tmp_path),)},
        "task": {"name": "extractive_summarization", "sentences": 1, "lead_sentences": 1},
        "model": {"family": family},
    }
    if family != "bag_of_words":
        settings["tokenizer"] = {"vocab_size": 200}
        settings["model"] |= {"d_model": 64, "n_layers": 1}
        settings["training"] = {"max_steps": 60, "lr": 3e-3, "precision": "fp32"}
    result = pipeline.train(
        Recipe().with_values(settings), tmp_path / "run", cache=tmp_path / "cache"
    )
    assert result["baseline"]["name"] == "the first sentence" and result["baseline"]["rougeL"] < 0.8
    assert result["scores"][0]["name"] == "rougeL" and result["scores"][0]["value"] == 1.0
    model = ink.load(tmp_path / "run")
    text = "item 3 is old. it rains 2. we mend item 4. nobody wants item 1."
    found = model.summarize(text)
    assert found.text == "we mend item 4." == str(found) and found.places == (2,)
    assert model.summarize([text, "only this."])[1].text == "only this."
    assert 0 < found.score <= 1 and json.loads(json.dumps(found.to_dict()))["places"] == [2]
    with pytest.raises(UsageError, match="trained to do extractive summarization") as caught:
        model.translate("x")
    assert "summarize" in str(caught.value.fix)


@pytest.mark.parametrize("family", ["crf", "bert"])
def test_the_phrase_that_matters_is_found(family: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for i in range(200):
        names = random.choice(["cake", "tea", "rain", "milk", "bread"], 3)
        text = [f"nobody wants {names[0]}.", f"about {names[1]} {i % 7} we talk now.", "bye."]
        rows.append({"text": " ".join(random.permutation(text)), "summary": f"{names[1]} {i % 7}"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings: dict[str, Any] = {
        "data": {"path": (str(tmp_path / "rows.jsonl"),)},
        "task": {"name": "phrase_extraction", "lead_sentences": 1},
        "model": {"family": family},
    }
    if family == "bert":
        settings["tokenizer"] = {"vocab_size": 200}
        settings["model"] |= {"d_model": 64, "n_layers": 1}
        settings["training"] = {"max_steps": 120, "lr": 3e-3, "precision": "fp32"}
    result = pipeline.train(
        Recipe().with_values(settings), tmp_path / "run", cache=tmp_path / "cache"
    )
    assert result["scores"][0]["value"] > 0.95 > 0.6 > result["baseline"]["rougeL"]
    model = ink.load(tmp_path / "run")
    found = model.summarize("nobody wants tea. about milk 4 we talk now. bye.")
    assert (found.text, found.places) == ("milk 4", (1,)) and 0 < found.score <= 1
    assert [x.text for x in model.summarize([" ", "…"])] == ["", "…"]


def test_abstracts_are_summed_up_better_than_by_their_first_sentence(shared_data: Path) -> None:
    config = extractive.Config(
        text_field="source", summary_field="targets", sentences=1, lead_sentences=1
    )
    blank = extractive.Task(config)
    parts = []
    for name, count in (("train.jsonl.gz", 500), ("dev.jsonl", 200)):
        table = read_table(shared_data / "scitldr-a" / name, blank.wanted, config=TextConfig())
        parts.append([blank.read(record) for record in itertools.islice(table, count)])
    train, held_out = parts
    task = blank.learn(train)
    settings = recipe.load("scitldr").model.fields
    model = bag_of_words.Model(bag_of_words.Config(**settings))
    task.fit(model, train)
    found = [task.found(x) for x in task.apply(model, held_out)]
    given = [task.given(x) for x in held_out]
    _, lead = task.simplest(held_out)
    reached, beaten = (scores.values(task, answers, given) for answers in (found, lead))
    assert all(reached[name] > beaten[name] + 0.04 for name in task.metrics)


@pytest.mark.parametrize("family", ["transformer", "pointer_generator"])
def test_summaries_are_written(family: str, tmp_path: Path) -> None:
    settings = {
        "data": {"path": (write(tmp_path),)},
        "task": {"name": "summarization", "n_beams": 2},
        "tokenizer": {"vocab_size": 300},
        "model": {"family": family, "d_model": 32, "n_layers": 1, "n_heads": 2},
        "training": {"max_steps": 5, "precision": "fp32"},
    }
    result = pipeline.train(
        Recipe().with_values(settings), tmp_path / "run", cache=tmp_path / "cache"
    )
    assert [row["name"] for row in result["scores"]] == ["rougeL", "rouge1", "rouge2"]
    assert result["baseline"]["name"] == "the first 3 sentences"
    found = ink.load(tmp_path / "run").summarize(["it rains 2. we mend item 4.", "x"])
    assert len(found) == 2 and all(isinstance(x.text, str) and x.score <= 0 for x in found)


# --- copying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1 << 27, 3 * 4 * 40])
def test_a_mixture_of_writing_and_copying_is_one_distribution(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pointer_generator.CHUNK_BYTES, "cpu", chunk_bytes)
    torch.manual_seed(0)
    model = pointer_generator.Model(
        pointer_generator.Config(vocab_size=40, max_seq_len=16, d_model=16, n_layers=1, n_heads=2)
    )
    model.eval()
    source, ids = torch.randint(3, 40, (2, 7)), torch.randint(3, 40, (2, 5))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    memory = model.encode(source, source_mask=mask)
    hidden = model.hidden(ids, memory)
    log_p = model.scores(hidden, memory)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 5))
    gate = model.gate(hidden).sigmoid()
    pointed = torch.softmax(
        (model.query(hidden) @ memory.keys.mT / 4).masked_fill(~mask[:, None], -torch.inf), -1
    )
    copied = pointed @ F.one_hot(source, 40).float()
    p = gate * model.logits(hidden).softmax(-1) + (1 - gate) * copied
    torch.testing.assert_close(log_p.exp(), p)
    targets = ids.masked_fill(torch.rand(2, 5) < 0.3, -100)
    for smoothing in (0.0, 0.1):
        total, count = model.loss(hidden, memory, targets, label_smoothing=smoothing)
        wanted = F.cross_entropy(
            p.log().flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(total, wanted)
        for mine, right in zip(
            torch.autograd.grad(total, [model.embed.weight, model.gate.weight], retain_graph=True),
            torch.autograd.grad(wanted, [model.embed.weight, model.gate.weight], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
        assert count == int((targets >= 0).sum())


def test_words_that_were_never_written_are_copied() -> None:
    """What is copied at test time has never been a target in training."""
    torch.manual_seed(0)
    config = pointer_generator.Config(
        vocab_size=60, max_seq_len=8, d_model=32, n_layers=1, n_heads=2, dropout=0.0, pre_norm=True
    )
    model = pointer_generator.Model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = torch.zeros(64, 1, dtype=torch.long)
    for _ in range(400):
        source = torch.randint(3, 40, (64, 6))
        source[:, 3] = 1  # behind this mark stands the word to be written
        memory = model.encode(source)
        total, count = model.loss(model.hidden(start, memory), memory, source[:, 4:5])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    source[:, 4] = torch.randint(40, 60, (64,))
    with torch.no_grad():
        found = model.eval()(source, start)[:, 0].argmax(-1)
    assert (found == source[:, 4]).float().mean() > 0.5
