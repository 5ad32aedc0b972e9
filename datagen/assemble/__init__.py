"""Texts to typed rows: what a region's answers say, what is wrong with them, and which regions are dropped."""

from datagen.assemble.rows import region_row
from datagen.assemble.step import assemble

__all__ = ["assemble", "region_row"]
