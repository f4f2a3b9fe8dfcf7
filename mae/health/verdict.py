"""Judges whether a run is healthy, from its log: each finding has its figures and the config key that helps.

verdict.json is a function of metrics.jsonl, metrics/rank_<n>.jsonl and the recipe's history. A kill does not change it,
and the findings reported while the run trains are those in the file at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Optional

from pydantic import BaseModel

from datasets.base.files import write_json
from mae.health.rules import LOST_SECONDS, Band, Finding, RankCourse, Rows, course, look, rank_course
from mae.runs.fork import load_fork
from mae.runs.history import Past, past_runs, recipe_history, remember
from mae.runs.log import RANKS, read_lines
from mae.runs.run import Run

FILE = "verdict.json"
EVERY = 10  # readings between two looks


class Verdict(BaseModel, extra="forbid"):
    """verdict.json."""

    run: str
    step: int
    epoch: float
    findings: list[Finding]
    band: Optional[Band]
    expected: str  # what the loss was compared with, or why there was nothing to compare it with

    def lines(self) -> list[str]:
        """Return the verdict in words: one line, and one per finding."""
        count = len(self.findings)
        head = f"{count} finding{'s' if count > 1 else ''}" if count else "nothing found wrong"
        return [f"verdict at epoch {self.epoch:.4g}: {head}; {self.expected}", *map(said, self.findings)]


class Watch:
    """Judges a run while it trains, with the same looks at its readings as `verdict` takes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.past = past_runs(run)
        self.lines: Rows = []
        self.looked = 0
        self.seen: set[str] = set()

    def restart(self) -> None:
        """Forget the readings, because the run has returned to an earlier step. Findings are still reported once."""
        self.lines, self.looked = [], 0

    def add(self, lines: Rows) -> list[Finding]:
        """Take new readings and return the findings that appear for the first time."""
        self.lines += lines
        due = range(self.looked + EVERY, len(self.lines) + 1, EVERY)
        if not due:
            return []
        self.looked = due[-1]
        whole, ranks = course(self.run.config_in_force, self.lines), rank_courses(self.run)
        found = [finding for count in due for finding in look(whole.upto(count), ranks, self.past)[0]]
        new = {finding.name: finding for finding in reversed(found) if finding.name not in self.seen}
        self.seen |= set(new)
        return list(new.values())


def verdict(run: Run, *, lost_seconds: float = LOST_SECONDS) -> Verdict:
    """Return the verdict on everything that a run has logged. Nothing is written.

    Args:
        lost_seconds: findings about time are left out if less than this was lost.
    """
    lines, past, ranks = run.readings(), past_runs(run), rank_courses(run)
    whole = course(run.config_in_force, lines)
    found: dict[str, Finding] = {}
    band = None
    for count in looks(len(lines)):
        seen, band = look(whole.upto(count), ranks, past, lost_seconds)
        for finding in seen:
            first = found.get(finding.name, finding).first_step
            found[finding.name] = finding.model_copy(update={"first_step": first})
    last = lines[-1] if lines else {"step": 0, "epoch": 0.0}
    return Verdict(
        run=run.name,
        step=last["step"],
        epoch=last["epoch"],
        findings=sorted(found.values(), key=lambda finding: finding.first_step),
        band=band,
        expected=_expected(band, past, recipe_history(run)),
    )


def judge(run: Run) -> Verdict:
    """Write verdict.json and return the verdict."""
    result = verdict(run)
    write_json(run.directory / FILE, result.model_dump())
    return result


def conclude(run: Run, report_line: Callable[[str], None]) -> None:
    """Judge a finished run and report the verdict line by line.

    Later runs are compared with this one if it had one recipe and a normal loss.
    """
    result = judge(run)
    if load_fork(run) is None and not any(finding.about == "loss" for finding in result.findings):
        remember(run)
    for line in result.lines():
        report_line(line)


def load_verdict(run: Run) -> Optional[Verdict]:
    """Return the content of verdict.json; none if there is no such file."""
    path = run.directory / FILE
    return Verdict.model_validate_json(path.read_text()) if path.is_file() else None


def said(finding: Finding) -> str:
    """Return a finding as one line."""
    return f"{finding.name} (step {finding.first_step:,} to {finding.last_step:,}): {finding.message}"


def looks(count: int) -> list[int]:
    """Return the numbers of readings after which the rules are applied: every EVERY readings, and after the last."""
    return sorted({*range(EVERY, count + 1, EVERY), count} - {0})


def rank_courses(run: Run) -> dict[int, RankCourse]:
    """Return how each rank spent its time, by rank; ranks without lines in metrics/rank_<n>.jsonl are left out."""
    paths = (run.directory / RANKS).glob("rank_*.jsonl")
    found = {int(path.stem[5:]): read_lines(path) for path in paths}
    return {rank: rank_course(lines) for rank, lines in found.items() if lines}


def _expected(band: Optional[Band], past: list[Past], folder: Path) -> str:
    if band is not None:
        place = "above" if band.loss > band.high else "below" if band.loss < band.low else "within"
        return f"loss {band.loss:.4g}, {place} {band.low:.4g} to {band.high:.4g}, the band of {band.origin}"
    why = "too few readings" if past else "no earlier run of this recipe has finished"
    return f"no reference for the loss: {why} ({folder})"
