"""`inkstone export`: a model for llama.cpp, ONNX Runtime or CTranslate2."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    run: options.RunOrModel,
    form: Annotated[str, typer.Option("--to", help="gguf, onnx or ctranslate2.")],
    out: Annotated[str, typer.Option(help="A new file (gguf) or folder.")],
    kind: Annotated[
        str | None,
        typer.Option("--type", help="How numbers are stored; gguf: f16, bf16, q8_0 or q4_0."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model for another program; nothing is downloaded or overwritten.

    inkstone export runs/poet --to gguf --out poet.gguf --type q8_0

    inkstone export runs/news --to onnx --out news-onnx
    """
    import json as encoder
    import time

    from inkstone import api
    from inkstone.cli.progress import observer
    from inkstone.cli.text import printable
    from inkstone.errors import UsageError

    model = api.load(run, device="cpu")
    if not isinstance(model, api.LanguageModel):
        raise UsageError(f"{run} holds word vectors", fix="inkstone vectors convert writes those")
    watcher = observer(quiet=quiet)
    began = time.monotonic()
    watcher.stage("export")
    done = model.export(out, form, kind=kind, progress=watcher.progress)
    watcher.stage_done("export", f"{done.n_bytes:,} bytes", time.monotonic() - began)
    for note in done.notes:
        watcher.note(note)
    if json:
        print(encoder.dumps(done.describe(), indent=2, ensure_ascii=False))
        return
    facts = ", ".join(
        f"{key.replace('_', ' ')} {_shown(value)}" for key, value in done.facts.items()
    )
    print(printable(f"{done.path}  {done.format} {done.type}, {facts}"))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}" for name, count in value.items())
    return f"{value:.1e}" if isinstance(value, float) else str(value)
