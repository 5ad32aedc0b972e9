"""What only a bucket has: uploads and copies in parts, errors with many causes, a network that fails, a lease that can be lost."""

import json
import random
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import kill, mixed_parts, start_python, wait_for, write_dataset
from s3_server import CREDENTIALS, FAULTS, FaultyProxy, often, once, options_of

from datagen.errors import OutputBusyError, StorageError, StorageUnavailableError, WriteError
from datagen.remote import open_file
from datagen.s3 import client, list_objects
from datagen.write import done_assets, open_store, s3, sweep


def store_of(bucket, options, prefix="corpus"):
    return open_store(f"s3://{bucket}/{prefix}", options)


def uploads(options, bucket):
    return client(options).list_multipart_uploads(Bucket=bucket).get("Uploads", [])


# --- size ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(s3, "_ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "_UPLOAD_PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "_ONE_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "_COPY_PART_BYTES", 5 << 20)


def test_large_files_go_in_parts_and_come_back_whole(options, bucket, small_limits):
    store, data = store_of(bucket, options), random.Random(0).randbytes((11 << 20) + 7)
    store.write("_staging/run/big", data)
    assert client(options).head_object(Bucket=bucket, Key="corpus/_staging/run/big")["ETag"].endswith('-3"')
    store.move("_staging/run/big", "assets/big")
    assert store.read("assets/big") == data
    assert list(store.list()) == [("assets/big", len(data))]
    assert uploads(options, bucket) == []


def test_an_upload_that_fails_is_aborted_and_what_a_kill_leaves_is_swept(options, bucket, small_limits, s3_address):
    def choose(method, path):
        return "internal_error" if "partNumber=2" in path else None

    with FaultyProxy(s3_address, choose) as proxy:
        impatient = store_of(bucket, options_of(proxy.address, patience_s=0.2))
        with pytest.raises(StorageUnavailableError):
            impatient.write("_staging/big", bytes(11 << 20))
    assert uploads(options, bucket) == []

    left = client(options).create_multipart_upload(Bucket=bucket, Key="corpus/_staging/dead/part")
    client(options).upload_part(Bucket=bucket, Key="corpus/_staging/dead/part", UploadId=left["UploadId"], PartNumber=1, Body=b"x")
    client(options).create_multipart_upload(Bucket=bucket, Key="elsewhere/not-ours")
    store = store_of(bucket, options)
    with store.lease({}):
        assert sweep(store) == ["_staging/dead/part"]
    assert [upload["Key"] for upload in uploads(options, bucket)] == ["elsewhere/not-ours"]


def test_long_listings_come_page_by_page(options, bucket, monkeypatch):
    s3_client, store = client(options), store_of(bucket, options)
    for index in range(7):
        store.write(f"assets/{index}", b"x")
    pages = []
    ask = s3_client.list_objects_v2

    def small_pages(**request):
        pages.append(request)
        return ask(**request | {"MaxKeys": 3})

    monkeypatch.setattr(s3_client, "list_objects_v2", small_pages)
    assert [path for path, _ in store.list()] == [f"assets/{index}" for index in range(7)]
    assert len(pages) == 3
    monkeypatch.setattr(s3, "_DELETED_AT_ONCE", 2)
    store.delete_tree("assets")
    assert list(list_objects(options, bucket, "")) == []


