"""Scores of the harness' tasks equal those of its own reader of transformers models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone import registry
from inkstone.api import LanguageModel, load
from inkstone.checkpoint import save_model
from inkstone.cli.main import main
from inkstone.errors import DataError, MissingExtraError, UnknownNameError, UsageError
from inkstone.evaluation.harness import Answers, HarnessScore, evaluate
from inkstone.inference import Generator
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train

WORDS = ["river", "stone", "moon", "lamp", "ink", "tea", "garden", "boat", "winter", "fish"]
CONTEXT = 48
FAMILIES = ("gpt2", "llama")
TASKS = ("ink_choice", "ink_rolling", "ink_write")
SHARED = "dataset_path: json\ntest_split: test\nmetadata: {version: 1.0}\n"
CHOICE = """task: ink_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """task: ink_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
WRITE = """task: ink_write
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", " a"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def sentence(random: np.random.Generator, low: int, high: int) -> str:
    return " ".join(random.choice(WORDS, random.integers(low, high)))


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train([" ".join(WORDS) + "\n"] * 9, TokenizerConfig(vocab_size=330))
    family = registry.load("models", request.param)
    torch.manual_seed(0)
    shape: Any = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": CONTEXT}
    model = family.Model(family.Config(vocab_size=tokenizer.vocab_size, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    save_model(folder, model, tokenizer)
    found: LanguageModel = load(folder, device="cpu")
    return found


@pytest.fixture(scope="module")
def tasks_dir(opened: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of all lengths, some longer than the context; half the answers are the model's."""
    folder, random = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    ask = [sentence(random, 2, 70) + "? Next:" + " " * (i % 3) for i in range(24)]
    options = [[" " + sentence(random, 1, 5) for _ in range(3)] for _ in ask]
    texts = [sentence(random, 1, 200) for _ in range(9)]
    texts.append(" ".join(WORDS * 13)[:-1])
    said = Answers(opened.generator).written(
        [(a, {"until": ["\n"], "max_gen_toks": 6}) for a in ask]
    )
    write_rows(folder, "choice", CHOICE, [
        {"question": a, "options": o, "gold": int(random.integers(3))}
        for a, o in zip(ask, options, strict=True)
    ])  # fmt: skip
    write_rows(folder, "rolling", ROLLING, [{"text": text} for text in texts])
    write_rows(folder, "write", WRITE, [
        {"question": a, "answer": s if i % 2 else "no"}
        for i, (a, s) in enumerate(zip(ask, said, strict=True))
    ])  # fmt: skip
    return folder


def write_rows(folder: Path, name: str, task: str, rows: list[dict[str, Any]]) -> None:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(file))}}}}}\n"
    (folder / f"{name}.yaml").write_text(task + SHARED + where)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def theirs(opened: LanguageModel) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(opened.path).eval()
    return HFLM(
        pretrained=model, tokenizer=AutoTokenizer.from_pretrained(opened.path), batch_size=5
    )


@pytest.mark.usefixtures("offline")
def test_scores_equal_those_of_the_harness_own_reader(
    opened: LanguageModel, tasks_dir: Path
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = evaluate(opened, TASKS, tasks_dir=tasks_dir)
    expected = simple_evaluate(
        model=theirs(opened), tasks=list(TASKS), log_samples=False,
        task_manager=TaskManager(include_path=str(tasks_dir), include_defaults=False),
    )["results"]  # fmt: skip
    ours = {(s.task, s.metric): s for s in found}
    assert {name for name, _ in ours} == set(TASKS)
    assert {"acc", "acc_norm", "word_perplexity", "bits_per_byte", "exact_match"} <= {
        metric for _, metric in ours
    }
    for score in found:
        wanted = expected[score.task][f"{score.metric},{score.filter}"]
        assert score.value == pytest.approx(wanted, rel=2e-5), score
    assert 0 < ours["ink_write", "exact_match"].value < 1
    assert ours["ink_choice", "acc"].examples == 24 and ours["ink_choice", "acc"].shots == 0


@pytest.mark.usefixtures("offline")
def test_every_answer_equals_theirs(opened: LanguageModel, tasks_dir: Path) -> None:
    from lm_eval.api.instance import Instance

    rows = [json.loads(x) for x in (tasks_dir / "choice.jsonl").read_text().splitlines()]
    greedy = Answers(opened.generator).written([("river", {"max_gen_toks": 3})])[0]
    pairs = [(r["question"], o) for r in rows for o in r["options"]]
    pairs += [("", "river stone"), ("river", greedy), ("tea \n ", "moon")]
    made = [Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)]
    hf = theirs(opened)
    for ours, (nats, is_greedy) in zip(
        Answers(opened.generator).likelihoods(pairs),
        hf.loglikelihood(made, disable_tqdm=True),
        strict=True,
    ):
        assert ours == (pytest.approx(nats, abs=2e-4), is_greedy)
    settings = {"until": ["\n", "on"], "max_gen_toks": 9, "do_sample": False}
    asked: list[Any] = [(r["question"], dict(settings)) for r in rows]
    made = [Instance("generate_until", {}, a, i) for i, a in enumerate(asked)]
    # one at a time: their batches cut by the longest row, padding included
    expected = [hf.generate_until([one], disable_tqdm=True)[0] for one in made]
    assert Answers(opened.generator).written(asked) == expected


