"""Word vectors as a folder, and as the beginning of another model's embedding.

`config.json` (family and settings), `vectors.safetensors` ("words", and "ngrams" for fastText),
`words.json` (words and counts), `inkstone.json` (where it comes from), `README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from inkstone import __version__
from inkstone.checkpoint.tensors import read_header, read_tensor, write_tensors
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import MANIFEST, read_json, recover, verify_folder, write_json
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.words import word_names
from inkstone.vectors import formats
from inkstone.vectors.subwords import NGrams
from inkstone.vectors.table import Vectors

PREFIX = "inkstone_"  # of config.json's model_type
WEIGHTS, WORDS = "vectors.safetensors", "words.json"
MAX_WORDS_BYTES = 1 << 31


def save_vectors(
    folder: Path,
    vectors: Vectors,
    *,
    family: str,
    config: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Fill an existing folder, usually the private one of `atomic_folder`.

    Raises:
        OSError: The disk is full or failing.
    """
    tensors = {"words": torch.from_numpy(vectors.matrix)}
    if vectors.ngram_matrix is not None:
        tensors["ngrams"] = torch.from_numpy(vectors.ngram_matrix)
    write_tensors(folder / WEIGHTS, tensors)
    counts = None if vectors.counts is None else vectors.counts.tolist()
    text = json.dumps({"words": vectors.words, "counts": counts}, ensure_ascii=False)
    (folder / WORDS).write_text(text, encoding="utf-8", errors="surrogatepass")
    sizes: dict[str, Any] = {"vocab_size": len(vectors), "d_model": vectors.d_model}
    if vectors.ngrams is not None:
        n = vectors.ngrams
        sizes |= {"min_n": n.min_n, "max_n": n.max_n, "buckets": n.buckets}
    write_json(folder / "config.json", {**config, "model_type": PREFIX + family, **sizes})
    about = {"format": 1, "inkstone": __version__, "family": family, **(info or {})}
    write_json(folder / "inkstone.json", about)
    (folder / "README.md").write_text(_card(vectors, about), encoding="utf-8")


def is_vectors(folder: Path) -> bool:
    """Whether the folder was written by `save_vectors`."""
    return (folder / WORDS).is_file() and (folder / WEIGHTS).is_file()


