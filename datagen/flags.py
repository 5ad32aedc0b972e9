"""Every flag and every reason for leaving something out that a dataset may hold; `datagen check` knows no others.

A new one is named here, with what it says, before a step may use it.
"""

from __future__ import annotations

from datagen.records import LANGUAGES, TASKS

# Of one text; in the column as `<flag>:<task>_<language>`, the task of a track's texts being `event`.
TEXT_FLAGS = {
    "truncated": "it hit its token limit",
    "repetition": "it repeats itself",
    "empty_text": "it has no letter",
    "other_language": "it is not in the language that was asked for",
}

REGION_FLAGS = {
    "absent": "the mask decoder says that there is no object (object_score <= 0)",
    "prompt_clipped": "the box that asked for it reached out of the image, and was cut to it",
}

TRACK_FLAGS = {
    "absent": "it is seen in no frame of the clip",
    "ended_at_cut": "it was followed to a shot cut, and does not go on behind it",
    "empty_mask": "in some frame the model says that it is there (object_score > 0), and no pixel of its mask is left",
}
# As TEXT_FLAGS, of tracks alone.
EVENT_FLAGS = {"history_cut": "the caption before was shortened to fit the context"}

CLIP_FLAGS = {
    "clock_restart": "the file's clock begins anew in it",
    "other_video_unread": "its file has further video streams, which are not read",
    "second_movie_unread": "another movie follows in its file, which is not read",
    "size_change": "frames in it have another size than the video's first, and were stretched to that",
    "shot_end": "the shot changes where it ends, and no object goes on",
}

# Reasons in `dropped`: what was found and left out.
DROP_REASONS = {
    # segment everything
    "predicted_iou": "candidates below perceive.everything.predicted_iou_min",
    "stability": "candidates below perceive.everything.stability_min",
    "empty_mask": "masks without a pixel",
    "box_nms": "of two candidates whose boxes overlap, the worse",
    "mask_dedup": "of two candidates whose masks overlap, the worse",
    "min_area": "masks that are too small",
    "max_regions": "candidates beyond perceive.everything.max_regions",
    "already_followed": "candidates that are objects already followed in the clip",
    # by the job's filters
    "absent": "regions and tracks of which the model says that they are not there (perceive.drop_absent)",
    "label_logprob": "regions below assemble.drop_below_logprob",
    "empty_text": "regions none of whose texts has a letter (assemble.drop_empty_text)",
    # of the file
    "corrupt_packets": "damaged packets of a video",
    "missing_frame": "frames of a video that could not be decoded or placed in time",
    "further_frames": "frames of an animation, or pages of a TIFF, after the first, which is the picture",
    # of videos whose input asks for objects
    "ended_at_cut": "objects that a shot cut ends",
    "lost": "objects out of sight that cannot be looked for any more",
    # prompts that cannot be used
    "bad_annotation": "masks of a folder of frames that cannot be read, or are none",
    "empty_annotation": "annotations of a video's objects that are never seen",
    "crowd": "annotations of crowds, which are no object",
    "prompt_conflict": "two prompts of one object on one frame contradict one another",
    "prompt_empty": "it asks for nothing, or its mask has no pixel",
    "prompt_frame": "it is about a frame or a time that the video does not have",
    "prompt_frame_missing": "it is about a frame that cannot be decoded",
    "prompt_inverted": "its box is empty or inverted",
    "prompt_labels": "its labels are not one per point, 1 or 0",
    "prompt_malformed": "it is not written as a prompt",
    "prompt_mask": "its mask is damaged",
    "prompt_mask_size": "its mask is of another size",
    "prompt_nan": "its coordinates are no numbers",
    "prompt_negative": "it says only where its object is not",
    "prompt_nested": "it is nested too deeply",
    "prompt_not_reached": "the video failed before its frame",
    "prompt_outside": "it lies outside of the picture",
    "prompt_shares": "its coordinates are shares of the sides, and no pixels",
    "prompt_too_large": "it is too large",
}

# Of these, what is about the file and not about a prompt.
OF_THE_FILE = frozenset({"corrupt_packets", "missing_frame", "further_frames"})

PROMPT_SOURCES = ("manifest", "coco", "annotation", "everything", "handover")
MASK_SOURCES = ("prompt", "candidate", "refined", "given")
FINISH_REASONS = ("stop", "length")

_OF_TEXTS = frozenset(f"{flag}:{task}_{language}" for flag in TEXT_FLAGS for task in TASKS for language in LANGUAGES)
_OF_EVENTS = frozenset(f"{flag}:event_{language}" for flag in (*TEXT_FLAGS, *EVENT_FLAGS) for language in LANGUAGES)
_KNOWN = {"regions": _OF_TEXTS | REGION_FLAGS.keys(), "tracks": _OF_EVENTS | TRACK_FLAGS.keys(), "clips": CLIP_FLAGS.keys()}


def is_flag(table: str, flag: str) -> bool:
    """Whether rows of `regions`, `tracks` or `clips` may have this flag."""
    return flag in _KNOWN[table]


def is_drop_reason(reason: str) -> bool:
    """Whether this may stand in `dropped`."""
    return reason in DROP_REASONS
