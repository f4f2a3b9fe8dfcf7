"""What the tests kill. MindSpore is imported here, so that it is imported once and not in each killed process."""

import mindspore.mindrecord  # noqa: F401

from datasets.sharding import write_records


def write(validation, out):
    write_records(validation, out, shard_mb=1, workers=1)
