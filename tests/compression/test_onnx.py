"""ONNX Runtime computes what the model does, for batches and lengths that no one traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.compression.export import Source, export
from inkstone.compression.export import onnx as module
from inkstone.errors import ModelError
from inkstone.inference.embed import Pooling, embed
from tests.compression.conftest import learned, shaken, tokenizer

pytest.importorskip("onnx", reason="pip install 'inkstone[export]'")
pytest.importorskip("onnxscript", reason="pip install 'inkstone[export]'")
runtime = pytest.importorskip("onnxruntime", reason="pip install 'inkstone[export]'")
Make = Callable[..., Source]


def run(folder: Path, **inputs: Any) -> dict[str, np.ndarray]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(folder / "model.onnx"), options)
    given = {name: np.asarray(value) for name, value in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def test_a_decoder_goes_on_from_what_it_remembers(source: Make, tmp_path: Path) -> None:
    model, words = learned("gpt2"), tokenizer()
    done = export(source(model, words), tmp_path / "out", "onnx")
    assert done.facts["max_difference"] <= 1e-5 and done.facts["opset"] == 18
    ids = np.array([words.encode("The value of the attribute is returned")])
    c, steps = model.config, ids.shape[1]
    empty = np.zeros((1, c.n_kv_heads, 0, c.head_dim), np.float32)
    past = {f"past_key_values.{i}.{x}": empty for i in range(c.n_layers) for x in ("key", "value")}
    rows = []
    for n in range(steps):  # one token at a time
        out = run(
            done.path, input_ids=ids[:, n : n + 1], attention_mask=np.ones((1, n + 1), int), **past
        )
        rows.append(out["logits"][0, 0])
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids))[0].numpy()
    assert np.abs(np.array(rows) - wanted).max() <= 1e-4
    files = {path.name for path in done.path.iterdir()}
    assert {"model.onnx", "tokenizer.json", "config.json", "README.md", "sha256.json"} <= files


def test_windows_hold_for_every_length(source: Make, tmp_path: Path) -> None:
    model = shaken("llama", None, n_kv_heads=2, qk_norm=True, sliding_window=9, max_seq_len=64)
    done = export(source(model), tmp_path / "out", "onnx")
    assert done.facts["max_difference"] <= 1e-5  # of up to 64 tokens, padded on the left


@pytest.mark.parametrize("head", ["sequence", "token"])
def test_an_encoder_labels(head: str, source: Make, tmp_path: Path) -> None:
    words = tokenizer("wordpiece", roles="bert")
    model = shaken("bert", words, head=head, n_labels=3)
    done = export(source(model, words, labels=["a", "b", "c"]), tmp_path / "out", "onnx")
    config = json.loads((done.path / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    rows = [words.encode(text) for text in ("One of them.", "Two", "And a third, longer one")]
    ids = np.zeros((3, max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    out = run(done.path, input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).numpy()
    at = mask.astype(bool) if head == "token" else slice(None)
    assert np.abs(out["logits"][at] - wanted[at]).max() <= 1e-4


def test_an_encoder_embeds(source: Make, tmp_path: Path) -> None:
    words = tokenizer("wordpiece", roles="bert")
    model = shaken("roberta", words, head="none")
    made = source(model, words)
    made.folder.mkdir()
    Pooling("mean", normalize=True).write(made.folder, 64)
    done = export(made, tmp_path / "out", "onnx")
    texts = ["One of them.", "Two"]
    wanted = embed(model, words, texts, Pooling.read(made.folder))
    before, after = words.frame()
    for text, vector in zip(texts, wanted, strict=True):
        ids = [[*before, *words.encode(text), *after]]
        out = run(done.path, input_ids=ids, attention_mask=np.ones_like(ids))
        assert np.abs(out["sentence_embedding"][0] - vector).max() <= 1e-5


def test_a_graph_that_disagrees_is_not_kept(
    source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="outputs differ"):
        export(source(shaken("gpt2", None, max_seq_len=16)), tmp_path / "out", "onnx")
    with pytest.raises(ModelError, match="lamda models have no form in ONNX"):
        export(source(shaken("lamda", None)), tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []
