"""Checkpoints: what is written is read, what is damaged or foreign is refused with the reason."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from datasets.base.errors import InputError
from mae.config.sections import ModelConfig
from mae.model.card import ModelCard
from mae.model.mae import seeded_mae
from mae.runs import checkpoint
from mae.runs.model_file import load_card, load_weights, model_file
from mae.weights.restore import classifier_from_mae, load_classifier, load_model, load_parameters

CARD = ModelCard(kind="mae", model=ModelConfig(image_size=32), mask_ratio=0.6)
WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1.5])}


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints of one run."""
    for step in (10, 20, 30):
        directory = tmp_path / "checkpoints" / str(step)
        checkpoint.save(directory, WEIGHTS, CARD, moments={"m": WEIGHTS["a"]}, step=step, epoch=step // 10, loss=0.5)
    return tmp_path / "checkpoints"


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def replaced_by_directory(path):
    path.unlink()
    path.mkdir()


def test_what_is_written_is_read(saved):
    newest = checkpoint.newest(saved)
    assert newest == saved / "30"
    assert load_card(newest / checkpoint.MODEL) == CARD
    found = load_weights(newest / checkpoint.MODEL)
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)
    state = checkpoint.load_state(newest)
    assert (state.step, state.epoch, state.loss) == (30, 3, 0.5)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a flipped byte", lambda d: (d / "model.safetensors").write_bytes(b"x" + bytes(100))),
        ("a missing file", lambda d: (d / "optimizer.safetensors").unlink()),
        ("no state", lambda d: (d / "state.json").unlink()),
        ("half a state", lambda d: (d / "state.json").write_text('{"step": 30')),
        ("a state of other bytes", lambda d: (d / "state.json").write_bytes(b"\xff" * 9)),
        ("another epoch in it", lambda d: changed(d / "state.json", '"epoch": 3', '"epoch": 9')),
        ("another loss in it", lambda d: changed(d / "state.json", '"loss": 0.5', '"loss": 0.4')),
        ("a directory for a file", lambda d: replaced_by_directory(d / "model.safetensors")),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before(saved, caplog, name, damage):
    damage(saved / "30")
    assert checkpoint.newest(saved) == saved / "20", name
    assert "skipping a damaged checkpoint" in caplog.text


def test_a_half_written_one_is_none(saved):
    (saved / "40.partial-host-1-abc").mkdir()
    assert checkpoint.newest(saved) == saved / "30"


@pytest.mark.parametrize("give", ["model.safetensors", ".", "../.."])
def test_a_user_may_name_file_checkpoint_or_run(saved, give):
    assert model_file(saved / "30" / give).resolve() == (saved / "30" / "model.safetensors").resolve()


@pytest.mark.parametrize("give", ["model.safetensors", "."])
def test_a_damaged_one_that_a_user_names_is_refused(saved, tmp_path, give):
    elsewhere = (saved / "30").rename(tmp_path / "best")
    assert model_file(elsewhere / give).is_file()
    content = bytearray((elsewhere / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (elsewhere / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"expected the content of SHA-256 [0-9a-f]{64}, found other content"):
        model_file(elsewhere / give)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("nothing there", lambda p: None, "expected a checkpoint"),
        ("no safetensors", lambda p: p.write_bytes(b"not a checkpoint"), "expected a safetensors file"),
        ("no description", lambda p: save_file(WEIGHTS, p), "expected a model description"),
    ],
)
def test_what_is_no_checkpoint_of_ours(tmp_path, name, write, message):
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(InputError, match=message):
        load_card(model_file(path))


def test_differences_are_named(trained):
    model = load_model(trained.checkpoint)
    weights = load_weights(trained.checkpoint)
    weights["surplus"] = weights.pop("norm.weight")
    weights["mask_token"] = weights["mask_token"][..., :4]
    with pytest.raises(InputError) as error:
        load_parameters(model, weights, source="x")
    assert "missing: norm.weight" in str(error.value)
    assert "unexpected: surplus" in str(error.value)
    assert "mask_token (1, 1, 4) instead of (1, 1, 8)" in str(error.value)


def test_a_classifier_takes_the_encoder_and_nothing_else(tiny, trained):
    mae = {p.name: p.asnumpy() for p in load_model(trained.checkpoint).get_parameters()}
    classifier = {
        p.name: p.asnumpy()
        for p in classifier_from_mae(trained.checkpoint, 10, tiny.model, drop_path=0).get_parameters()
    }
    shared = set(mae) & set(classifier)
    assert {"cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc2.bias"} <= shared
    for name in shared:
        np.testing.assert_array_equal(classifier[name], mae[name])
    assert set(classifier) - shared == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_a_classifier_of_larger_images_has_an_interpolated_embedding(tiny, trained):
    larger = tiny.model.model_copy(update={"image_size": 42})
    model = classifier_from_mae(trained.checkpoint, 10, larger, drop_path=0)
    assert model.config.image_size == 42
    mae, found = load_model(trained.checkpoint).pos_embed.asnumpy(), model.pos_embed.asnumpy()
    assert found.shape == (1, 1 + 6 * 6, 16)
    np.testing.assert_array_equal(found[:, 0], mae[:, 0])
    np.testing.assert_allclose(found[:, 1:].mean(1), mae[:, 1:].mean(1), atol=0.05)


def test_a_classifier_of_another_encoder_is_refused(tiny, trained):
    with pytest.raises(InputError, match="expected depth 2, as the config's model has, found 1"):
        classifier_from_mae(trained.checkpoint, 10, tiny.model.model_copy(update={"depth": 2}), drop_path=0)


def test_the_other_kind_is_refused(trained):
    with pytest.raises(InputError, match="expected a classifier checkpoint, found a mae checkpoint"):
        load_classifier(trained.checkpoint)


def test_a_seed_gives_the_same_initialisation(tiny):
    one, again, other = (
        {p.name: p.asnumpy() for p in seeded_mae(tiny.model, seed).get_parameters()} for seed in (1, 1, 2)
    )
    name = "blocks.0.mlp.fc1.weight"
    np.testing.assert_array_equal(one[name], again[name])
    assert (one[name] != other[name]).any()
