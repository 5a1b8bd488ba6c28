"""CTranslate2: a folder for its fast engine, of the encoder-decoders that its converters miss.

Folders of gpt2, llama, bert, distilbert, roberta and t5 convert unchanged with CTranslate2's own
`ct2-transformers-converter`. The Transformer of 2017 and kin do not: for a pre-norm network
transformers has no class, and the converter for Marian takes an embedding of zeros for granted
where the decoder begins. They are written here, from CTranslate2's description of a Transformer.
Shapes: B batch, S source time, T target time, V vocab, D d_model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inkstone import registry
from inkstone.compression.export._base import Source
from inkstone.config import Progress
from inkstone.errors import ModelError
from inkstone.files import write_json
from inkstone.nn.positions import sinusoids

TYPES = ("float32", "float16", "bfloat16", "int16", "int8")  # CTranslate2's names
FOLDER = True
FAMILIES = ("transformer", "marian", "bart")
CONVERTED = ("gpt2", "llama", "bert", "distilbert", "roberta", "t5")
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH"}
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
    spec = _spec(ct2, source.model)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.decoder_start_token = names[c.start_id]
    spec.config.bos_token = names[c.start_id if tokenizer.bos_id is None else tokenizer.bos_id]
    spec.config.eos_token = names[tokenizer.eos_id]
    if tokenizer.unk_id is not None:
        spec.config.unk_token = names[tokenizer.unk_id]
    # our tasks end a source with end-of-text; others' models have the frame of their tokenizer
    before, after = ([], [tokenizer.eos_id]) if "task" in source.info else tokenizer.frame()
    spec.config.add_source_bos, spec.config.add_source_eos = bool(before), bool(after)
    progress(1, 3, "steps")
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    spec.save(str(target))
    progress(2, 3, "steps")
    frame = before[:1], [tokenizer.eos_id] if after else []
    difference = _compare(ct2, source.model, target, names, frame, tokenizer.eos_id)
    if kind == "float32" and difference > TOLERANCE:
        raise ModelError(
            f"CTranslate2's log-probabilities differ from the model's by up to {difference:.1e}",
            fix="this is a bug: please report it with the folder's config.json",
        )
    tokenizer.save(target)
    write_json(target / "inkstone.json", {**source.info, "exported": {"type": kind}})
    (target / "README.md").write_text(_card(source), encoding="utf-8")
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


def _spec(ct2: Any, model: Any) -> Any:
    """CTranslate2's description of the network, filled with its weights."""
    c, enum = model.config, ct2.specs.Activation
    spec = ct2.specs.TransformerSpec.from_config(
        (c.n_layers, c.n_decoder_layers),
        c.n_heads,
        pre_norm=c.pre_norm,
        activation=getattr(enum, ACTIVATIONS[c.activation]),
        layernorm_embedding=c.embedding_norm,
    )
    words = _array(model.embed.weight)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = words
    spec.decoder.projection.weight = words
    if model.head_bias is not None and bool(model.head_bias.any()):
        spec.decoder.projection.bias = _array(model.head_bias)
    for there, side in ((spec.encoder, model.encoder), (spec.decoder, model.decoder)):
        there.scale_embeddings = math.sqrt(c.d_model) if c.scale_embedding else 1.0
        there.position_encodings.encodings = _positions(model, side)
        if c.embedding_norm:
            _norm(there.layernorm_embedding, side.embed_norm)
        if c.pre_norm:
            _norm(there.layer_norm, side.norm)
        for layer, block in zip(there.layer, side.blocks, strict=True):
            _attention(layer.self_attention, block.attention, block.attention_norm, own=True)
            if hasattr(block, "cross"):
                _attention(layer.attention, block.cross, block.cross_norm, own=False)
            _linear(layer.ffn.linear_0, block.up)
            _linear(layer.ffn.linear_1, block.down)
            _norm(layer.ffn.layer_norm, block.mlp_norm)
    return spec


def _positions(model: Any, side: Any) -> npt.NDArray[np.float32]:
    """[max_seq_len, D]."""
    c = model.config
    if side.position is not None:
        return _array(side.position.weight[model.first_position :])
    return _array(sinusoids(torch.arange(c.max_seq_len), c.d_model))


def _attention(there: Any, attention: Any, norm: Any, *, own: bool) -> None:
    """Maps that read the same stand in one."""
    _norm(there.layer_norm, norm)
    if own:
        _linear(there.linear[0], attention.q, attention.k, attention.v)
    else:
        _linear(there.linear[0], attention.q)
        _linear(there.linear[1], attention.k, attention.v)
    _linear(there.linear[-1], attention.o)


def _linear(there: Any, *maps: Any) -> None:
    there.weight = _array(torch.cat([m.weight for m in maps]))
    there.bias = _array(torch.cat([m.bias for m in maps]))


def _norm(there: Any, norm: Any) -> None:
    there.gamma, there.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A copy: CTranslate2 quantizes in place."""
    return np.array(tensor.detach().to("cpu", torch.float32).numpy())


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


def _card(source: Source) -> str:
    return f"""# {source.name}, for CTranslate2

```python
import ctranslate2
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
translator = ctranslate2.Translator(".")
source = tokenizer.encode("Hello.", add_special_tokens=False).tokens
target = translator.translate_batch([source], beam_size=4)[0].hypotheses[0]
print(tokenizer.decode([tokenizer.token_to_id(token) for token in target]))
```
"""
