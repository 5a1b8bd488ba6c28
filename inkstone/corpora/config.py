"""Settings of token shards and of packing."""

from __future__ import annotations

from pydantic import Field

from inkstone.config import Section


class CorpusConfig(Section):
    """How documents become training rows.

    Attributes:
        seq_len: Tokens a row; None lets planning choose.
        shard_tokens: Tokens a shard file holds at most.
        workers: Threads that encode; None means one a core.
        mask_documents: Attention and loss do not cross document boundaries.
        seed: Order of the rows.
    """

    seq_len: int | None = Field(None, ge=1, le=2**22)
    shard_tokens: int = Field(2**26, ge=1024, le=2**32)
    workers: int | None = Field(None, ge=1, le=1024)
    mask_documents: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
