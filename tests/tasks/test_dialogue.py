"""Dialogue: shapes of conversations, what is learned of them, and that no text becomes a mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone.errors import DataError, InkstoneError, TokenizerError
from inkstone.evaluation import scores
from inkstone.evaluation.examples import baseline
from inkstone.models import lamda, llama
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import dialogue
from inkstone.tasks._codec import Codec
from inkstone.tasks._turns import SPECIALS, Frame, turns_of
from inkstone.tasks.dialogue import Config, Example, Task
from inkstone.text.table import Record
from inkstone.tokenizers import train as training
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer

TALK = Example(("user", "assistant", "user", "assistant"), ("Hi there", "Hello", "Red?", "Blue."))
RATED = Example(("user", "assistant"), ("Red?", "Blue."), "sensible", False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(kind="byte")
    return training.train(["any"], config, specials=(*training.SPECIALS, *SPECIALS))


@pytest.fixture(scope="module")
def codec(tokenizer: Tokenizer) -> Codec:
    return Codec(tokenizer, 256)


def record(**values: Any) -> Record:
    return Record(values, tuple(values), "talk.jsonl", 7)


def messages(example: Example) -> list[dict[str, str]]:
    return [{"role": r, "content": t} for r, t in zip(example.roles, example.texts, strict=True)]


# --- what an example looks like ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "roles"),
    [
        ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
         ("system", "user")),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
         ("user", "assistant")),
        ({"turns": [{"speaker": "USER", "utterance": "a"},
                    {"speaker": "SYSTEM", "utterance": "b"}]}, ("user", "assistant")),
        ({"utterances": ["a", "b", "c"], "topic": 1}, ("user", "assistant", "user")),
        ({"messages": [{"role": "source", "content": "a"}, {"role": "user", "content": "b"}]},
         ("source", "user")),
        ({"context": ["a", "b"], "response": "c", "attribute": "safe", "rating": 1},
         ("assistant", "user", "assistant")),
        ({"context": "a", "response": "c", "attribute": "safe", "rating": "no"},
         ("user", "assistant")),
    ],
)  # fmt: skip
def test_shapes_of_conversations(values: Any, roles: tuple[str, ...]) -> None:
    assert Task(Config()).read(record(**values)).roles == roles


def test_what_is_no_conversation_says_so() -> None:
    task = Task(Config())
    for values, message in [
        ({"text": "a"}, "talk.jsonl, line 7: it has the fields 'text', and no conversation"),
        ({"messages": "a", "x": 1}, None),
        ({"messages": 3}, "not a conversation"),
        ({"messages": [3]}, "turn 1 of 'messages' is a number"),
        ({"messages": [{"role": "user"}]}, "no speaker and text"),
        ({"messages": [{"role": "owner", "content": "a"}]}, "unknown speaker 'owner'"),
        ({"messages": [{"role": "user", "content": None}]}, "content is null"),
        ({"messages": [" ", ""]}, "nothing is said"),
        ({"context": "a", "response": "b", "attribute": "safe"}, "not a rating"),
        ({"context": "a", "response": "b", "attribute": "safe", "rating": 0.5}, "'0.5', not a"),
        ({"context": "a", "response": "b", "rating": 1}, "needs"),
        ({"context": "a", "response": " ", "attribute": "safe", "rating": 1}, "needs a response"),
    ]:
        if message is None:
            assert task.read(record(**values)).texts == ("a",)
            continue
        with pytest.raises(DataError, match=message):
            task.read(record(**values))
    with pytest.raises(DataError, match="nobody whose words are learned"):
        Task(Config(learn="answers")).read(record(utterances=["a"]))


# --- what is learned -----------------------------------------------------------------------------


def test_rows_are_what_the_chat_template_writes(tokenizer: Tokenizer, codec: Codec) -> None:
    row = Task(Config()).encode([TALK], codec)[0][0]
    whole = tokenizer.chat_ids(messages(TALK), add_generation_prompt=False)
    assert row["ids"] == whole[:-1]
    marks = {tokenizer.backend.token_to_id(f"<|{role}|>") for role in ("user", "assistant")}
    expected = [IGNORE_INDEX if i in marks else i for i in whole[1:]]
    assert row["targets"] == expected


def test_only_answers_are_learned_where_that_is_asked_for(
    tokenizer: Tokenizer, codec: Codec
) -> None:
    talk = Example(("system", "user", "source", "assistant"), ("Be kind", "Hi", "Rome", "Hello"))
    row = Task(Config(learn="answers")).encode([talk], codec)[0][0]
    learned = [i for i in row["targets"] if i != IGNORE_INDEX]
    assert learned == [*tokenizer.encode("Hello"), Frame(tokenizer).end]
    everything = Task(Config()).encode([talk], codec)[0][0]
    learned = [i for i in everything["targets"] if i != IGNORE_INDEX]
    assert tokenizer.decode(learned) == "HiHello"  # neither instructions nor sources


def test_of_a_rated_response_the_rating_alone(tokenizer: Tokenizer, codec: Codec) -> None:
    frame = Frame(tokenizer)
    for good in (True, False):
        example = Example(RATED.roles, RATED.texts, "sensible", good)
        (row,) = Task(Config()).encode([example], codec)[0]
        assert row["targets"] == [IGNORE_INDEX] * (len(row["ids"]) - 1) + [
            frame.yes if good else frame.no
        ]
        talk = tokenizer.chat_ids(messages(example), add_generation_prompt=False)
        assert row["ids"] == [*talk, frame.rate, *tokenizer.encode("sensible")]
    long = Example(("user", "assistant"), ("x" * 400, "Blue."), "sensible", True)
    (row,) = Task(Config()).encode([long], codec)[0]
    assert len(row["ids"]) == 255 and row["ids"][-len(talk) + 8 :][-1] == tokenizer.encode("e")[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=9), st.integers(24, 80))
def test_long_talks_are_cut_between_turns_and_every_turn_learned_once(
    texts: list[str], most: int
) -> None:
    tokenizer = training.train(
        ["any"], TokenizerConfig(kind="byte"), specials=(*training.SPECIALS, *SPECIALS)
    )
    frame = Frame(tokenizer)
    roles = tuple(("user", "assistant")[i % 2] for i in range(len(texts)))
    rows = Task(Config()).encode([Example(roles, tuple(texts))], Codec(tokenizer, most))[0]
    learned: list[int] = []
    for row in rows:
        assert len(row["ids"]) <= most and row["ids"][0] in frame.roles.values()
        learned += [i for i in row["targets"] if i != IGNORE_INDEX]
    expected = [i for t in texts for i in [*tokenizer.encode(t)[: most - 2], frame.end]]
    assert learned == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<|user|>", "<|end|>", "<|rate|>", "<|yes|>", "<|source|>",
                                 "<|endoftext|>", "<|assistant|>", "a", " ", "<|"]),
                min_size=1, max_size=8).map("".join))  # fmt: skip
def test_text_never_becomes_a_control_token(text: str) -> None:
    for kind in ("byte", "bpe"):
        tokenizer = training.train(
            ["any <|yes|>"], TokenizerConfig(kind=kind, vocab_size=300),  # type: ignore[arg-type]
            specials=(*training.SPECIALS, *SPECIALS),
        )  # fmt: skip
        frame, codec = Frame(tokenizer), Codec(tokenizer, 512)
        task = Task(Config())
        rated = task.encode([Example(("user", "assistant"), (text, text), text, True)], codec)
        ids = [i for i in rated[0][0]["ids"] if i in tokenizer.special_ids]
        user, assistant = frame.roles["user"], frame.roles["assistant"]
        assert ids == [user, frame.end, assistant, frame.end, frame.rate]
        talk = task.encode([Example(("user", "source"), (text, text))], codec)[0][0]
        ids = [i for i in talk["ids"] if i in tokenizer.special_ids]
        assert ids == [user, frame.end, frame.roles["source"]]


def test_other_tokenizers_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no control token <\|source\|>"):
        Frame(training.train(["any"], TokenizerConfig(kind="byte")))
    other = Tokenizer(tokenizer.backend, tokenizer.special, chat_template="{{ messages }}")
    with pytest.raises(TokenizerError, match="a chat template of its own"):
        Frame(other)


# --- loss, prediction, scores --------------------------------------------------------------------


def build(tokenizer: Tokenizer, family: Any = lamda) -> Any:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 256}
    return family.Model(family.Config(vocab_size=tokenizer.vocab_size, **shape)).eval()


@pytest.mark.parametrize("family", [lamda, llama])
def test_the_loss_is_that_of_words_and_so_many_times_that_of_ratings(
    family: Any, tokenizer: Tokenizer, codec: Codec
) -> None:
    task = Task(Config(rating_weight=7.0))
    task.connect(tokenizer)
    model = build(tokenizer, family)
    rows = [row for own in task.encode([TALK, RATED], codec) for row in own]
    batch = task.collate(rows, codec.pad_id)
    total, count = task.loss(model, batch)
    expected = 0.0
    for row, weight in zip(rows, (1.0, 7.0), strict=True):
        logits = model(torch.tensor([row["ids"]]))[0]
        each = F.cross_entropy(
            logits, torch.tensor(row["targets"]), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        expected += weight * float(each.detach())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    assert count == batch.n_targets == sum(i != IGNORE_INDEX for r in rows for i in r["targets"])


def test_a_rating_changes_no_weight_through_the_words(tokenizer: Tokenizer, codec: Codec) -> None:
    """The gradient of a rated row is that of its last position alone."""
    task = Task(Config(rating_weight=1.0))
    task.connect(tokenizer)
    model = build(tokenizer)
    (row,) = task.encode([RATED], codec)[0]
    task.loss(model, task.collate([row], codec.pad_id))[0].backward()
    ours = model.embed.weight.grad.clone()
    model.zero_grad()
    logits = model(torch.tensor([row["ids"]]))[0, -1]
    F.cross_entropy(logits[None], torch.tensor([row["targets"][-1]])).backward()
    assert torch.allclose(ours, model.embed.weight.grad, atol=1e-5)


@torch.no_grad()
def test_predictions_do_not_depend_on_the_batch(tokenizer: Tokenizer, codec: Codec) -> None:
    task = Task(Config(), ("sensible",))
    task.connect(tokenizer)
    model = build(tokenizer)
    rows = [row for own in task.encode([TALK, RATED], codec) for row in own]
    together = task.outputs(model, task.collate(rows, codec.pad_id), rows)
    for row, both in zip(rows, together, strict=True):
        (alone,) = task.outputs(model, task.collate([row], codec.pad_id), [row])
        assert alone == pytest.approx(both, rel=1e-4)
    frame = Frame(tokenizer)
    last = model(torch.tensor([rows[1]["ids"]]))[0, -1]
    pair = last[[frame.yes, frame.no]].softmax(0)
    assert task.predict(RATED, together[1:]).probability == pytest.approx(float(pair[0]), rel=1e-4)


def test_scores_of_words_and_of_ratings() -> None:
    task = Task(Config(), ("sensible",))
    found = [(4.0, 2), (2.0, 4), True, False, True]
    wanted = [None, None, True, True, True]
    rows = {s.name: s for s in scores.score(task, found, wanted, resamples=50)}
    assert rows["perplexity"].value == pytest.approx(2.718281828) and rows["perplexity"].scale == 1
    assert rows["rating_accuracy"].value == pytest.approx(2 / 3)
    assert [s.name for s in scores.score(task, [True], [True], resamples=5)] == ["rating_accuracy"]
    counts = {"sensible: yes": 3, "sensible: no": 5}
    learned = Task(Config(), counts=counts)
    assert learned.attributes == ("sensible",)
    assert baseline(learned, [RATED, RATED, TALK]) == {
        "name": "the usual rating", "rating_accuracy": 1.0,
    }  # fmt: skip


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_learns_talks_and_ratings(tmp_path: Path) -> None:
    colors = ["red", "blue", "green", "grey"]
    talks = [{"utterances": [f"Which {n}?", colors[n % 4], "Sure?", "Yes."]} for n in range(40)]
    rated = [
        {"context": [f"Which {n}?"], "response": c, "attribute": "sensible", "rating": c == "red"}
        for n in range(30)
        for c in colors
    ]
    for name, rows in (("talks", talks), ("rated", rated)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    small = {
        "model.d_model": 32, "model.n_layers": 1, "model.n_heads": 2, "training.max_steps": 120,
        "training.examples_per_step": 16, "training.lr": 0.01, "tokenizer.vocab_size": 400,
        "training.precision": "fp32", "text.valid_fraction": 0.2,
    }  # fmt: skip
    model = ink.train(
        "lamda-dialogue", data=[tmp_path / "talks.jsonl", tmp_path / "rated.jsonl"],
        run=tmp_path / "run", cache=tmp_path / "cache", settings=small,
    )  # fmt: skip
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    values = {row["name"]: row["value"] for row in result["scores"]}
    assert values["rating_accuracy"] > 0.9 > result["baseline"]["rating_accuracy"]
    assert values["perplexity"] < 20
    assert model.info["labels"] == ["sensible"] and model.info["dialogue_trained"] is True
    assert model.conversation().warning is None
    talk = [{"role": "user", "content": "Which 3?"}]
    rated_by = model.conversation(candidates=2)._rate
    found = [row["sensible"] for row in rated_by(model.tokenizer.chat_ids(talk), colors)]
    assert found[0] > 0.5 > max(found[1:])
    best = model.chat(talk, candidates=12, temperature=1.0, seed=1, max_tokens=8)
    assert best.scores["sensible"] == max(c.scores["sensible"] for c in best.candidates)
    assert model.chat(talk, candidates=12, temperature=1.0, seed=1, max_tokens=8) == best
    again = model.evaluate(tmp_path / "rated.jsonl")
    assert [row["name"] for row in again["scores"]] == ["rating_accuracy"]
    held, seen = (_contexts(tmp_path, part) for part in ("valid", "train"))
    assert held and seen and not held & seen  # all responses to one context on one side
    tuned = ink.train(
        "lamda-dialogue", data=tmp_path / "rated.jsonl", run=tmp_path / "tuned",
        cache=tmp_path / "cache",
        settings={"model.pretrained": str(tmp_path / "run"), "training.max_steps": 2,
                  "training.precision": "fp32", "task.learn": "answers"},
    )  # fmt: skip
    assert tuned.info["task_settings"]["learn"] == "answers"


def _contexts(folder: Path, part: str) -> set[str]:
    """What was said before the rated responses of a part."""
    (file,) = folder.glob(f"cache/examples-*/{part}.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["texts"][0] for row in rows if row["attribute"]}


def test_a_family_that_does_not_continue_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"utterances": ["a", "b"]}\n' * 4, encoding="utf-8")
    with pytest.raises(InkstoneError, match="does not fit the task dialogue"):
        ink.train(
            "lamda-dialogue", data=file, run=tmp_path / "run", cache=tmp_path / "cache",
            settings={"model.family": "bert"},
        )  # fmt: skip


def test_turns_without_words_are_left_out() -> None:
    assert turns_of(["a", "", " b "], "here", "turns") == (("user", "user"), ("a", "b"))
    assert dialogue.Task(Config()).example("a").roles == ("user",)
