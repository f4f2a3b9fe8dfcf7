"""Writing a validated data set as MindRecord shards, and comparing the records with their source images.

Read `stage.py` first. `datasets.records` reads what is written here. MindSpore is imported when a shard is written or
read, not before.
"""

from datasets.sharding.compare import check_records
from datasets.sharding.stage import ShardPlan, records_directory, sole_writer, write_records
from datasets.sharding.writer import ShardGroup

__all__ = ["ShardGroup", "ShardPlan", "check_records", "records_directory", "sole_writer", "write_records"]
