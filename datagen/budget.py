"""How long a run may take and what it may cost: the options, and the bookkeeping while it is on.

GPU-hours are those that are paid for: all GPUs of the machine or cluster, from the run's start on, busy or not. A budget is of one run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from pydantic import Field, field_validator, model_validator

from datagen.errors import JobError
from datagen.options import Options

_DURATION = re.compile(r"(?:(?P<days>[\d.]+)d)?(?:(?P<hours>[\d.]+)h)?(?:(?P<minutes>[\d.]+)m(?:in)?)?(?:(?P<seconds>[\d.]+)s)?")
_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::[0-5][0-9])?")
_COUNT_EVERY_S = 10.0
_clock = time.monotonic


def _now() -> datetime:
    return datetime.now(UTC)


class BudgetOptions(Options):
    """What a run may use. When it is used up, nothing new is begun, what is begun is finished, and the same command goes on later."""

    deadline: str | None = Field(
        None,
        description="a time such as 2026-11-26T06:00 (local, unless it names a zone), or a duration from the start such as 90m or 1h30m",
    )
    max_gpu_hours: float | None = Field(None, gt=0, description="GPU-hours of the machine or cluster")
    max_cost: float | None = Field(None, gt=0, description="price of these GPU-hours; needs gpu_hour_price")
    gpu_hour_price: float | None = Field(None, ge=0, description="price of one GPU for one hour, in the currency of max_cost")
    gpus: float | None = Field(None, gt=0, description="GPUs that are paid for; left out: all that the machine or cluster has")

    @field_validator("deadline", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, (int, float)):
            raise ValueError(f"{value} has no unit; write a duration such as 90m, 1h30m or {value}s, or a time such as 2026-11-26T06:00")
        return value.isoformat() if isinstance(value, date) else value

    @field_validator("deadline")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None:
            deadline_of(text, _now())
        return text

    @model_validator(mode="after")
    def _price_is_known(self) -> BudgetOptions:
        if self.max_cost is not None and not self.gpu_hour_price:
            raise ValueError("max_cost needs gpu_hour_price (--gpu-hour-price), the price of one GPU for one hour")
        return self


def deadline_of(text: str, started: datetime) -> datetime:
    """The time that a deadline names: itself, or a duration after `started`. Raises ValueError."""
    match = _DURATION.fullmatch(text.replace(" ", ""))
    try:
        if text and match and any(match.groups()):
            return started + timedelta(**{unit: float(value) for unit, value in match.groupdict().items() if value})
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        allowed = "a time such as 2026-11-26T06:00 or 2026-11-26T06:00+01:00, or a duration such as 2h, 90m or 1h30m"
        if clock := _CLOCK.fullmatch(text.strip()):
            hours, minutes = clock.groups()
            allowed = f"the day, too: 2026-11-26T{int(hours):02}:{minutes}; or a duration: {int(hours)}h{minutes}m"
            raise ValueError(f"{text!r} may be a time of some day or a duration; write {allowed}") from error
        raise ValueError(f"{text!r} is neither a time nor a duration; write {allowed}") from error
    return when.astimezone()


class Spending:
    """What a run has used so far, from now on.

    Raises JobError for a budget that cannot be kept: a deadline that is over, GPU-hours or a cost where no GPU is counted.
    """

    def __init__(self, options: BudgetOptions) -> None:
        self._options = options
        self._since = self._counted = _clock()
        self._gpu_s = 0.0
        now = _now()
        self._deadline = None if options.deadline is None else deadline_of(options.deadline, now)
        if self._deadline is not None and self._deadline <= now:
            raise JobError(f"the deadline {options.deadline} is over; give a later time, or a duration such as 2h")

    @property
    def gpu_hours(self) -> float:
        """GPU-hours so far."""
        return self._gpu_s / 3600

    @property
    def cost(self) -> float | None:
        """Their price; None where a GPU-hour has none."""
        price = self._options.gpu_hour_price
        return None if price is None else self.gpu_hours * price

    def count(self, gpus: Callable[[], float], at_once: bool = False) -> None:
        """Add the time since it was last done. gpus: how many there are; asked every 10 s, as a cluster grows and shrinks, or at once."""
        now = _clock()
        if self._options.gpus is not None:
            self._gpu_s, self._counted = self._gpu_s + (now - self._counted) * self._options.gpus, now
        elif at_once or now - self._counted >= _COUNT_EVERY_S:
            self._gpu_s, self._counted = self._gpu_s + (now - self._counted) * gpus(), now

    def over(self) -> str | None:
        """Which part of the budget is used up, in words; None while there is some left."""
        options = self._options
        if self._deadline is not None and _now() >= self._deadline:
            return f"the deadline {options.deadline} is reached"
        if options.max_gpu_hours is not None and self.gpu_hours >= options.max_gpu_hours:
            return f"{options.max_gpu_hours:g} GPU-hours are used up"
        if options.max_cost is not None and (self.cost or 0.0) >= options.max_cost:
            return f"a cost of {options.max_cost:g} is reached"
        return None

    def refuse_uncounted(self, gpus: float) -> None:
        """Raises JobError when GPU-hours are limited and there are no GPUs to count."""
        limit = next((name for name in ("max_gpu_hours", "max_cost") if getattr(self._options, name) is not None), None)
        if limit is not None and self._options.gpus is None and not gpus:
            raise JobError(f"run.budget.{limit} is set, but no GPU is found; say how many are paid for: --set run.budget.gpus=8")
