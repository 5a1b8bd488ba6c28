"""The corpus of word vectors, as in tests/vectors."""

from __future__ import annotations

from tests.vectors.conftest import two_subjects

__all__ = ["two_subjects"]
