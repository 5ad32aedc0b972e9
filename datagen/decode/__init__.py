"""Decode: files to pixels, in a child process that may die or hang without harm.

Failure codes, all in the `error_code` column: `missing_file`, `unreadable`, `empty_file`, `not_an_image`, `truncated`, `corrupt`,
`bomb`, `unsupported_media`, `out_of_memory`, `decoder_crashed`, `decode_timeout`; of files in a bucket also `access_denied`,
`missing_bucket`, `wrong_region`, `archived`, `unavailable`, `too_large`, `unsupported_uri`, `storage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datagen.guard import Step
    from datagen.job import Job


def make_decode_step(job: Job, image_size: int) -> Step:
    """The decode step of a job. image_size: side of the model's square input, px."""
    from datagen.decode.step import DecodeStep

    return DecodeStep(job.decode, image_size, job.s3)
