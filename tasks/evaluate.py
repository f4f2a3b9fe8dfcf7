"""Stage evaluate: what a pre-trained encoder is worth, by every protocol that the config has a section for."""

from __future__ import annotations

from pathlib import Path

from datasets.base.files import StageResult
from mae.config.sections import Config
from mae.evaluation.evaluate import Evaluation
from mae.evaluation.evaluate import evaluate as evaluate_checkpoint
from mae.launch import RanksFailed
from tasks.stage import markdown, stage_task, table


class Evaluations(StageResult):
    """All that was measured of one checkpoint."""

    items: list[Evaluation]


@stage_task("evaluate", run_name="evaluate {protocol}", final=(RanksFailed,))
def evaluate(
    protocol: str, checkpoint: Path, records: Path, config: Config, workspace: Path, refresh: bool = False
) -> Evaluation:
    """Measure a checkpoint by one protocol; `refresh` does so although it was measured before."""
    result = evaluate_checkpoint(
        checkpoint, records, protocol=protocol, config=config, workspace=workspace, refresh=refresh
    )
    markdown(f"evaluation-{protocol}", scores(result))
    return result


def protocols(config: Config) -> list[str]:
    """The protocols that a config has a section for.

    Fine-tuning first: what the probe leaves in this process's memory would be there beside the ranks.
    """
    return [name for name in ("finetune", "linear") if getattr(config, name) is not None]


def intact(result: Evaluations) -> bool:
    """Whether the files of all evaluations are there."""
    return all(item.path.is_file() for item in result.items)


def scores(result: Evaluation) -> str:
    """What was measured, as markdown."""
    rows: list[tuple[object, ...]] = [(s.encoder, f"{s.top1:.1%}", f"{s.images:,}") for s in result.results]
    return f"`{result.path}`\n\n{table(('encoder', 'top-1', 'validation images'), rows)}"
