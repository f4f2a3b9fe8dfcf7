"""Stage train: the ranks are a process tree of their own, which mae/launch starts, follows and ends."""

from __future__ import annotations

from pathlib import Path

from mae.config import Config
from mae.health import load_verdict
from mae.launch import RanksFailed
from mae.runs import Run, Training
from mae.train import train as train_ranks
from tasks.stage import markdown, stage_task


@stage_task("train", final=(RanksFailed,))
def train(config: Config, workspace: Path, rank_table: Path) -> Training:
    """Run the config's task, from the newest checkpoint of the same job if there is one.

    A dead rank is not retried automatically: look at its log, then continue with the run's Retry button.
    """
    result = train_ranks(config, workspace=workspace, rank_table=rank_table)
    judged = load_verdict(Run.open(result.run_dir))
    text = "\n\n".join([f"`{result.run_dir}`", *(judged.lines() if judged is not None else ())])
    markdown("training", text, ("steps", "last loss"), (f"{result.steps:,}", f"{result.loss:.4f}"))
    return result
