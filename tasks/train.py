"""Stage train: the ranks are a process tree of their own, which mae/launch starts, follows and ends."""

from __future__ import annotations

from pathlib import Path

from mae.config import Config
from mae.health import load_verdict
from mae.launch import RanksFailed
from mae.runs import Run, Training
from mae.train import train as train_ranks
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("train", final=(RanksFailed,))
def train(config: Config, workspace: Path, rank_table: Path) -> Training:
    """Run the config's task, from the newest checkpoint of the same job if there is one.

    A dead rank is not retried automatically: look at its log, then continue with the run's Retry button.
    """
    result = train_ranks(config, workspace=workspace, rank_table=rank_table)
    markdown("training", summary(result))
    return result


def intact(result: Training) -> bool:
    """Return whether the checkpoint exists and is unchanged."""
    return unchanged(result.checkpoint, result.digest)


def summary(result: Training) -> str:
    """Return the run's folder and how it ended, as Markdown."""
    text = f"`{result.run_dir}`\n\n{table(('steps', 'last loss'), [(f'{result.steps:,}', f'{result.loss:.4f}')])}"
    judged = load_verdict(Run.open(result.run_dir))
    return text if judged is None else text + "".join(f"\n\n{line}" for line in judged.lines())
