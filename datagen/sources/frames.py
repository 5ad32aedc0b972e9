"""Video segmentation datasets: every folder of numbered pictures is a video, and so is every video file; the objects' masks beside them
become prompts.

- DAVIS, MOSE, YouTube-VOS: `JPEGImages/480p/bear/00000.jpg`, masks in `Annotations/480p/bear/00000.png`, whose values are objects.
- SA-V's frames: `JPEGImages_24fps/sav_1/00000.jpg`, masks in `Annotations_6fps/sav_1/000/00000.png`, a folder per object.
- SA-V's videos: `sav_1.mp4`, masks in `sav_1_manual.json` or `sav_1_auto.json`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from datagen.errors import SourceError
from datagen.frame_names import in_order
from datagen.ids import asset_id_of
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset
from datagen.remote import is_remote
from datagen.sources.folder import FolderSource
from datagen.sources.listing import remote_files
from datagen.sources.mask_folders import MaskFolders
from datagen.sources.rows import version_of_file
from datagen.sources.uris import VIDEO_SUFFIXES, uri_of
from datagen.sources.video_annotations import put_masklets

_FRAMES_FOLDER = re.compile(r"JPEGImages(.*)")
_MASKS_FOLDER = re.compile(r"Annotations", re.IGNORECASE)


class FramesSource:
    """The videos below a folder or prefix, in the order of names. The URI of a folder of frames ends with `/`.

    An object's first mask becomes a prompt for its frame, `object_id` its number; masks that cannot be read are counted in `dropped`
    (`bad_annotation`). A video with no annotations is segmented whole, one whose annotations show nothing asks for nothing.
    Raises SourceError when nothing is there.
    """

    def __init__(self, place: str, options: SourceOptions, s3: S3Options) -> None:
        self.place = place.rstrip("/") if is_remote(place) else os.path.abspath(place)
        self.skipped: Counter[str] = Counter()
        self._options, self._s3 = options, s3
        self._folder = None if is_remote(place) else FolderSource(self.place)
        if next(self._files(), None) is None:
            raise SourceError(f"there is nothing below {self.place}; check the name")

    def describe(self) -> str:
        """One line for a person."""
        masks = "no masks are read" if self._options.annotations == "none" else "the objects' first masks are prompts"
        return f"videos, as folders of frames or files, below {self.place}; {masks}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets."""
        self.skipped.clear()
        with MaskFolders(self._s3) as masks:
            for folder, names in _by_folder(self._files()):
                if _is_of_masks(folder.removeprefix(self.place)):
                    self.skipped["annotation"] += len(names)
                    continue
                frames = in_order(names)
                if frames:
                    yield self._of_frames(folder, frames, masks)
                videos = [name for name in names if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
                for name in videos:
                    yield self._of_file(folder, name, names)
                notes = {note for name in videos for note in _notes_of(name)}
                self.skipped["other file"] += sum(name not in notes for name in names) - len(frames) - len(videos)
        if self._folder is not None:
            self.skipped.update(self._folder.skipped)
        self.skipped = +self.skipped

    def _of_frames(self, folder: str, frames: list[str], masks: MaskFolders) -> Asset:
        uri = uri_of(folder) + "/"
        asset = Asset(asset_id_of(uri, self._version(folder, frames)), uri, "video")
        for place in self._mask_places(folder):
            if masks.put_into(asset, place, frames, self.skipped):
                break
        return asset

    def _of_file(self, folder: str, name: str, names: list[str]) -> Asset:
        uri = uri_of(f"{folder}/{name}")
        asset = Asset(asset_id_of(uri, self._version(folder, [name])), uri, "video")
        note = next((note for note in _notes_of(name) if note in names), None)
        if note is not None and self._options.annotations != "none":
            put_masklets(asset, f"{folder}/{note}", self._s3)
        return asset

    def _version(self, folder: str, names: list[str]) -> str:
        """What changes when any of some files does, where changed ones count as new."""
        if not self._options.reprocess_changed:
            return ""
        versions = [f"{name} {version_of_file(f'{folder}/{name}', self._s3)}" for name in names]
        return (
            versions[0].partition(" ")[2] if len(names) == 1 else hashlib.sha256("\n".join(versions).encode("utf-8", "replace")).hexdigest()
        )

    def _mask_places(self, folder: str) -> Iterator[str]:
        """Folders where the masks of a folder of frames may be, the likeliest first."""
        if self._options.annotations == "none":
            return
        if self._options.annotations != "auto":
            yield self._options.annotations.rstrip("/") + folder.removeprefix(self.place)
            return
        parts = folder.split("/")
        for place in range(len(parts) - 1, 0, -1):
            match = _FRAMES_FOLDER.fullmatch(parts[place])
            if match:
                above, below = "/".join(parts[:place]), "/".join(parts[place + 1 :])
                names = dict.fromkeys((f"Annotations{match[1]}", "Annotations", *self._siblings(above)))
                yield from (f"{above}/{name}/{below}".rstrip("/") for name in names)
                return

    def _siblings(self, folder: str) -> Iterator[str]:
        """Other names of folders of masks that lie in a local folder, such as Annotations_6fps; SA-V's own in a bucket."""
        if is_remote(folder):
            yield "Annotations_6fps"
            return
        with os.scandir(folder) as entries:
            yield from sorted(entry.name for entry in entries if _MASKS_FOLDER.match(entry.name) and entry.is_dir())

    def _files(self) -> Iterator[str]:
        if self._folder is not None:
            yield from self._folder.files()
            return
        try:
            yield from (file.uri for file in remote_files(self.place, self._s3, self.skipped))
        except FileNotFoundError:
            return


def _is_of_masks(below: str) -> bool:
    return any(_MASKS_FOLDER.match(part) for part in below.split("/"))


def _notes_of(video: str) -> tuple[str, str]:
    stem = os.path.splitext(video)[0]
    return f"{stem}_manual.json", f"{stem}_auto.json"


def _by_folder(files: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder with the names of its own files. Only the folders that the walk is in are in memory."""
    open_folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        for left in [one for one in open_folders if one != folder and not folder.startswith(f"{one}/")]:
            yield left, open_folders.pop(left)
        open_folders.setdefault(folder, []).append(name)
    yield from open_folders.items()
