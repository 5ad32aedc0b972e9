"""Names that others import. Removing or renaming one breaks them: change this list knowingly, with a line in the CHANGELOG."""

import importlib
from typing import get_args

import pytest

from datagen.check.report import Code

PUBLIC = {
    "datagen.write": {
        *(
            "DoneSet",
            "FinishedVideo",
            "StagedClip",
            "VideoProgress",
            "publish_video_assets",
            "resume_videos",
            "stage_clip",
            "RunRecord",
            "StagedPart",
            "Store",
            "arrow_schema",
            "committed_clips",
            "done_assets",
            "open_dataset",
            "open_store",
            "part_id_of",
        ),
        *(
            "other_options",
            "StagedPortion",
            "prepare_output",
            "publish_part",
            "put_together",
            "run_records",
            "stage_part",
            "stage_portion",
            "sweep",
            "table_from_rows",
            "weight_hashes",
            "write_card",
        ),
    },
    "datagen.check": {"CheckReport", "Violation", "check_dataset"},
    "datagen.run": {"RunSummary", "plan_job", "required", "run_job"},
    "datagen.job": {"LANGUAGES", "TASKS", "Job", "job_schema", "load_job", "parse_job", "row_options"},
}
USED = {
    "datagen.records": ("Asset", "Failure", "Prompt", "Region", "RegionTokens", "Sample", "Text"),
    "datagen.ids": ("asset_id_of", "clip_id_of", "region_id_of", "track_id_of", "work_id_of"),
    "datagen.errors": (
        "DatagenError",
        "JobError",
        "SourceError",
        "DecodeError",
        "PromptError",
        "SchemaError",
        "WriteError",
        "ClusterError",
    ),
    "datagen.check": ("CheckReport", "Violation", "check_dataset"),
    "datagen.masklets": ("Masklet", "masklet"),
    "datagen.stats": ("dataset_stats", "render_stats"),
    "datagen.run": ("RunSummary", "plan_job", "run_job"),
}
# What scripts may react to in the report of `datagen check`.
VIOLATIONS = {
    *("marker", "debris", "unexpected_file", "orphan_part", "unreadable_part", "schema", "empty_part", "changed_part", "lost_part"),
    *("run_record", "crash_file", "meta_file"),
    *("part_name", "part_id", "unknown_run", "mixed_runs", "value", "extra", "dropped", "flags", "prompt"),
    *("text", "logprob", "caption", "score", "frame_gap", "prompt_count"),
    *("lost_asset", "duplicate_asset", "duplicate_uri", "media_type", "status", "failed_row", "asset_size"),
    *("region_count", "track_count", "clip_count", "video_row"),
    *("duplicate_region", "stray_region", "region_id", "mask", "area", "box", "token_logprobs"),
    *("duplicate_clip", "stray_clip", "clip_id", "clip_times", "last_clip", "handover"),
    *("duplicate_track", "stray_track", "track_id", "object_index", "track_times"),
    *("frame_index", "timestamp", "object_score", "prompt_frame", "event"),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_the_documented_ones(module):
    assert set(importlib.import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize("module", USED)
def test_names_that_others_import_are_there_and_explained(module):
    for name in USED[module]:
        assert getattr(importlib.import_module(module), name).__doc__, f"{module}.{name}"


def test_codes_of_violations_are_stable():
    assert set(get_args(Code)) == VIOLATIONS
