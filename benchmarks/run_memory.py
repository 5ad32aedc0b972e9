"""Peak memory of a command with all the processes that it starts: what a machine needs to run it.

    python benchmarks/run_memory.py [COMMAND ...]

Left out, the command is what `make demo` runs: `datagen run pipelines/demo.yaml` over samples/. Counted is the proportional set size
(PSS) of every process below it, in which a page that several share counts once; half a second apart, so short peaks may be missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command
    with tempfile.TemporaryDirectory() as folder:
        demo = ["run", "pipelines/demo.yaml", "--input", "samples/manifest-mixed.jsonl", "--output", f"{folder}/out"]
        process = subprocess.Popen(command or [sys.executable, "-m", "datagen", *demo], cwd=ROOT, stdout=subprocess.DEVNULL)
        peak, parts = 0, Counter[str]()
        while process.poll() is None:
            now = memory(process.pid)
            if now.total() > peak:
                peak, parts = now.total(), now
            time.sleep(0.5)
    print(f"peak {peak / 2**30:.2f} GiB, exit status {process.returncode}")
    for name, size in parts.most_common(8):
        print(f"  {size / 2**30:6.2f} GiB  {name}")


def memory(root: int) -> Counter[str]:
    """Name of a process -> PSS in bytes, of all of one tree; Ray's workers are named by what they do."""
    found: Counter[str] = Counter()
    try:
        top = psutil.Process(root)
        tree = [top, *top.children(recursive=True)]
    except psutil.Error:
        return found
    for process in tree:
        try:
            title = process.cmdline()
            found[title[0].rpartition("/")[2] if title else process.name()] += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return found


if __name__ == "__main__":
    main()
