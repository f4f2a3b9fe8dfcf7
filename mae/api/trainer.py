"""`Trainer`: train, evaluate and predict from Python, with the stages and the workspace of the pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.records import INDEX
from mae.api.auto import AutoConfig, weights
from mae.api.image_pipeline import TASKS, for_task, pipeline
from mae.config.load import overridden, parse_config, published_recipe, read_mapping
from mae.config.sections import Config, ModelConfig
from mae.data import prepare
from mae.evaluation.evaluate import Evaluation, evaluate
from mae.prediction.images import ImageLike
from mae.runs.checkpoint import MODEL
from mae.runs.run import Run, Training
from mae.train import train
from mae.weights import hub

Checkpoint = Union[PathLike, bool, None]  # path or known name; True: what was trained; None: the model's own


class Trainer:
    """A model, its data and its recipe.

    Args:
        task: masked_image_modeling (pre-training) or image_classification (fine-tuning).
        model: known name, path of a checkpoint, or sizes. Pre-training takes the sizes only and starts from random
            weights; fine-tuning starts from the weights. None takes the config's sizes.
        train_dataset: folder of images (`train/` and `val/`, or the train/ of the two, or class folders of which a
            share is held out), or records that `mae data shard` wrote. None takes the config's.
        eval_dataset: the same for validation images, where they are not beside the others.
        config: YAML job config with the recipe. None means the published recipe on one rank of this device, gradients
            accumulated to the published number of images an update.
        overrides: "key=value" changes to the config, e.g. "pretrain.epochs=5".
        workspace: where everything is written; default: $MAE_WORKSPACE or workspace/.

    Raises:
        InputError: task, model and config do not fit each other.
    """

    def __init__(
        self,
        task: str = "masked_image_modeling",
        model: Union[PathLike, ModelConfig, None] = None,
        train_dataset: Optional[PathLike] = None,
        eval_dataset: Optional[PathLike] = None,
        *,
        config: Optional[PathLike] = None,
        overrides: Iterable[str] = (),
        workspace: Optional[PathLike] = None,
    ) -> None:
        if task not in TASKS:
            raise InputError("task", expected=f"one of {', '.join(TASKS)}", found=repr(task), todo="name one of them")
        if model is None and config is None:
            todo = "e.g. model='mae_vit_base_p16'"
            raise InputError("Trainer", expected="a model or a config", found="neither", todo=todo)
        self.task, self.model = task, model
        self.workspace = Path(workspace or os.environ.get("MAE_WORKSPACE") or "workspace")
        self.train_dataset = Path(train_dataset) if train_dataset is not None else None
        self.eval_dataset = Path(eval_dataset) if eval_dataset is not None else None
        self.config = _config(task, model, config, list(overrides))

    def train(self, *, resume: Optional[bool] = None) -> Training:
        """Validate and shard the images, then train; what is finished already is verified and kept.

        `resume` is `mae.train.train`'s.

        Raises:
            InputError: data, recipe and machine do not fit each other.
            RanksFailed: a rank died; calling again continues from the newest checkpoint.
        """
        return train(self._job(), workspace=self.workspace, resume=resume, report_line=_show)

    def evaluate(self, eval_checkpoint: Checkpoint = True, *, protocol: Optional[str] = None) -> Evaluation:
        """Measure a checkpoint on the validation images: by default what was trained.

        Args:
            eval_checkpoint: see `predict`.
            protocol: see `mae evaluate`; none: classify for image_classification, else logistic.
        """
        model = self._weights(eval_checkpoint)
        records = self.eval_dataset
        if records is None or not (records / INDEX).is_file():
            records = self._records()
        return evaluate(
            model,
            records,
            protocol=protocol or ("classify" if self.task == "image_classification" else "logistic"),
            config=self.config,
            workspace=self.workspace,
            out=self.workspace
            / "evaluations"
            / f"{self.config.name}-{value_digest([file_digest(model), str(records)])}",
        )

    def predict(
        self,
        predict_checkpoint: Checkpoint = None,
        input_data: Union[ImageLike, Sequence[ImageLike], None] = None,
        *,
        seed: int = 0,
        save_dir: PathLike = "output",
    ) -> list[Any]:
        """Predictions as `pipeline` returns them.

        Args:
            predict_checkpoint: True: what was trained, be it in an earlier process; None: the weights of the model's
                known name, downloaded at their first use; or a path.
            input_data: one image or several: path, folder, http(s) address, array or Pillow image.
        """
        if input_data is None:
            raise InputError("input_data", expected="an image", found="none", todo="give a path or a loaded image")
        return pipeline(self.task, self._weights(predict_checkpoint), seed=seed, save_dir=save_dir)(input_data)

    def _weights(self, checkpoint: Checkpoint) -> Path:
        """The model file that a `..._checkpoint` argument means."""
        if checkpoint is True:
            run = Run.of(self._job(), self.workspace)
            found = run.newest()
            if found is None:
                raise InputError(
                    run.directory, expected="a checkpoint of this job", found="none", todo="call train() first"
                )
            return found / MODEL
        if checkpoint is not None and checkpoint is not False:
            return weights(checkpoint)
        if self.model is None or isinstance(self.model, ModelConfig):
            todo = "give a path, or True for what was trained"
            raise InputError("checkpoint", expected="a model that has weights", found="sizes only", todo=todo)
        return weights(for_task(self.task, self.model))

    def _job(self) -> Config:
        """The config with its records and, for fine-tuning, the weights that it starts from."""
        data = self.config.data.model_copy(update={"records": str(self._records())})
        init = self.config.init
        if self.config.task == "finetune" and init is None and not isinstance(self.model, (ModelConfig, type(None))):
            init = str(weights(self.model))
        return self.config.model_copy(update={"data": data, "init": init})

    def _records(self) -> Path:
        settings = self.config.data
        if self.train_dataset is None:
            if settings.records is not None:
                return Path(settings.records)
            if settings.root is None:
                todo = "give train_dataset, or data.root in the config"
                raise InputError("train_dataset", expected="a folder of images", found="none", todo=todo)
            return prepare(Path(settings.root), self.workspace, settings)
        if (self.train_dataset / INDEX).is_file():
            return self.train_dataset
        root, name = self._root(self.train_dataset.absolute())
        return prepare(root, self.workspace, settings.model_copy(update={"name": settings.name or name}))

    def _root(self, train_folder: Path) -> tuple[Path, str]:
        """The data root with both splits, and its name; where they lie apart it is made of links to them."""
        beside = train_folder.with_name("val")
        val_folder = self.eval_dataset.absolute() if self.eval_dataset is not None else beside
        if train_folder.name == "train" and val_folder == beside and beside.is_dir():
            return train_folder.parent, train_folder.parent.name
        if self.eval_dataset is None or (self.eval_dataset / INDEX).is_file():
            return train_folder, train_folder.name
        splits = {"train": train_folder, "val": val_folder}
        for folder in splits.values():
            if not folder.is_dir():
                raise InputError(folder, expected="a folder of images", found="none", todo="correct the path")
        root = self.workspace.absolute() / "datasets" / f"linked-{value_digest([str(f) for f in splits.values()])}"
        root.mkdir(parents=True, exist_ok=True)
        for split, folder in splits.items():
            if not (root / split).exists():
                (root / split).symlink_to(folder)
        return root, train_folder.name


def _config(
    task: str, model: Union[PathLike, ModelConfig, None], path: Optional[PathLike], overrides: list[str]
) -> Config:
    """The job: the YAML recipe or the published one, for the model where one is given."""
    section: Literal["pretrain", "finetune"] = "pretrain" if task == "masked_image_modeling" else "finetune"
    known = isinstance(model, str) and model in hub.KNOWN
    named: dict[str, Any] = {"task": section, "name": str(model) if known else task}
    values = {**named, **read_mapping(path)} if path is not None else {**named, section: {}}
    if model is not None:
        sizes = model if isinstance(model, ModelConfig) else AutoConfig.from_pretrained(model)
        values["model"] = sizes.model_dump(mode="json", exclude={"num_classes"})  # the data decides how many
    if path is None:
        values["device"] = {"target": _target(), "ranks": 1}
    values = overridden(values, overrides)
    config = parse_config(values, source=path if path is not None else "Trainer")
    if path is None:
        recipe = published_recipe(section, config.model, values[section], ranks=config.device.ranks)
        config = parse_config({**values, section: recipe}, source="Trainer")
    if config.task != section:
        todo = "set the task that the config has a recipe for"
        raise InputError(path, expected=f"task: {section} for {task}", found=f"task: {config.task}", todo=todo)
    return config


def _target() -> str:
    """The device of this process."""
    import mindspore as ms

    return str(ms.get_context("device_target"))


def _show(line: str) -> None:
    print(line, flush=True)
