"""Runs the code of MindFormers' model card and of this project's documentation, each in a process, as a user does.

Only the import lines and the address of the picture differ from the card. A local server has the picture, and a random
ViT-B/16 in the layout and under the path of the published `full` file.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from datasets.sample import unpack_sample
from mae.config.sections import ModelConfig
from tests.mae.servers import Served

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

from tests.mae.torch_models import published_weights  # noqa: E402

HEAD = """
import mindspore
from mae import {names}
mindspore.set_context(mode=0, device_id=0)
"""
AUTO = """
model = AutoModel.from_pretrained("mae_vit_base_p16")
config = AutoConfig.from_pretrained("mae_vit_base_p16")
model = AutoModel.from_config(config)
print(model)
"""
PIPELINE = """
pipeline_task = pipeline("masked_image_modeling", model='mae_vit_base_p16')
img = load_image("{site}/sunflower.png")
pipeline_result = pipeline_task(img)
print(pipeline_result)
"""
TRAINER = """
mae_trainer = Trainer(
    task='masked_image_modeling',
    model='mae_vit_base_p16',
    train_dataset="imageNet-1k/train")
img = load_image("{site}/sunflower.png")
"""
TRAIN = """
mae_trainer.train()
predict_result = mae_trainer.predict(predict_checkpoint=True, input_data=img)
print(predict_result)
"""
PREDICT = """
predict_result = mae_trainer.predict(input_data=img)
print(predict_result)
"""
SMALL = """
from mae.config.sections import ModelConfig
small = ModelConfig(image_size=28, patch_size=7, embed_dim=16, depth=1, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, gelu="tanh", crop_pct=1.0)
"""
LENGTH = """overrides=["pretrain.epochs=2", "pretrain.warmup_epochs=1",
    "pretrain.batch_size=16", "pretrain.accum_iter=1"],"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with imageNet-1k/, and a server of the published file and of the picture; gives run(code)."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "site" / "pretrain").mkdir(parents=True)
    file = folder / "site" / "pretrain" / "mae_pretrain_vit_base_full.pth"
    torch.save({"model": published_weights(ModelConfig())}, file)
    Image.effect_noise((333, 250), 80).convert("RGB").save(folder / "site" / "sunflower.png")
    unpack_sample(folder / "imageNet-1k", train_per_class=8, val_per_class=2)
    with Served(folder / "site") as server:
        environment = {
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "GLOG_v": "3",
            "MAE_HOME": str(folder / "home"),
            "MAE_MIRROR": server.url,
            "no_proxy": "127.0.0.1",
        }

        def run(code, **changed):
            """Execute `code` in a process in the folder; return what it prints."""
            process = subprocess.run(
                [sys.executable, "-c", code.replace("{site}", server.url)],
                cwd=folder,
                env={**environment, **changed},
                capture_output=True,
                text=True,
                timeout=400,
            )
            assert process.returncode == 0, process.stderr
            return process.stdout

        run.requests, run.folder = server.requests, folder
        yield run
    file.unlink()
    for model in (folder / "home").rglob("*.safetensors"):
        model.unlink()


def test_auto_classes(place):
    check = """
assert config == AutoModel.from_pretrained("mae_vit_base_p16").config, config
assert (config.patch_size, config.embed_dim, config.depth, config.decoder_embed_dim) == (16, 768, 12, 512)
assert config.norm_pix_loss is True
"""
    printed = place(HEAD.replace("{names}", "AutoModel, AutoConfig") + AUTO + check)
    assert "MaskedAutoencoder" in printed
    weights = published_weights(ModelConfig())
    from safetensors import safe_open

    with safe_open(place.folder / "home" / "mae_vit_base_p16" / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(weights)
        name = "decoder_blocks.7.mlp.fc2.weight"
        np.testing.assert_array_equal(file.get_tensor(name), weights[name].numpy())
    assert place.requests.count("/pretrain/mae_pretrain_vit_base_full.pth") == 1


def test_pipeline(place):
    check = """
(found,) = pipeline_result
assert found["data"].size == (224, 224) and found["data"].mode == "RGB"
assert found["true_patch_statistics"] is True
print(found["info"])
"""
    printed = place(HEAD.replace("{names}", "pipeline, load_image") + PIPELINE + check)
    assert "'data': <PIL.Image.Image" in printed
    path = printed.split()[-1]
    assert path.startswith("output/")
    assert Image.open(place.folder / path).size == (224, 224)


def test_trainer_predicts_with_published_weights(place):
    names = HEAD.replace("{names}", "Trainer, load_image")
    printed = place(names + TRAINER + PREDICT + "print(mae_trainer.config.model_dump_json())")
    assert "'data': <PIL.Image.Image" in printed
    assert '"epochs":800,"batch_size":64,"accum_iter":64,"blr":0.00015' in printed
    assert place.requests.count("/pretrain/mae_pretrain_vit_base_full.pth") == 1


def test_trainer_trains_and_predicts_with_the_trained_model(place):
    """The card's lines with a smaller model and a shorter recipe."""
    smaller = TRAINER.replace("model='mae_vit_base_p16',", f"model=small, {LENGTH}")
    assert smaller != TRAINER
    code = HEAD.replace("{names}", "Trainer, load_image") + SMALL + smaller + TRAIN
    printed = place(code + "print(predict_result[0]['data'].size)\nprint(mae_trainer.train())")
    assert "epoch 2/2: loss" in printed
    assert "(28, 28)" in printed
    assert "reused=True" in printed
    (run,) = (place.folder / "workspace" / "runs").iterdir()
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [10]  # 80 images / 16 * 2 epochs


def test_the_documented_python_interface(place):
    code = """
from mae import AutoConfig, AutoModel, Trainer, pipeline
AutoModel.from_pretrained("mae_vit_base_p16")
AutoModel.from_pretrained("home/mae_vit_base_p16/model.safetensors")
AutoModel.from_config(AutoConfig.from_pretrained("mae_vit_base_p16"))
found = pipeline("masked_image_modeling", model=AutoModel.from_pretrained("mae_vit_base_p16"))("site/sunflower.png")
assert found[0]["data"].size == (224, 224)
"""
    place(code, MAE_MIRROR="http://127.0.0.1:9")  # offline: from the cache


def test_importing_the_package_and_asking_for_help_load_no_mindspore():
    code = "import sys, mae, mae.cli; assert 'mindspore' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def test_pipeline_is_the_function_whatever_is_imported_first():
    code = """
import mae.api.image_pipeline, mae.api.trainer, mae.prediction.predict
from mae import pipeline, Trainer, load_image, AutoModel, AutoConfig
assert callable(pipeline) and callable(load_image) and isinstance(Trainer, type), pipeline
import mae
assert set(mae.__all__) <= set(dir(mae))
try:
    mae.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
