"""Batches: which samples, in which order, with which pixels."""

import io

import numpy as np
import pytest
from mindspore.mindrecord import FileReader
from PIL import Image

from datasets.batches import epoch_order, ordered_batches, steps_per_epoch, train_batches
from datasets.evaluation import centre_view
from datasets.records import load_index
from datasets.shard import shard
from datasets.stage import InputError
from datasets.validate import validate

TRAIN = {"image_shape": (16, 16), "crop_scale": 0.2, "seed": 1, "workers": 1}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """47 training and 13 validation images: colour and grey, JPEG and PNG, wide and tall, in two classes."""
    folder = tmp_path_factory.mktemp("batches")
    rng = np.random.default_rng(0)
    for split, count in (("train", 47), ("val", 13)):
        for n in range(count):
            path = folder / "images" / split / f"class{n % 2}" / f"{n}.{'png' if n % 3 == 0 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (40, 24) if n % 5 else (24, 40)
            noise = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size)
            (noise.convert("L") if n % 4 == 0 else noise).save(path)
    return shard(validate(folder / "images", folder / "valid").directory, folder / "records").directory


def rows(batches):
    return [batch.samples.tolist() for batch in batches]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 12), (2, 6), (3, 4), (4, 3)])
def test_the_global_batches_are_the_same_for_any_number_of_ranks(records, ranks, batch_size):
    shares = [
        rows(train_batches(records, epoch=2, batch_size=batch_size, rank=rank, ranks=ranks, **TRAIN))
        for rank in range(ranks)
    ]
    merged = [np.stack(parts, axis=1).ravel().tolist() for parts in zip(*shares, strict=True)]
    assert merged == rows(train_batches(records, epoch=2, batch_size=12, **TRAIN))
    seen = np.concatenate(merged)
    assert len(seen) == len(set(seen)) == 36  # 3 whole global batches of 47 images


def test_the_order_is_a_function_of_seed_and_epoch():
    assert sorted(epoch_order(47, seed=1, epoch=0)) == list(range(47))
    np.testing.assert_array_equal(epoch_order(47, seed=1, epoch=3), epoch_order(47, seed=1, epoch=3))
    assert (epoch_order(47, seed=1, epoch=3) != epoch_order(47, seed=1, epoch=4)).any()
    assert (epoch_order(47, seed=1, epoch=3) != epoch_order(47, seed=2, epoch=3)).any()


def test_augmentation_repeats_for_the_same_epoch_and_differs_in_the_next(records):
    first, again, later = (
        np.concatenate([b.images for b in train_batches(records, epoch=e, batch_size=12, **TRAIN)]) for e in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (36, 16, 16, 3)
    assert first.dtype == np.uint8
    assert (first != later).mean() > 0.5


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_evaluation_sees_every_image_once_with_pillows_pixels(records, crop_pct):
    stored = {}
    for part in load_index(records).splits["val"].shards:
        reader = FileReader(str(records / part.file))
        stored.update({record["row"]: record for record in reader.get_next()})
        reader.close()
    batches = list(ordered_batches(records, "val", image_shape=(16, 16), crop_pct=crop_pct, batch_size=5, workers=1))
    assert [len(b.samples) for b in batches] == [5, 5, 3]
    assert sorted(np.concatenate([b.samples for b in batches])) == sorted(stored)
    for batch in batches:
        for image, label, row in zip(*batch, strict=True):
            source = Image.open(io.BytesIO(stored[row]["image"])).convert("RGB")
            np.testing.assert_array_equal(image, centre_view(source, (16, 16), crop_pct), err_msg=str(source.size))
            assert label == stored[row]["label"]


def test_a_batch_larger_than_the_data_is_refused():
    assert steps_per_epoch(47, batch_size=11, ranks=4) == 1
    with pytest.raises(InputError, match=r"12 \(batch_size \* accum_iter\) x 4 ranks = 48"):
        steps_per_epoch(47, batch_size=12, ranks=4)
