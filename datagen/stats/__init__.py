"""`datagen stats`: what is in a dataset, and what the runs that made it took."""

from __future__ import annotations

from datagen.stats.dataset import dataset_stats
from datagen.stats.render import render_stats

__all__ = ["dataset_stats", "render_stats"]
