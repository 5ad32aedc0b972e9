"""Texts to typed rows: what the answers say, what is wrong with them, and which regions are dropped."""

from datagen.assemble.rows import region_row, track_row
from datagen.assemble.step import assemble

__all__ = ["assemble", "region_row", "track_row"]
