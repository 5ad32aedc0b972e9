"""The assemble step: quality flags on regions and tracks, and the job's filters."""

from __future__ import annotations

from collections.abc import Iterable

from datagen.assemble.texts import has_letter, label_logprob, text_flags
from datagen.job import AssembleOptions
from datagen.records import Region, Sample, Text, Track


def assemble(sample: Sample, options: AssembleOptions) -> Sample:
    """Flag the regions and tracks of a sample; drop the regions that the job does not want, each counted in `dropped` by its reason.

    Reasons: `min_area`, `label_logprob`, `empty_text`. No filter drops a track: the clips before and after hold parts of the same
    object. Flags are `<flag>:<task>_<language>`, see texts.text_flags; a track has one, with `event` as the task, when any of its
    events earns it, and `empty_mask` where the model saw it in a frame and no pixel of its mask is left. A failed sample passes through.
    Doing it twice changes nothing.
    """
    if sample.failure is not None:
        return sample
    for track in sample.tracks:
        if any(frame.mask is None and frame.object_score > 0 for frame in track.frames) and "empty_mask" not in track.flags:
            track.flags.append("empty_mask")
        _flag(track, [("event", language, text) for event in track.events for language, text in event.texts.items()])
    kept = []
    for region in sample.regions:
        reason = _drop_reason(region, options)
        if reason is None:
            _flag(region, [(*key, text) for key, text in region.texts.items()])
            kept.append(region)
        else:
            sample.dropped[reason] = sample.dropped.get(reason, 0) + 1
    sample.regions = kept
    return sample


def _drop_reason(region: Region, options: AssembleOptions) -> str | None:
    if region.area_px < options.min_area_px:
        return "min_area"
    logprob = label_logprob(region.texts)
    if options.drop_below_logprob is not None and logprob is not None and logprob < options.drop_below_logprob:
        return "label_logprob"
    if options.drop_empty_text and not any(has_letter(text.text) for text in region.texts.values()):
        return "empty_text"
    return None


def _flag(item: Region | Track, texts: Iterable[tuple[str, str, Text]]) -> None:
    """Add the flags of an item's (task, language, text)s."""
    for task, language, text in texts:
        flags = (f"{flag}:{task}_{language}" for flag in text_flags(text, language))
        item.flags += [flag for flag in flags if flag not in item.flags]
