"""What a student begins as: a smaller shape of its teacher's family, or a model that is there.

A student of the teacher's width takes layers of the teacher at equal distances (Sanh et al. 2019,
"DistilBERT", section 3); whatever has another shape begins at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from inkstone import registry
from inkstone.compression.quantize import check_floats
from inkstone.compression.structure import check_layers, family_of, spread, with_layers
from inkstone.errors import ModelError, UsageError
from inkstone.models._base import adopt

READS = ("vocab_size", "head", "n_labels", "n_token_types", "char_vocab_size")  # what it is given


def smaller(teacher: Any, shape: Mapping[str, Any]) -> Any:
    """A student of another shape.

    Args:
        teacher: It stays as it is.
        shape: Settings of its `Config` that are to differ: {"n_layers": 3}.

    Raises:
        UsageError: A setting is unknown or impossible, or must be the teacher's.
    """
    check_floats(teacher)
    config = type(teacher.config)
    for name in shape:
        if name not in config.model_fields:
            raise UsageError(
                f"a {family_of(teacher)} has no setting model.{name}",
                fix=registry.did_you_mean(name, sorted(config.model_fields)),
            )
        if name in READS:
            raise UsageError(
                f"model.{name} of a student is its teacher's", fix="leave it out of --distill"
            )
    values = teacher.config.model_dump()
    for name, field in config.model_fields.items():  # "0: 4 · d_model": follows what has changed
        rule = field.description or ""
        if rule.startswith("0:") and name not in shape and any(x in rule for x in shape):
            values[name] = 0
    try:
        wanted = config(**(values | dict(shape)))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "shape"
        raise UsageError(f"--distill: model.{where}: {problem['msg']}") from error
    with torch.device(teacher.device):
        student = type(teacher)(wanted)
    begin = teacher
    if wanted.n_layers != teacher.config.n_layers:
        check_layers(teacher)
        begin = with_layers(
            teacher, spread(wanted.n_layers, teacher.config.n_layers, teacher.period)
        )
    adopt(student, begin)
    student.compute_dtype = teacher.compute_dtype
    return student


def with_head_of(teacher: Any, network: Any) -> Any:
    """A network that is there as a student: with the outputs of its teacher.

    Raises:
        ModelError: It has other words, or is of a family that cannot have these outputs.
    """
    check_floats(network)
    theirs, ours = teacher.config, network.config
    if ours.vocab_size != theirs.vocab_size:
        raise ModelError(
            f"the student has {ours.vocab_size:,} words, its teacher {theirs.vocab_size:,}",
            fix="train one by its teacher's tokenizer, or give a shape: --distill model.n_layers=3",
        )
    kinds = [registry.load("models", family_of(m)).KIND for m in (teacher, network)]
    if kinds[0] != kinds[1]:
        raise ModelError(f"a student of kind {kinds[1]} cannot learn from one of kind {kinds[0]}")
    shared = ("head", "n_labels", "pooler")
    outputs = {k: getattr(theirs, k) for k in shared if hasattr(theirs, k) and hasattr(ours, k)}
    if all(getattr(ours, name) == value for name, value in outputs.items()):
        return network
    student = type(network)(type(ours)(**(ours.model_dump() | outputs)))
    adopt(student, network)
    student.compute_dtype = teacher.compute_dtype
    return student