def load_vectors(folder: Path | str) -> Vectors:
    """Open a folder that `save_vectors` wrote.

    Raises:
        CheckpointError: A file is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    recover(folder)
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    config = read_json(folder / "config.json")
    d_model, size = config.get("d_model"), config.get("vocab_size")
    table = read_json(folder / WORDS, max_bytes=MAX_WORDS_BYTES)
    words, counts = table.get("words"), table.get("counts")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise CheckpointError(f"{folder / WORDS}: no list of words")
    if counts is not None and not (
        isinstance(counts, list)
        and len(counts) == len(words)
        and all(type(c) is int and 0 <= c < 1 << 63 for c in counts)
    ):
        raise CheckpointError(f"{folder / WORDS}: the counts do not fit the words")
    shapes = {"words": (size, d_model)}
    ngrams = _ngrams(config, folder)
    if ngrams is not None:
        shapes["ngrams"] = (ngrams.buckets, d_model)
    entries = read_header(folder / WEIGHTS)
    found = {name: entry.shape for name, entry in entries.items()}
    if found != shapes or any(e.dtype != torch.float32 for e in entries.values()):
        raise CheckpointError(f"{folder / WEIGHTS}: holds {found} instead of {shapes} in fp32")
    arrays = {name: read_tensor(name, entry).numpy() for name, entry in entries.items()}
    try:
        return Vectors(
            tuple(words),
            arrays["words"],
            counts=None if counts is None else np.array(counts, np.int64),
            ngrams=ngrams,
            ngram_matrix=arrays.get("ngrams"),
            info=read_json(folder / "inkstone.json"),
        )
    except ModelError as error:
        raise CheckpointError(f"{folder}: {error.message}") from error


def open_vectors(source: Path | str) -> Vectors:
    """Word vectors of a run or a model folder, or of a word2vec or GloVe file.

    Raises:
        DataError: The file is damaged or of another format.
        CheckpointError: The folder holds no word vectors.
    """
    path = Path(source)
    return formats.read(path) if path.is_file() else load_vectors(_folder_of(path))


def find_files(source: Path | str) -> list[Path]:
    """The files whose bytes are the vectors of `source`; errors as of `open_vectors`."""
    path = Path(source)
    if path.is_file():
        return [path]
    folder = _folder_of(path)
    return [folder / WEIGHTS, folder / WORDS]


def _folder_of(source: Path) -> Path:
    for folder in (source, source / "model"):
        if is_vectors(folder):
            return folder
    raise CheckpointError(
        f"{source} holds no word vectors",
        fix="train them: inkstone train word2vec-text8 --data FOLDER --run runs/words",
    )


def initialize_embedding(model: Any, tokenizer: Tokenizer, vectors: Vectors) -> int:
    """Put word vectors into the rows of a model's token embedding, in place.

    A token takes the vector of the word that it is (`tokenizers.words`), as it stands or in lower
    case; from n-grams (fastText) any token of letters has one. Rows that find no word stay as they
    were; those that do are scaled to the spread that the embedding was initialised with, so that
    the layers above see what they expect.

    Args:
        model: Its `param_groups()["embedding"]` holds the token embedding, [vocab_size, D].
        tokenizer: The model's.
        vectors: Of length D.

    Returns:
        How many tokens found their word.

    Raises:
        ModelError: The vectors are of another length, the model has no token embedding, or no token
            is a word that has a vector.
    """
    weight = _token_embedding(model)
    check_size(vectors, weight.shape[1])
    found = {
        token: vector
        for token, name in enumerate(word_names(tokenizer))
        if name and (vector := _vector(vectors, name)) is not None
    }
    if not found:
        raise ModelError(
            f"none of the {len(vectors):,} words with a vector is a token of the model",
            fix="train the vectors on text of the same language, cut into words",
        )
    chosen = torch.from_numpy(np.stack(list(found.values())))
    with torch.no_grad():
        spread = weight[: tokenizer.vocab_size].float().std().cpu()
        spread = spread if spread > 0 else torch.tensor(0.02)
        chosen = chosen * (spread / chosen.square().mean().sqrt().clamp_min(1e-12))
        index = torch.tensor(list(found), device=weight.device)
        weight[index] = chosen.to(weight.device, weight.dtype)
    return len(found)


def check_size(vectors: Vectors, d_model: int) -> None:
    """Whether the vectors fit an embedding of `d_model` numbers.

    Raises:
        ModelError: They do not.
    """
    if vectors.d_model != d_model:
        raise ModelError(
            f"vectors of {vectors.d_model} numbers do not fit an embedding of {d_model}",
            fix=f"set model.d_model={vectors.d_model}, or train vectors of {d_model}",
        )


def _vector(vectors: Vectors, name: str) -> npt.NDArray[np.float32] | None:
    for word in (name, name.lower()):
        if word in vectors or (name.isalpha() and vectors.ngrams and vectors.ngrams.of(word)):
            return vectors[word]
    return None


def _token_embedding(model: Any) -> torch.Tensor:
    size = model.config.vocab_size
    for parameter in model.param_groups().get("embedding", ()):
        if len(parameter) == size:  # the first: tokens come before positions
            weight: torch.Tensor = parameter
            return weight
    raise ModelError(f"the model has no embedding of {size:,} tokens")


def _ngrams(config: Mapping[str, Any], folder: Path) -> NGrams | None:
    if "buckets" not in config:
        return None
    values = [config.get(name) for name in ("min_n", "max_n", "buckets")]
    if not all(type(v) is int and 0 <= v < 1 << 31 for v in values) or not values[2]:
        raise CheckpointError(f"{folder / 'config.json'}: min_n, max_n, buckets = {values}")
    return NGrams(*values)  # type: ignore[arg-type]


def _card(vectors: Vectors, about: Mapping[str, Any]) -> str:
    scores = about.get("scores") or {}
    table = "".join(f"| {name} | {value} |\n" for name, value in scores.items())
    return (
        "---\nlibrary_name: inkstone\ntags: [word-vectors, inkstone]\n---\n\n"
        f"# {about['family']} vectors\n\n{len(vectors):,} words, {vectors.d_model} numbers each, "
        f"trained with Inkstone {about['inkstone']}.\n\n"
        '```python\nimport inkstone as ink\nprint(ink.load(".").most_similar("water"))\n```\n\n'
        + (f"| score | value |\n|---|---|\n{table}\n" if table else "")
        + "## Limits\n\nThe vectors carry the associations of their text, prejudices among them.\n"
    )
