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
        min_chars: Documents with fewer characters are dropped.
        valid_fraction: Share of the documents that is held out; 0 holds out nothing.
        seed: Of the held-out choice.
        split_on: What a document is in a .txt or .md file. "file": the file. "line": a line.
            "blank_line": a paragraph. "auto": the file, unless it is larger than 64 kB; then it
            is cut at blank lines into documents of about 4 kB, so that a part can be held out.
            Nothing is left out by "auto" and "blank_line": the documents of a file, put together,
            are the file.
        source_code: Read files of source code too (.py, .c, .js, …), each as text. Elsewhere they
            are passed over: scripts beside a collection of texts are no part of it.
        on_error: At a damaged file or a bad record: "stop" with an error that names it, or "skip"
            it, count it and go on.
        max_document_bytes: A longer document, or line of a .jsonl, .csv or .tsv, is an error.
        max_file_bytes: A larger file (decompressed) is an error.
        max_expansion: A compressed file may expand this many times (but always to 64 MB).
    """

    field: str = Field(default="text", min_length=1)
    repair: bool = False
    dedup: Literal["near", "exact", "none"] = "near"
    near_threshold: float = Field(default=0.8, gt=0, le=1)
    min_chars: int = Field(default=1, ge=0)
    valid_fraction: float = Field(default=0.05, ge=0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**63)
    split_on: Literal["auto", "file", "blank_line", "line"] = "auto"
    source_code: bool = False
    on_error: Literal["stop", "skip"] = "stop"
    max_document_bytes: int = Field(default=64 * 2**20, ge=1, lt=2**40)
    max_file_bytes: int = Field(default=2**40, ge=1, lt=2**63)
    max_expansion: float = Field(default=200.0, ge=1)
