"""What an input states beside prompts: how large a picture or video is, and which annotations are of no single object.

The stated size is held against the decoded one: where they differ, prompts lie elsewhere.
"""

from __future__ import annotations

from datagen.errors import PromptError
from datagen.records import Asset

CROWD = "crowd"
"""What `dropped` calls an annotation of many objects at once: it is no prompt, and no mistake of the input either."""


def check_stated_size(asset: Asset, width: int, height: int, *, is_turned: bool, pixel_aspect: float = 1.0) -> None:
    """Raise PromptError (`stated_size`) when prompts were given for a picture of another size than was decoded.

    width, height: px as displayed. is_turned: whether the file says that what is stored is to be turned by 90 degrees for display.
    pixel_aspect: width of a stored pixel over its height; such pixels are not stretched here, as players do.
    """
    stated = asset.stated_size
    if stated is None or asset.prompts is None or stated == (width, height):
        return
    said = f"the input states {stated[0]} x {stated[1]} px (`width`, `height`), and it is {width} x {height} as displayed"
    if stated == (height, width) and is_turned:
        why = (
            "that is its size as stored: the file itself (EXIF, or a video's display matrix) says that it is turned for display, and the "
            "prompts are of the picture before that. Turn the prompts, or the pixels"
        )
    elif pixel_aspect != 1:
        why = (
            f"its pixels are not square (width over height {pixel_aspect:g}), and are used as stored, while players stretch them: give "
            "size and prompts in stored pixels"
        )
    elif stated == (height, width):
        why = "width and height are exchanged"
    else:
        why = (
            "the prompts are of another picture, or of this one before it was scaled: scale them, or give the picture that they are of. "
            "Where these columns of a manifest mean something else, name them in source.pass_through"
        )
    raise PromptError(f"{said}: {why}", code="stated_size")