def test_a_part_is_read_with_few_requests(options, bucket):
    """Thirty columns of one row group lie side by side: they come together, and the index at the end comes alone."""
    table = pa.table({f"column {index}": np.random.default_rng(index).random(20_000) for index in range(30)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    store_of(bucket, options).write("assets/part", sink.getvalue())
    with FaultyProxy(options.endpoint_url, lambda method, path: None) as proxy:
        with store_of(bucket, options_of(proxy.address)).open_input("assets/part") as source:
            assert pq.ParquetFile(source).metadata.num_rows == 20_000
            assert proxy.requests["GET"] == 1
            assert pq.ParquetFile(source).read(use_threads=False).equals(table)
        assert proxy.requests["GET"] <= 4
        with open_file(f"s3://{bucket}/corpus/assets/part", options_of(proxy.address)) as file:
            assert file.read() == sink.getvalue()
        assert proxy.requests["GET"] <= 6


# --- errors ----------------------------------------------------------------------------------------------------------------------


def answers(code, status=403):
    """A server that answers each request with this error."""
    body = f"<Error><Code>{code}</Code><Message>said by the server</Message><AWSAccessKeyId>AKIATESTING</AWSAccessKeyId></Error>".encode()
    headers = {"Content-Type": "application/xml", "x-amz-bucket-region": "eu-central-1"}
    proxy = FaultyProxy("http://nowhere", lambda method, path: None)

    def serve(handler):
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        proxy._answer(handler, status, body, headers)

    proxy._serve = serve
    return proxy


@pytest.mark.parametrize(
    ("code", "status", "expected", "advice"),
    [
        ("AccessDenied", 403, "access_denied", "s3:PutObject"),
        ("NoSuchBucket", 404, "missing_bucket", "bucket's name"),
        ("ExpiredToken", 400, "expired_credentials", "new credentials"),
        ("InvalidAccessKeyId", 403, "bad_credentials", "AWS_PROFILE"),
        ("SignatureDoesNotMatch", 403, "bad_credentials", "AWS_PROFILE"),
        ("PermanentRedirect", 301, "wrong_region", "s3.region: eu-central-1"),
        ("IllegalLocationConstraintException", 400, "wrong_region", "s3.region"),
        ("RequestTimeTooSkewed", 403, "wrong_clock", "clock"),
        ("InvalidObjectState", 403, "archived", "restore"),
        ("SomethingNew", 418, "storage", "said by the server"),
    ],
)
@pytest.mark.usefixtures("s3_address")
def test_each_refusal_has_its_code_and_says_what_to_do(code, status, expected, advice):
    with answers(code, status) as proxy:
        store = store_of("bucket", options_of(proxy.address, patience_s=0.0))
        for act in (lambda: store.write("assets/x", b"1"), lambda: store.read("x"), lambda: list(store.list())):
            with pytest.raises(StorageError) as caught:
                act()
            assert caught.value.code == expected
            assert advice in caught.value.message
            assert "s3://bucket/corpus" in caught.value.message
            assert "AKIA" not in caught.value.message
            assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in caught.value.message
            assert caught.value.exit_code == 2


def test_a_bucket_that_is_not_there(options):
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        store_of("no-such-bucket", options).lease({}).__enter__()
    assert caught.value.code == "missing_bucket"


def test_no_credentials_and_no_profile(options, bucket, monkeypatch, tmp_path):
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match=r"AWS_PROFILE or s3\.profile") as caught:
        store_of(bucket, options.model_copy(update={"region": "eu-west-1"})).read("x")
    assert caught.value.code == "no_credentials"
    with pytest.raises(StorageError) as caught:
        store_of(bucket, options.model_copy(update={"profile": "night"})).read("x")
    assert caught.value.code == "no_credentials"


@pytest.mark.usefixtures("s3_address")
def test_a_server_that_is_not_there_is_given_up_soon():
    store = store_of("bucket", options_of("http://127.0.0.1:9", patience_s=0.5))
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:9") as caught:
        store.read("x")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("uri", ["s3://AKIA123:secret@bucket/x", "s3://", "s3:///key"])
def test_a_uri_without_a_bucket_or_with_a_password_is_refused_and_not_repeated(uri, options):
    with pytest.raises(StorageError) as caught:
        open_store(uri, options)
    assert "secret" not in caught.value.message


# --- faults ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives_each_fault(fault, s3_address, bucket):
    with FaultyProxy(s3_address, lambda method, path: None, stall_s=1.5) as proxy:
        store = store_of(bucket, options_of(proxy.address, timeout_s=1.0), fault)

        def faulty(act):
            proxy.choose = once(fault, methods="GET PUT POST DELETE")
            return act()

        faulty(lambda: store.write("staged", b"content"))
        faulty(lambda: store.move("staged", "assets/a"))
        assert faulty(lambda: store.read("assets/a")) == b"content"
        with pytest.raises(FileNotFoundError):
            faulty(lambda: store.read("assets/b"))
        assert faulty(lambda: list(store.list())) == [("assets/a", 7)]
        assert faulty(lambda: store.exists("assets/a"))
        faulty(lambda: store.delete_tree("assets"))
        assert list(store.list()) == []
        assert proxy.done[fault] >= 6


def test_a_dataset_is_written_through_a_bad_network(s3_address, bucket):
    rng = random.Random(7)
    with FaultyProxy(s3_address, lambda method, path: None) as proxy:
        store = store_of(bucket, options_of(proxy.address, timeout_s=2.0))
        proxy.choose = often(rng, 0.25)
        write_dataset(store, mixed_parts())
        assert sum(proxy.done.values()) >= 5
        proxy.choose = lambda method, path: None
        assert done_assets(store).statuses == {"ok": 7, "empty": 1, "failed": 1}
        assert list(store.list("_staging")) == []


# --- the lease -------------------------------------------------------------------------------------------------------------------

HOLD = """
import json, sys, time
from datagen.job import S3Options
from datagen.write import open_store, s3_lease
if "elsewhere" in sys.argv:
    process = s3_lease.this_process()
    s3_lease.this_process = lambda: process | {"place": "another machine"}
with open_store(sys.argv[1], S3Options.model_validate_json(sys.argv[2])).lease({"run_id": "first-run"}):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(bucket):
    """Starts a process that holds the lease, here or as if `elsewhere`, until it is killed."""
    processes = []

    def start(options, *more):
        process = start_python(HOLD, f"s3://{bucket}/corpus", options.model_dump_json(), *more)
        processes.append(process)
        wait_for(process, "held")
        return process

    yield start
    for process in processes:
        kill(process)


@pytest.mark.parametrize("place", [(), ("elsewhere",)])
def test_a_second_run_leaves_soon_and_says_who_is_first(place, options, bucket, holder):
    options = options.model_copy(update={"lease_ttl_s": 600.0})
    process, started = holder(options, *place), time.monotonic()
    with pytest.raises(OutputBusyError, match=f"pid {process.pid}, host .*run_id first-run") as caught:
        store_of(bucket, options).lease({"run_id": "second"}).__enter__()
    assert time.monotonic() - started < options.lease_ttl_s / 2, "a live run shows within one heartbeat"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("place", "ttl_s"), [((), 600.0), (("elsewhere",), 3.0)])
def test_the_lease_of_a_killed_run_needs_no_human(place, ttl_s, options, bucket, holder):
    """A dead process is seen at once, a dead machine when the lease ends."""
    options = options.model_copy(update={"lease_ttl_s": ttl_s})
    kill(holder(options, *place))
    started = time.monotonic()
    with store_of(bucket, options).lease({"run_id": "second"}):
        assert time.monotonic() - started < 300.0


@pytest.mark.parametrize("left", [None, {"owner": {"run_id": "dead"}, "nonce": "x", "beat": 1, "released": False, "process": None}])
def test_only_one_of_many_takes_a_new_or_a_stale_lease(left, options, bucket):
    if left:
        client(options).put_object(Bucket=bucket, Key="corpus/_datagen/lease.json", Body=json.dumps(left).encode())
    taken, busy, done = [], [], threading.Event()

    def run(name, through):
        try:
            with store_of(bucket, through).lease({"run_id": name}):
                taken.append(name)
                done.wait(300)
        except OutputBusyError:
            busy.append(name)

    with FaultyProxy(options.endpoint_url, lambda method, path: None) as proxy:
        through = options_of(proxy.address, lease_ttl_s=5.0)
        threads = [threading.Thread(target=run, args=(name, through)) for name in ("a", "b", "c", "d")]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 300
        while len(busy) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
        for thread in threads:
            thread.join()
    assert (len(taken), len(busy)) == (1, 3)


def test_a_run_that_was_stopped_for_long_is_fenced(options, bucket):
    """The holder loses its way to the store, another takes over, the way comes back: no table changes any more."""
    with FaultyProxy(options.endpoint_url, lambda method, path: None) as proxy:
        cut_off = store_of(bucket, options_of(proxy.address, patience_s=0.3, lease_ttl_s=3.0))
        with cut_off.lease({"run_id": "first"}):
            cut_off.write("_staging/first/a", b"1")
            cut_off.move("_staging/first/a", "assets/a")
            cut_off.write("_staging/first/b", b"2")
            proxy.choose = lambda method, path: "reset_before"
            time.sleep(3.0)
            with pytest.raises(StorageUnavailableError):
                cut_off.move("_staging/first/b", "assets/b")
            client(options).put_object(  # what the second run does once the lease is over, here from another machine
                Bucket=bucket, Key="corpus/_datagen/lease.json", Body=json.dumps({"owner": {"run_id": "second"}, "nonce": "2"}).encode()
            )
            proxy.choose = lambda method, path: None
            for act in (lambda: cut_off.move("_staging/first/b", "assets/b"), lambda: cut_off.write("README.md", b"x")):
                with pytest.raises(OutputBusyError, match=r"lost .* to another: run_id second"):
                    act()
            cut_off.write("_datagen/runs/first.json", b"{}")
    assert [path for path, _ in store_of(bucket, options).list("assets")] == ["assets/a"]
    assert json.loads(store_of(bucket, options).read("_datagen/lease.json"))["nonce"] == "2", "the loser leaves the lease alone"


@pytest.mark.parametrize("fault", ["reset_after", "cut"])
def test_a_lost_answer_does_not_lose_the_lease(fault, options, bucket):
    with FaultyProxy(options.endpoint_url, once(fault, fault)) as proxy:
        store = store_of(bucket, options_of(proxy.address))
        with store.lease({"run_id": "one"}):
            for faults in ((fault, fault), (fault,)):  # heartbeats go on, and meet them
                before, proxy.choose = proxy.done[fault], once(*faults)
                until = time.monotonic() + 300
                while proxy.done[fault] < before + len(faults):
                    assert time.monotonic() < until, "no heartbeat"
                    time.sleep(0.02)
            store.write("assets/a", b"1")
        with store.lease({"run_id": "two"}):
            pass
        assert proxy.done[fault] >= 4


def test_a_store_that_ignores_conditions_is_refused(options, bucket):
    with FaultyProxy(options.endpoint_url, lambda method, path: None) as proxy:
        serve = proxy._serve

        def without_conditions(handler):
            for name in ("If-None-Match", "If-Match"):
                del handler.headers[name]
            serve(handler)

        proxy._serve = without_conditions
        with pytest.raises(WriteError, match="ignores conditional requests"):
            store_of(bucket, options_of(proxy.address)).lease({}).__enter__()


def test_the_lease_says_nothing_secret(options, bucket):
    store = store_of(bucket, options)
    with store.lease({"run_id": "one"}):
        content = store.read("_datagen/lease.json").decode()
    assert all(secret not in content for name, secret in CREDENTIALS.items() if "KEY" in name)
