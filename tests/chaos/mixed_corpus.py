"""A corpus of images and short videos, most of them good, with what must become of every asset."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bad_media
from bad_media import Media
from video_files import clip

BAD_SHARE = 0.05
POISON = "kills-perceive"  # in the URI of an image that kills its perceive worker
FAULTS: dict[str, Any] = {
    **bad_media.FAULTS_BY_PLACE,
    "worker.perceive": {"kill_if_uri": POISON, "delay_s": 0.01},
    "worker.describe": {"delay_s": 0.01},
    "write": {"delay_s": 0.01},  # per asset: a write task must live long enough to be hit
}
OPTIONS: dict[str, Any] = {
    "decode": {"timeout_s": 15, "fps": 4, "max_clip_s": 0.5},
    "perceive": {"engine": "fake", "fake_delay_s": 0.1, "batch_size": 6},
    "describe": {"engine": "fake", "fake_delay_s": 0.05},
}
REGIONS_WITHOUT_PROMPTS, TRACKS_WITHOUT_PROMPTS = 3, 2  # as the fakes have it
FRAMES, FPS = 12, 4
CLIPS = 6  # FRAMES at FPS, cut by OPTIONS


@dataclass(frozen=True)
class Fate:
    """What must stand in the tables about an asset. codes: a failure has one of these. regions, clips, tracks: rows (tracks: per clip)."""

    status: str
    codes: frozenset[str] = frozenset()
    regions: int = 0
    clips: int = 0
    tracks: int = 0


@dataclass(frozen=True)
class Corpus:
    """A manifest, and the fate of every asset in it by id."""

    manifest: Path
    fates: dict[str, Fate]


@dataclass(frozen=True)
class Pool:
    """Files that corpora are drawn from: manifest rows with their fates, in `folder`."""

    folder: Path
    images: list[Media]
    bad: list[tuple[dict[str, Any], Fate]]
    slow: list[tuple[dict[str, Any], Fate]] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> Pool:
        """Write the files."""
        media = bad_media.make_media(folder, huge=False)
        plain = (folder / "plain.jpg").read_bytes()
        (folder / f"{POISON}.jpg").write_bytes(plain)
        film = clip(folder, FRAMES, "film.mp4", fps=FPS).read_bytes()
        clip(folder, FRAMES, "film.mkv", fps=FPS)
        broken = {"cut.mp4": film[:100], "empty.mp4": b"", "text.mp4": b"no film at all\n" * 20}
        for name, data in broken.items():
            (folder / name).write_bytes(data)
        failed = [item for item in media if item.fate == "failed"]
        slow = [item for item in failed if item.code == "decode_timeout"]
        bad = [(_row(item), Fate("failed", frozenset({item.code or ""}))) for item in failed if item not in slow]
        bad += [
            ({"uri": "cut.mp4"}, Fate("failed", frozenset({"truncated"}), clips=1)),
            ({"uri": "empty.mp4"}, Fate("failed", frozenset({"empty_file"}), clips=1)),
            ({"uri": "text.mp4"}, Fate("failed", frozenset({"not_a_video"}), clips=1)),
        ]
        few = [(_row(item), Fate("failed", frozenset({item.code or ""}))) for item in slow]
        few.append(({"uri": f"{POISON}.jpg"}, Fate("failed", frozenset({"perceive_crashed"}))))
        return cls(folder, [item for item in media if item.fate == "decoded"], bad, few)

    def draw(self, name: str, num_images: int, num_videos: int, rng: random.Random, *, with_slow: bool) -> Corpus:
        """A corpus in random order. with_slow: one asset that hangs its decoder and one that kills its worker are in it, too."""
        rows = [self._image(rng) for _ in range(num_images)] + [_video(rng) for _ in range(num_videos)]
        bad = [rng.choice(self.bad) for _ in range(round(BAD_SHARE * len(rows)))] + (self.slow if with_slow else [])
        rows[: len(bad)] = bad
        rng.shuffle(rows)
        fates, lines = {}, []
        for index, (row, fate) in enumerate(rows):
            asset_id = f"{index:08x}"
            fates[asset_id] = fate
            lines.append(json.dumps(row | {"asset_id": asset_id}))
        manifest = self.folder / f"{name}.jsonl"
        manifest.write_text("\n".join(lines))
        return Corpus(manifest, fates)

    def _image(self, rng: random.Random) -> tuple[dict[str, Any], Fate]:
        item = rng.choice(self.images)
        if rng.random() < 0.5:
            return _row(item), Fate("ok", regions=REGIONS_WITHOUT_PROMPTS)
        prompts = [{"box": [2, 2, 12 + n, 20]} if n % 2 else {"points": [[9, 9 + n]], "labels": [1]} for n in range(rng.randint(1, 4))]
        return {"uri": item.name, "prompts": prompts}, Fate("ok", regions=len(prompts))


def _row(item: Media) -> dict[str, Any]:
    return {"uri": item.name} | item.row


def _video(rng: random.Random) -> tuple[dict[str, Any], Fate]:
    row: dict[str, Any] = {"uri": rng.choice(("film.mp4", "film.mkv"))}
    if rng.random() < 0.5:
        return row, Fate("ok", clips=CLIPS, tracks=TRACKS_WITHOUT_PROMPTS)
    objects = rng.randint(1, 3)
    prompts = [{"box": [2, 2, 12 + n, 20], "time_s": 0, "object_id": n} for n in range(objects)]
    return row | {"prompts": prompts}, Fate("ok", clips=CLIPS, tracks=objects)
