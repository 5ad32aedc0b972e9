"""Names that others import. Removing or renaming one breaks them: change this list knowingly, with a line in the CHANGELOG."""

import importlib

import pytest

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
            "done_assets",
            "open_dataset",
            "open_store",
            "part_id_of",
        ),
        *(
            "other_options",
            "prepare_output",
            "publish_part",
            "run_records",
            "stage_part",
            "sweep",
            "table_from_rows",
            "weight_hashes",
            "write_card",
        ),
    },
    "datagen.job": {"LANGUAGES", "TASKS", "Job", "job_schema", "load_job", "parse_job", "row_options"},
}
USED = {
    "datagen.records": ("Asset", "Failure", "Prompt", "Region", "RegionTokens", "Sample", "Text", "asset_id_of"),
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
    "datagen.stats": ("dataset_stats", "render_stats"),
    "datagen.run": ("RunSummary", "plan_job", "run_job"),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_the_documented_ones(module):
    assert set(importlib.import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize("module", USED)
def test_names_that_others_import_are_there_and_explained(module):
    for name in USED[module]:
        assert getattr(importlib.import_module(module), name).__doc__, f"{module}.{name}"
