"""Amazon S3 and what speaks its protocol: one client per process, patience with a store that is busy, errors that say what to do.

Absent objects are FileNotFoundError; whatever else a bucket refuses is a StorageError. Nothing here ever prints a credential.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar

from datagen.errors import StorageError, StorageUnavailableError
from datagen.job import S3Options
from datagen.ranged_file import RangedFile

SCHEME = "s3://"

_T = TypeVar("_T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 20.0
# A store that has never answered is more likely misspelt than busy.
_FIRST_PATIENCE_S = 10.0
_TAIL_BYTES = 256 << 10
# A Parquet reader asks for column after column, which lie side by side.
_AHEAD_BYTES = 4 << 20
_answered: set[S3Options] = set()
_making_clients = threading.Lock()

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_WRONG_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "UnrecognizedClientException", "InvalidClientTokenId"}
)
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"})
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchVersion"})
_CONDITION = frozenset({"PreconditionFailed", "412"})
_BUSY = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "429"}
    | {"Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests"}
)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key, everything behind the slash, is taken as it is. Raises StorageError."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if "@" in bucket or ":" in bucket:  # not shown: it may be a password
        raise StorageError("a URI names a bucket only, s3://bucket/key; give credentials in the environment or a profile", code="bad_uri")
    if not uri.startswith(SCHEME) or not bucket:
        raise StorageError(f"{uri!r} names no bucket; write s3://bucket/key", code="bad_uri")
    return bucket, key


def client(options: S3Options) -> Any:
    """This process's boto3 client for these options."""
    with _making_clients:  # a client may be shared by threads, a session may not
        return _client(options, os.getpid())


@lru_cache(maxsize=16)
def _client(options: S3Options, pid: int) -> Any:
    from botocore.config import Config

    from datagen import __version__

    config = Config(
        connect_timeout=min(options.timeout_s, 10.0),
        read_timeout=options.timeout_s,
        max_pool_connections=64,
        # One try each: `patiently` repeats, for as long as the job says; botocore's own quota ends before a long outage does.
        retries={"mode": "standard", "total_max_attempts": 1},
        s3={"addressing_style": options.addressing},
        user_agent_extra=f"datagen/{__version__}",
        **_as_chosen(options),
    )
    try:
        made = _session(options.profile, options.region, pid).client("s3", endpoint_url=options.endpoint_url, config=config)
    except ValueError as error:
        raise StorageError(f"no client for S3: {error}. Check AWS_ENDPOINT_URL and s3.endpoint_url.") from error
    if options.requester_pays:
        made.meta.events.register("provide-client-params.s3", _requester_pays)
    return made


def _as_chosen(options: S3Options) -> dict[str, Any]:
    from botocore import UNSIGNED

    chosen: dict[str, Any] = {"signature_version": UNSIGNED} if options.anonymous else {}
    if options.checksums is not None:
        chosen |= {"request_checksum_calculation": options.checksums, "response_checksum_validation": options.checksums}
    return chosen


