"""OpenAI's `*.tiktoken` files: a token in base64 and its rank on each line.

The ranks are ids and, at once, the order in which neighbours are joined: always the pair whose
union has the lowest rank. What cuts a text into words and which control tokens follow is not in the
file; it is known here for the vocabularies of GPT-2 and Whisper (Radford et al. 2019, 2022).
"""

from __future__ import annotations

import base64
import binascii

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from inkstone.tokenizers.alphabet import byte_characters

MAX_TOKENS = 1 << 22
END = "<|endoftext|>"
LANGUAGES = (  # noqa: SIM905  Whisper's, in the order of their ids; the released files hold the first 99
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su"
).split()
WHISPER = (
    END, "<|startoftranscript|>", *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>", *(f"<|{number * 0.02:.2f}|>" for number in range(1501)),
)  # fmt: skip
CONTROL = {  # by the name of the file, as it is released
    "gpt2.tiktoken": WHISPER,
    "multilingual.tiktoken": WHISPER,
    "r50k_base.tiktoken": (END,),
}


def read(data: bytes) -> list[bytes]:
    """The tokens in the order of their ranks.

    Raises:
        ValueError: A line is malformed, a rank is missing, or a byte has no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        parts = line.split()
        try:
            token = b"" if parts[0] == b"=" else base64.b64decode(parts[0], validate=True)
            ranks[token] = int(parts[1])  # Whisper has an empty one, which no text gives
        except (IndexError, ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token and its rank") from error
        if number > MAX_TOKENS:
            raise ValueError(f"it lists more than {MAX_TOKENS:,} tokens")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks do not count up from 0, or a token stands twice")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError("a single byte has no token")
    return sorted(ranks, key=ranks.__getitem__)


def build(tokens: list[bytes], name: str) -> tokenizers.Tokenizer:
    """Byte-level BPE with the same ids.

    Args:
        tokens: In the order of their ranks.
        name: Of the file.

    Raises:
        ValueError: How this vocabulary cuts its words is not known here.
    """
    if name not in CONTROL:
        raise ValueError(
            f"how {name[:100]!r} cuts a text into words is not known here; known: "
            f"{', '.join(CONTROL)}"
        )
    known = set(tokens)
    letters = byte_characters()
    written = {token: "".join(map(letters.__getitem__, token)) for token in tokens}
    merges = [  # every split of a token: any two neighbours that make it may be joined
        (written[token[:cut]], written[token[cut:]])
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in known and token[cut:] in known
    ]
    vocab = {written[token]: rank for rank, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in CONTROL[name]]
    )
    return backend
