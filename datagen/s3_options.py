"""How a bucket is reached: the options `s3` of a job."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from datagen.options import Options


class S3Options(Options):
    """Amazon S3, or a store that speaks its protocol, as input and output.

    Credentials are found as boto3 does (environment, profile, role of the machine), and never stand in a job file.
    """

    endpoint_url: str | None = Field(
        None, description="address of an S3-compatible store, such as http://minio:9000; left out: AWS_ENDPOINT_URL, the profile's, or AWS"
    )
    addressing: Literal["auto", "path", "virtual"] = Field(
        "auto", description="`path`: host/bucket/key, `virtual`: bucket.host/key; auto: path where an endpoint is given"
    )
    region: str | None = Field(None, description="left out: AWS_REGION or the profile's")
    profile: str | None = Field(None, description="a profile of ~/.aws/config, on every node; left out: AWS_PROFILE or the default")
    checksums: Literal["when_supported", "when_required"] | None = Field(
        None,
        description="checksum headers of requests and answers; `when_required` for a store that refuses them or sends none; left out: "
        "AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION, the profile's, or when_supported",
    )
    anonymous: bool = Field(False, description="sign nothing and use no credentials, for public buckets")
    requester_pays: bool = Field(False, description="agree to pay for requests to buckets whose owner does not")
    timeout_s: float = Field(30.0, gt=0, description="a request without a sign of life for this long is repeated, seconds")
    patience_s: float = Field(300.0, ge=0, description="a store that is busy or out of reach is tried again for this long, seconds")
    lease_heartbeat_s: float = Field(5.0, gt=0, description="a run shows this often that it lives; a second run waits once that long")
    lease_ttl_s: float = Field(60.0, gt=0, description="a run that has not shown it for this long is dead, another may go on, seconds")

    @field_validator("endpoint_url")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://left.out")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PydanticCustomError("secret", "write http://host:port or https://host:port")
        if parts.username or parts.password:
            raise PydanticCustomError("secret", "credentials do not belong in a URL; use the environment or a profile")
        return url

    @model_validator(mode="after")
    def _somebody_pays(self) -> S3Options:
        if self.anonymous and self.requester_pays:
            raise ValueError("anonymous and requester_pays exclude each other: nobody can be billed for a request that is not signed")
        return self

    @model_validator(mode="after")
    def _lease_outlives_a_late_beat(self) -> S3Options:
        if self.lease_ttl_s < 3 * self.lease_heartbeat_s:
            raise ValueError(f"lease_ttl_s is {self.lease_ttl_s:g}, less than three times lease_heartbeat_s ({self.lease_heartbeat_s:g})")
        return self
