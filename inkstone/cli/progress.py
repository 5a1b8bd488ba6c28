"""Live progress on stderr: rich lines on a terminal, plain ones elsewhere, nothing when quiet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inkstone.cli.text import clock, printable
from inkstone.pipeline.observer import Observer
from inkstone.planning.plan import Choice, show, size_text

if TYPE_CHECKING:
    from inkstone.training.log import StepInfo

PLAIN_EVERY_S = 10.0  # seconds between two plain lines of training progress
NAMED = (
    "data", "examples", "clean", "words", "tokenizer", "tokens", "plan", "train", "evaluate",
    "report",
)  # fmt: skip
WIDTH = max(map(len, NAMED))


def observer(*, quiet: bool) -> Observer:
    """The observer that fits stderr: silent, live or plain."""
    if quiet:
        return QuietObserver()
    return LiveObserver() if sys.stderr.isatty() else PlainObserver()


class QuietObserver(Observer):
    """Only what the user must know."""

    def note(self, text: str) -> None:
        _print(printable(text))


class PlainObserver(Observer):
    """Lines for logs and pipes: one a stage, one every few seconds of training."""

    def __init__(self) -> None:
        self._valid: float | None = None
        self._last = -math.inf
        self._stage, self._began, self._told = "", 0.0, 0.0

    def stage(self, name: str) -> None:
        self._stage = name
        self._began = self._told = time.monotonic()

    def progress(self, done: int, total: int | None, unit: str) -> None:
        now = time.monotonic()
        if now - self._told >= PLAIN_EVERY_S:
            self._told = now
            line = progress_line(done, total, unit, self._began)
            _print(f"{self._stage:{WIDTH}}  {line}")

    def stage_done(self, name: str, line: str, seconds: float, *, reused: bool = False) -> None:
        _print(f"{name:{WIDTH}}  {printable(line)}  [{clock(seconds)}]")

    def choices(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            _print(f"{'plan':{WIDTH}}  {choice}")

    def note(self, text: str) -> None:
        _print(f"{'':{WIDTH}}  {printable(text)}")

    def step(self, info: StepInfo) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY_S or info.step == info.max_steps:
            self._last = now
            _print(f"{'train':{WIDTH}}  {training_line(info, self._valid, self.unit)}")

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        self._valid = scores.get("nats_per_token")
        if shown := others(scores):
            _print(f"{'train':{WIDTH}}  step {step:,} · held out: loss {self._valid:.3f}{shown}")


class LiveObserver(Observer):
    """A bar that moves, and above it the lines that stay."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live: Any = None
        self._stage = ""
        self._began = 0.0
        self._info: StepInfo | None = None
        self._valid: float | None = None

    def stage(self, name: str) -> None:
        self._stage, self._began = name, time.monotonic()
        self._show(self._bar(None, None, "working"))

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self._show(self._bar(done, total, progress_line(done, total, unit, self._began)))

    def stage_done(self, name: str, line: str, seconds: float, *, reused: bool = False) -> None:
        self._stop()
        mark, style = ("=", "cyan") if reused else ("✓", "green")
        self._say((mark + " ", style), (f"{name:{WIDTH}}  ", "bold"), (printable(line), ""),
                  (f"  {clock(seconds)}", "dim"))  # fmt: skip

    def choices(self, choices: Sequence[Choice]) -> None:
        self._stop()
        key_width = max((len(x.key) for x in choices), default=0)
        for choice in choices:
            self._say(
                (f"    {choice.key:{key_width}}  ", "cyan"),
                (f"{show(choice.value):>10}  ", "bold"),
                (printable(choice.reason), "dim"),
            )  # fmt: skip

    def note(self, text: str) -> None:
        self._say(("! ", "yellow"), (printable(text), ""))

    def step(self, info: StepInfo) -> None:
        self._info = info
        total = info.elapsed_s + info.remaining_s
        self._show(
            self._bar(info.elapsed_s, total, training_line(info, self._valid, self.unit), wide=True)
        )

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        self._valid = scores.get("nats_per_token")
        if self._info is not None and self._valid is not None:
            self._say(
                (f"    step {step:>7,}  loss {self._info.loss:.3f}  ", "dim"),
                (f"valid {self._valid:.3f}", "bold"),
                (others(scores), "bold"),
            )

    def training_ended(self) -> None:
        self._stop()

    # --- drawing ---------------------------------------------------------------------------------

    def _bar(self, done: float | None, total: float | None, text: str, wide: bool = False) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        known = total is not None and math.isfinite(total) and done is not None
        share = done / total if known and done is not None and total else 0.0
        bar = ProgressBar(total=1.0, completed=share, pulse=not known, width=28)
        grid = Table.grid(padding=(0, 1))
        label = Text(f"  {self._stage:{WIDTH}}", style="bold")
        if wide:
            grid.add_row(label, bar, Text(f"{share:.0%}" if known else ""))
            return Group(grid, Text(f"  {text}", no_wrap=True, overflow="ellipsis"))
        grid.add_row(label, bar, Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        return grid

    def _show(self, what: Any) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        self._live.update(what)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, *parts: tuple[str, str]) -> None:
        from rich.text import Text

        self._console.print(Text.assemble(*parts), soft_wrap=True)


def others(scores: dict[str, float]) -> str:
    """The scores of a task beside its loss."""
    named = {k: v for k, v in scores.items() if k not in {"nats_per_token", "best_by"}}
    return "".join(f"  {name.replace('_', ' ')} {100 * v:.2f}" for name, v in named.items())


def progress_line(done: int, total: int | None, unit: str, began: float) -> str:
    """Where a stage stands: amount, rate, time left."""
    spent = max(1e-9, time.monotonic() - began)
    amount = size_text(done) if unit == "bytes" else f"{done:,} {unit}"
    rate = size_text(done / spent) if unit == "bytes" else f"{done / spent:,.0f} {unit}"
    left = f" · {clock((total - done) * spent / done)} left" if total and done else ""
    return f"{amount} · {rate}/s{left}"


def training_line(info: StepInfo, valid: float | None, unit: str = "tokens") -> str:
    """Where training stands: step, losses, rate, share of the peak, epoch, time left."""
    of = f"/{info.max_steps:,}" if info.max_steps else ""
    held_out = f" · valid {valid:.3f}" if valid is not None else ""
    share = f" · {info.mfu:.0%} of peak" if math.isfinite(info.mfu) else ""
    return (
        f"step {info.step:,}{of} · loss {info.loss:.3f}{held_out} · "
        f"{info.tokens_per_s:,.0f} {unit}/s{share} · epoch {info.epoch:.1f} · "
        f"{clock(info.remaining_s)} left"
    )


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
