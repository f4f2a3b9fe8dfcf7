"""pipeline(task, model)(images): its results for each kind of image and model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base.errors import InputError
from datasets.images.view import centre_view
from mae import AutoModel, load_image, pipeline
from mae.api.image_pipeline import for_task
from mae.config.sections import ModelConfig
from mae.model.vit import VisionTransformer
from mae.prediction.predictors import Reconstructor
from tests.mae.servers import Served

WIDE = ModelConfig(
    image_size=(14, 28), patch_size=7, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=8, decoder_depth=1,
    decoder_num_heads=2, norm_pix_loss=False, crop_pct=1.0,
)  # fmt: skip


def patches(pixels):
    """Return pixels as (row, y, column, x, channel) of WIDE's patches."""
    return pixels.reshape(2, 7, 4, 7, 3)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "in" / "a photo.png"
    path.parent.mkdir()
    Image.effect_noise((61, 40), 90).convert("RGB").save(path)
    return path


@pytest.fixture
def reconstruct(trained, tmp_path):
    return pipeline("masked_image_modeling", model=trained.run_dir, save_dir=tmp_path / "out")


def test_every_way_to_give_an_image_gives_the_same_pixels(reconstruct, photo, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    picture = Image.open(photo).convert("RGB")
    with Served(photo.parent) as server:
        address = f"{server.url}/a%20photo.png"
        given = [str(photo), photo, address, photo.parent]
        results = [reconstruct(one) for one in given]
        assert np.array_equal(np.asarray(load_image(address)), np.asarray(picture))
    assert [len(found) for found in results] == [1] * 4
    # the digest of a file is that of its bytes, so the mask is the same; of an array or a picture it is of the pixels
    first = np.asarray(results[0][0]["data"])
    for (found,) in results:
        np.testing.assert_array_equal(np.asarray(found["data"]), first)
        assert Path(found["info"]).name.startswith("a_photo-")
    ours = [reconstruct(picture)[0], reconstruct(np.asarray(picture))[0]]
    np.testing.assert_array_equal(*(np.asarray(found["data"]) for found in ours))


def test_visible_patches_are_the_images_own_and_the_rest_is_predicted(reconstruct, photo, trained):
    (found,) = reconstruct(photo)
    data = np.asarray(found["data"])
    original = centre_view(load_image(photo), (28, 28), 1.0)
    same = (data == original).reshape(4, 7, 4, 7, 3).all((1, 3, 4))
    assert same.sum() == 4  # 16 patches * (1 - 0.75)
    assert found["mask_ratio"] == 0.75
    assert found["true_patch_statistics"] is True
    assert 0 < found["loss"] < 5
    np.testing.assert_array_equal(np.asarray(Image.open(found["info"])), data)


def test_seeds_choose_masks_and_nothing_is_overwritten(trained, photo, tmp_path):
    results = [
        pipeline("masked_image_modeling", trained.run_dir, seed=seed, save_dir=tmp_path / "out")(photo)[0]
        for seed in (0, 0, 1)
    ]
    assert results[0]["info"] == results[1]["info"] != results[2]["info"]
    np.testing.assert_array_equal(np.asarray(results[0]["data"]), np.asarray(results[1]["data"]))
    assert (np.asarray(results[0]["data"]) != np.asarray(results[2]["data"])).any()
    other = photo.with_name("other") / photo.name
    other.parent.mkdir()
    Image.effect_noise((61, 40), 90).convert("RGB").save(other)
    third = pipeline("masked_image_modeling", trained.run_dir, save_dir=tmp_path / "out")([photo, other])
    assert len({r["info"] for r in third}) == 2
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_wide_model_reconstructs_plain_pixels(photo, tmp_path):
    model = AutoModel.from_config(WIDE)
    (found,) = pipeline("masked_image_modeling", model, save_dir=tmp_path / "out")(photo)
    assert found["data"].size == (28, 14)
    assert found["true_patch_statistics"] is False
    assert found["mask_ratio"] == 0.75


def test_a_prediction_outside_the_range_is_clipped(photo):
    """The bias of the decoder's last layer determines the prediction: far above white, then far below black."""
    from mindspore import Tensor

    for bias, value in ((50.0, 255), (-50.0, 0)):
        model = AutoModel.from_config(WIDE)
        model.decoder_pred.bias.set_data(Tensor(np.full(147, bias, np.float32)))
        result = Reconstructor(model)(load_image(photo), seed=0, digest="1")
        removed = (patches(result.masked) == 127).all((1, 3, 4))
        assert removed.sum() == 6
        assert (patches(result.filled).transpose(0, 2, 1, 3, 4)[removed] == value).all()


@pytest.mark.parametrize(
    ("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.4, 0.3), (0.5, 0.25, 0.125))]
)
def test_a_mean_prediction_has_the_patches_own_mean(photo, mean, std):
    """With norm_pix_loss, a decoder that predicts 0 gives each removed patch its own mean."""
    from mindspore import Tensor

    model = AutoModel.from_config(WIDE.model_copy(update={"norm_pix_loss": True, "pixel_mean": mean, "pixel_std": std}))
    for parameter in model.decoder_pred.get_parameters():
        parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
    result = Reconstructor(model)(load_image(photo), seed=0, digest="1")
    means = patches(result.original).astype(float) / 255
    spread, shift = np.array(std), np.array(mean)
    normal = ((means - shift) / spread).mean((1, 3, 4))  # one mean for all channels of a patch, as upstream has it
    expected = (normal[:, :, None] * spread + shift) * 255
    filled = patches(result.filled)
    removed = (patches(result.masked) == 127).all((1, 3, 4))
    assert removed.sum() == 6
    for row, column in zip(*np.nonzero(removed), strict=True):
        np.testing.assert_allclose(filled[row, :, column].mean((0, 1)), expected[row, column].clip(0, 255), atol=0.51)


def test_plain_pixels_are_those_of_the_models_own_scale(photo):
    """A decoder that predicts 1 gives the model's pixel mean plus one standard deviation."""
    from mindspore import Tensor

    model = AutoModel.from_config(
        WIDE.model_copy(update={"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.5, 0.25, 0.1)})
    )
    for parameter in model.decoder_pred.get_parameters():
        value = float(parameter.name.endswith("bias"))
        parameter.set_data(Tensor(np.full(parameter.shape, value, np.float32)))
    result = Reconstructor(model)(load_image(photo), seed=0, digest="1")
    removed = (patches(result.masked) == 127).all((1, 3, 4))
    assert removed.sum() == 6
    painted = patches(result.filled).transpose(0, 2, 1, 3, 4)[removed].reshape(-1, 3)
    assert np.unique(painted, axis=0).tolist() == [[255, 166, 102]]  # 255 x (1.0, 0.65, 0.4)
    normal = (result.original / 255 - (0.5, 0.4, 0.3)) / (0.5, 0.25, 0.1)
    error = ((patches(normal) - 1) ** 2).mean((1, 3, 4))[removed]
    assert result.loss == pytest.approx(error.mean(), rel=1e-5)


def test_a_classifier_names_its_five_most_probable_classes(photo):
    from mindspore import Tensor

    model = VisionTransformer(WIDE, 7)
    bias = np.array([0, 3, 1, 5, 2, 4, -1], np.float32)
    model.head.weight.set_data(Tensor(np.zeros((7, 16), np.float32)))
    model.head.bias.set_data(Tensor(bias))
    found = pipeline("image_classification", model)([photo, photo])
    assert found[0] == found[1]
    assert [best["label"] for best in found[0]] == ["3", "5", "1", "4", "2"]
    expected = np.sort(np.exp(bias) / np.exp(bias).sum())[::-1][:5]
    np.testing.assert_allclose([best["score"] for best in found[0]], expected, rtol=1e-4)


def test_a_published_name_becomes_that_of_weights_for_the_task():
    assert for_task("image_classification", "mae_vit_base_p16") == "mae_vit_base_p16_finetuned"
    assert for_task("image_classification", "mae_vit_base_p16_finetuned") == "mae_vit_base_p16_finetuned"
    assert for_task("masked_image_modeling", "mae_vit_base_p16") == "mae_vit_base_p16"


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("unknown task", lambda m, p: pipeline("fill_mask", m), "expected one of masked_image_modeling"),
        ("classify by a MAE", lambda m, p: pipeline("image_classification", m), "expected a classifier"),
        (
            "features only",
            lambda m, p: pipeline("image_classification", VisionTransformer(WIDE, 0)),
            "an encoder without head",
        ),
        (
            "reconstruct by a classifier",
            lambda m, p: pipeline("masked_image_modeling", VisionTransformer(WIDE, 3)),
            "expected a MAE with its decoder",
        ),
        ("no image", lambda m, p: pipeline("masked_image_modeling", m)(p / "none.png"), "no such file"),
        ("floats", lambda m, p: pipeline("masked_image_modeling", m)(np.zeros((9, 9, 3))), "uint8 (H, W, 3)"),
        ("a grey array", lambda m, p: load_image(np.zeros((9, 9), np.uint8)), "uint8 (H, W, 3)"),
        ("a dead address", lambda m, p: load_image("http://127.0.0.1:9/x.png"), "check the address"),
        ("an empty folder", lambda m, p: pipeline("masked_image_modeling", m)(p), "expected images, found none"),
    ],
)
def test_wrong_models_and_images_are_named(trained, tmp_path, name, call, message):
    with pytest.raises(InputError) as error:
        call(trained.run_dir, tmp_path)
    assert message in str(error.value), name