@pytest.mark.usefixtures("offline")
def test_the_command_prints_and_knows_no_other_task(
    opened: LanguageModel, tasks_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["eval", str(opened.path), "--tasks-dir", str(tasks_dir), "--harness"]
    assert main([*ask, "ink_choice,ink_write", "--limit", "5", "--json"]) == 0
    rows = [HarnessScore(**row) for row in json.loads(capsys.readouterr().out)]
    assert {r.task for r in rows} == {"ink_choice", "ink_write"} and rows[0].examples == 5
    assert main([*ask, "ink_choice", "--limit", "5"]) == 0
    assert f"{rows[0].value:.4f}" in capsys.readouterr().out
    with pytest.raises(UnknownNameError, match="ink_choice"):
        evaluate(opened, ["ink_choise"], tasks_dir=tasks_dir)
    (tasks_dir / "choice.jsonl").rename(tasks_dir / "away")
    try:
        with pytest.raises(DataError, match="ink_choice"):
            evaluate(opened, ["ink_choice"], tasks_dir=tasks_dir)
    finally:
        (tasks_dir / "away").rename(tasks_dir / "choice.jsonl")
    with pytest.raises(DataError, match="no folder"):
        evaluate(opened, ["ink_choice"], tasks_dir=tasks_dir / "absent")


@torch.no_grad()
def slowly(opened: LanguageModel, context: list[int], ids: list[int]) -> tuple[float, bool]:
    total, greedy, seen = 0.0, True, list(context)
    for token in ids:
        given = opened.model(torch.tensor([seen[-CONTEXT:]])).log_softmax(-1)[0, -1]
        total, greedy = total + float(given[token]), greedy and int(given.argmax()) == token
        seen.append(token)
    return total, greedy


def test_likelihoods_equal_one_token_at_a_time(opened: LanguageModel) -> None:
    assert opened.tokenizer is not None
    encode, eos = opened.tokenizer.encode, opened.tokenizer.eos_id
    greedy = opened.generate("river", max_tokens=4, temperature=0).text
    pairs = [("river stone", " moon"), ("river  ", "tea"), ("", "lamp ink"), ("x", ""),
             ("river", greedy), ("river stone", " fish boat")]  # fmt: skip
    frame = opened.tokenizer.frame()[0]
    for (context, ids), found in zip(
        [
            (frame + encode("river stone"), encode(" moon")),
            (frame + encode("river"), encode("  tea")),
            ([eos], encode("lamp ink")),
            (frame + encode("x"), []),
            (frame + encode("river"), encode(greedy)),
            (frame + encode("river stone"), encode(" fish boat")),
        ],
        Answers(opened.generator).likelihoods(pairs),
        strict=True,
    ):
        nats, is_greedy = slowly(opened, context, ids)
        assert found == (pytest.approx(nats, abs=1e-4), is_greedy)


def test_a_long_context_loses_its_beginning(opened: LanguageModel) -> None:
    assert opened.tokenizer is not None
    words = " ".join(WORDS * 9)
    ids = opened.tokenizer.encode(words)
    tail = opened.tokenizer.encode(" tea moon")
    kept = ids[-(CONTEXT + 1 - len(tail)) :]
    whole = torch.tensor([(kept + tail)[:-1]])
    with torch.no_grad():
        given = opened.model(whole).log_softmax(-1)[0, -len(tail) :]
    nats = sum(float(given[i, token]) for i, token in enumerate(tail))
    found = Answers(opened.generator).likelihoods([(words, " tea moon")])
    assert found[0][0] == pytest.approx(nats, abs=1e-4)
    with pytest.raises(UsageError, match="context holds"):
        Answers(opened.generator).likelihoods([("tea", " " + words)])


def test_rolling_predicts_each_token_once_with_the_context_that_is_said(
    opened: LanguageModel,
) -> None:
    assert opened.tokenizer is not None
    text = " ".join(WORDS * 6)
    ids = [*opened.tokenizer.frame()[0], *opened.tokenizer.encode(text)]
    rest = len(ids) % CONTEXT
    assert len(ids) > CONTEXT and rest
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - rest, CONTEXT):
            before = ids[start - 1] if start else opened.tokenizer.eos_id
            window = [before, *ids[start : start + CONTEXT]]
            given = opened.model(torch.tensor([window[:-1]])).log_softmax(-1)[0]
            total += sum(float(given[i, t]) for i, t in enumerate(window[1:]))
        given = opened.model(torch.tensor([ids[-CONTEXT - 1 : -1]])).log_softmax(-1)[0, -rest:]
        total += sum(float(given[i, t]) for i, t in enumerate(ids[-rest:]))
    assert Answers(opened.generator).rolling([text, ""]) == [pytest.approx(total, abs=1e-3), 0.0]


