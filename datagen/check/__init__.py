"""`datagen check`: proves on a finished dataset that every asset, region, clip and track is there once, and that every part is whole.

Videos without a row in `assets` are unfinished: the next run goes on with them, or writes the row when it finds all their clips. So
their clips are counted, and held to everything that does not need the rest of the video, but are no violation.
"""

from __future__ import annotations

from datagen.check.dataset import check_dataset
from datagen.check.report import CheckReport, Violation

__all__ = ["CheckReport", "Violation", "check_dataset"]
