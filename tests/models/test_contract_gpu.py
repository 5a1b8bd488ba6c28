"""What every neural family promises where there is a GPU: what it is on a CPU, it is there."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch

from inkstone.device import pick_device
from inkstone.nn.loss import chunked_cross_entropy
from tests.models import test_contract, test_contract_encoders

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

CAUSAL = test_contract._cases()
EITHER = [case for kind in ("encoder", "seq2seq") for case in test_contract_encoders._cases(kind)]
causal = pytest.mark.parametrize(("family", "config"), CAUSAL)
every = pytest.mark.parametrize(("family", "config"), CAUSAL + EITHER)


def _pair(family: ModuleType, config: dict[str, Any]) -> tuple[Any, Any]:
    """The same model on the CPU and on the GPU."""
    here = test_contract._build(family, config)
    return here, copy.deepcopy(here).to(pick_device("cuda"))


def _inputs(family: ModuleType) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Rows of unequal lengths, as the family's `forward` takes them."""
    _, ids, mask = test_contract_encoders._unequal("right")
    if family.KIND == "seq2seq":
        return (ids, test_contract._ids(4, 5, seed=8)), {"source_mask": mask}
    return (ids,), {"attention_mask": mask}


def _learn(model: Any, family: ModuleType, device: str) -> tuple[torch.Tensor, list[Any]]:
    """The loss of made-up targets and its gradients, on the CPU."""
    inputs, options = _inputs(family)
    inputs = tuple(x.to(device) for x in inputs)
    options = {name: x.to(device) for name, x in options.items()}
    if family.KIND == "causal":
        targets = torch.where(options["attention_mask"], inputs[0], -100)
        hidden = model.hidden(*inputs, **options)
        loss, _ = chunked_cross_entropy(hidden, model.head_weight, targets)
    else:
        loss = model(*inputs, **options).float().square().sum()
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach().cpu(), [None if g is None else g.cpu() for g in found]


@every
@torch.no_grad()
def test_states_are_those_of_the_cpu(family: ModuleType, config: dict[str, Any]) -> None:
    here, there = _pair(family, config)
    inputs, options = _inputs(family)
    expected = here(*inputs, **options)
    found = there(*(x.cuda() for x in inputs), **{k: v.cuda() for k, v in options.items()}).cpu()
    if family.KIND != "seq2seq":  # what stands at padding means nothing
        expected, found = (x[options["attention_mask"]] for x in (expected, found))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every
def test_gradients_are_those_of_the_cpu(family: ModuleType, config: dict[str, Any]) -> None:
    here, there = _pair(family, config)
    expected, found = _learn(here, family, "cpu"), _learn(there, family, "cuda")
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    largest = max(float(b.norm()) for b in expected[1] if b is not None)
    for a, b in zip(found[1], expected[1], strict=True):  # some are 0 but for rounding
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-5 * largest


@every
def test_bf16_is_near_and_its_gradients_are_fp32(
    family: ModuleType, config: dict[str, Any]
) -> None:
    here, there = _pair(family, config)
    there.train().compute_dtype = torch.bfloat16
    expected, found = _learn(here.train(), family, "cpu"), _learn(there, family, "cuda")
    assert abs(found[0] - expected[0]) <= 0.1 * abs(expected[0])
    for a in found[1]:
        assert a is None or (a.dtype == torch.float32 and a.isfinite().all())


@causal
@torch.no_grad()
def test_cached_equals_uncached(family: ModuleType, config: dict[str, Any]) -> None:
    _, model = _pair(family, config)
    ids = test_contract._ids(3, 14).cuda()
    cache = model.new_cache(3, 14)
    pieces = [model(ids[:, :5], cache=cache)]
    pieces += [model(ids[:, t : t + 1], cache=cache) for t in range(5, 14)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-4, atol=1e-4)
