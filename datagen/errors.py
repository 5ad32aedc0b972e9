"""Every error that datagen raises on purpose.

DatagenError
  JobError            the job file or the command line is wrong            exit 2, stops the job
  SourceError         the input cannot be listed at all                    exit 2, stops the job
  DecodeError         one asset cannot be turned into pixels               a failed row
  PromptError         a prompt makes no sense for its picture              costs the prompt; a failed row when no other is left
  ModelError
    ModelLoadError    weights missing, incomplete or of another shape      exit 2, stops the job
    ModelOutputError  the model gave something unusable for one asset      a failed row
    MemoryShortError  the device's memory was short; less is asked now     the same once more, from its start
  SchemaError         a row does not fit the table's contract              stops the job
  WriteError          the output cannot be written                         exit 2 at the start, 3 later
    OutputBusyError   another run holds the output's lease                 exit 4, try again later
  StorageError        a bucket refuses: access, name, region, credentials  exit 2, stops the job; for one asset a failed row
    StorageUnavailableError  a bucket gives no answer for a long time      exit 3, a rerun resumes
  ClusterError        the machine or the cluster broke                     exit 3, a rerun resumes
    EngineDiedError   the text engine died or hung                         another one is started, and its samples tried again
"""

from __future__ import annotations

from typing import Any


class DatagenError(Exception):
    """Base class. `code` is stable and ends up in the `error_code` column; `message` says what was found, what is allowed, what to do."""

    code = "error"
    exit_code = 3

    def __init__(self, message: str, *, code: str | None = None, asset_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.asset_id = asset_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.code, self.asset_id)


def _rebuild(cls: type[DatagenError], message: str, code: str, asset_id: str | None) -> DatagenError:
    return cls(message, code=code, asset_id=asset_id)


class JobError(DatagenError):
    """The job file or the command line is wrong."""

    code = "job"
    exit_code = 2


class SourceError(DatagenError):
    """The input cannot be listed at all."""

    code = "source"
    exit_code = 2


class DecodeError(DatagenError):
    """One asset cannot be turned into pixels."""

    code = "decode"


class PromptError(DatagenError):
    """A prompt makes no sense for its picture."""

    code = "prompt"


class ModelError(DatagenError):
    """Base of the model's errors."""

    code = "model"


class ModelLoadError(ModelError):
    """Weights are missing, incomplete or of another shape."""

    code = "model_load"
    exit_code = 2


class ModelOutputError(ModelError):
    """The model gave something unusable for one asset."""

    code = "model_output"


class MemoryShortError(ModelError):
    """The device's memory was short. Less is asked of it now, so the same work can be tried once more from its start."""

    code = "out_of_memory"


class SchemaError(DatagenError):
    """A row does not fit the table's contract."""

    code = "schema"


class WriteError(DatagenError):
    """The output cannot be written."""

    code = "write"
    exit_code = 2


class OutputBusyError(WriteError):
    """Another run holds the output's lease."""

    code = "output_busy"
    exit_code = 4


class StorageError(DatagenError):
    """A bucket refuses. Codes: `access_denied`, `missing_bucket`, `wrong_region`, `no_credentials`, `bad_credentials`,
    `expired_credentials`, `wrong_clock`, `archived`, `precondition`, `not_supported`, `bad_uri`, `too_large`, `not_installed`, `storage`.
    """

    code = "storage"
    exit_code = 2


class StorageUnavailableError(StorageError):
    """A bucket gives no answer for longer than the job's patience; a rerun resumes."""

    code = "unavailable"
    exit_code = 3


class ClusterError(DatagenError):
    """The machine or the cluster broke; a rerun resumes."""

    code = "cluster"
    token_wanted = (
        "export RAY_AUTH_MODE=token here, with the head's token in RAY_AUTH_TOKEN or ~/.ray/auth_token. A head asks for one wherever that "
        "file is there, and any run with a Ray of its own leaves it; to do without, start the head with RAY_AUTH_MODE=disabled"
    )


class EngineDiedError(ClusterError):
    """The text engine of a worker can answer no more: it died (`engine_died`), or hung and was ended (`engine_hung`)."""

    code = "engine_died"
