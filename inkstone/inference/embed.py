"""One vector a text from an encoder: the states of its tokens, pooled (Reimers & Gurevych 2019).

How to pool is read from the files that sentence-transformers keeps beside a model. Shapes: B rows,
T columns, N texts, D d_model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from inkstone import __version__
from inkstone.corpora.examples import in_batches
from inkstone.device import training_dtype
from inkstone.errors import CheckpointError, UsageError
from inkstone.files import parse_json, read_json, sha256, write_json
from inkstone.nn.pooling import MODES, Mode, pool
from inkstone.tokenizers.tokenizer import Tokenizer

__all__ = ["BATCH_TOKENS", "MODES", "Embedder", "Mode", "Pooling", "embed", "pool"]

_FLAGS: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
_OTHER = "pooling_mode_weightedmean_tokens"
_TYPE = "sentence_transformers.models."  # names of steps that every version of theirs reads
BATCH_TOKENS = 2048  # padded tokens computed together
MANY = 64  # texts for which it pays to find out how fast this machine is at bf16
MAX_MODULES = 16


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a text becomes one vector.

    Attributes:
        mode: Of the states of all tokens, the control tokens around the text among them.
        normalize: Every vector has length 1, so that a dot product is a cosine.
        max_tokens: Longer texts are cut; None: the model's context.
        lowercase: Fold case before the tokenizer.
        prompt: Put before every text.
    """

    mode: Mode = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    lowercase: bool = False
    prompt: str = ""

    @classmethod
    def read(cls, folder: Path) -> Pooling:
        """As the folder says in modules.json; the mean, as it is, for a folder without one.

        Raises:
            CheckpointError: A file is malformed, or asks for a step that is not known here.
        """
        modules = folder / "modules.json"
        if not modules.is_file():
            return cls()
        listing = _read_list(modules)
        kinds = [str(m.get("type")).rpartition(".")[2] for m in listing]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise CheckpointError(
                f"{modules}: the steps {[kind[:50] for kind in kinds]} are not supported",
                fix="known are Transformer, Pooling and Normalize, in this order",
            )
        place = str(listing[1].get("path"))
        if not re.fullmatch(r"\w[\w.-]*", place):
            raise CheckpointError(f"{modules}: {place[:100]!r} is not a folder inside of this one")
        mode = _mode(folder / place / "config.json")
        table = _table(folder / "sentence_bert_config.json")
        longest = table.get("max_seq_length")
        if longest is None:  # newer folders keep it with the tokenizer; 1e30 says: no limit
            longest = _table(folder / "tokenizer_config.json").get("model_max_length")
            longest = longest if type(longest) is int and longest < 1 << 24 else None
        if longest is not None and not (type(longest) is int and longest > 2):
            raise CheckpointError(f"{folder}: the longest text has {str(longest)[:50]} tokens")
        prompts = _table(folder / "config_sentence_transformers.json")
        name, known = prompts.get("default_prompt_name"), prompts.get("prompts")
        prompt = known.get(name) if isinstance(known, dict) and isinstance(name, str) else ""
        if name is not None and not isinstance(prompt, str):
            raise CheckpointError(f"{folder}: the default prompt {str(name)[:50]!r} is not defined")
        lower = table.get("do_lower_case") is True
        return cls(mode, len(kinds) == 3, longest, lower, prompt or "")

    def write(self, folder: Path, width: int) -> None:
        """Write the files from which sentence-transformers, and `read`, know how to pool.

        Args:
            folder: That of the model.
            width: Of a vector, D.
        """
        steps = ["Transformer", "Pooling", "Normalize"][: 3 if self.normalize else 2]
        listing = [
            {"idx": i, "name": str(i), "path": f"{i}_{step}" if i else "", "type": _TYPE + step}
            for i, step in enumerate(steps)
        ]
        (folder / "modules.json").write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
        (folder / "1_Pooling").mkdir(exist_ok=True)
        flags = {flag: mode == self.mode for flag, mode in _FLAGS.items()}
        table = {"word_embedding_dimension": width, **flags}
        write_json(folder / "1_Pooling" / "config.json", table)
        longest = {"max_seq_length": self.max_tokens, "do_lower_case": self.lowercase}
        write_json(folder / "sentence_bert_config.json", longest)
        about: dict[str, Any] = {
            "__version__": {"inkstone": __version__},
            "prompts": {"default": self.prompt} if self.prompt else {},
            "default_prompt_name": "default" if self.prompt else None,
            "similarity_fn_name": "cosine",
        }
        write_json(folder / "config_sentence_transformers.json", about)


