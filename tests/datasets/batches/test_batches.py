"""Batches: which samples, in which order, with which pixels."""

import io
import itertools
import os
import threading

import numpy as np
import pytest
from mindspore.mindrecord import FileReader
from PIL import Image

from datasets.augmentation.crop import Augmentation, crop_box, draws
from datasets.augmentation.erasing import Erasing, erase
from datasets.augmentation.operations import rand_augment, rand_augmented
from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.batches import epoch_order, ordered_batches, steps_per_epoch, train_batches
from datasets.images.view import centre_view, decode
from datasets.records import INDEX, load_index
from datasets.sharding import write_records
from datasets.validation.validate import validate

TRAIN = {"image_shape": (16, 16), "crop_scale": 0.2, "seed": 1}
VAL = {"image_shape": (16, 16), "crop_pct": 0.875}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """47 training and 13 validation images in several shards: of two colours, two formats, three sizes."""
    folder = tmp_path_factory.mktemp("batches")
    rng = np.random.default_rng(0)
    for split, count in (("train", 47), ("val", 13)):
        for n in range(count):
            path = folder / "images" / split / f"class{n % 2}" / f"{n}.{'png' if n % 3 == 0 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (130, 110) if n % 5 else (110, 130)
            size = size if n % 9 else (350, 310)  # its shard would have another page size than the others
            noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            image = noise.convert("L").resize((240, 160)) if n % 4 == 0 else noise
            image.save(path, quality=100)
    valid = validate(folder / "images", folder / "valid").directory
    return write_records(valid, folder / "records", shard_mb=1, workers=1).directory


@pytest.fixture(scope="module")
def stored(records):
    """What lies in the records, as MindRecord's own reader finds it, shard after shard in the order of the index."""
    found = {}
    for split, part in load_index(records).splits.items():
        found[split] = []
        for item in part.shards:
            reader = FileReader(str(records / item.file))
            found[split] += list(reader.get_next())
            reader.close()
    assert len(load_index(records).splits["train"].shards) > 1
    return found


def samples(batches):
    return [batch.samples.tolist() for batch in batches]


def train(records, *, epochs=(2,), batch_size=12, ranks=1, **options):
    """Global batches as lists of samples and as pixels: those of all ranks, merged."""
    shares = [
        list(train_batches(records, epochs=epochs, batch_size=batch_size, rank=rank, ranks=ranks, **TRAIN | options))
        for rank in range(ranks)
    ]
    return [
        tuple(np.stack(parts, 1).reshape(-1, *parts[0].shape[1:]) for parts in zip(*step, strict=True))
        for step in zip(*shares, strict=True)
    ]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        for array, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.fixture(scope="module")
def epoch(records):
    return train(records)


def test_an_epoch_is_the_head_of_its_order_each_sample_once(epoch):
    seen = np.concatenate([samples for _, _, samples in epoch])
    np.testing.assert_array_equal(seen, epoch_order(47, seed=1, epoch=2)[:36])  # 3 whole global batches of 47 images
    assert len(set(seen.tolist())) == 36


def test_pixels_and_labels_are_those_of_the_stored_record_cropped_as_drawn(epoch, stored):
    drawn = draws(0, 36, seed=1, epoch=2)
    place = 0
    for images, labels, numbers in epoch:
        assert (images.dtype, labels.dtype, numbers.dtype) == (np.uint8, np.int32, np.int64)
        for image, label, number in zip(images, labels, numbers, strict=True):
            record = stored["train"][number]
            assert label == record["label"]
            source = decode(record["image"], where="record")
            crop = source.crop(crop_box(*source.size, drawn[place], Augmentation(0.2)))
            wide = crop.resize((16, crop.height), Image.Resampling.BICUBIC)
            expected = np.asarray(wide.resize((16, 16), Image.Resampling.BICUBIC))
            np.testing.assert_array_equal(image, expected[:, ::-1] if drawn[place, -1] < 0.5 else expected)
            place += 1
    assert place == 36


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("2 ranks", {"ranks": 2, "batch_size": 6}),
        ("3 ranks", {"ranks": 3, "batch_size": 4}),
        ("4 ranks of 3 threads", {"ranks": 4, "batch_size": 3, "workers": 3}),
        ("12 ranks", {"ranks": 12, "batch_size": 1}),
        ("1 thread", {"workers": 1}),
        ("7 threads", {"workers": 7}),
    ],
)
def test_the_global_batches_are_the_same_to_the_bit(records, epoch, name, options):
    assert_same(train(records, **options), epoch)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("start_step", [1, 2])
