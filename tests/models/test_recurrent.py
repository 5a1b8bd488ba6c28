"""Recurrent language models: what the contract tests of all families do not ask."""

from __future__ import annotations

import pytest
import torch

from inkstone.models import gru, lstm, rnn


@pytest.mark.parametrize("family", [rnn, lstm, gru])
def test_a_folder_from_before_head_scale_scores_words_as_it_did(family: object) -> None:
    config = family.Config(vocab_size=50, d_model=8)  # type: ignore[attr-defined]
    written = family.to_hf_config(config)  # type: ignore[attr-defined]
    assert family.from_hf_config(written) == config  # type: ignore[attr-defined]
    del written["head_scale"]
    before = family.from_hf_config(written)  # type: ignore[attr-defined]
    assert before.head_scale == 1.0 != config.head_scale
    old, new = (family.Model(c).eval() for c in (before, config))  # type: ignore[attr-defined]
    new.load_state_dict(old.state_dict())
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(new.hidden(ids), config.head_scale * old.hidden(ids))
