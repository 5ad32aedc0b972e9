"""Decoding: how much memory a long video takes, against a short one.

    python benchmarks/video_memory.py

Both are 1280 x 720 at 30 frames a second, made here: one encoded group of pictures, repeated with later and later timestamps. Each
is read as a job reads it, in a process of its own: probed, cut into clips, every clip's sampled frames at the model's size, one clip
after the other, nothing kept. Peak resident memory is the kernel's own count (not sampled), of the reading process and its decoding
child, added up. Goal: 60 minutes within 1.3 times of 1 minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datagen.decode.reader import VideoReader
from datagen.job import DecodeOptions

WIDTH, HEIGHT, RATE = 1280, 720, 30
GROUP_FRAMES = 60
IMAGE_SIZE = 1024


def group(path: Path) -> Path:
    """One group of pictures: a block that moves over a still ground, in a file of its own."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ground = np.stack([rows * 255 // HEIGHT, columns * 255 // WIDTH, (rows + columns) % 256], axis=2).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = GROUP_FRAMES
        for index in range(GROUP_FRAMES):
            picture = ground.copy()
            picture[200:500, 10 * index : 10 * index + 300] = (220, 60, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def make_video(source: Path, path: Path, minutes: float) -> Path:
    """The group over and over, for so many minutes."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in repeated(source, round(minutes * 60 * RATE / GROUP_FRAMES)):
            packet.stream = stream
            container.mux(packet)
    return path


def repeated(source: Path, times: int) -> Iterator[av.Packet]:
    """The packets of a file, `times` times, each time a group later."""
    for number in range(times):
        with av.open(str(source)) as container:
            stream = container.streams.video[0]
            later = round(number * Fraction(GROUP_FRAMES, RATE) / stream.time_base)
            for packet in container.demux(stream):
                if packet.size:
                    packet.pts, packet.dts = packet.pts + later, packet.dts + later
                    yield packet


def measure(path: Path, options: DecodeOptions) -> dict[str, float]:
    """Read the whole video; memory in MB."""
    started = time.monotonic()
    reader = VideoReader(options, IMAGE_SIZE)
    info = reader.probe(str(path), str(path)).info
    frames = clips = 0
    start_s = 0.0
    while start_s < info.duration_s - 0.01:
        span = next(reader.clips(str(path), str(path), start_s, clips))
        with reader.open(str(path), str(path), span.start_s, span.end_s) as stream:
            frames += sum(1 for _ in stream)
        start_s, clips = span.end_s, clips + 1
    child, parent, seconds = peak_mb(reader.pid), peak_mb(), time.monotonic() - started
    reader.close()
    return {"minutes": info.duration_s / 60, "frames": frames, "clips": clips, "parent": parent, "child": child, "seconds": seconds}


def peak_mb(pid: int | str = "self") -> float:
    """Peak resident memory of a process since it started, MB; getrusage counts that of the process which started it, too."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 60])
    parser.add_argument("--container", default="mp4", help="mp4, mov, mkv")
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled per second; all are decoded")
    parser.add_argument("--shots", action="store_true", help="cut where the shot changes, too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, DecodeOptions(fps=arguments.fps, shots=arguments.shots))))
        return
    import common  # with torch and Ray, which the process that is measured must not have

    options = ["--fps", str(arguments.fps), *(["--shots"] if arguments.shots else [])]
    print(f"{common.machine()}; {arguments.container}, {arguments.fps:g} frames a second")
    print(
        f"{'minutes':>8} {'file MB':>8} {'frames':>7} {'clips':>6} {'seconds':>8} {'parent MB':>10} {'child MB':>9} {'sum':>6} {'ratio':>6}"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, first = group(Path(folder) / "group.mp4"), 0.0
        for minutes in arguments.minutes:
            path = make_video(source, Path(folder) / f"video.{arguments.container}", minutes)
            command = [sys.executable, __file__, "--measure", str(path), *options]
            row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            total = row["parent"] + row["child"]
            first = first or total
            print(
                f"{row['minutes']:>8.1f} {path.stat().st_size / 1e6:>8.1f} {row['frames']:>7} {row['clips']:>6} {row['seconds']:>8.1f} "
                f"{row['parent']:>10.0f} {row['child']:>9.0f} {total:>6.0f} {total / first:>6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
