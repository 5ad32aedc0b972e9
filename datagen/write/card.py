"""The dataset card: README.md with the front matter that Hugging Face reads, made from what is really there."""

from __future__ import annotations

from collections import Counter
from string import Template
from typing import Any

import pyarrow.parquet as pq
import yaml

from datagen.job import Job
from datagen.write.done import done_assets
from datagen.write.parts import PART_NAME
from datagen.write.store import Store

CARD = "README.md"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))

_BODY = Template(
    """---
$front_matter---
# $name

Regions of images, each with its mask and what it is, is for and looks like. Made by datagen with the job `$name`.

| | |
|---|---|
$counts

## Tables

`assets` has one row per listed file, with its `status`: `ok`, `empty` (nothing was found) or `failed` (`error_code` and
`error_message` say why). `regions` has one row per region: `mask` (COCO run-length encoding at the image's size), `box_xyxy`,
scores, and texts: $texts.
A row's `run_id` names the record in `_datagen/runs/` that says with which models, prompts and settings it was made.

## Reading it

```python
from datasets import load_dataset
regions = load_dataset("parquet", data_files="regions/*.parquet", split="train")

import pandas as pd
assets = pd.read_parquet("assets")

from pycocotools import mask as coco_mask
pixels = coco_mask.decode(regions[0]["mask"])  # (height, width) uint8, 1 = object
```

```sql
-- DuckDB
SELECT a.uri, r.label_en, r.caption_en FROM 'assets/*.parquet' a JOIN 'regions/*.parquet' r USING (part_id, asset_id);
```

## Licences

The texts were generated with the checkpoint `$checkpoint`; see the licence of its weights.
The pictures are not part of this dataset; the licence of each, where the input names one, is in `assets.license`.

This card is rewritten by every run into this folder.
"""
)


def write_card(store: Store, job: Job) -> None:
    """Write README.md at the dataset's root from its parts as they are now. Raises WriteError."""
    done, num_regions = done_assets(store), count_rows(store, "regions")
    front_matter = yaml.safe_dump(_front_matter(job, len(done), num_regions), sort_keys=False, allow_unicode=True)
    texts = ", ".join(f"`{task}_{language}`" for task in job.describe.tasks for language in job.describe.languages)
    card = _BODY.substitute(
        front_matter=front_matter,
        name=job.name,
        counts=_counts(done.statuses, num_regions, done.num_parts),
        texts=texts,
        checkpoint=job.model.checkpoint,
    )
    store.write(CARD, card.encode("utf-8", "backslashreplace"))


def count_rows(store: Store, table: str) -> int:
    """Rows of all parts of a table, from the files' footers."""
    total = 0
    for path, _ in store.list(table):
        if PART_NAME.match(path.split("/")[-1]):
            with store.open_input(path) as source:
                total += pq.ParquetFile(source).metadata.num_rows
    return total


def _front_matter(job: Job, num_assets: int, num_regions: int) -> dict[str, Any]:
    configs = [{"config_name": "assets", "data_files": "assets/*.parquet"}]
    if num_regions:
        configs.insert(0, {"config_name": "regions", "data_files": "regions/*.parquet"})
    return {
        "license": "other",
        "pretty_name": job.name,
        "task_categories": ["image-segmentation", "image-to-text"],
        "language": list(job.describe.languages),
        "tags": ["region-captioning", "datagen"],
        "size_categories": [next((name for limit, name in _SIZES if max(num_assets, num_regions) < limit), "100M<n<1B")],
        "configs": configs if num_assets else [],
    }


def _counts(statuses: Counter[str], num_regions: int, num_parts: int) -> str:
    rows = [("assets", sum(statuses.values())), *((f"· {status}", count) for status, count in sorted(statuses.items()))]
    rows += [("regions", num_regions), ("parts", num_parts)]
    return "\n".join(f"| {name} | {count:,} |" for name, count in rows)
