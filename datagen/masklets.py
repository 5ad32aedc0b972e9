"""Masklets: the masks of a row of the `tracks` table, as an array that is decoded frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index as whole_number
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datagen.masks import decode_mask
from datagen.records import RLE


class Masklet:
    """The masks of one object through a clip: like a (T, H, W) boolean array, True inside the object, decoded when asked for.

    `masklet[t]` is the (H, W) mask of the t-th frame, all False where the object is not seen; a slice is a shorter masklet that
    decodes nothing; iteration goes frame by frame, so that no more than one mask is in memory; `numpy.asarray` decodes all.
    """

    dtype = np.dtype(bool)
    ndim = 3

    def __init__(
        self, rles: Sequence[RLE | None], size: tuple[int, int], frame_indices: Sequence[int], timestamps_s: Sequence[float]
    ) -> None:
        self._rles, self._size = rles, size
        self._frame_indices, self._timestamps_s = frame_indices, timestamps_s

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width); the video's size in pixels."""
        return (len(self._rles), *self._size)

    @property
    def frame_indices(self) -> NDArray[np.int64]:
        """(T,) numbers of the frames in the video, counting all of its frames, also those that were not sampled."""
        return np.asarray(self._frame_indices, dtype=np.int64)

    @property
    def timestamps_s(self) -> NDArray[np.float64]:
        """(T,) presentation times, seconds from the video's start."""
        return np.asarray(self._timestamps_s, dtype=np.float64)

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """(T,) whether the object is seen, that is, has a mask."""
        return np.array([rle is not None for rle in self._rles], dtype=bool)

    def __len__(self) -> int:
        return len(self._rles)

    @overload
    def __getitem__(self, key: slice) -> Masklet: ...

    @overload
    def __getitem__(self, key: int) -> NDArray[np.bool_]: ...

    def __getitem__(self, key: int | slice) -> NDArray[np.bool_] | Masklet:
        if isinstance(key, slice):
            return Masklet(self._rles[key], self._size, self._frame_indices[key], self._timestamps_s[key])
        return self._decode(self._rles[whole_number(key)])

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return map(self._decode, self._rles)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a masklet is no array yet: decoding it makes one, so copy=False cannot be kept")
        masks = np.zeros(self.shape, dtype=bool)
        for frame, mask in zip(masks, self, strict=True):
            frame[:] = mask
        return masks if dtype is None else masks.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<Masklet of shape {self.shape}, seen in {int(self.is_seen.sum())} frames>"

    def _decode(self, rle: RLE | None) -> NDArray[np.bool_]:
        return np.zeros(self._size, dtype=bool) if rle is None else decode_mask(rle)


def masklet(track: Any, size: Sequence[int] | None = None) -> Masklet:
    """The masks of a track, (T, H, W) boolean, each decoded when it is asked for. A frame where the object is not seen is all False.

    track: a row of the `tracks` table as PyArrow, pandas, Hugging Face `datasets`, DuckDB or Polars give it, or its `frames` alone.
    size: (height, width) of the video, pixels; needed only where the object is never seen, and checked otherwise.

    Raises ValueError when the masks are not of one size, of another than `size`, or all missing with no `size`; and when a damaged
    mask is decoded.

    >>> from datagen.masklets import masklet
    >>> row = {  # pyarrow.parquet.read_table("corpus/tracks").to_pylist()[0]
    ...     "track_id": "3f0c9a6be2d417580c1e-t000000",
    ...     "frames": [
    ...         {"frame_index": 0, "timestamp_s": 0.0, "mask": {"size": [2, 3], "counts": "121O0"}},
    ...         {"frame_index": 1, "timestamp_s": 0.5, "mask": None},
    ...         {"frame_index": 2, "timestamp_s": 1.0, "mask": {"size": [2, 3], "counts": "222"}},
    ...     ],
    ... }
    >>> masks = masklet(row)
    >>> masks
    <Masklet of shape (3, 2, 3), seen in 2 frames>
    >>> masks[0].astype(int)
    array([[0, 1, 1],
           [1, 0, 0]])
    >>> for time, mask in zip(masks.timestamps_s, masks):  # one frame in memory at a time
    ...     print(time, mask.sum())
    0.0 3
    0.5 0
    1.0 2
    >>> masks[1:].shape  # nothing is decoded
    (2, 2, 3)
    >>> import numpy as np
    >>> np.asarray(masks).any(axis=0).sum()  # pixels that the object ever covers
    np.int64(4)
    """
    frames = _frames_of(track)
    rles = [_plain_rle(frame["mask"]) for frame in frames]
    sizes = {(rle["size"][0], rle["size"][1]) for rle in rles if rle is not None}
    if size is not None:
        sizes.add((int(size[0]), int(size[1])))
    if not sizes:
        raise ValueError(
            "the object is never seen, so its row does not say how large the video is; give size=(height, width), see `assets`"
        )
    if len(sizes) > 1:
        raise ValueError(f"all masks of a track, and size where it is given, are of one (height, width); found {sorted(sizes)}")
    return Masklet(rles, sizes.pop(), [frame["frame_index"] for frame in frames], [frame["timestamp_s"] for frame in frames])


def _frames_of(track: Any) -> Sequence[Mapping[str, Any]]:
    """The frames of a row, or what is frames already, as a sequence of mappings."""
    if hasattr(track, "as_py"):  # PyArrow's scalars
        track = track.as_py()
    frames = track["frames"] if hasattr(track, "keys") else track
    return list(frames.as_py() if hasattr(frames, "as_py") else frames)


def _plain_rle(mask: Mapping[str, Any] | None) -> RLE | None:
    return None if mask is None else {"size": [int(side) for side in mask["size"]], "counts": mask["counts"]}
