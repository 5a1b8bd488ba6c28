"""What tokens are called as words: in a table of word vectors, or to look them up in one."""

from __future__ import annotations

from inkstone.tokenizers.tokenizer import Tokenizer


def word_names(tokenizer: Tokenizer) -> list[str]:
    """A name for each token; all different, "" where it is no word.

    A token that begins a word, or stands where scripts know no spaces, is called by what it spells:
    "water", "水". A piece whose name is taken by such a token gets "##", as in WordPiece. White
    space and control tokens are no words; a part of a character keeps the tokenizer's own name.
    """
    own = [tokenizer.backend.id_to_token(token) or "" for token in range(tokenizer.vocab_size)]
    spelled = [_spelled(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    begins = {text[1:] for text in spelled if text and text[0] == " "}
    names: list[str] = []
    seen: set[str] = set()
    for token, (name, text) in enumerate(zip(own, spelled, strict=True)):
        if text is not None and text[:1] == " ":
            name = text[1:]
        elif text is not None:
            name = f"##{text}" if text in begins or name == f"##{text}" else text
        fits = token not in tokenizer.special_ids and not any(c.isspace() for c in name)
        names.append(name if fits and name not in seen else "")
        seen.add(names[-1])
    return names


def _spelled(raw: bytes) -> str | None:
    """Text of a token; None for a part of a character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
