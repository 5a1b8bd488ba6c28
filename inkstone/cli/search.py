"""`inkstone search`: the passages of your own documents that answer a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.inference.index import Index, Passage


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DOCS QUERY",
            help="An encoder (a run, a folder, or a hub name); a folder, file or pattern of "
            "documents; a question or words. Without MODEL, words alone are looked for.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many passages at most.")] = 5,
    bm25_only: Annotated[
        bool, typer.Option("--bm25-only", help="Rank by words, even with a model.")
    ] = False,
    vectors_only: Annotated[
        bool, typer.Option("--vectors-only", help="Rank by meaning alone.")
    ] = False,
    index: Annotated[
        str | None, typer.Option(help="Folder that keeps the index; else the user's cache.")
    ] = None,
    field: Annotated[
        str, typer.Option(help="Column of the text in .jsonl, .csv, .tsv and .parquet.")
    ] = "text",
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Find passages in your own documents, by words and by meaning.

    inkstone search runs/questions notes/ "Who wrote the letter?"

    inkstone search notes/ "letter 1848"

    All kinds of text that can be trained on are read. The index is kept: the next search reads
    only files that are new or have changed. Nothing leaves this machine.
    """
    import json as encoder

    from inkstone.errors import UsageError

    if len(words) not in (2, 3):
        raise UsageError(
            f"{len(words)} arguments: search takes [MODEL] DOCS QUERY",
            fix='put the query in quotes: inkstone search MODEL DOCS "a few words"',
        )
    if bm25_only and vectors_only:
        raise UsageError("--bm25-only and --vectors-only exclude each other")
    model = words[0] if len(words) == 3 else None
    if model is None and vectors_only:
        raise UsageError("--vectors-only needs a model", fix="name an encoder before the documents")
    docs, query = words[-2:]
    opened = open_index(None if bm25_only else model, docs, index, field, device, quiet)
    found = opened.search(query, top, by="meaning" if vectors_only else "both")
    if json:
        print(encoder.dumps([row(passage, query) for passage in found], ensure_ascii=False))
        return
    show(found, query)


def open_index(
    model: str | None,
    docs: str,
    folder: str | None = None,
    field: str = "text",
    device: str = "auto",
    quiet: bool = False,
) -> Index:
    """The index, brought up to date, with progress on stderr."""
    import time

    from inkstone.cli.progress import observer
    from inkstone.inference.index import Index

    embedder = None
    if model is not None:
        from inkstone import api
        from inkstone.errors import UsageError

        loaded = api.load(model, device=device)
        if not isinstance(loaded, api.LanguageModel):
            raise UsageError(f"{model} holds word vectors, not an encoder", fix="name an encoder")
        embedder = loaded.embedder()
    told, began = observer(quiet=quiet), time.monotonic()
    told.stage("index")
    opened = Index.open(
        docs, embedder, folder=folder, text_field=field,
        progress=lambda done, total: told.progress(done, total, "passages"),
    )  # fmt: skip
    line = f"{len(opened):,} passages of {len(opened.snapshot.files):,} files"
    if opened.fresh:
        line += f", {opened.fresh:,} of them new"
    told.stage_done("index", line, time.monotonic() - began, reused=not opened.fresh)
    for text in opened.notes:
        told.note(text)
    return opened


def row(passage: Passage, query: str) -> dict[str, object]:
    """A passage as JSON: with the characters of its text that the query's words cover."""
    from inkstone.inference.index import marks

    return {**passage.to_dict(), "marks": marks(passage.text, query)}


def show(found: list[Passage], query: str) -> None:
    """Passages for people, the words of the query in bold where there are colours."""
    import sys

    from rich.console import Console
    from rich.text import Text

    from inkstone.cli.text import printable
    from inkstone.inference.index import marks

    if not found:
        print("nothing found", file=sys.stderr)
    console = Console(highlight=False, soft_wrap=True)
    for number, passage in enumerate(found, 1):
        text = printable(passage.text)  # as long as it was: places stay
        body = Text("   " + text)
        for start, end in marks(passage.text, query):
            body.stylize("bold", start + 3, end + 3)
        head = Text(f"{number}. {printable(passage.place)}")
        head.append(f"   {passage.score:.4f}", "dim")
        console.print(head)
        console.print(Text("\n   ").join(body.split("\n")))
