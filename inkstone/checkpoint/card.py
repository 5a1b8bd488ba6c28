"""README.md of a checkpoint: the model card that Hugging Face shows."""

from __future__ import annotations

from typing import Any


def model_card(hf_config: dict[str, Any], about: dict[str, Any]) -> str:
    """Front matter, what it is, how to use it, and where it came from.

    Args:
        hf_config: The contents of config.json.
        about: The contents of inkstone.json; numbers under "scores" are listed.
    """
    title = str(about.get("name") or f"A {hf_config['model_type']} language model")
    their_class = str((hf_config.get("architectures") or ["AutoModel"])[0])
    causal = their_class.endswith("ForCausalLM") or their_class.endswith("LMHeadModel")
    whole = "quantization_config" in hf_config  # not every such folder opens elsewhere
    lines = [
        "---",
        "library_name: transformers",
        *(["pipeline_tag: text-generation"] if causal else []),
        "tags: [inkstone]",
        "---",
        "",
        f"# {title}",
        "",
        f"{about['parameters']:,} parameters, family `{about['family']}`, trained with Inkstone "
        f"{about['inkstone']}.",
        "",
        "```python",
        "import inkstone as ink",
        'print(ink.load(".").generate("Once upon a time"))' if causal else 'model = ink.load(".")',
        "",
        *([] if whole else _elsewhere(hf_config["model_type"], their_class, causal)),
        "```",
        "",
    ]
    scores = about.get("scores")
    if isinstance(scores, dict) and scores:
        lines += ["| score | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in scores.items()]
        lines.append("")
    lines += [
        "## Limits",
        "",
        "It repeats what its training text contains, private or wrong alike, and invents the rest. "
        "The recipe, data hashes and versions are in `inkstone.json`.",
        "",
    ]
    return "\n".join(lines)


def _elsewhere(kind: str, their_class: str, causal: bool) -> list[str]:
    """How transformers opens the folder, where it knows the family."""
    if kind.startswith("inkstone_"):
        return []
    name = "AutoModelForCausalLM" if causal else their_class
    return [f"from transformers import {name}", f'model = {name}.from_pretrained(".")']
