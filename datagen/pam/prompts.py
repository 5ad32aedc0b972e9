"""What the model is asked: the task prompts that PAM's weights were trained to answer, verbatim, and their token ids.

Source: the PAM reference implementation (Apache-2.0). Changing a character changes what the model answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SYSTEM = "You are a helpful assistant."
IMAGE_SLOT = "<image>"

IMAGE_PROMPTS: dict[tuple[str, str], str] = {
    ("label", "en"): "<image>\nClassify this subject and provide its label.",
    ("label", "zh"): "<image>\n对该目标对象进行分类并提供标签",
    ("definition", "en"): "<image>\nClassify this subject and provide the label and its definition.",
    ("definition", "zh"): "<image>\n对该目标对象进行分类并提供标签和名词功能解释",
    ("caption", "en"): "<image>\nProvide a concise caption for this subject.",
    ("caption", "zh"): "<image>\n对该目标对象提供一个概括的描述",
    ("description", "en"): "<image>\nProvide a comprehensive and detailed description for this subject.",
    ("description", "zh"): "<image>\n对该目标对象提供一个全面且详细的描述",
}
"""(task, language) -> user turn for one region of an image."""

VIDEO_PROMPTS: dict[str, str] = {
    "en": "<image>\nProvide a caption for this subject in this video.\nPrevious caption: {history}",
    "zh": "<image>\n对该视频中的目标对象提供一个描述。\n历史描述：{history}",
}
"""language -> user turn for one object of a clip; `{history}` is the caption of the clip before."""

NO_HISTORY: dict[str, str] = {"en": "None", "zh": "无"}
"""What stands for `{history}` in the first clip."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """Token ids on both sides of the visual embeddings, which take the place of `<image>`."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def image_prompt(task: str, language: str) -> str:
    """The whole chat text that asks for one text of one region. Raises KeyError for an unknown task or language."""
    return _chat(IMAGE_PROMPTS[task, language])


def video_prompt(language: str, history: str | None = None) -> str:
    """The whole chat text that asks for the caption of one object in a clip; `history` None means the first clip."""
    history = NO_HISTORY[language] if history is None else history
    return _chat(VIDEO_PROMPTS[language].replace("{history}", history))


def tokenize(text: str, tokenizer: Any) -> PromptIds:
    """Token ids of a chat text, its two parts tokenised apart: together, `<image>`'s line break could merge with a neighbour.

    Only the first `<image>` is the slot, so that one inside a caption used as history stays text.
    """
    before, after = text.split(IMAGE_SLOT, maxsplit=1)
    return PromptIds(*(tuple(tokenizer.encode(part, add_special_tokens=False)) for part in (before, after)))


def _chat(user: str) -> str:
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
