"""A GPT-2 that says the last NONCE tokens of its prompt again and again, by weights set by hand.

Its one head looks, from every place, at the place NONCE − 1 before, and says what stands there: so
each answer tells whose keys and values it was made of, and when. Places and tokens have a dimension
of their own each, which makes every score exact in bf16, too.
"""

from __future__ import annotations

from pathlib import Path

import torch

from inkstone.checkpoint import save_model
from inkstone.models import gpt2
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

NONCE = 16  # characters, each of them a token
PLACES, TOKENS = 256, 320
SHARP = 3.0  # the place that is looked at scores e³⁶ times any other
LOUD = 4.0  # of what is said, against the token itself


def tokenizer() -> Tokenizer:
    """A token for every byte."""
    return train(["any text"], TokenizerConfig(kind="byte"))


def copy_model() -> gpt2.Model:
    """The network."""
    words, width = tokenizer().vocab_size, PLACES + TOKENS
    assert words <= TOKENS
    shape = {"vocab_size": words, "max_seq_len": PLACES, "d_model": width, "d_ff": 64}
    model = gpt2.Model(gpt2.Config(**shape, n_layers=1, n_heads=1))
    block = model.blocks[0]
    assert isinstance(block, gpt2.Block)
    own = torch.eye(width)
    places, tokens = own[:PLACES], own[PLACES:]
    with torch.no_grad():
        for p in (*block.parameters(), *model.norm.parameters()):
            p.zero_()
        for norm in (block.attention_norm, block.mlp_norm, model.norm):
            norm.weight.fill_(1.0)
        model.position.weight.copy_(places)
        model.embed.weight.copy_(tokens[:words])
        block.k.weight[:PLACES] = places
        for place in range(PLACES - NONCE + 1):  # asked for by the place NONCE - 1 behind it
            block.q.weight[place] = SHARP * own[place + NONCE - 1]
        block.v.weight[PLACES:] = tokens
        block.o.weight[PLACES:] = LOUD * tokens
    return model.eval()


def save(folder: Path) -> Path:
    """The model as a folder that `inkstone serve` opens."""
    folder.mkdir()
    save_model(folder, copy_model(), tokenizer())
    return folder


def answer(nonce: str, tokens: int) -> str:
    """What it says of a prompt that ends with `nonce`."""
    return (nonce * (1 + tokens // len(nonce)))[:tokens]
