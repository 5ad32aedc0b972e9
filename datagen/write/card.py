"""The dataset card: README.md with the front matter that Hugging Face reads, made from what is really there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from string import Template
from typing import Any

import pyarrow.parquet as pq
import yaml

from datagen.job import Job
from datagen.write.done import READERS, done_assets
from datagen.write.parts import part_ids, part_path
from datagen.write.store import Store

CARD = "README.md"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))

_BODY = Template(
    """---
$front_matter---
# $name

$intro Made by datagen with the job `$name`.

| | |
|---|---|
$counts

## Tables

`assets` has one row per listed file, with its `status`: `ok`, `empty` (nothing was found) or `failed` (`error_code` and
`error_message` say why). $tables$logprobs
A row's `run_id` names the record in `_datagen/runs/` that says with which models, prompts and settings it was made.

## Reading it

```python
$python
```

```sql
-- DuckDB
$sql
```

## Licences

$licences

This card is rewritten by every run into this folder.
"""
)

_IMAGES = {
    "intro": "Regions of images, each with its mask and what it is, is for and looks like.",
    "tables": """`regions` has one row per region of an image: `mask` (COCO run-length encoding at the image's size), `box_xyxy`,
scores, and texts: $texts.""",
    "python": """regions = load_dataset("parquet", data_files="regions/*.parquet", split="train")
pixels = coco_mask.decode(regions[0]["mask"])  # (height, width) uint8, 1 = object""",
    "sql": """SELECT a.uri, r.label_$language, r.caption_$language
FROM 'assets/*.parquet' a JOIN 'regions/*.parquet' r USING (part_id, asset_id);""",
}
_VIDEOS = {
    "intro": "Objects of videos, each followed from clip to clip, with its mask in every frame and what it does when.",
    "tables": """`clips` has one row per clip of a video, and `tracks` one row per object and clip: `frames` (mask, box and score
in every sampled frame), `events` (what it does from when to when: $events), and the caption of its last event. The same `track_id`
in another clip is the same object. A video has its row in `assets` when all its clips are there.""",
    "python": """tracks = load_dataset("parquet", data_files="tracks/*.parquet", split="train")
for frame in tracks[0]["frames"]:  # a frame where the object is not seen has no mask
    pixels = coco_mask.decode(frame["mask"]) if frame["mask"] else None
for event in tracks[0]["events"]:
    print(event["start_s"], event["end_s"], event["text_$language"])

from datagen.masklets import masklet

masks = masklet(tracks[0])  # all of them, like a (frames, height, width) boolean array""",
    "sql": """SELECT c.uri, track_id, event.start_s, event.end_s, event.text_$language
FROM (SELECT part_id, track_id, unnest(events) AS event FROM 'tracks/*.parquet') JOIN 'clips/*.parquet' c USING (part_id);""",
}
_LICENCES = """The texts were generated with the checkpoint `$checkpoint`; see the licence of its weights.
The pictures and videos are not part of this dataset; the licence of each, where the input names one, is in `assets.license`."""
_LOGPROBS = """
`token_logprobs` has the answers token by token: ids of the model's tokenizer, and at each place the most likely tokens with their
log-probabilities, flat; `np.reshape(entry["top_ids"], (len(entry["token_ids"]), -1))` has a row per token."""
_PYTHON_HEAD = """import pandas as pd
from datasets import load_dataset
from pycocotools import mask as coco_mask

assets = pd.read_parquet("assets")"""


def write_card(store: Store, job: Job, *, license_id: str = "other", licences: str | None = None) -> None:
    """Write README.md at the dataset's root from its parts as they are now. Raises WriteError.

    license_id: for the front matter, as Hugging Face names it. licences: Markdown; left out, what holds for a job's output.
    """
    done = done_assets(store)
    rows = {"regions": count_rows(store, "regions"), "tracks": count_rows(store, "tracks")}
    rows |= {"clips": sum(1 for _ in part_ids(store, "clips")), "assets": len(done)}
    sections = ([_IMAGES] if rows["regions"] or not rows["clips"] else []) + ([_VIDEOS] if rows["clips"] else [])
    names = {
        "texts": ", ".join(f"`{task}_{language}`" for task in job.describe.tasks for language in job.describe.languages),
        "events": ", ".join(f"`text_{language}`" for language in job.describe.languages),
        "language": job.describe.languages[0],
    }
    text = {key: [Template(section[key]).substitute(names) for section in sections] for key in _IMAGES}
    card = _BODY.substitute(
        front_matter=yaml.safe_dump(_front_matter(job, rows, license_id), sort_keys=False, allow_unicode=True),
        name=job.name,
        intro=" ".join(text["intro"]),
        counts=_counts(done.statuses, rows, done.num_parts + rows["clips"]),
        tables="\n".join(text["tables"]),
        logprobs=_LOGPROBS if job.describe.logprobs else "",
        python="\n\n".join([_PYTHON_HEAD, *text["python"]]),
        sql="\n".join(text["sql"]),
        licences=licences or Template(_LICENCES).substitute(checkpoint=job.model.checkpoint),
    )
    store.write(CARD, card.encode("utf-8", "backslashreplace"))


def count_rows(store: Store, table: str) -> int:
    """Rows of all parts of a table, from the files' footers."""

    def rows_of(part: str) -> int:
        with store.open_input(part_path(table, part)) as source:
            return int(pq.ParquetFile(source).metadata.num_rows)

    with ThreadPoolExecutor(READERS) as readers:
        return sum(readers.map(rows_of, part_ids(store, table)))


def _front_matter(job: Job, rows: Mapping[str, int], license_id: str) -> dict[str, Any]:
    of_videos = rows["clips"] > 0
    return {
        "license": license_id,
        "pretty_name": job.name,
        "task_categories": ["image-segmentation", "image-to-text", *(["video-text-to-text"] if of_videos else [])],
        "language": list(job.describe.languages),
        "tags": ["region-captioning", *(["video"] if of_videos else []), "datagen"],
        "size_categories": [next((name for limit, name in _SIZES if max(rows.values()) < limit), "100M<n<1B")],
        "configs": _configs([table for table, count in rows.items() if count]),
    }


def _configs(tables: Sequence[str]) -> list[dict[str, Any]]:
    """A configuration per table; the first is what `load_dataset` gives whoever names none."""
    configs: list[dict[str, Any]] = [{"config_name": table, "data_files": f"{table}/*.parquet"} for table in tables]
    return [config | ({"default": True} if config is configs[0] else {}) for config in configs]


def _counts(statuses: Counter[str], rows: Mapping[str, int], num_parts: int) -> str:
    lines = [("assets", rows["assets"]), *((f"· {status}", count) for status, count in sorted(statuses.items()))]
    lines += [("regions", rows["regions"]), *((table, rows[table]) for table in ("clips", "tracks") if rows["clips"]), ("parts", num_parts)]
    return "\n".join(f"| {name} | {count:,} |" for name, count in lines)
