"""Stage evaluate: measure a pre-trained encoder by every protocol that the config has a section for."""

from __future__ import annotations

from pathlib import Path

from datasets.base.files import StageResult
from mae.config import Config
from mae.config import protocols as known_protocols
from mae.evaluation import Evaluation
from mae.evaluation import evaluate as evaluate_checkpoint
from mae.launch import RanksFailed
from tasks.stage import markdown, stage_task


class Evaluations(StageResult):
    """The results of all protocols for one checkpoint."""

    items: list[Evaluation]


@stage_task("evaluate", run_name="evaluate {protocol}", final=(RanksFailed,))
def evaluate(
    protocol: str, checkpoint: Path, records: Path, config: Config, workspace: Path, refresh: bool = False
) -> Evaluation:
    """Measure a checkpoint by one protocol; with `refresh` even if it has been measured before."""
    result = evaluate_checkpoint(
        checkpoint, records, protocol=protocol, config=config, workspace=workspace, refresh=refresh
    )
    rows = [(score.encoder, f"{score.top1:.1%}", f"{score.images:,}") for score in result.results]
    markdown(f"evaluation-{protocol}", f"`{result.path}`", ("encoder", "top-1", "validation images"), *rows)
    return result


def protocols(config: Config) -> list[str]:
    """Return the protocols that a config has a section for."""
    return [name for name in known_protocols() if config.section(name) is not None]
