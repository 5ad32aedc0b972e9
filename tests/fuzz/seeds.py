"""Good files that mutations start from, by kind."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from archives import tar_bytes
from bad_media import encoded, quadrants, with_orientation
from PIL import Image
from pycocotools import mask as coco_mask
from video_files import clip

ROOT = Path(__file__).resolve().parents[2]
Seeds = dict[str, bytes]
"""File name -> content."""

_MASK = coco_mask.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
_RLE = {"size": [48, 64], "counts": _MASK["counts"].decode()}
_ROWS: list[dict[str, Any]] = [
    {"uri": "a.png", "asset_id": "00aa", "license": "CC0", "prompts": [{"box": [1, 2.5, 30, 40]}, {"mask": _RLE}], "day": 3},
    {"uri": "b.jpg", "asset_id": "00ab", "license": None, "prompts": [{"points": [[3, 4], [5, 6]], "labels": [1, 0]}], "day": None},
    {"uri": "sub/c.png", "asset_id": "00ac", "license": "MIT", "prompts": None, "day": 5},
    {
        "uri": "film.mp4",
        "asset_id": "00ad",
        "license": "MIT",
        "prompts": [{"box": [2, 2, 20, 20], "time_s": 0.5, "object_id": 0}],
        "day": 1,
    },
]


def image_seeds(folder: Path) -> Seeds:
    """Pictures in every format that is decoded, in several modes."""
    picture = quadrants(64, 48)
    grey16 = Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1)))
    floats = Image.fromarray(np.linspace(-1, 1, 64 * 48, dtype=np.float32).reshape(48, 64))
    frames = [quadrants(32, 24).rotate(90 * turn) for turn in range(3)]
    return {
        "plain.jpg": encoded(picture, "JPEG"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True, optimize=True),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "turned.jpg": with_orientation(picture, 6),
        "plain.png": encoded(picture, "PNG"),
        "palette.png": encoded(picture.quantize(4), "PNG", transparency=1),
        "grey16.png": encoded(grey16, "PNG"),
        "alpha.png": encoded(picture.convert("LA"), "PNG"),
        "frames.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "lossy.webp": encoded(picture, "WEBP"),
        "lossless.webp": encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "frames.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "plain.bmp": encoded(picture, "BMP"),
        "palette.bmp": encoded(picture.quantize(4), "BMP"),
        "frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "plain.tif": encoded(picture, "TIFF"),
        "lzw.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(picture, "TIFF", compression="jpeg"),
        "fax.tif": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "float.tif": encoded(floats, "TIFF"),
    }


def video_seeds(folder: Path) -> Seeds:
    """Clips of nine small frames in the common containers and codecs."""
    kinds = {
        "h264.mp4": ("libx264", {"b_frames": 2}),
        "parts.mp4": ("libx264", {"gop": 3, "muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        "h265.mp4": ("libx265", {}),
        "mpeg4.mov": ("mpeg4", {}),
        "vp9.webm": ("libvpx-vp9", {}),
        "h264.mkv": ("libx264", {}),
        "mpeg4.avi": ("mpeg4", {}),
        "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
        "h264.ts": ("libx264", {}),
        "mpeg2.mpg": ("mpeg2video", {"fps": 25}),
        "h264.flv": ("libx264", {}),
    }
    return {name: clip(folder, 9, name, codec, **options).read_bytes() for name, (codec, options) in kinds.items()}


def manifest_seeds(folder: Path) -> Seeds:
    """Manifests in the three formats, COCO files, and pictures in tables and an archive."""
    lines = "".join(json.dumps(row) + "\n" for row in _ROWS)
    flat = [{**row, "prompts": json.dumps(row["prompts"]) if row["prompts"] else ""} for row in _ROWS]
    short = [{"uri": "a.png", "box": "[1, 2, 3, 40]"}, {"uri": "b.jpg", "box": ""}]
    images = [{"id": n, "file_name": row["uri"], "width": 64, "height": 48, "license": 1} for n, row in enumerate(_ROWS[:3])]
    polygon = [[1.0, 1.0, 30.0, 1.0, 30.0, 20.0]]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 2, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0, "segmentation": polygon},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 1, "segmentation": _RLE},
        {
            "id": 3,
            "image_id": 1,
            "category_id": 9,
            "bbox": [0, 0, 1, 1],
            "iscrowd": 1,
            "segmentation": {"size": [48, 64], "counts": [3072]},
        },
    ]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 2, "name": "cup"}], "licenses": [{"id": 1, "name": "CC0"}]}
    pictures = [
        {
            "image": {"bytes": encoded(quadrants(), kind), "path": f"{n}.{kind}"},
            "text": f"picture {n}",
            "taken": datetime.datetime(2026, 11, 26),
            "prompts": _ROWS[n]["prompts"],
        }
        for n, kind in enumerate(("PNG", "JPEG"))
    ]
    return {
        "rows.jsonl": lines.encode(),
        "short.jsonl": "".join(json.dumps({"uri": "a.png", "box": [1, 2, 3, n]}) + "\n" for n in range(40, 44)).encode(),
        "rows.csv": _csv(flat),
        "short.csv": _csv(short),
        "rows.parquet": _parquet(_ROWS),
        "texts.parquet": _parquet(flat, compression="zstd", use_dictionary=False),
        "all.json": json.dumps(coco).encode(),
        "images.json": json.dumps({"images": images}, indent=1).encode(),
        "pictures.parquet": _parquet(pictures),
        "pictures.arrow": _arrow(pictures),
        "pictures.tar": tar_bytes(("0.png", pictures[0]["image"]["bytes"]), ("0.json", _ROWS[0]), ("1.jpg", pictures[1]["image"]["bytes"])),
    }


def job_seeds(folder: Path) -> Seeds:
    """The job files that are shipped."""
    return {path.name: path.read_bytes() for path in sorted((ROOT / "pipelines").glob("*.yaml"))}


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def _arrow(rows: list[dict[str, Any]]) -> bytes:
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()
