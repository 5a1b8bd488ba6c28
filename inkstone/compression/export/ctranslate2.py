"""CTranslate2: a folder for its fast engine, of the families that its converters miss.

Folders of llama, bert, distilbert, roberta and t5 convert unchanged with CTranslate2's own
`ct2-transformers-converter`. The Transformer of 2017 and kin do not: for a pre-norm network
transformers has no class, and the converter for Marian takes an embedding of zeros for granted
where the decoder begins. Nor does a GPT-2 whose tokenizer has no unknown token, as one over bytes
needs none. They are written here, from CTranslate2's descriptions of a Transformer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from inkstone import registry
from inkstone.compression.export._base import Source
from inkstone.compression.export._ctranslate2_specs import gpt2, transformer
from inkstone.config import Progress
from inkstone.errors import ModelError
from inkstone.files import write_json

TYPES = ("float32", "float16", "bfloat16", "int16", "int8")  # CTranslate2's names
FOLDER = True
FAMILIES = ("transformer", "marian", "bart", "gpt2")
CONVERTED = ("llama", "bert", "distilbert", "roberta", "t5")
TOLERANCE = 1e-3  # nats between their log-probability of a token and ours, both in fp32
SAMPLE = 8  # texts that are compared


def write(
    source: Source, target: Path, kind: str, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Fill the folder, and compare what CTranslate2 makes of it with the model.

    Raises:
        ModelError: The family is written elsewhere or not at all; or the results differ.
        TokenizerError: There is no tokenizer: words have no names.
    """
    _check_family(source)
    ct2 = registry.extra("ctranslate2", "export")
    tokenizer, c = source.read_with(), source.model.config
    names = [tokenizer.backend.id_to_token(i) or f"[unused {i}]" for i in range(c.vocab_size)]
    decodes = source.family == "gpt2"
    spec = (gpt2 if decodes else transformer)(ct2, source.model)
    spec.config.eos_token = names[tokenizer.eos_id]
    spec.config.bos_token = names[_first(tokenizer.bos_id, tokenizer.eos_id)]
    spec.config.unk_token = names[_first(tokenizer.unk_id, tokenizer.eos_id)]
    # our tasks end a source with end-of-text; others' models have the frame of their tokenizer
    before, after = ([], [tokenizer.eos_id]) if "task" in source.info else tokenizer.frame()
    if decodes:
        spec.register_vocabulary(names)
    else:
        spec.register_source_vocabulary(names)
        spec.register_target_vocabulary(names)
        spec.config.decoder_start_token = names[c.start_id]
        spec.config.add_source_bos, spec.config.add_source_eos = bool(before), bool(after)
    progress(1, 3, "steps")
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    spec.save(str(target))
    progress(2, 3, "steps")
    if decodes:
        difference = _compare_logits(ct2, source.model, target)
    else:
        frame = before[:1], [tokenizer.eos_id] if after else []
        difference = _compare(ct2, source.model, target, names, frame, tokenizer.eos_id)
    if kind == "float32" and not difference <= TOLERANCE:
        raise ModelError(
            f"CTranslate2's log-probabilities differ from the model's by up to {difference:.1e}",
            fix="this is a bug: please report it with the folder's config.json",
        )
    tokenizer.save(target)
    write_json(target / "inkstone.json", {**source.info, "exported": {"type": kind}})
    use = _GENERATE.format(begin=spec.config.bos_token) if decodes else _TRANSLATE
    card = _CARD.format(name=source.name, use=use)
    (target / "README.md").write_text(card, encoding="utf-8")
    progress(3, 3, "steps")
    return {"max_difference": difference}, []


def _check_family(source: Source) -> None:
    if source.family in CONVERTED:
        raise ModelError(
            f"a {source.family} folder needs no export: CTranslate2 converts it unchanged",
            fix=f"ct2-transformers-converter --model {source.folder} --output_dir OUT",
        )
    if source.family not in FAMILIES:
        raise ModelError(
            f"CTranslate2 has no network like {source.family}",
            fix=f"it has {', '.join((*FAMILIES, *CONVERTED))}; export others to onnx",
        )


@torch.no_grad()
def _compare(
    ct2: Any, model: Any, folder: Path, names: list[str], frame: tuple[list[int], list[int]],
    eos_id: int,
) -> float:  # fmt: skip
    """Largest difference between their log-probabilities of some tokens and ours, in nats."""
    c = model.config
    draw = torch.Generator().manual_seed(0)
    longest = max(1, min(12, c.max_seq_len - 3))
    lengths = torch.randint(1, longest + 1, (SAMPLE, 2), generator=draw).tolist()
    texts = [
        [torch.randint(0, c.vocab_size, (n,), generator=draw) for n in pair] for pair in lengths
    ]
    engine = ct2.Translator(str(folder), device="cpu")
    scored = engine.score_batch(
        [[names[i] for i in s.tolist()] for s, _ in texts],
        [[names[i] for i in t.tolist()] for _, t in texts],
    )
    worst = 0.0
    for (s, t), found in zip(texts, scored, strict=True):
        start, end = torch.tensor([c.start_id]), torch.tensor([eos_id])
        read = torch.tensor([*frame[0], *s.tolist(), *frame[1]])
        logits = model(read[None], torch.cat([start, t])[None])
        wanted = torch.cat([t, end])
        ours = torch.log_softmax(logits[0].float(), -1).gather(1, wanted[:, None])[:, 0]
        worst = max(worst, float((ours - torch.tensor(found.log_probs)).abs().max()))
    return worst


@torch.no_grad()
def _compare_logits(ct2: Any, model: Any, folder: Path) -> float:
    """As `_compare`, of a decoder."""
    c = model.config
    draw = torch.Generator().manual_seed(0)
    engine = ct2.Generator(str(folder), device="cpu")
    ids = torch.randint(0, c.vocab_size, (SAMPLE, min(12, c.max_seq_len)), generator=draw)
    found = engine.forward_batch(ids.tolist(), return_log_probs=True)
    theirs = torch.from_numpy(np.array(found))
    return float((torch.log_softmax(model(ids).float(), -1) - theirs).abs().max())


def _first(number: int | None, otherwise: int) -> int:
    return otherwise if number is None else number


_CARD = """# {name}, for CTranslate2

```python
import ctranslate2
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
{use}```
"""
_TRANSLATE = """\
translator = ctranslate2.Translator(".")
source = tokenizer.encode("Hello.", add_special_tokens=False).tokens
target = translator.translate_batch([source], beam_size=4)[0].hypotheses[0]
print(tokenizer.decode([tokenizer.token_to_id(token) for token in target]))
"""
_GENERATE = """\
generator = ctranslate2.Generator(".")
start = ["{begin}", *tokenizer.encode("Once upon a time", add_special_tokens=False).tokens]
found = generator.generate_batch([start], max_length=64, sampling_topk=10)[0]
print(tokenizer.decode(found.sequences_ids[0]))
"""
