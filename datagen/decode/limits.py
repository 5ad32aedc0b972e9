"""What the decoding child gets of its parent, and how much it may take: no credentials, no open files, so much memory."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Mapping
from pathlib import Path

from datagen.errors import DecodeError
from datagen.job import DecodeOptions

# What a Python needs to start as its parent did, the time zone and language, and where temporary files go. Everything else stays out.
_PASSED_ON = frozenset(
    {
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "TMPDIR",
            "TEMP",
            "TMP",
            "TZ",
            "LANG",
            "LANGUAGE",
            "LD_LIBRARY_PATH",
            "VIRTUAL_ENV",
            "CONDA_PREFIX",
        ),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
        "DATAGEN_FAULTS",
    }
)
_SET = {
    # Arithmetic libraries would start a thread per core in every child, and the C library keep address space for every thread.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "2",
}
_BYTES_PER_PIXEL = 12  # a progressive JPEG's coefficients and picture, a WebP's two canvases and working memory
_LARGEST_FILE_BYTES = 64 << 20  # of what libraries say on standard error, the only file that a child writes


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a decoding child: an exact list, and nothing that holds or leads to a credential."""
    return {name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith("LC_")} | _SET


def limit_memory(memory_gib: float) -> None:
    """This process may take so much address space on top of what it has now; it leaves no dump of its memory, either."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, _LARGEST_FILE_BYTES)
    _lower(resource.RLIMIT_AS, _address_space() + int(memory_gib * 2**30))


def out_of_memory(options: DecodeOptions, detail: str = "") -> DecodeError:
    """The error for a file that wants more than it may have."""
    message = f"decoding wants more memory than decode.memory_gib ({options.memory_gib:g} GiB) allows, or than this machine has"
    return DecodeError(f"{message}; raise it if the file is honest{detail and f' ({detail})'}", code="out_of_memory")


def memory_is_short(pixels: int) -> bool:
    """Whether what a decoder may take for so many pixels is not to be had now: asked when one failed and did not say so."""
    try:
        mmap.mmap(-1, max(1, pixels * _BYTES_PER_PIXEL)).close()
    except (OSError, MemoryError, OverflowError, ValueError):
        return True
    return False


def _lower(kind: int, most: int) -> None:
    soft, hard = resource.getrlimit(kind)
    limits = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(kind, (min(limits), min(limits)))


def _address_space() -> int:
    """Of this process, bytes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()
