"""Supervised fine-tuning: shapes of records, the same ids everywhere, what is learned, packing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone.errors import DataError, TokenizerError, UsageError
from inkstone.inference.chat import Conversation
from inkstone.inference.generate import Generator
from inkstone.models import gpt2, llama, lstm
from inkstone.models._base import adopt
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks._codec import Codec
from inkstone.tasks._conversations import messages_of, packed, taught
from inkstone.tasks.instructions import Config, Example, Task
from inkstone.text.table import Record
from inkstone.tokenizers import chat
from inkstone.tokenizers import train as training
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer

TALK = Example(
    ("system", "user", "assistant", "user", "assistant"),
    ("Be kind", "Hi there, 你好!", "Hello  you.\n\n- one", "Red?", "Blue."),
)
CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\\n' + m['content'] + '<|end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m['content'] + ' ' + eos_token }}{% else %}{{ '[INST] ' + m['content']|trim + "
    "' [/INST]' }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if loop.last and m.role == 'assistant' "
    "%}{{ '<think>\\n\\n</think>' }}{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEMPLATES = {
    "ours": chat.TEMPLATE, "chatml": CHATML, "llama2": LLAMA2, "zephyr": ZEPHYR,
    "thinking": THINKING,
}  # fmt: skip
TEXT = "Hello you, hi there! Red? Blue. Be kind: 你好 one two [INST] [/INST] user assistant system"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return training.train([TEXT] * 4, TokenizerConfig(kind="bpe", vocab_size=330))


@pytest.fixture(scope="module")
def codec(bpe: Tokenizer) -> Codec:
    return Codec(bpe, 128)


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer.backend, tokenizer.special, chat_template=template)


def record(**values: Any) -> Record:
    return Record(values, tuple(values), "talk.jsonl", 7)


def learned(row: Any) -> list[int]:
    return [i for i in row["targets"] if i != IGNORE_INDEX]


# --- what an example looks like ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "roles", "texts"),
    [
        ({"messages": [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}]},
         "ua", ("a", "b")),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
          "system": "s"}, "sua", ("s", "a", "b")),
        ({"instruction": "a", "input": "x", "output": "b"}, "ua", ("a\nx", "b")),
        ({"instruction": "a", "input": "", "output": "b", "system": ""}, "ua", ("a", "b")),
        ({"instruction": "a", "output": "b"}, "ua", ("a", "b")),
        ({"prompt": "a", "completion": "b"}, "ua", ("a", "b")),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
          "completion": [{"role": "assistant", "content": "b"}]}, "sua", ("s", "a", "b")),
        ({"messages": [{"role": "user", "content": "a"}]}, "u", ("a",)),
        ({"messages": None, "instruction": "a", "output": "b"}, "ua", ("a", "b")),
    ],
)  # fmt: skip
def test_shapes_are_recognised(values: Any, roles: str, texts: tuple[str, ...]) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    found = Task(Config()).read(record(**values))
    assert (found.roles, found.texts) == (tuple(names[r] for r in roles), texts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a"}, "it has the fields 'text', and no conversation"),
        ({"prompt": "a"}, "no conversation"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unknown speaker 'tool'"),
        ({"messages": [{"role": "source", "content": "a"}]}, "chat templates do not know"),
        ({"instruction": 3, "output": "b"}, "not text"),
        ({"instruction": "", "input": "", "output": ""}, "nothing is said"),
        ({"prompt": "a", "completion": 3}, "neither a text nor an object"),
    ],
)
def test_other_records_say_what_is_wrong(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task(Config()).read(record(**values))


# --- the same ids everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_chat_and_transformers_give_the_same_ids(
    name: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    tokenizer = with_template(bpe, TEMPLATES[name])
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = messages_of(TALK.roles, TALK.texts)
    ((_, seen),) = Task(Config()).seen(TALK, tokenizer, 1000)
    whole = theirs.apply_chat_template(messages, return_dict=False)
    assert seen.ids == tokenizer.chat_ids(messages, add_generation_prompt=False) == whole
    model = llama.Model(llama.Config(vocab_size=330, d_model=8, n_layers=1, n_heads=1))
    talk = Conversation(Generator(model, tokenizer), {"dialogue_trained": True})
    starts = [i for i, wanted in enumerate(seen.learned) if wanted and not seen.learned[i - 1]]
    for turn, start in zip((2, 4), starts, strict=True):
        asked = theirs.apply_chat_template(
            messages[:turn], add_generation_prompt=True, return_dict=False
        )
        assert talk._fitting(list(messages[:turn]), _short())[0] == asked
        assert seen.ids[:start] == asked  # what is learned is what follows such a prompt


def _short() -> Any:
    from inkstone.inference.config import SamplingConfig

    return SamplingConfig(max_tokens=1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_and_their_ends_are_learned_and_nothing_else(name: str, bpe: Tokenizer) -> None:
    tokenizer = with_template(bpe, TEMPLATES[name])
    ((_, seen),) = Task(Config()).seen(TALK, tokenizer, 1000)
    said = tokenizer.decode([i for i, w in zip(seen.ids, seen.learned, strict=True) if w])
    first, last = TALK.texts[2], TALK.texts[4]
    wanted = {
        "llama2": f" {first}  {last} ", "zephyr": f"\n{first}\n{last}",
        "thinking": f"{first}<think>\n\n</think>{last}",
    }  # fmt: skip
    assert said == wanted.get(name, first + last)
    ends = [
        i for i, w, after in zip(seen.ids, seen.learned, [*seen.learned[1:], False], strict=True)
        if w and not after
    ]  # fmt: skip
    assert len(ends) == 2 and set(ends) <= tokenizer.special_ids


def test_the_golden_transcript(codec: Codec) -> None:
    """Ids that must never change by themselves: models on users' disks were trained with them."""
    tokenizer = training.train(["x"], TokenizerConfig(kind="byte"))
    example = Example(("user", "assistant"), ("Hi", "Yo"))
    (row,) = Task(Config()).encode([example], Codec(tokenizer, 64))[0]
    names = {i: tokenizer.backend.id_to_token(i) for i in range(tokenizer.vocab_size)}
    assert [names[i] for i in row["ids"]] == ["<|user|>", "H", "i", "<|end|>", "<|assistant|>",
                                              "Y", "o"]  # fmt: skip
    assert row["targets"] == [IGNORE_INDEX] * 4 + [tokenizer.encode("Y")[0],
                                                   tokenizer.encode("o")[0], 4]  # fmt: skip
    assert names[4] == "<|end|>" and row["segments"] == [0] * 7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12).map(lambda t: t + "<|end|><|user|>"), min_size=2, max_size=6))