def test_answers_end_before_any_of_many_stops(opened: LanguageModel) -> None:
    plain = Answers(opened.generator).written([("river", {"max_gen_toks": 12})])[0]
    assert len(plain) > 4
    many = [f"§{i}" for i in range(20)] + [plain[3:5]]
    settings = {"until": many, "max_gen_toks": 12}
    assert (
        Answers(opened.generator).written([("river", settings)])[0]
        == plain.partition(plain[3:5])[0]
    )
    drawn = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 12}
    assert Answers(opened.generator).written([("", drawn)])[0] != plain


def test_without_the_harness_the_extra_is_named(
    opened: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(registry.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match="lm_eval") as caught:
        evaluate(opened, ["hellaswag"])
    assert "inkstone[harness]" in str(caught.value.fix)


def test_a_model_without_a_tokenizer_cannot_be_asked(opened: LanguageModel) -> None:
    with pytest.raises(UsageError, match="no tokenizer"):
        Answers(Generator(opened.model, None))


def test_data_or_harness(opened: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(opened.path)]) == 2
    assert "--harness" in capsys.readouterr().err


def test_over_http_the_scores_are_the_same(opened: LanguageModel, tasks_dir: Path) -> None:
    """Its `local-completions` asks the server, with the folder's own tokenizer."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    from tests.serving.conftest import running

    rows = [json.loads(x) for x in (tasks_dir / "choice.jsonl").read_text().splitlines()]
    pairs = [(r["question"][-40:].strip(), o) for r in rows for o in r["options"]]
    made = [Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)]
    with running(("tiny", opened)) as server:
        # theirs leaves room for one token more than the model needs
        remote = LocalCompletionsAPI(
            base_url=f"{server.url}/v1/completions", model="tiny", tokenizer=str(opened.path),
            tokenizer_backend="huggingface", max_length=CONTEXT + 1, max_gen_toks=6, batch_size=4,
        )  # fmt: skip
        found = remote.loglikelihood(made, disable_tqdm=True)
        written = simple_evaluate(
            model=remote, tasks=["ink_write"], log_samples=False,
            task_manager=TaskManager(include_path=str(tasks_dir), include_defaults=False),
        )["results"]["ink_write"]  # fmt: skip
    assert len(pairs) == 72
    for ours, (nats, is_greedy) in zip(
        Answers(opened.generator).likelihoods(pairs), found, strict=True
    ):
        assert ours == (pytest.approx(nats, abs=2e-4), is_greedy)
    (score,) = evaluate(opened, ("ink_write",), tasks_dir=tasks_dir)
    assert score.value == pytest.approx(written[f"{score.metric},{score.filter}"])