@dataclass(frozen=True)
class Embedder:
    """What turns texts into vectors, and by what other vectors of the same make are known.

    Attributes:
        model: Of `KIND` "encoder".
        tokenizer: Its own.
        pooling: How the states of the tokens become one vector.
        fingerprint: Equal for equal weights, tokenizer and pooling.
    """

    model: Any
    tokenizer: Tokenizer
    pooling: Pooling
    fingerprint: str

    @classmethod
    def of(cls, folder: Path, model: Any, tokenizer: Tokenizer) -> Embedder:
        """Of an opened folder.

        Raises:
            CheckpointError: How it pools is not known here.
        """
        used = ("*.safetensors", "config.json", "*token*.json", "*sent*_*.json", "*/config.json")
        paths = sorted({path for pattern in used for path in folder.glob(pattern)})
        hashes = [[path.relative_to(folder).as_posix(), sha256(path)] for path in paths]
        digest = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        return cls(model, tokenizer, Pooling.read(folder), digest)

    def __call__(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """[N, D]; as `embed`, but of many texts in bf16 where this machine is fast at it.

        Cosines of both are 0.9999 and more; the index keeps no more digits than that.
        """
        before = self.model.compute_dtype
        if len(texts) >= MANY:
            self.model.compute_dtype = training_dtype(self.model.device)
        try:
            return embed(self.model, self.tokenizer, texts, self.pooling, progress=progress)
        finally:
            self.model.compute_dtype = before


@torch.inference_mode()
def embed(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: Pooling,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Vectors of texts, [N, D], in their order; texts of similar length share a batch.

    Args:
        model: Of `KIND` "encoder".
        tokenizer: Its tokenizer.
        texts: Any number of them.
        pooling: How the states of the tokens become one vector.
        batch_tokens: Tokens computed together, at most, counted with padding (which families that
            pack their rows do not compute); a longer text goes alone.
        progress: Told after each batch how many texts are done.

    Raises:
        UsageError: `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens is {batch_tokens}", fix="give 1 or more")
    limit = min(model.config.max_seq_len, pooling.max_tokens or model.config.max_seq_len)
    rows = _rows(tokenizer, [pooling.prompt + text for text in texts], limit, pooling.lowercase)
    lengths = np.array([len(row) for row in rows], np.int64)[:, None]
    vectors = np.zeros((0, model.config.d_model), np.float32)
    was_training = model.training
    model.eval()
    try:
        done = 0
        for places in in_batches(lengths, batch_tokens):
            found = _batch(model, [rows[i] for i in places], tokenizer, pooling)
            if not len(vectors):  # readers of two directions give more than d_model
                vectors = np.zeros((len(rows), found.shape[1]), np.float32)
            vectors[places] = found
            done += len(places)
            if progress is not None:
                progress(done)
    finally:
        model.train(was_training)
    return vectors


def _rows(tokenizer: Tokenizer, texts: Sequence[str], limit: int, lower: bool) -> list[list[int]]:
    """Ids with the control tokens around them that the model was trained with, cut to `limit`."""
    before, after = tokenizer.frame()
    room = max(0, limit - len(before) - len(after))
    encoded = tokenizer.encode_batch([text.lower() if lower else text for text in texts])
    return [[*before, *ids[:room], *after] for ids in encoded]


def _batch(
    model: Any, rows: list[list[int]], tokenizer: Tokenizer, pooling: Pooling
) -> npt.NDArray[np.float32]:
    width = max(1, *map(len, rows))
    pad = tokenizer.pad_id or 0
    device = model.device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) < lengths[:, None]
    vectors = pool(model.hidden(ids, attention_mask=mask).float(), mask, pooling.mode)
    if pooling.normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    result: npt.NDArray[np.float32] = vectors.cpu().numpy()
    return result


def _mode(path: Path) -> Mode:
    """Of 1_Pooling/config.json, whose older form has a switch for every mode."""
    table = read_json(path)
    if table.get("include_prompt") is False:
        raise CheckpointError(f"{path}: leaving the prompt out of the pooling is not supported")
    named = table.get("pooling_mode")
    if named is None:
        on = [key for key, value in table.items() if value is True and key in (*_FLAGS, _OTHER)]
        named = _FLAGS.get(on[0], on[0]) if len(on) == 1 else on or "mean"
    for mode in MODES:
        if named == mode:
            return mode
    raise CheckpointError(
        f"{path}: pooling {str(named)[:100]} is not supported", fix=f"known: {', '.join(MODES)}"
    )


def _table(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_list(path: Path) -> list[dict[str, Any]]:
    """modules.json is the one file whose top is a list."""
    try:
        raw = path.read_bytes()[: 1 << 20]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    listing = parse_json(b'{"modules": ' + raw + b"}", str(path))["modules"]
    right = isinstance(listing, list) and all(isinstance(m, dict) for m in listing)
    if not right or len(listing) > MAX_MODULES:
        raise CheckpointError(f"{path} is not a list of steps")
    result: list[dict[str, Any]] = listing
    return result