def test_no_text_becomes_a_control_token(texts: list[str]) -> None:
    tokenizer = training.train(["x"], TokenizerConfig(kind="byte"))
    roles = tuple(("user", "assistant")[i % 2] for i in range(len(texts)))
    ((_, seen),) = Task(Config()).seen(Example(roles, tuple(texts)), tokenizer, 10_000)
    assert sum(i in tokenizer.special_ids for i in seen.ids) == 2 * len(texts)
    assert tokenizer.decode(seen.ids) == "".join(texts)
    said = [i for i, wanted in zip(seen.ids, seen.learned, strict=True) if wanted]
    assert tokenizer.decode(said) == "".join(texts[1::2])


def test_a_template_must_say_where_answers_end(bpe: Tokenizer) -> None:
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    for template in (endless, endless + "{{ eos_token }}"):
        example = TALK if template == endless else Example(TALK.roles[:4], TALK.texts[:4])
        with pytest.raises(TokenizerError, match="ends an answer with no control token"):
            Task(Config()).seen(example, with_template(bpe, template), 100)
    with pytest.raises(TokenizerError, match="no chat template"):
        Task(Config()).seen(TALK, with_template(bpe, None), 100)


# --- rows ----------------------------------------------------------------------------------------


def test_prompts_without_an_answer_make_no_row(codec: Codec) -> None:
    task = Task(Config())
    asked = Example(("user",), ("Red?",))
    open_end = Example(TALK.roles[:4], TALK.texts[:4])
    rows = task.encode([asked, open_end, TALK], codec)
    assert [len(r) for r in rows] == [0, 1, 1]
    said = codec.tokenizer.encode(TALK.texts[2])
    assert learned(rows[1][0])[:-1] == said  # the question behind it is not learned
    assert task.predict(asked, []).tokens == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12), st.integers(24, 90), st.booleans())
