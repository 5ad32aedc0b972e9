"""The last step: rows to Parquet parts that are either absent or whole; each image is in exactly one, as is each clip of a video."""

from __future__ import annotations

from datagen.write.card import write_card
from datagen.write.clips import FinishedVideo, VideoProgress, committed_clips, publish_video_assets, resume_videos
from datagen.write.done import DoneSet, done_assets
from datagen.write.layout import RunRecord, open_dataset, other_options, prepare_output, run_records, weight_hashes
from datagen.write.parts import StagedClip, StagedPart, part_id_of, publish_part, stage_clip, stage_part, sweep
from datagen.write.portions import StagedPortion, put_together, stage_portion
from datagen.write.schema import arrow_schema, table_from_rows
from datagen.write.store import Store, open_store

__all__ = [
    "DoneSet",
    "FinishedVideo",
    "RunRecord",
    "StagedClip",
    "StagedPart",
    "StagedPortion",
    "Store",
    "VideoProgress",
    "arrow_schema",
    "committed_clips",
    "done_assets",
    "open_dataset",
    "open_store",
    "other_options",
    "part_id_of",
    "prepare_output",
    "publish_part",
    "publish_video_assets",
    "put_together",
    "resume_videos",
    "run_records",
    "stage_clip",
    "stage_part",
    "stage_portion",
    "sweep",
    "table_from_rows",
    "weight_hashes",
    "write_card",
]
