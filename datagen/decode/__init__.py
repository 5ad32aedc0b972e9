"""Decode: files to pixels, in a child process that may die or hang without harm.

Failure codes, all in the `error_code` column: `missing_file`, `unreadable`, `empty_file`, `not_an_image`, `not_a_video`, `truncated`,
`corrupt`, `no_video_stream`, `no_frames`, `frame_twice`, `unsupported_codec`, `unsupported_media`, `bomb`, `out_of_memory`,
`decoder_crashed`, `decode_timeout`; of files in a bucket also `access_denied`, `missing_bucket`, `wrong_region`, `archived`, `unavailable`,
`too_large`, `unsupported_uri`, `storage`; of members of archives and rows of tables also `changed`, `no_image`, `no_image_column`,
`table_damaged`, and the codes of datagen.tar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datagen.decode.reader import VideoReader
    from datagen.guard import Step
    from datagen.job import Job


def make_decode_step(job: Job, image_size: int) -> Step:
    """The decode step of a job. image_size: side of the model's square input, px."""
    from datagen.decode.step import DecodeStep

    return DecodeStep(job.decode, image_size, job.s3)


def make_video_reader(job: Job, image_size: int) -> VideoReader:
    """What reads videos for the perceive step, in a child process of its worker. image_size: as for make_decode_step."""
    from datagen.decode.reader import VideoReader

    return VideoReader(job.decode, image_size, job.s3)