def _requester_pays(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
    """Every request that can say who pays says so."""
    return {"RequestPayer": "requester", **params} if "RequestPayer" in model.input_shape.members else params


@lru_cache(maxsize=16)
def _session(profile: str | None, region: str | None, pid: int) -> Any:
    import boto3
    from botocore.session import get_session

    core = get_session()
    # botocore's own parser of times takes most of the time of a listing.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time_of)
    return boto3.Session(profile_name=profile, region_name=region, botocore_session=core)


def _time_of(text: str) -> datetime:
    """A time as S3 writes it: ISO 8601 in documents, RFC 5322 in headers."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)


def patiently(options: S3Options, where: str, request: Callable[[Any], _T], patience_s: float | None = None) -> _T:
    """request(client), repeated while the store is busy, broken or out of reach; what it does must be safe to repeat.

    where: what is asked for, for messages. Raises FileNotFoundError, StorageError, and StorageUnavailableError when patience ends.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    def asked() -> _T:
        answer = request(client(options))
        _answered.add(options)
        return answer

    def explained(error: Exception) -> Exception:
        if isinstance(error, ClientError):
            _answered.add(options)
        return explain(error, where, options)

    def limit_s() -> float:
        patience = options.patience_s if patience_s is None else patience_s
        return patience if options in _answered else min(patience, _FIRST_PATIENCE_S)

    # The body of a refused GetObject is read outside of what botocore guards: an answer that breaks off there is urllib3's own error.
    return persist(asked, explained, (BotoCoreError, ClientError, HTTPError), limit_s)


def persist(
    action: Callable[[], _T], explained: Callable[[Exception], Exception], errors: tuple[type[Exception], ...], limit_s: Callable[[], float]
) -> _T:
    """action(), repeated with growing pauses while its error, explained, is a StorageUnavailableError, for about `limit_s()` seconds."""
    started, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except errors as error:
            meant = explained(error)
            if not isinstance(meant, StorageUnavailableError) or time.monotonic() - started + pause_s > limit_s():
                raise meant from error
        time.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def explain(error: Exception, where: str, options: S3Options) -> FileNotFoundError | StorageError:
    """What boto3 raised, as what a person can act on. StorageUnavailableError: trying again may help."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return _explain_answer(response, where, options)
    from botocore import exceptions as boto
    from urllib3.exceptions import HTTPError

    lost = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ChecksumError, boto.FlexibleChecksumError, HTTPError)
    if isinstance(error, boto.SSLError):
        return StorageError(f"{where}: the server's certificate is not accepted: {error}. See AWS_CA_BUNDLE.")
    if isinstance(error, lost):
        server = options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return StorageUnavailableError(
            f"{where}: no whole answer from {server} ({type(error).__name__}). Check the network; a rerun resumes."
        )
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound)):
        ways = "set AWS_PROFILE or s3.profile, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the machine a role, or, for a public "
        ways += "bucket, set s3.anonymous: true"
        return StorageError(f"{where}: there are no credentials ({type(error).__name__}); {ways}", code="no_credentials")
    if isinstance(error, (boto.NoAuthTokenError, boto.TokenRetrievalError, boto.SSOError, boto.LoginError)):
        return StorageError(f"{where}: the login has expired; run `aws sso login` and start again", code="expired_credentials")
    return StorageError(f"{where}: {type(error).__name__}: {error}")


def _explain_answer(response: dict[str, Any], where: str, options: S3Options) -> FileNotFoundError | StorageError:
    about = response.get("Error", {})
    code, status = str(about.get("Code", "")), response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"{where}: {about.get('Message') or 'no reason given'} ({code})"
    if code in _BUSY or code.startswith("Throttl") or status in (429, 500, 502, 503, 504):
        return StorageUnavailableError(f"{said}. The store is busy or broken; a rerun resumes.")
    if code == "NoSuchBucket":
        return StorageError(f"{said}. Check the bucket's name, and s3.endpoint_url.", code="missing_bucket")
    if code in _ABSENT:
        return FileNotFoundError(2, "there is no such object", where)
    if code in _DENIED:
        needed = "Reading needs s3:GetObject and s3:ListBucket, writing s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload too"
        if options.anonymous:
            return StorageError(
                f"{said}. s3.anonymous is set, so nobody in particular asks; leave it out to use credentials.", code="access_denied"
            )
        who = "see which identity is used: `aws sts get-caller-identity`"
        pays = (
            "" if options.requester_pays else ". For a bucket whose readers pay: s3.requester_pays: true; a public one: s3.anonymous: true"
        )
        return StorageError(f"{said}. {needed}; {who}{pays}.", code="access_denied")
    if code in _EXPIRED:
        return StorageError(f"{said}. Get new credentials and run the same command again.", code="expired_credentials")
    if code in _WRONG_KEYS:
        return StorageError(
            f"{said}. The credentials are not known there: check AWS_PROFILE, the keys, the endpoint.", code="bad_credentials"
        )
    if code in _ELSEWHERE:
        region = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region") or about.get("Region")
        hint = f"it is in {region}: set s3.region: {region}" if region else "set s3.region, or s3.endpoint_url, to where it is"
        return StorageError(f"{said}. The bucket is in another region; {hint}.", code="wrong_region")
    if code in _CONDITION:
        return StorageError(f"{said}. The object is not what it was.", code="precondition")
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{said}. Set this machine's clock.", code="wrong_clock")
    if code == "InvalidObjectState":
        return StorageError(f"{said}. The object is archived; restore it first.", code="archived")
    lacks_checksums = options.checksums != "when_required" and _may_lack_checksums(code, status, str(about.get("Message", "")))
    hint = " An older store refuses the checksum headers that are sent by default: try s3.checksums: when_required." * lacks_checksums
    if code in ("NotImplemented", "501", "MethodNotAllowed"):
        return StorageError(f"{said}. This store lacks a part of the S3 protocol.{hint}", code="not_supported")
    return StorageError(f"{said}.{hint}" if hint else said)


def _may_lack_checksums(code: str, status: int, message: str) -> bool:
    """Stores that know no checksum headers or trailers say so in many ways."""
    if code in ("NotImplemented", "501") or status == 501:
        return True
    said = f"{code} {message}".lower()
    return any(word in said for word in ("checksum", "trailer", "x-amz-sdk", "aws-chunked", "contentsha256", "content-encoding", "digest"))


def list_objects(options: S3Options, bucket: str, prefix: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """`Key`, `Size`, `ETag`, `LastModified` of the objects below a prefix, in the order of keys, one page in memory at a time.

    limit: as many as that. Folder markers (keys that end in a slash) are left out. Raises StorageError.
    """
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": min(limit or 1000, 1000)}
    while True:
        page = patiently(options, f"{SCHEME}{bucket}/{prefix}", lambda s3: s3.list_objects_v2(**request))
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield item
        if not page.get("IsTruncated") or limit is not None:
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def read_object(options: S3Options, bucket: str, key: str) -> bytes:
    """Whole content. Raises FileNotFoundError, StorageError."""
    data: bytes = patiently(options, f"{SCHEME}{bucket}/{key}", lambda s3: s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    return data


def object_version(options: S3Options, uri: str) -> str:
    """What changes when the object does: its size and ETag. Raises FileNotFoundError, StorageError."""
    bucket, key = split_uri(uri)
    found = patiently(options, uri, lambda s3: s3.head_object(Bucket=bucket, Key=key))
    return f"{found['ContentLength']}-{found['ETag']}"


class ObjectFile(RangedFile):
    """An object for random access by ranged requests; the first one brings its end, which is where a Parquet file's index is.

    Raises FileNotFoundError and StorageError, also later when the object is replaced meanwhile.
    """

    def __init__(self, options: S3Options, bucket: str, key: str) -> None:
        super().__init__()
        self._options, self._bucket, self._key = options, bucket, key
        self._where = f"{SCHEME}{bucket}/{key}"
        self._ahead = 0, b""
        self.size, self._etag, self._tail = self._open()

    def _open(self) -> tuple[int, str, bytes]:
        def request(s3: Any) -> tuple[int, str, bytes]:
            answer = s3.get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes=-{_TAIL_BYTES}")
            tail = answer["Body"].read()
            whole = answer.get("ContentRange", "").rpartition("/")[2]
            return int(whole) if whole.isdecimal() else len(tail), answer["ETag"], tail

        try:
            return patiently(self._options, self._where, request)
        except StorageError as error:
            if "InvalidRange" in error.message:  # the answer of AWS for an empty object
                return 0, "", b""
            raise

    def range(self, start: int, size: int) -> bytes:
        """The bytes from `start` on, by one request unless they were read ahead."""
        for held_from, held in ((self.size - len(self._tail), self._tail), self._ahead):
            if held_from <= start and start + size <= held_from + len(held):
                return held[start - held_from : start - held_from + size]
        last = min(start + max(size, _AHEAD_BYTES), self.size) - 1
        request = {"Bucket": self._bucket, "Key": self._key, "IfMatch": self._etag, "Range": f"bytes={start}-{last}"}
        data: bytes = patiently(self._options, self._where, lambda s3: s3.get_object(**request)["Body"].read())
        self._ahead = start, data
        return data[:size]

    def readall(self) -> bytes:
        """The rest, by one request."""
        return self.read(self.size - self._position) or b""
