"""device.py: choices follow from measurements."""

from __future__ import annotations

import pytest
import torch

from inkstone import device
from inkstone.errors import DeviceError


def test_measure_reports_plausible_rates() -> None:
    machine = device.measure("cpu", 0.05)
    assert machine.matmul_gflops["fp32"] > 0.1 and machine.matmul_gflops["bf16"] > 0.01
    assert machine.bandwidth_gb_s > 0.05
    assert 0 < machine.memory_free_bytes <= machine.memory_total_bytes
    assert machine.peak_gflops == max(machine.matmul_gflops.values())


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"fp32": 100.0, "bf16": 400.0}, torch.bfloat16),
        ({"fp32": 100.0, "bf16": 20.0}, torch.float32),
    ],
)
def test_precision_follows_the_measured_rates(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], chosen: torch.dtype
) -> None:
    real = device.measure("cpu", 0.05)
    fake = type(real)(**{**real.to_dict(), "matmul_gflops": rates})
    monkeypatch.setattr(device, "measure", lambda *_: fake)
    assert device.training_dtype("cpu") is chosen
    assert device.training_dtype("cpu", "fp32") is torch.float32


@pytest.mark.parametrize("name", ["cuda:99", "no-such-device"])
def test_an_absent_device_is_a_named_error(name: str) -> None:
    with pytest.raises(DeviceError, match="cannot be used here"):
        device.pick_device(name)
