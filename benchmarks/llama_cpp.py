"""llama.cpp itself, through a package that brings it compiled: what our files are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cyllama.llama import llama_cpp as binding

binding.disable_logging()
F32, NO_POOLING = 0, 0


class _Model(binding.LlamaModel):
    @property
    def n_vocab(self) -> int:  # its context asks for it
        return int(self.get_vocab().n_vocab)


class Opened:
    """A GGUF file in llama.cpp, computed in fp32 on one thread."""

    def __init__(self, path: Path) -> None:
        settings = binding.LlamaModelParams()
        settings.n_gpu_layers = 0
        self.model = _Model(str(path), settings, verbose=False)
        self.vocabulary = self.model.get_vocab()

    def encode(self, text: str, *, framed: bool = False) -> list[int]:
        """Ids of a user's text, in which nothing is a control token."""
        return list(self.vocabulary.tokenize(text, framed, False))

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """[T, V], each token read after those before, as in generation."""
        context = self._context(len(ids), embeddings=False)
        rows = []
        for place, token in enumerate(ids):
            batch = binding.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
            batch.add(token, place, [0], True)
            context.decode(batch)
            rows.append(context.get_logits())
        return np.array(rows, np.float32)

    def states(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """[T, D] of an encoder."""
        context = self._context(len(ids), embeddings=True)
        batch = binding.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for place, token in enumerate(ids):
            batch.add(token, place, [0], True)
        context.encode(batch)
        rows = [context.get_embeddings_ith(i) for i in range(len(ids))]
        return np.array(rows, np.float32)

    def _context(self, length: int, *, embeddings: bool) -> binding.LlamaContext:
        settings = binding.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(32, length)
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = F32
        settings.embeddings = embeddings
        if embeddings:
            settings.pooling_type = NO_POOLING
        return binding.LlamaContext(self.model, settings)
