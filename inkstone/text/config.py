"""Settings of reading and cleaning text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inkstone.config import Section


class TextConfig(Section):
    """How files become clean documents.

    Attributes:
        field: Column or key that holds the text in .jsonl, .csv, .tsv and .parquet.
        repair: Mend mojibake with ftfy (extra `data`).
        dedup: "near" drops exact and near duplicates, "exact" only equal ones, "none" nothing.
        near_threshold: Jaccard similarity of word 5-grams from which documents count as near.
        min_chars: Shorter documents are dropped.
        valid_fraction: Share of the documents that is held out.
        seed: Of the held-out choice.
        split_on: What a document is in a .txt or .md file. "auto": the file, unless it is larger
            than 64 kB; then paragraphs in groups of about 4 kB, so that a part can be held out.
        on_error: "stop" at a damaged file or row, or "skip" and count it.
        max_document_bytes: A longer document is an error.
        max_file_bytes: A larger file (decompressed) is an error.
        max_expansion: A compressed file may expand this many times.
    """

    field: str = "text"
    repair: bool = False
    dedup: Literal["near", "exact", "none"] = "near"
    near_threshold: float = Field(0.8, gt=0, le=1)
    min_chars: int = Field(1, ge=0)
    valid_fraction: float = Field(0.05, ge=0, le=0.5)
    seed: int = Field(0, ge=0, lt=2**63)
    split_on: Literal["auto", "file", "blank_line", "line"] = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    max_document_bytes: int = Field(64 * 2**20, ge=1)
    max_file_bytes: int = Field(2**40, ge=1)
    max_expansion: float = Field(200.0, ge=1)
