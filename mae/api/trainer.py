"""`Trainer`: train, evaluate and predict from Python, in the same workspace as the pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.records import INDEX
from mae.api.auto import AutoConfig
from mae.api.image_pipeline import check_task, for_task, pipeline
from mae.config.load import parse_config, parse_overrides, published_recipe, read_mapping
from mae.config.sections import Config, ModelConfig
from mae.data import prepare
from mae.evaluation.evaluate import Evaluation, evaluate
from mae.prediction.images import ImageLike
from mae.runs.checkpoint import MODEL, digest_once
from mae.runs.run import Run
from mae.train import Training, train
from mae.weights.hub import KNOWN, find_weights

Checkpoint = Union[PathLike, bool, None]  # path or published name; True: the trained model; None: `model`'s own weights


class Trainer:
    """A model, its data and its recipe.

        trainer = Trainer("masked_image_modeling", "mae_vit_base_p16", "imageNet-1k/train")
        trainer.train()
        trainer.predict(predict_checkpoint=True, input_data="sunflower.png")

    Args:
        task: masked_image_modeling (pre-training) or image_classification (fine-tuning).
        model: published name, path of a checkpoint, or sizes. Pre-training uses only the sizes and starts from random
            weights; fine-tuning starts from the weights. None: the config's sizes.
        train_dataset: a folder with train/ and val/, the train/ of such a folder, a folder of class folders (a share of
            the images is held out for validation), or records that `mae data shard` wrote. None: the config's.
        eval_dataset: a folder of validation images, if they are not in val/ next to train/; or records.
        config: YAML job config with the recipe. None: the published recipe on one rank of this device, with gradients
            accumulated to the published number of images per update.
        overrides: "key=value" changes to the config, e.g. "pretrain.epochs=5".
        workspace: folder for all output. None: $MAE_WORKSPACE, or workspace/.

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
        check_task(task)
        if model is None and config is None:
            todo = "give one, e.g. model='mae_vit_base_p16'"
            raise InputError("Trainer", expected="a model or a config", found="neither", todo=todo)
        self.task, self.model = task, model
        self.workspace = Path(workspace or os.environ.get("MAE_WORKSPACE") or "workspace")
        self.train_dataset = Path(train_dataset) if train_dataset is not None else None
        self.eval_dataset = Path(eval_dataset) if eval_dataset is not None else None
        self.config = _config(task, model, config, list(overrides))

    def train(self, *, resume: Optional[bool] = None) -> Training:
        """Validate and shard the images, then train. Finished stages are verified and not repeated.

        Args:
            resume: as in `mae.train.train`.

        Raises:
            InputError: data, recipe and machine do not fit each other.
            RanksFailed: a rank died; the next call continues from the newest checkpoint.
        """
        return train(
            self._job(), workspace=self.workspace, resume=resume, report_line=lambda line: print(line, flush=True)
        )

    def evaluate(self, eval_checkpoint: Checkpoint = True, *, protocol: Optional[str] = None) -> Evaluation:
        """Measure a checkpoint on the validation images.

        Args:
            eval_checkpoint: as in `predict`; by default the trained model.
            protocol: as in `mae evaluate`. None: classify for image_classification, else logistic.
        """
        model, records = self._weights(eval_checkpoint), self.eval_dataset
        if records is None or not (records / INDEX).is_file():
            records = self._records()
        protocol = protocol or ("classify" if self.task == "image_classification" else "logistic")
        name = f"{self.config.name}-{value_digest([digest_once(model), str(records)])}"
        out = self.workspace / "evaluations" / name
        return evaluate(model, records, protocol=protocol, config=self.config, workspace=self.workspace, out=out)

    def predict(
        self,
        predict_checkpoint: Checkpoint = None,
        input_data: Union[ImageLike, Sequence[ImageLike], None] = None,
        *,
        seed: int = 0,
        save_dir: PathLike = "output",
    ) -> list[Any]:
        """Return the predictions of one or several images, in the form that `pipeline` returns.

        Args:
            predict_checkpoint: True: the model that was trained, also by an earlier process. None: the weights of the
                published name or path that the trainer was made with. Or a path or published name.
            input_data: one image or several: path, folder, http(s) address, array or Pillow image.
            seed, save_dir: as in `pipeline`.
        """
        if input_data is None:
            raise InputError("input_data", expected="an image", found="none", todo="give a path or a loaded image")
        return pipeline(self.task, self._weights(predict_checkpoint), seed=seed, save_dir=save_dir)(input_data)

    def _weights(self, checkpoint: Checkpoint) -> Path:
        if checkpoint is True:
            run = Run.of(self._job(), self.workspace)
            found = run.newest()
            if found is None:
                where, todo = run.directory, "call train() first"
                raise InputError(where, expected="a checkpoint of this job", found="none", todo=todo)
            return found / MODEL
        if checkpoint is not None and checkpoint is not False:
            return find_weights(checkpoint)
        if self.model is None or isinstance(self.model, ModelConfig):
            todo = "give a path, or True for the trained model"
            raise InputError("checkpoint", expected="a model that has weights", found="sizes only", todo=todo)
        return find_weights(for_task(self.task, self.model))

    def _job(self) -> Config:
        """Return the config with the records and, for fine-tuning, the initial weights."""
        data = self.config.data.model_copy(update={"records": str(self._records())})
        init = self.config.init
        if self.config.task == "finetune" and init is None and not isinstance(self.model, (ModelConfig, type(None))):
            init = str(find_weights(self.model))
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
        """Return a folder with both splits, and its name. If they are in different folders, links to them are made."""
        sibling = train_folder.with_name("val")
        val_folder = self.eval_dataset.absolute() if self.eval_dataset is not None else sibling
        if train_folder.name == "train" and val_folder == sibling and sibling.is_dir():
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
    """Return the job: the YAML config or the published recipe, with the sizes of the model if one is given."""
    section: Literal["pretrain", "finetune"] = "pretrain" if task == "masked_image_modeling" else "finetune"
    name = model if isinstance(model, str) and model in KNOWN else task
    given = read_mapping(path) if path is not None else {section: {}}
    values: dict[str, Any] = {"task": section, "name": name, **given}
    if model is not None:
        sizes = model if isinstance(model, ModelConfig) else AutoConfig.from_pretrained(model)
        values["model"] = sizes.model_dump(mode="json", exclude={"num_classes"})  # it depends on the data
    if path is None:
        import mindspore as ms

        values["device"] = {"target": str(ms.get_context("device_target")), "ranks": 1}
    config = parse_config(parse_overrides(overrides, values), source=path if path is not None else "Trainer")
    if path is None:
        recipe = published_recipe(section, config.model, values[section], ranks=config.device.ranks)
        config = parse_config({**values, section: recipe}, source="Trainer")
    if config.task != section:
        todo = "use the task that the config has a recipe for"
        raise InputError(path, expected=f"task: {section} for {task}", found=f"task: {config.task}", todo=todo)
    return config
