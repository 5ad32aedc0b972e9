"""How stored frames are turned for display, from the display matrix that phones write."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from PIL import Image

_Turn = Image.Transpose


@dataclass(frozen=True, slots=True)
class Orientation:
    """turn: what is done to the picture. degrees: the clockwise rotation in it (a mirrored picture is mirrored left to right first)."""

    turn: Image.Transpose | None
    degrees: int

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.degrees % 180 == 90


# (a, b, c, d) of the matrix: x' = a x + c y, y' = b x + d y.
_ORIENTATIONS = {
    (1, 0, 0, 1): Orientation(None, 0),
    (0, 1, -1, 0): Orientation(_Turn.ROTATE_270, 90),
    (-1, 0, 0, -1): Orientation(_Turn.ROTATE_180, 180),
    (0, -1, 1, 0): Orientation(_Turn.ROTATE_90, 270),
    (-1, 0, 0, 1): Orientation(_Turn.FLIP_LEFT_RIGHT, 0),
    (1, 0, 0, -1): Orientation(_Turn.FLIP_TOP_BOTTOM, 180),
    (0, 1, 1, 0): Orientation(_Turn.TRANSPOSE, 270),
    (0, -1, -1, 0): Orientation(_Turn.TRANSVERSE, 90),
}


def orientation_of(frame: VideoFrame) -> Orientation:
    """The frame's orientation; a rotation by other than a multiple of 90 degrees counts as the nearest one."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return _ORIENTATIONS[1, 0, 0, 1]
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    straight = abs(a) + abs(d) >= abs(b) + abs(c)
    signs = (_sign(a), 0, 0, _sign(d)) if straight else (0, _sign(b), _sign(c), 0)
    return _ORIENTATIONS.get(signs, _ORIENTATIONS[1, 0, 0, 1])


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