def test_an_epoch_goes_on_from_any_step(records, epoch, ranks, start_step):
    assert_same(train(records, ranks=ranks, batch_size=12 // ranks, start_step=start_step), epoch[start_step:])


@pytest.mark.parametrize(
    ("batch_size", "accum_iter", "steps"), [(12, 1, 3), (12, 3, 3), (9, 1, 5), (9, 2, 4), (9, 3, 3), (1, 20, 40)]
)
def test_epochs_follow_each_other(records, batch_size, accum_iter, steps):
    cut = {"batch_size": batch_size, "accum_iter": accum_iter}
    epochs = [train(records, epochs=[number], **cut) for number in (2, 3, 4)]
    assert [len(batches) for batches in epochs] == [steps] * 3
    assert_same(train(records, epochs=range(2, 5), start_step=2, **cut), [*itertools.chain(*epochs)][2:])


def test_after_the_last_step_nothing_is_left(records):
    assert train(records, start_step=3) == []


def test_other_batch_sizes_cut_the_same_sequence(records, epoch):
    images, expected = (np.concatenate([images for images, _, _ in e]) for e in (train(records, batch_size=9), epoch))
    np.testing.assert_array_equal(images[:36], expected)


@pytest.mark.parametrize("other", [{"epochs": [3]}, {"seed": 2}, {"crop_scale": 0.9}, {"clipped": True}])
def test_another_epoch_seed_or_crop_gives_other_pixels(records, epoch, other):
    found = train(records, **other)
    changed = sum((ours != theirs).any() for (ours, *_), (theirs, *_) in zip(found, epoch, strict=True))
    assert changed == 3 if other != {"clipped": True} else changed > 0


CHANGES = rand_augment("rand-m9-mstd0.5-inc1", mean=(0.5, 0.4, 0.3))
ERASING = Erasing(0.5, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("changes", [None, CHANGES])
@pytest.mark.parametrize("erasing", [None, ERASING])
@pytest.mark.parametrize(("ranks", "start_step"), [(1, 0), (3, 1)])
def test_changed_images_are_the_plain_ones_changed_by_what_seed_epoch_and_place_draw(
    records, epoch, changes, erasing, ranks, start_step
):
    found = train(records, ranks=ranks, batch_size=12 // ranks, start_step=start_step, changes=changes, erasing=erasing)
    place, differ = 12 * start_step, 0
    assert len(found) == 3 - start_step
    for (ours, *rest), (plain, *others) in zip(found, epoch[start_step:], strict=True):
        assert_same([rest], [others])
        for image, source in zip(ours, plain, strict=True):
            expected = source.copy()
            if changes is not None:
                rand_augmented(expected, np.random.default_rng([1, 2, 2, place]), changes)
            if erasing is not None:
                erase(expected, np.random.default_rng([1, 2, 3, place]), erasing)
            np.testing.assert_array_equal(image, expected)
            differ += (image != source).any()
            place += 1
    assert (differ > len(found) * 12 / 4) == (changes is not None or erasing is not None)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert sorted(epoch_order(47, seed=1, epoch=0)) == list(range(47))
    np.testing.assert_array_equal(epoch_order(47, seed=1, epoch=3), epoch_order(47, seed=1, epoch=3))
    assert (epoch_order(47, seed=1, epoch=3) != epoch_order(47, seed=1, epoch=4)).any()
    assert (epoch_order(47, seed=1, epoch=3) != epoch_order(47, seed=2, epoch=3)).any()


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_evaluation_sees_every_image_once_with_pillows_pixels(records, stored, crop_pct):
    batches = list(ordered_batches(records, "val", image_shape=(16, 16), crop_pct=crop_pct, batch_size=5))
    assert samples(batches) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12]]
    for batch in batches:
        for image, label, number in zip(*batch, strict=True):
            record = stored["val"][number]
            source = Image.open(io.BytesIO(record["image"])).convert("RGB")
            np.testing.assert_array_equal(image, centre_view(source, (16, 16), crop_pct), err_msg=str(source.size))
            assert label == record["label"]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 12, 13, 14, 40])
def test_ranks_share_the_batches_of_an_evaluation(records, ranks, batch_size):
    whole = list(ordered_batches(records, "val", batch_size=batch_size, **VAL))
    assert sum(len(batch.samples) for batch in whole) == 13
    for rank in range(ranks):
        share = list(ordered_batches(records, "val", batch_size=batch_size, rank=rank, ranks=ranks, **VAL))
        assert len(share) == len(whole[rank::ranks])
        for batch, expected in zip(share, whole[rank::ranks], strict=True):
            for found, wanted in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_a_reader_that_is_left_early_ends_its_threads(records):
    before = threads()
    batches = train_batches(records, epochs=[0], batch_size=4, workers=5, **TRAIN)
    next(batches)
    assert {"reader", "images"} <= threads() - before
    batches.close()
    assert not {"reader", "images"} & threads()


def threads():
    return {thread.name.rpartition("_")[0] for thread in threading.enumerate()}


def test_a_batch_larger_than_the_data_is_refused():
    assert steps_per_epoch(47, batch_size=11, ranks=4) == 1
    with pytest.raises(InputError, match=r"12 \(batch_size \* accum_iter\) x 4 ranks = 48"):
        steps_per_epoch(47, batch_size=12, ranks=4)


def linked(records, target):
    """The records in another directory, whose index may be changed."""
    for name in ("train", "val"):
        (target / name).mkdir(parents=True)
        for file in (records / name).iterdir():
            os.link(file, target / name / file.name)
    return load_index(records).model_dump(mode="json", by_alias=True)


def test_records_that_the_index_does_not_count_right_are_named(records, tmp_path):
    index = linked(records, tmp_path)
    index["splits"]["val"]["images"] = 14
    write_json(tmp_path / INDEX, index)
    with pytest.raises(InputError, match=r"expected 14 records, as index.json says, found 13; run `mae data check`"):
        list(ordered_batches(tmp_path, "val", batch_size=14, **VAL))
