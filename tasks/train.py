"""Stages that train: the ranks are a process tree of their own, which mae/launch.py starts, follows and ends."""

from __future__ import annotations

from pathlib import Path

from mae.config.sections import Config
from mae.health.verdict import load_verdict
from mae.launch import RanksFailed
from mae.train import Training
from mae.train import train as train_ranks
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("train", final=(RanksFailed,))
def train(config: Config, workspace: Path, rank_table: Path) -> Training:
    """Train what the config's `task` says, from the newest checkpoint of the same job where there is one.

    A dead rank is not tried again by itself: somebody looks at it, then continues with the run's Retry button.
    """
    result = train_ranks(config, workspace=workspace, rank_table=rank_table)
    markdown("training", summary(result))
    return result


def intact(result: Training) -> bool:
    """Whether the checkpoint is there and unchanged."""
    return unchanged(result.checkpoint, result.digest)


def summary(result: Training) -> str:
    """Where the run is and how it ended, as markdown."""
    text = f"`{result.run_dir}`\n\n{table(('steps', 'last loss'), [(f'{result.steps:,}', f'{result.loss:.4f}')])}"
    judged = load_verdict(result.run_dir)
    return text if judged is None else text + "".join(f"\n\n{line}" for line in judged.lines())
