"""Control tokens by the part they play, and the frame that a family of models expects of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import processors

N_SENTINELS = 100  # of T5 (Raffel et al. 2020, released vocabulary)


@dataclass(frozen=True)
class Roles:
    """What a tokenizer is trained with, beside its pieces.

    Attributes:
        specials: Control tokens; their ids follow in this order.
        names: The token of each role, as transformers calls the roles.
        single: The frame of a text, in the notation of `TemplateProcessing`; $A is the text.
        pair: The frame of two texts, $A and $B.
    """

    specials: tuple[str, ...]
    names: Mapping[str, str]
    single: str
    pair: str

    def dress(self, backend: tokenizers.Tokenizer) -> None:
        """Make the library, and with it transformers, add the frame where it is asked for one."""
        words = {word.partition(":")[0] for word in (*self.single.split(), *self.pair.split())}
        tokens = sorted(word for word in words if not word.startswith("$"))
        backend.post_processor = processors.TemplateProcessing(
            single=self.single,
            pair=self.pair,
            special_tokens=[(token, backend.token_to_id(token)) for token in tokens],
        )


BERT = Roles(
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    {
        "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
        "sep_token": "[SEP]", "mask_token": "[MASK]",
    },
    "[CLS] $A [SEP]",
    "[CLS] $A [SEP] $B:1 [SEP]:1",
)  # fmt: skip
ROBERTA = Roles(  # and BART
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    {
        "eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>",
    },
    "<s> $A </s>",
    "<s> $A </s> </s> $B </s>",
)  # fmt: skip
T5 = Roles(
    ("<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(N_SENTINELS))),
    {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "$A </s>",
    "$A </s> $B </s>",
)
