"""What bidirectional encoders share: their heads, and tokens without padding."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.models._base import Network
from inkstone.nn.attention import View
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.packing import Packing
from inkstone.nn.pointwise import dropout
from inkstone.nn.positions import check_length

Head = Literal["none", "mlm", "pretraining", "sequence", "token", "span"]
CLASSES = {  # the class that transformers has for each head
    "none": "Model",
    "mlm": "ForMaskedLM",
    "pretraining": "ForPreTraining",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


class Encoder(Network):
    """A bidirectional encoder with one of the heads of `Head`.

    A family provides `states`, and of `prediction_states`, `pooled` and `label_states` those that
    its heads need. Shapes: B batch, T time, N tokens without padding, D d_model, V vocab.
    """

    embed: Embedding
    classifier: Linear
    span: Linear
    next_sentence: Linear

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Packing]:
        """Last states of the tokens alone, [N, D], and where they belong."""
        raise AssertionError("a family defines its own")

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Last states: [B, T] → [B, T, D], zero at padding.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], True (or 1) at tokens; padding may stand on either side.
            token_types: [B, T], which of two texts a token belongs to; all 0 when None.

        Raises:
            ModelError: Too long, or the shapes do not fit together.
        """
        x, packing = self.states(input_ids, attention_mask, token_types)
        return packing.unpack(x)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Arguments as in `hidden`; what comes out depends on the head.

        Returns:
            "none": states [B, T, D]; "mlm": scores of words [B, T, V]; "pretraining": those, and
            scores [B, 2] of the second text following the first or not; "sequence": [B, n_labels];
            "token": [B, T, n_labels]; "span": [B, T, 2], scores of being the first and last token.
        """
        head = self.config.head
        if head == "sequence":
            texts = self.text_states(input_ids, attention_mask, token_types)
            return self.classifier(self._drop(texts))
        x, packing = self.states(input_ids, attention_mask, token_types)
        if head == "none":
            return packing.unpack(x)
        if head in ("token", "span"):
            output = self.classifier if head == "token" else self.span
            return packing.unpack(output(self._drop(self.label_states(x))))
        words = packing.unpack(self.logits(self.prediction_states(x)))
        return (words, self.next_sentence(self.pooled(x, packing))) if head != "mlm" else words

    def prediction_states(self, x: Tensor) -> Tensor:
        """What the words are scored from: [N, D] → [N, D]."""
        raise AssertionError("a family defines its own")

    def pooled(self, x: Tensor, packing: Packing) -> Tensor:
        """One vector a row: [N, D] → [B, D]."""
        raise AssertionError("a family defines its own")

    def text_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> Tensor:
        """What the labels of texts are scored from: [B, T] → [B, D]."""
        return self.pooled(*self.states(input_ids, attention_mask, token_types))

    def label_states(self, x: Tensor) -> Tensor:
        """What the labels of tokens are scored from: [N, D] → [N, D]."""
        return x

    def logits(self, states: Tensor) -> Tensor:
        """Scores of every word from `prediction_states`: [..., D] → [..., V]."""
        bias = self.head_bias
        bias = None if bias is None else bias.to(states.dtype)
        return F.linear(states, self.head_weight.to(states.dtype), bias)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the token embedding itself."""
        return self.embed.weight

    @property
    def head_bias(self) -> Tensor | None:
        """[V]."""
        return None

    def layout(
        self, input_ids: Tensor, attention_mask: Tensor | None, window: int | None = None
    ) -> tuple[Packing, View]:
        """Where the tokens are, and what they see."""
        length = input_ids.shape[1]
        check_length(length, self.config.max_seq_len)
        packing = Packing.of(input_ids, attention_mask)
        return packing, View.everything(length, packing.real, input_ids.device, window)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training)


def hf_labels(n_labels: int) -> dict[str, dict[str, str] | dict[str, int]]:
    """The two tables by which a config.json tells the number of labels."""
    names = [f"LABEL_{i}" for i in range(n_labels)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def hf_head(hf: dict[str, object], prefix: str) -> tuple[Head, int]:
    """The head that the class in a config.json has, and its number of labels.

    Raises:
        ModelError: The class is not one of `CLASSES`.
    """
    architectures = hf.get("architectures") or [f"{prefix}Model"]
    name = str(architectures[0]) if isinstance(architectures, list) else str(architectures)
    labels = hf.get("id2label")
    n_labels = len(labels) if isinstance(labels, dict) else hf.get("num_labels", 2)
    for head, suffix in CLASSES.items():
        if name == prefix + suffix:
            return head, n_labels  # type: ignore[return-value]
    raise ModelError(
        f"config.json: architecture {name[:100]!r} is not one that is read here",
        fix="known: " + ", ".join(prefix + suffix for suffix in CLASSES.values()),
    )
