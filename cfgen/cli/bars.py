"""Live bars of work on standard error, one below the other where pieces lie inside each other."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red"}


class Count(ProgressColumn):
    """'7/40'; nothing where the end is not known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class Rate(ProgressColumn):
    """'2.4/s', '12 s each', and so long for what has no steps: '8 s'."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if task.total is None or not speed:
            return Text(f"{task.elapsed or 0:.0f} s", style="dim")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class Left(ProgressColumn):
    """'3 min left', '40 s left'."""

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        if task.total is None or seconds is None or task.finished:
            return Text("")
        return Text(f"{duration(seconds)} left", style="cyan")


def duration(seconds: float) -> str:
    """Two digits of it: '40 s', '3 min', '2 h 5 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Bars:
    """A listener of `cfgen.progress`. There is something on the screen only while work goes on."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            Count(),
            Rate(),
            Left(),
            console=self.console,
            transient=True,
            # Standard output is for results, which may go into a file.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def begin(self, what: str, total: int | None, done: int) -> int:
        if not self.progress.tasks:
            self.progress.start()
        return int(self.progress.add_task(what, total=total, completed=done))

    def step(self, work: int) -> None:
        self.progress.advance(TaskID(work))

    def end(self, work: int) -> None:
        self.progress.remove_task(TaskID(work))
        if not self.progress.tasks:
            self.progress.stop()


class BarsHandler(logging.Handler):
    """Log lines above the bars, warnings and errors in colour."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self.bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        text = Text(self.format(record), style=STYLES.get(record.levelno, ""))
        self.bars.console.print(text, soft_wrap=True)
