"""A small model that has really learned something, of every family that is exported."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone import registry
from inkstone.compression.export import Source
from inkstone.text.embedded import python_prose
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.roles import BERT, ROBERTA
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

SHAPE = {"max_seq_len": 128, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 160}
NASTY = [
    "The quick brown fox, isn't it? WE'LL see; they've won 1234567 times in 2026.",
    "  leading and   inner    runs\tof\t\twhite space \n\n\n  and lines\r\n\r\nCRLF  \n ",
    "在明朝，一千零一夜的故事是怎么传到中国来的？价格是￥3,456.78元。",
    "日本語のテキストと한국어 텍스트, ไทย, हिन्दी में, العربية ١٢٣٤, עִבְרִית.",
    "emoji 😀👩‍👩‍👧‍👦🇨🇳👍🏽 and ligatures ﬁ ﬂ, naïve café déjà-vu Ångström ÀÉÎÕÜ",
    "e\u0301 decomposed, \u200bzero width\u200d, \u00a0no break\u3000ideographic",
    "<|endoftext|> <|user|> </s> <s> [CLS] [SEP] [MASK] <unk> <0x0A> are plain text",
    "def f(x):\n    return x**2  # ½ ² ³ Ⅷ ㊿ ① 10_000\n\tif x != 0xFF: pass",
    "a" * 70 + " " + "=" * 40 + " " * 40 + "…—–“”‘’«»",
    "İstanbul ſharp s ß ΣΊΣΥΦΟΣ 'S 'LL 'Ve it's I'D o'clock 'tis",
    "\u0000nul and \ufeffbom and \u0085next line\u2028separator\x0bvertical",
    "",
    " ",
    "\n",
    "x",
]


@functools.cache
def prose(n_chars: int = 200_000) -> str:
    """English text, and some of other scripts so that a vocabulary knows them."""
    texts = itertools.islice((d.text for d in python_prose()), 60)
    return ("\n\n".join(texts) + "\n".join(NASTY) * 20)[-n_chars:]


@functools.cache
def tokenizer(kind: str = "bpe", pattern: str = "modern", roles: str = "") -> Tokenizer:
    settings = TokenizerConfig.model_validate(
        {"kind": kind, "pattern": pattern, "vocab_size": 700, "lowercase": kind == "wordpiece"}
    )
    played = {"bert": BERT, "roberta": ROBERTA}.get(roles)
    return train([prose()], settings, roles=played)


def shaken(name: str, words: Tokenizer | None, **extra: Any) -> Any:
    """A model far from where learning begins; its vocabulary has rows to spare."""
    family = registry.load("models", name)
    size = {"vocab_size": 67 if words is None else words.vocab_size + 4}
    torch.manual_seed(3)
    model = family.Model(family.Config(**{**SHAPE, **size, **extra})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 / p.shape[-1] ** 0.5))
    return model


@functools.cache
def learned(name: str, **extra: Any) -> Any:
    """A causal model after a few seconds of learning."""
    words = tokenizer()
    family = registry.load("models", name)
    torch.manual_seed(1)
    model = family.Model(family.Config(**{**SHAPE, "vocab_size": words.vocab_size, **extra}))
    ids = torch.tensor(words.encode(prose()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    draw = torch.Generator().manual_seed(2)
    for _ in range(150):
        starts = torch.randint(0, len(ids) - 65, (8,), generator=draw)
        rows = torch.stack([ids[s : s + 65] for s in starts.tolist()])
        loss = torch.nn.functional.cross_entropy(
            model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 5.0, "the model learned nothing"
    return model.eval()


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    """Something to export, from a folder that holds nothing else."""

    def make(model: Any, words: Tokenizer | None = None, **info: Any) -> Source:
        return Source(tmp_path / "model", model, words, {"inkstone": "0", **info})

    return make
