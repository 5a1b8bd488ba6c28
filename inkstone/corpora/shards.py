"""Token shards: flat little-endian ids on disk, memory-mapped, with a manifest of hashes.

`manifest.json` lists the shards; `shard-00000.bin` holds ids as uint16 or uint32, and
`shard-00000.idx` the start of each of its documents as uint64. Each document ends in end-of-text.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.files import sha256

MANIFEST = "manifest.json"


class Shard(Section):
    """One shard file: its stem, counts and sha256 sums."""

    name: str = Field(pattern=r"^shard-\d{5,}$")
    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)
    sha256_bin: str
    sha256_idx: str


class Manifest(Section):
    """What a corpus folder holds."""

    format: int = Field(1, ge=1, le=1)
    dtype: str = Field(pattern="^<u[24]$")
    eos_id: int = Field(ge=0)
    vocab_size: int = Field(ge=1)
    tokenizer: str
    n_bytes: int = Field(ge=0)
    shards: tuple[Shard, ...]


class Corpus:
    """Read-only view of a folder of token shards; opening it reads the manifest only.

    Args:
        folder: Where `prepare` wrote.
        verify: Also compare every file with its hash.

    Raises:
        DataError: Not a corpus, or a file is missing, of the wrong size or damaged.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            raw = path.read_bytes()
            self.manifest = Manifest.model_validate_json(raw)
        except (OSError, ValidationError, ValueError) as error:
            raise DataError(
                f"{path} is not the manifest of a corpus: {str(error).splitlines()[0]}",
                fix="delete the folder; it is made again from the text",
            ) from error
        self.fingerprint = hashlib.sha256(raw).hexdigest()
        self.dtype = np.dtype(self.manifest.dtype)
        self._starts = [0]
        self._first_document = [0]
        for shard in self.manifest.shards:
            self._check(shard, verify)
            self._starts.append(self._starts[-1] + shard.tokens)
            self._first_document.append(self._first_document[-1] + shard.documents)

    @property
    def n_tokens(self) -> int:
        return self._starts[-1]

    @property
    def n_documents(self) -> int:
        return self._first_document[-1]

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text that the tokens spell (end-of-text excluded)."""
        return self.manifest.n_bytes

    def tokens(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Ids from `start` to `stop`, across shards; a view where one shard holds them all."""
        assert 0 <= start <= stop <= self.n_tokens
        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        pieces = []
        for number in range(first, len(self.manifest.shards)):
            base = self._starts[number]
            if base >= stop:
                break
            pieces.append(self._ids(number)[max(0, start - base) : stop - base])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    @functools.cached_property
    def document_starts(self) -> npt.NDArray[np.uint64]:
        """Position of every document's first token, in order."""
        parts = [
            self._map(shard, ".idx", np.dtype("<u8"), shard.documents) + np.uint64(base)
            for shard, base in zip(self.manifest.shards, self._starts, strict=False)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def document(self, number: int) -> npt.NDArray[Any]:
        """Ids of one document, its end-of-text included."""
        starts = self.document_starts
        end = int(starts[number + 1]) if number + 1 < len(starts) else self.n_tokens
        return self.tokens(int(starts[number]), end)

    def _ids(self, number: int) -> npt.NDArray[Any]:
        if not hasattr(self, "_maps"):
            self._maps: dict[int, npt.NDArray[Any]] = {}
        if number not in self._maps:
            shard = self.manifest.shards[number]
            self._maps[number] = self._map(shard, ".bin", self.dtype, shard.tokens)
        return self._maps[number]

    def _map(self, shard: Shard, suffix: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        if count == 0:
            return np.empty(0, dtype)
        return np.memmap(self.folder / (shard.name + suffix), dtype, "r", shape=(count,))

    def _check(self, shard: Shard, verify: bool) -> None:
        expected = {
            ".bin": (shard.tokens * self.dtype.itemsize, shard.sha256_bin),
            ".idx": (shard.documents * 8, shard.sha256_idx),
        }
        for suffix, (size, digest) in expected.items():
            path = self.folder / (shard.name + suffix)
            try:
                actual = path.stat().st_size
                sound = actual == size and (not verify or sha256(path) == digest)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            if not sound:
                raise DataError(
                    f"{path} is damaged (its size or hash is not the manifest's)",
                    fix="delete the folder; it is made again from the text",
                )


class ShardWriter:
    """Appends encoded documents to shards in `folder`; `finish` writes the manifest.

    Args:
        folder: An existing, private folder (the caller makes it appear atomically).
        vocab_size: Ids are below this; uint16 is used where they fit.
        eos_id: Appended to every document.
        shard_tokens: Tokens a shard holds at most, unless one document is longer.
    """

    def __init__(self, folder: Path, *, vocab_size: int, eos_id: int, shard_tokens: int) -> None:
        self.folder, self.vocab_size, self.eos_id = folder, vocab_size, eos_id
        self.shard_tokens = shard_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.n_tokens = 0
        self._shards: list[Shard] = []
        self._open()

    def write(self, ids: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> None:
        """Append documents: `ids` flat, document i being ids[offsets[i]:offsets[i + 1]]."""
        count = len(offsets) - 1
        if count <= 0:
            return
        lengths = np.diff(offsets)
        # room for one end-of-text behind every document
        starts = offsets[:-1] - offsets[0] + np.arange(count)
        flat = np.empty(int(lengths.sum()) + count, self.dtype)
        ends = starts + lengths
        flat[ends] = self.eos_id
        keep = np.ones(len(flat), bool)
        keep[ends] = False
        flat[keep] = ids[offsets[0] : offsets[-1]]
        if self._tokens and self._tokens + len(flat) > self.shard_tokens:
            self._close()
            self._open()
        self._bin.write(flat.tobytes())
        index = (starts + self._tokens).astype("<u8").tobytes()
        self._idx.write(index)
        self._hash_bin.update(flat.tobytes())
        self._hash_idx.update(index)
        self._tokens += len(flat)
        self._documents += count
        self.n_tokens += len(flat)

    def finish(self, *, tokenizer: str, n_bytes: int) -> None:
        """Close the last shard and write the manifest."""
        self._close()
        manifest = Manifest(
            dtype=self.dtype.str,
            eos_id=self.eos_id,
            vocab_size=self.vocab_size,
            tokenizer=tokenizer,
            n_bytes=n_bytes,
            shards=tuple(self._shards),
        )
        content = json.dumps(manifest.model_dump(), indent=1)
        (self.folder / MANIFEST).write_text(content, encoding="utf-8")

    def _open(self) -> None:
        stem = self.folder / f"shard-{len(self._shards):05d}"
        self._bin = open(stem.with_suffix(".bin"), "wb")  # noqa: SIM115 - closed in _close
        self._idx = open(stem.with_suffix(".idx"), "wb")  # noqa: SIM115
        self._hash_bin, self._hash_idx = hashlib.sha256(), hashlib.sha256()
        self._tokens = self._documents = 0

    def _close(self) -> None:
        self._bin.close()
        self._idx.close()
        self._shards.append(
            Shard(
                name=f"shard-{len(self._shards):05d}",
                tokens=self._tokens,
                documents=self._documents,
                sha256_bin=self._hash_bin.hexdigest(),
                sha256_idx=self._hash_idx.hexdigest(),
            )
        )
