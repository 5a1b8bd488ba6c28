"""The tasks over HTTP give what the library gives; what waits together is done together."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone import api, pipeline
from inkstone.errors import UsageError
from inkstone.inspection.attention import attention
from inkstone.inspection.attribution import attribute
from inkstone.recipe import Recipe
from inkstone.serving.desk import Desk
from inkstone.serving.server import Server
from inkstone.serving.source import Source, named
from tests.serving.conftest import Start, small_model
from tests.serving.test_guard import ask

TINY = {"family": "bert", "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64}


def _trained(folder: Path, task: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "task": task, "model": TINY, "tokenizer": {"vocab_size": 300},
            "training": {"max_steps": 3, "micro_batch_size": 8},
        }
    )  # fmt: skip
    recipe = recipe.with_data([str(folder / "train.jsonl")], None)
    pipeline.train(recipe, folder / "run", cache=folder / "cache")
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    random.seed(0)
    words = ["red", "green", "blue", "one", "two", "three"]
    texts = [" ".join(random.choices(words, k=6)) for _ in range(80)]
    made = {}
    for name, task, row in (
        ("labels", {"name": "classification"}, lambda t: {"text": t, "label": t[:1]}),
        ("tags", {"name": "tagging"},
         lambda t: {"tokens": t.split(), "tags": [w[:1] for w in t.split()]}),
        ("answers", {"name": "question_answering"},
         lambda t: {"question": "which?", "context": t,
                    "answers": {"text": [t.split()[2]],
                                "answer_start": [len(" ".join(t.split()[:2])) + 1]}}),
    ):  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        made[name] = _trained(folder, task, [row(text) for text in texts])
    return made


@pytest.fixture(scope="module")
def server(start: Start, runs: dict[str, Path]) -> Server:
    models = [(name, api.load(run, device="cpu")) for name, run in runs.items()]
    return start(*models, ("small", small_model()))


def _post(server: Server, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    status, _, content = ask(server, body, path=path)
    return status, json.loads(content)


def test_classify_and_tag(server: Server, runs: dict[str, Path]) -> None:
    texts = ["red one two", "blue blue", "three"]
    labels = api.load(runs["labels"], device="cpu")
    status, found = _post(server, "/v1/classify", input=texts)
    assert status == 200 and found["model"] == "labels"
    for theirs, own in zip(found["results"], labels.classify(texts), strict=True):
        assert theirs["label"] == own.label and theirs["score"] == pytest.approx(own.score)
    tags = api.load(runs["tags"], device="cpu")
    status, found = _post(server, "/v1/tag", input="red one", model="tags")
    assert status == 200 and found["results"] == [tags.tag("red one").to_dict()]


def test_answer(server: Server, runs: dict[str, Path]) -> None:
    asked = {"question": "which?", "context": "red green blue one"}
    status, found = _post(server, "/v1/answer", **asked)
    own = api.load(runs["answers"], device="cpu").answer(**asked).to_dict()
    assert status == 200 and found == {"model": "answers", **json.loads(json.dumps(own))}


def test_why_a_label_was_given(server: Server, runs: dict[str, Path]) -> None:
    own = attribute(api.load(runs["labels"], device="cpu").predictor, "red one  two", "b")  # type: ignore[arg-type]
    status, found = _post(server, "/v1/attribute", input="red one  two", label="b")
    assert status == 200 and found["model"] == "labels" and found["label"] == "b"
    assert found["text"] == "red one  two" and found["score"] == pytest.approx(own.score)
    for told, word in zip(found["words"], own.words, strict=True):
        assert found["text"][told["start"] : told["end"]] == told["text"] == word.text
        assert told["weight"] == pytest.approx(word.weight, abs=1e-3)
    assert _post(server, "/v1/attribute", input="red")[1]["label"] in "rgbot"
    assert _post(server, "/v1/attribute", input="")[1]["words"] == []


def test_who_looks_at_whom(server: Server, runs: dict[str, Path]) -> None:
    status, found = _post(server, "/v1/attention", input="It was", model="small", layer=1)
    assert status == 200 and found["layers"] == 2 and found["layer"] == 1 and not found["cut"]
    assert found["rows"] == found["columns"] == list("It was")
    weights = np.array(found["weights"])
    assert weights.shape == (4, 6, 6) and np.triu(weights, 1).max() == 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-3)
    model = api.load(runs["tags"], device="cpu")
    assert model.tokenizer is not None
    own = attention(model.model, model.tokenizer, "red one", predictor=model.predictor)
    status, found = _post(server, "/v1/attention", input="red one", model="tags")
    assert found["rows"] == list(own.rows) and own.rows[0] == "[CLS]"
    np.testing.assert_allclose(found["weights"], own.weights[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/attribute", {"input": "red", "label": "purple"}),
        ("/v1/attribute", {"input": "red", "label": 3}),
        ("/v1/attribute", {"input": ["red"]}),
        ("/v1/attribute", {"input": "x" * 20_001}),
        ("/v1/attribute", {"input": "red", "model": "small"}),
        ("/v1/attribute", {"input": "red", "labl": "r"}),
        ("/v1/attention", {"input": "x" * 20_001}),
        ("/v1/attention", {"input": "", "model": "small"}),
        ("/v1/attention", {"input": "It", "model": "small", "layer": 2}),
        ("/v1/attention", {"input": "It", "layer": -1}),
        ("/v1/attention", {"input": "It", "layer": True}),
        ("/v1/attention", {"input": "It", "layer": 1 << 70}),
        ("/v1/attention", {}),
    ],
)
def test_what_cannot_be_looked_at(server: Server, path: str, body: dict[str, Any]) -> None:
    status, found = _post(server, path, **body)
    assert status == 400 and found["error"]["message"]


def test_embeddings(server: Server, runs: dict[str, Path]) -> None:
    texts = ["red one two", "blue"]
    own = api.load(runs["labels"], device="cpu").embed(texts)
    status, found = _post(server, "/v1/embeddings", input=texts, model="labels")
    assert status == 200 and [d["index"] for d in found["data"]] == [0, 1]
    np.testing.assert_allclose([d["embedding"] for d in found["data"]], own, rtol=1e-5)
    status, found = _post(
        server, "/v1/embeddings", input=texts[1], model="labels", encoding_format="base64"
    )
    raw = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(raw, own[1], rtol=1e-4, atol=1e-5)


def test_tokens(server: Server) -> None:
    status, found = _post(server, "/tokenize", text="Hé", model="small")
    assert status == 200 and len(found["ids"]) == 3
    assert _post(server, "/detokenize", ids=found["ids"], model="small")[1] == {"text": "Hé"}
    assert _post(server, "/detokenize", ids=[99999], model="small")[0] == 400


def test_what_a_model_cannot_do_is_named(server: Server) -> None:
    status, found = _post(server, "/v1/classify", input="x", model="small")
    assert status == 400 and "it can attend, chat, complete" in found["error"]["message"]
    assert _post(server, "/v1/translate", input="x")[0] == 404
    assert _post(server, "/v1/classify", input=[])[0] == 400
    assert _post(server, "/v1/completions", prompt="x", model="labels")[0] == 400
    listed = json.loads(ask(server, None, path="/v1/models", method="GET")[2])["data"]
    assert {m["id"]: m["can"] for m in listed} == {
        "labels": ["attend", "attribute", "classify", "embed"], "tags": ["attend", "embed", "tag"],
        "answers": ["answer", "attend", "embed"], "small": ["attend", "chat", "complete"],
    }  # fmt: skip


def test_counts_are_told(server: Server) -> None:
    assert ask(server, {"prompt": "zebra", "max_tokens": 4, "model": "small"})[0] == 200
    lines = ask(server, None, path="/metrics", method="GET")[2].decode().splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
              for line in lines if not line.startswith("#")}  # fmt: skip
    assert values['inkstone_answer_tokens{model="small"}'] >= 4
    assert values['inkstone_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert not any("zebra" in line for line in lines)


def test_what_waits_together_is_done_together() -> None:
    """One bad input spoils only its own job."""
    gate, taken = threading.Event(), []

    def double(inputs: list[int]) -> list[int]:
        gate.wait(20)
        taken.append(len(inputs))
        if -1 in inputs:
            raise UsageError("less than nothing")
        return [2 * x for x in inputs]

    async def run() -> None:
        desk = Desk({"double": double}, waiting=20)
        desk.start()
        jobs = [asyncio.create_task(desk.do("double", [i, i + 1])) for i in range(8)]
        jobs.append(asyncio.create_task(desk.do("double", [-1])))
        await asyncio.sleep(0)
        jobs[3].cancel()
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*jobs, return_exceptions=True)
        for i in (0, 1, 2, 4, 5, 6, 7):
            assert found[i] == [2 * i, 2 * i + 2]
        assert isinstance(found[3], asyncio.CancelledError) and isinstance(found[8], UsageError)
        assert max(taken) > 2 and not len(desk)
        await asyncio.to_thread(desk.stop)

    asyncio.run(run())


def test_names_are_checked(tmp_path: Path, runs: dict[str, Path]) -> None:
    from inkstone.serving.config import ServeConfig

    (one,) = Source(*named(f"mine={runs['labels']}"), device="cpu").open(ServeConfig())
    assert one.name == "mine" and named(str(runs["tags"]))[0] == "run"
    with pytest.raises(UsageError, match="no name"):
        named("=x")
