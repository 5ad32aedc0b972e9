"""What listing a large bucket costs: time per object, and memory, which should not grow.

    python benchmarks/bucket_listing.py --objects 1000000

A process beside this one answers as S3 does, with pages of a thousand objects that it makes up; nothing else is between boto3 and it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit

from common import machine

from datagen.job import S3Options, SourceOptions
from datagen.sources import open_source

PAGE = 1000
OBJECT = (
    "<Contents><Key>photos/{:09d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{:032x}&quot;</ETag><Size>123456</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def serve(num_objects: int, ready: Connection) -> None:
    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            first = int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])
            last = min(first + PAGE, num_objects)
            more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < num_objects else ""
            objects = "".join(OBJECT.format(index, index) for index in range(first, last))
            truncated = str(bool(more)).lower()
            body = f"<ListBucketResult><Name>b</Name><IsTruncated>{truncated}</IsTruncated>{more}{objects}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    ready.send(server.server_address[1])
    server.serve_forever()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    num_objects = parser.parse_args().objects
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(num_objects, there), daemon=True)
    server.start()
    options = S3Options(endpoint_url=f"http://127.0.0.1:{here.recv()}")
    source = open_source(SourceOptions(input="s3://bucket/photos"), options)
    before, started, cpu = peak_mib(), time.monotonic(), time.process_time()
    count = sum(1 for _ in source)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    server.kill()
    print(machine())
    each = f"{1e6 * cpu / count:.0f} µs of this process each"
    print(f"{count:,} objects in {seconds:.1f} s ({each}); {peak_mib() - before:.0f} MiB more at the peak")


if __name__ == "__main__":
    main()