def test_long_conversations_are_cut_where_the_user_speaks(
    lengths: list[int], most: int, system: bool
) -> None:
    tokenizer = training.train(["x"], TokenizerConfig(kind="byte"))
    roles = ["user", "assistant"] * len(lengths)
    texts = [chr(97 + i % 26) * n for i, n in enumerate(lengths) for _ in "qa"]
    if system:
        roles, texts = ["system", *roles], ["SSS", *texts]
    rows = list(taught(messages_of(roles, texts), tokenizer.chat_format, most))
    assert all(len(row.ids) <= most for row in rows)
    marks = {tokenizer.backend.token_to_id(f"<|{r}|>"): r for r in ("system", "user", "assistant")}
    said = ""
    for row in rows:
        assert marks[row.ids[0]] == ("system" if system else "user")
        said += tokenizer.decode([i for i, w in zip(row.ids, row.learned, strict=True) if w])
    cut = sum(row.cut for row in rows)
    assert len("".join(texts[1 + system :: 2])) - len(said) <= cut
    if not cut:
        assert said == "".join(texts[1 + system :: 2])  # each answer once


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_packing_loses_nothing(sizes: list[int]) -> None:
    rows = [{"ids": [n] * size, "targets": [n] * size, "segments": [0] * size}
            for n, size in enumerate(sizes)]  # fmt: skip
    bins = list(packed(rows, 50))
    assert all(len(row["ids"]) <= 50 for row in bins)
    found = [
        (i, s)
        for row in bins
        for i, s in dict.fromkeys(zip(row["ids"], row["segments"], strict=True))
    ]
    assert sorted(i for i, _ in found) == list(range(len(sizes)))
    assert sum(len(row["ids"]) for row in bins) == sum(sizes)
    assert len(bins) <= max(1, 2 * -(-sum(sizes) // 50))


FAMILIES = {
    "llama": llama.Model(llama.Config(vocab_size=330, d_model=32, n_layers=2, n_heads=2)),
    "gpt2": gpt2.Model(gpt2.Config(vocab_size=330, d_model=32, n_layers=2, n_heads=2)),
    "lstm": lstm.Model(lstm.Config(vocab_size=330, d_model=32, hidden_size=32, n_layers=1)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_conversations_do_not_see_each_other(family: str, codec: Codec) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family].eval()
    talks = [TALK, Example(("user", "assistant"), ("Red?", "Blue.")), TALK,
             Example(("user", "assistant"), ("Hi", "Hello you"))]  # fmt: skip
    task = Task(Config())
    rows = [row for rows in task.encode(talks, codec) for row in rows]
    together = list(task.arrange(rows, codec))
    assert len(together) < len(rows)
    batch = task.collate(together, codec.pad_id)
    assert batch.segment_ids is not None and batch.input_ids.shape == batch.segment_ids.shape
    total, count = task.loss(model, batch)
    alone = [task.loss(model, task.collate([row], codec.pad_id)) for row in rows]
    assert count == sum(n for _, n in alone) == sum(len(learned(row)) for row in rows)
    torch.testing.assert_close(total, sum(x for x, _ in alone), rtol=1e-5, atol=1e-4)
    assert list(Task(Config(pack=False)).arrange(rows, codec)) == rows
    assert task.collate(rows, codec.pad_id).segment_ids is None


def test_the_loss_is_that_of_transformers(codec: Codec, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    from inkstone.checkpoint import save_model

    torch.manual_seed(1)
    model = FAMILIES["llama"].eval()
    save_model(tmp_path, model, codec.tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    (row,) = Task(Config()).encode([TALK], codec)[0]
    ids = torch.tensor([[*row["ids"], row["targets"][-1]]])
    labels = torch.tensor([[IGNORE_INDEX, *row["targets"]]])
    expected = theirs(ids, labels=labels).loss.item() * len(learned(row))
    task = Task(Config())
    total = task.loss(model, task.collate([row], codec.pad_id))[0].detach()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    ((nats, count),) = task.outputs(model, task.collate([row], codec.pad_id), [row])
    assert nats == pytest.approx(expected, rel=1e-5) and count == len(learned(row))


# --- models that were never taught ---------------------------------------------------------------


def test_a_tokenizer_without_a_template_gets_marks_of_its_own() -> None:
    plain = training.train(["x"], TokenizerConfig(kind="byte"), specials=("<|endoftext|>",))
    plain = with_template(plain, None)
    ready = plain.for_chat()
    assert plain.vocab_size == 257 and ready.vocab_size == 261 and ready.for_chat() is ready
    assert ready.encode("<|user|>") == plain.encode("<|user|>")
    ids = ready.chat_ids([{"role": "user", "content": "a"}])
    assert [ready.backend.id_to_token(i) for i in ids] == [
        "<|user|>", "a", "<|end|>", "<|assistant|>"
    ]  # fmt: skip


def test_marks_on_a_published_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    tokenizer = Tokenizer.load(shared_data / "checkpoints" / "tok512.bin").for_chat()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = messages_of(TALK.roles, TALK.texts)
    ((_, seen),) = Task(Config()).seen(TALK, tokenizer, 1000)
    assert seen.ids == theirs.apply_chat_template(messages, return_dict=False)
    assert seen.ids[:2] == [tokenizer.bos_id, 512] and tokenizer.vocab_size == 516
    again = Tokenizer.load(tmp_path)
    assert again.chat_ids(messages, add_generation_prompt=False) == seen.ids


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_begin_as_the_mean_of_the_known(tied: bool) -> None:
    config = llama.Config(vocab_size=20, d_model=8, n_layers=1, n_heads=1, tied_head=tied)
    old = llama.Model(config)
    new = llama.Model(config.model_copy(update={"vocab_size": 23}))
    assert adopt(new, old) == []
    ids = torch.tensor([[1, 5, 19]])
    torch.testing.assert_close(new(ids)[..., :20], old(ids))
    torch.testing.assert_close(new.embed.weight[20:], old.embed.weight.mean(0).expand(3, 8))
    # a new word takes at most the share of an average one
    assert new(ids).softmax(-1)[..., 20:].max().item() < 1 / 20


# --- a run ---------------------------------------------------------------------------------------

SMALL = {
    "model.d_model": 32, "model.n_layers": 1, "model.n_heads": 2, "tokenizer.vocab_size": 300,
    "training.precision": "fp32", "evaluation.sample_tokens": 6, "task.name": "instructions",
}  # fmt: skip


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [
        {"instruction": f"What comes after {i}?", "output": f"It is {i + 1}."} for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that continues one kind of text well, with the text beside it."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("What comes after it? It is one.\n\n" * 120)
    settings = {k: v for k, v in SMALL.items() if k != "task.name"}
    ink.train(
        data=folder / "text.txt", run=folder / "base", cache=folder / "c",
        settings={**settings, "training.max_steps": 40, "text.valid_fraction": 0.0,
                  "corpus.seq_len": 64, "training.tokens_per_step": 128},
    )  # fmt: skip
    return folder


def fine_tune(questions: Path, base: Path, run: Path, **more: Any) -> Any:
    settings = {
        "task.name": "instructions", "model.pretrained": str(base / "base"),
        "training.max_steps": 40, "training.precision": "fp32", "training.lr": 0.01,
        "evaluation.sample_tokens": 6, "evaluation.remember": [str(base / "text.txt")],
    }  # fmt: skip
    ink.train(data=questions, run=run, cache=base / "c", settings=settings | more)
    return json.loads((run / "result.json").read_text())


def test_a_run_begins_from_weights_that_never_saw_a_turn(
    questions: Path, base: Path, tmp_path: Path
) -> None:
    result = fine_tune(questions, base, tmp_path / "run")
    (score,) = result["scores"]
    assert score["name"] == "perplexity"
    assert score["value"] < 0.5 * result["baseline"]["perplexity"]
    assert result["baseline"]["name"] == "before training"
    assert len(result["samples"]) == result["counts"]["valid"] == 1
    report = (tmp_path / "run" / "report.html").read_text()
    assert "before training" in report and "What comes after" in report and "forgotten" in report
    model = ink.load(tmp_path / "run")
    assert model.conversation().warning is None
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "inkstone.json").read_text()
    again = model.evaluate(questions)
    assert again["scores"][0]["value"] == pytest.approx(score["value"], rel=0.5)
    with pytest.raises(UsageError, match=r"use \.chat"):
        model.classify("a")
    asked = ["Is 3 odd?", "Is 4 odd?"]
    said = [model.chat([{"role": "user", "content": q}], temperature=0.0).text for q in asked]
    assert [str(x) for x in model.predict(asked)] == said
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in asked))
    assert model.predict_file(prompts, tmp_path / "said.jsonl") == 2
    rows = [json.loads(x) for x in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["prediction"]["text"] for row in rows] == said


def test_what_is_forgotten_is_measured_and_replay_lessens_it(
    questions: Path, base: Path, tmp_path: Path
) -> None:
    before, after = fine_tune(questions, base, tmp_path / "run")["remembered"]
    known = ink.load(base / "base").perplexity(base / "text.txt")
    assert before["perplexity"] == pytest.approx(known.perplexity, rel=0.05)
    assert after["perplexity"] > 1.2 * before["perplexity"]
    more = {"data.replay": [str(base / "text.txt")], "data.replay_share": 0.5}
    result = fine_tune(questions, base, tmp_path / "replay", **more)
    assert result["remembered"][1]["perplexity"] < 0.8 * after["perplexity"]
    assert result["scores"][0]["value"] < 0.5 * result["baseline"]["perplexity"]


def test_texts_for_replay_and_remembering_are_checked_first(
    questions: Path, base: Path, tmp_path: Path
) -> None:
    for key in ("data.replay", "evaluation.remember"):
        with pytest.raises(DataError, match=r"nothing\.txt"):
            fine_tune(questions, base, tmp_path / key, **{key: [str(tmp_path / "nothing.txt")]})
        with pytest.raises(UsageError, match="this run learns from plain text"):
            ink.train(data=base / "text.txt", run=tmp_path / "x", settings={key: [str(questions)]})
        assert not (tmp_path / key).exists()
