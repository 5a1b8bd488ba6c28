"""Fixtures of the contract tests, and the corpus of word vectors as in tests/vectors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.vectors.conftest import two_subjects

__all__ = ["two_subjects", "unwritten_memory_is_nan"]


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    """Whatever is read before it was written shows as NaN in the result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
