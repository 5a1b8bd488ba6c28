"""`inkstone vectors`: ask word vectors, or write them in a format that others read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from inkstone.cli import options
from inkstone.cli.text import clock, printable

# "-man" is a word to subtract: nothing that begins with one dash is an option here, nor is -h
SETTINGS = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run, its model folder, or a word2vec or GloVe file."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="A word; or several: king -man +woman."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many words to answer with.")] = 10,
    mul: Annotated[bool, typer.Option("--mul", help="Rank by 3CosMul, not by cosine.")] = False,
    to: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write them to a new file.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="Of that file: word2vec, word2vec-binary or glove.")
    ] = "word2vec",
    json: options.Json = False,
) -> None:
    """Ask word vectors for the nearest words, or export them.

    inkstone vectors runs/words water

    inkstone vectors runs/words king -man +woman

    inkstone vectors runs/words --to words.txt

    Without words it tells what is in there.
    """
    import json as encoder

    from inkstone import api
    from inkstone.errors import UsageError
    from inkstone.vectors import formats

    positive, negative = parse(words or [])
    if to is not None and words:
        raise UsageError("--to writes all the vectors; leave the words out, or --to")
    vectors = api.open_vectors(source)
    if to is not None:
        formats.write(vectors, to, format)  # type: ignore[arg-type]
        told = {"file": to, "format": format, "words": len(vectors), "d_model": vectors.d_model}
        print(encoder.dumps(told) if json else to)
        return
    if not words:
        about = {"words": len(vectors), "d_model": vectors.d_model, "first": vectors.words[:20]}
        first = printable(" ".join(vectors.words[:20]))
        line = f"{len(vectors):,} words of {vectors.d_model} numbers: {first} …"
        print(encoder.dumps(about, ensure_ascii=False) if json else line)
        return
    found = vectors.most_similar(positive, negative, top=top, method="mul" if mul else "add")
    if json:
        rows = [{"word": n.word, "score": n.score} for n in found]
        print(encoder.dumps(rows, indent=2, ensure_ascii=False))
        return
    for neighbor in found:
        print(f"{neighbor.score:7.4f}  {printable(neighbor.word)}")


def parse(words: list[str]) -> tuple[list[str], list[str]]:
    """Words to add and words to subtract: "king - man + woman", "king -man +woman".

    A sign that stands alone belongs to the next word.
    """
    positive: list[str] = []
    negative: list[str] = []
    sign = "+"
    for part in " ".join(words).split():
        if part in ("+", "-"):
            sign = part
            continue
        if len(part) > 1 and part[0] in "+-":
            sign, part = part[0], part[1:]
        (positive if sign == "+" else negative).append(part)
        sign = "+"
    return positive, negative


def print_test(test: Any, *, json: bool) -> None:
    """The result of `evaluation.vectors.evaluate`."""
    import json as encoder

    row = test.to_dict()
    if json:
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        print(encoder.dumps(finite, indent=2, ensure_ascii=False))
        return
    if row["kind"] == "similarity":
        print(f"spearman  {test.spearman:.4f}")
        print(f"pairs     {test.pairs:,} ({test.skipped:,} left out: a word has no vector)")
    else:
        print(f"accuracy  {test.accuracy:.2%} ({test.correct:,} of {test.asked:,})")
        print(f"left out  {test.skipped:,} questions: a word has no vector")
        for name, (correct, asked) in test.sections.items():
            print(f"  {printable(name):30} {correct / asked:7.2%} of {asked:,}")
    print(f"rule      {test.rule}")


def summary(result: dict[str, Any]) -> str:
    """The end of a run, for people."""
    run = result["run"]
    lines = [
        "",
        f"{result['words']:,} words, {result['d_model']} numbers each; {result['epochs']} epochs, "
        f"{result['rate']:,.0f} {result['unit']} a second; trained {clock(result['training_s'])}, "
        f"in all {clock(result['total_s'])}",
    ]
    for name, row in result["scores"].items():
        value = row.get("accuracy", row.get("spearman"))
        asked = row.get("asked", row.get("pairs"))
        shown = "–" if value is None else f"{value:.3f}"
        what = "accuracy" if row["kind"] == "analogies" else "Spearman's rho"
        lines.append(f"  {name:24} {shown}  {what} of {asked:,}; {row['skipped']:,} left out")
    for word, near in result["neighbors"].items():
        words = ", ".join(printable(n) for n, _ in near)
        lines.append(f"  {printable(word):24} {words}")
    first = next(iter(result["neighbors"]), "water")
    lines += [
        "",
        f"vectors {Path(run) / 'model'}",
        "",
        "next",
        f"  inkstone vectors {run} {_shell(first)}",
        f"  inkstone vectors {run} king -man +woman",
        f"  inkstone vectors {run} --to words.txt",
    ]
    return "\n".join(lines)


def _shell(word: str) -> str:
    return word if word.isalnum() else "water"
