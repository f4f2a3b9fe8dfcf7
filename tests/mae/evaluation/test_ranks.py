"""Several ranks share an evaluation: every image counts once, and the features differ by rounding at most."""

import itertools

import numpy as np
import pytest

from datasets.records import load_index
from datasets.sample import unpack_sample
from datasets.sharding import write_records
from datasets.validation.validate import validate
from mae.config.sections import DeviceConfig
from mae.evaluation.protocol import Subject
from mae.launch.call import in_child
from tests.mae.evaluation.on_ranks import features


@pytest.fixture(scope="module")
def odd_records(tmp_path_factory):
    """1,003 training images, of which the last batch has 235, and 40 for validation, less than a batch."""
    folder = tmp_path_factory.mktemp("odd")
    root = unpack_sample(folder / "images", train_per_class=101, val_per_class=4).root
    for path in itertools.islice((root / "train").rglob("*.JPEG"), 7):
        path.unlink()
    records = write_records(validate(root, folder / "valid").directory, folder / "records").directory
    assert load_index(records).splits["train"].images == 1003
    return records


@pytest.mark.slow
def test_features_do_not_depend_on_the_number_of_ranks(trained, odd_records, tiny, tmp_path):
    subject = Subject(trained.checkpoint, odd_records, tiny, tmp_path)
    found = [in_child(features, DeviceConfig(), near=tmp_path, ranks=n)(subject, n) for n in (1, 2, 3)]
    assert set(found[0]) == {"train", "val"}
    for split, (values, labels) in found[0].items():
        for other, other_labels in (each[split] for each in found[1:]):
            assert other_labels == labels
            np.testing.assert_allclose(other, values, rtol=0, atol=1e-5)
    assert list(tmp_path.iterdir()) == []
