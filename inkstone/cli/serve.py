"""`inkstone serve`: models over HTTP, as OpenAI's clients ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.serving.source import Source

RELOAD_S = 2.0  # between looks for new checkpoints, each of a few files' sizes and times


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Runs or model folders; NAME=FOLDER gives another name."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 8080,
    key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keys, one a line; without one everybody may ask."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name this server may be called by.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A page whose scripts may ask: https://example.org")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL:]NAME=FOLDER",
            help="A LoRA adapter of MODEL (of the only one), served as NAME beside it.",
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option("--reload", help="Serve new checkpoints of runs as soon as they are there."),
    ] = False,
    watch: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="A run, or a folder of runs, whose curves are shown."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=4096, help="Requests answered at once.")] = 64,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait besides.")] = 128,
    cache_mb: Annotated[
        int, typer.Option(min=1, help="Memory for what a model has read, in megabytes.")
    ] = 1024,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that an answer may take.")
    ] = 600.0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Serve models: chat, completions, embeddings, and the tasks they were trained for.

    inkstone serve runs/mine

    The page is at http://127.0.0.1:8080; the interface is OpenAI's: point a client at
    http://127.0.0.1:8080/v1. Ctrl-C ends it once the answers that are on their way are complete.
    """
    import logging
    import sys

    from inkstone import registry
    from inkstone.errors import UsageError

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        registry.extra(package, "serve")
    from inkstone.serving.config import LOOPBACK, ServeConfig
    from inkstone.serving.server import serve

    keys = _keys(key_file)
    if host not in LOOPBACK and not keys:
        raise UsageError(
            f"--host {host} lets others than this machine ask, and no key is set",
            fix="write a key into a file and give it with --key-file",
        )
    config = ServeConfig(
        host=host, port=port, keys=keys, hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()), watch=tuple(watch or ()), most=most, waiting=waiting,
        tokens_per_step=max(512, most), cache_bytes=cache_mb << 20, request_timeout_s=timeout,
        reload_s=RELOAD_S if reload else None,
    )  # fmt: skip
    sources = _sources(models, adapter or [], device)
    hosted = [one for source in sources for one in source.open(config)]

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    for one in hosted:
        kind = one.model.family if one.parent is None else f"adapter of {one.parent}"
        tell(f"{one.name}: {kind}, can {', '.join(sorted(one.verbs))}")
    log = logging.getLogger("inkstone.serving")
    if not quiet:
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())
    where = "listening at {0}; the page is there, the API at {0}/v1; Ctrl-C ends"
    serve(hosted, config, told=lambda url: tell(where.format(url)))


def _sources(models: Sequence[str], adapters: Sequence[str], device: str) -> list[Source]:
    """What to serve, each under a name of its own."""
    from inkstone.errors import UsageError
    from inkstone.serving.source import Source, named

    named_models = [named(given) for given in models]
    beside: dict[str, dict[str, str]] = {name: {} for name, _ in named_models}
    names = [name for name, _ in named_models]
    for given in adapters:
        base, colon, rest = given.partition(":")
        if not colon or base not in beside:
            base, rest = names[0], given
            if len(beside) > 1:
                raise UsageError(
                    f"--adapter {given} does not say of which model",
                    fix=f"write MODEL:NAME=FOLDER, with MODEL one of {', '.join(beside)}",
                )
        name, folder = named(rest)
        names.append(name)
        beside[base][name] = folder
    if len(set(names)) < len(names):
        raise UsageError(
            f"two models are called {max(names, key=names.count)!r}",
            fix="give one another name: NAME=FOLDER",
        )
    return [Source(name, folder, beside[name], device) for name, folder in named_models]


def _keys(path: str | None) -> tuple[str, ...]:
    """The keys in a file, one a line."""
    from pathlib import Path

    from inkstone.errors import UsageError

    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys or any(len(key) < 16 or not key.isascii() for key in keys):
        raise UsageError(
            f"{path} holds no key, or one of fewer than 16 plain characters",
            fix="python -c 'import secrets; print(secrets.token_urlsafe(32))' > keys.txt",
        )
    return keys
