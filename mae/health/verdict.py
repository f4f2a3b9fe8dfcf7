"""Whether a run is healthy, from what it has logged: each finding with its figures and the config key that mends it.

verdict.json is a function of metrics.jsonl, metrics/rank_<n>.jsonl and the recipe's history: a kill changes nothing
about it, and what is said while the run goes on is what stands there at its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from pydantic import BaseModel, ConfigDict

from datasets.base.files import write_json
from mae.config.sections import Config
from mae.health.rules import LOST_SECONDS, Band, Finding, RankCourse, Rows, course, look, rank_course
from mae.runs.failure import fallen_back
from mae.runs.history import Past, past_runs, recipe_history
from mae.training.metrics import METRICS, RANKS, read_lines, readings

FILE = "verdict.json"
EVERY = 10  # readings between two looks


class Verdict(BaseModel):
    """verdict.json."""

    model_config = ConfigDict(extra="forbid")

    run: str
    step: int
    epoch: float
    findings: list[Finding]
    band: Optional[Band]
    expected: str  # what the loss was compared with, or why with nothing

    def lines(self) -> list[str]:
        """The verdict in words: one line, and one per finding."""
        count = len(self.findings)
        head = f"{count} finding{'s' if count > 1 else ''}" if count else "nothing found wrong"
        return [f"verdict at epoch {self.epoch:.4g}: {head}; {self.expected}", *map(said, self.findings)]


class Watch:
    """Judges a run while it goes on: the same looks as `verdict`'s."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        self.run_dir, self.config = run_dir, config
        self.past = past_runs(config, run_dir)
        self.lines: Rows = []
        self.looked = 0
        self.seen: set[str] = set()

    def restart(self) -> None:
        """Forget the readings: the run has gone back. What has been said is not said again."""
        self.lines, self.looked = [], 0

    def add(self, lines: Rows) -> list[Finding]:
        """Take new readings; returns the findings that are there for the first time."""
        self.lines += lines
        due = [count for count in range(self.looked + EVERY, len(self.lines) + 1) if count % EVERY == 0]
        if not due:
            return []
        self.looked = due[-1]
        whole, ranks = course(fallen_back(self.config, self.run_dir), self.lines), rank_courses(self.run_dir)
        found = [finding for count in due for finding in look(whole.upto(count), ranks, self.past)[0]]
        new = {finding.name: finding for finding in reversed(found) if finding.name not in self.seen}
        self.seen |= set(new)
        return list(new.values())


def verdict(run_dir: Path, config: Config, *, lost_seconds: float = LOST_SECONDS) -> Verdict:
    """Judge all that the run of this config has logged. Nothing is written.

    Args:
        run_dir: <workspace>/runs/<run>; the workspace has the history of the recipe.
        lost_seconds: findings about time are let go below this.
    """
    lines = readings(read_lines(run_dir / METRICS))
    past, ranks, whole = past_runs(config, run_dir), rank_courses(run_dir), course(fallen_back(config, run_dir), lines)
    found: dict[str, Finding] = {}
    band = None
    for count in looks(len(lines)):
        seen, band = look(whole.upto(count), ranks, past, lost_seconds)
        for finding in seen:
            first = found.get(finding.name, finding).first_step
            found[finding.name] = finding.model_copy(update={"first_step": first})
    last = lines[-1] if lines else {"step": 0, "epoch": 0.0}
    return Verdict(
        run=run_dir.name,
        step=last["step"],
        epoch=last["epoch"],
        findings=sorted(found.values(), key=lambda finding: finding.first_step),
        band=band,
        expected=_expected(band, past, recipe_history(config, run_dir)),
    )


def judge(run_dir: Path, config: Config) -> Verdict:
    """Write verdict.json of what the run has logged."""
    result = verdict(run_dir, config)
    write_json(run_dir / FILE, result.model_dump())
    return result


def load_verdict(run_dir: Path) -> Optional[Verdict]:
    """What verdict.json says; none where there is none."""
    path = run_dir / FILE
    return Verdict.model_validate_json(path.read_text()) if path.is_file() else None


def said(finding: Finding) -> str:
    """A finding in one line."""
    return f"{finding.name} (step {finding.first_step:,} to {finding.last_step:,}): {finding.message}"


def looks(count: int) -> list[int]:
    """After how many readings the rules are applied: the same numbers whenever one asks, and the last reading."""
    return sorted({*range(EVERY, count + 1, EVERY), count} - {0})


def rank_courses(run_dir: Path) -> dict[int, RankCourse]:
    """What the ranks of a run wrote, by number."""
    found = {int(path.stem[5:]): read_lines(path) for path in (run_dir / RANKS).glob("rank_*.jsonl")}
    return {rank: rank_course(lines) for rank, lines in found.items() if lines}


def _expected(band: Optional[Band], past: list[Past], folder: Path) -> str:
    if band is not None:
        place = "above" if band.loss > band.high else "below" if band.loss < band.low else "within"
        return f"loss {band.loss:.4g}, {place} {band.low:.4g} to {band.high:.4g}, the band of {band.origin}"
    why = "too few readings" if past else "no earlier run of this recipe has finished"
    return f"loss compared with nothing: {why} ({folder})"
