"""Any S3-compatible store, through botocore, which s3fs brings along and readers of `s3://` use.

Conditions are the headers If-None-Match and If-Match.
"""

import base64
import hashlib
import io
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from manifests.publish.store import NEW, Changed, Seen

PUT_LIMIT = 1 << 30
"""Bytes that one request writes. The store checks the sha256 of such an object as a whole; larger ones go in parts."""
PART = 64 << 20
SMALL = 8 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class _File(io.FileIO):
    """A file whose upload ends at once when it is told to stop."""

    def __init__(self, path: Path, stop: threading.Event):
        super().__init__(path)
        self._stop = stop

    def read(self, size: int | None = -1) -> bytes:
        if self._stop.is_set():
            raise KeyboardInterrupt
        return super().read(-1 if size is None else size) or b""


class S3:
    """A bucket, or what lies under a prefix of it. One may be used by several threads."""

    def __init__(
        self, place: str, *, endpoint: str = "", conditional: bool = True, workers: int = 4
    ):
        """place: `bucket/prefix`."""
        self.bucket, _, prefix = place.partition("/")
        if not _BUCKET.fullmatch(
            self.bucket
        ):  # not shown: it may be a key that somebody put into the address
            raise ValueError(
                "after s3:// comes the name of a bucket: 3 to 63 of a-z, 0-9, dot and hyphen, and no key"
            )
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.url, self.conditional = f"s3://{self.bucket}/{self.prefix}".rstrip("/"), conditional
        self.stop = threading.Event()
        try:
            import botocore.session
            import s3fs  # noqa: F401  (what reads the shards: to miss it now is better than after the upload)
            from botocore.config import Config
        except ImportError as error:
            raise RuntimeError(
                f"s3:// needs s3fs, which is not installed ({error}): pip install s3fs"
            ) from error
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            max_pool_connections=workers + 1,
            connect_timeout=10,
        )
        with self._told("open"):
            self._client = botocore.session.get_session().create_client(
                "s3", endpoint_url=endpoint or None, config=config
            )

    def call(self, action: str, key: str = "", **more: Any) -> dict:
        """One request, with botocore's retries; its answer. `key` "" is the bucket itself."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        where = {"Key": self.prefix + key} if key else {}
        with self._told(action, conditional="IfMatch" in more or "IfNoneMatch" in more):
            return getattr(self._client, action)(Bucket=self.bucket, **where, **more)

    @contextmanager
    def _told(self, action: str, *, conditional: bool = False) -> Iterator[None]:
        """What botocore raises, as Changed, FileNotFoundError (no such object) or another OSError."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if conditional and (status in (409, 412) or code == "NoSuchKey"):
                raise Changed(action) from error
            raise self._refused(action, code, status, str(error)) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise PermissionError(
                f"{self.url}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except BotoCoreError as error:
            raise OSError(
                f"{self.url}: {action}: {error}. Run the same command again, it goes on from there"
            ) from error

    def _refused(self, action: str, code: str, status: int | None, words: str) -> OSError:
        if code == "NoSuchBucket":
            return OSError(
                f"{self.url}: there is no bucket {self.bucket}: create it, or mend the name or --endpoint"
            )
        if status == 404 and action in ("head_object", "get_object"):
            return FileNotFoundError(f"{self.url}: there is no such object")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            return PermissionError(
                f"{self.url}: the store does not take these credentials ({code})"
            )
        if status == 403:
            return PermissionError(
                f"{self.url}: the store denies {action}. These credentials need s3:GetObject, s3:PutObject, "
                f"s3:AbortMultipartUpload on {self.bucket}/{self.prefix}* and s3:ListBucket on {self.bucket}"
            )
        if status == 501:
            return OSError(
                f"{self.url}: the store does not know conditional writes ({words}): use --unconditional where you are "
                "sure to be the only one who publishes there"
            )
        return OSError(f"{self.url}: {words}")

    def look(self, key: str) -> Seen | None:
        try:
            return _seen(self.call("head_object", key, ChecksumMode="ENABLED"))
        except FileNotFoundError:
            return None

    def read(self, key: str) -> Seen | None:
        try:
            answer = self.call("get_object", key)
        except FileNotFoundError:
            return None
        with self._told("get_object"):
            return _seen(answer, answer["Body"].read())

    def digest(self, key: str) -> str:
        answer = self.call("get_object", key)
        digest = hashlib.sha256()
        with self._told("get_object"):
            for data in answer["Body"].iter_chunks(1 << 20):
                digest.update(data)
        return digest.hexdigest()

    def write(self, key: str, data: bytes, *, over: str) -> str:
        return self._put(key, data, hashlib.sha256(data).hexdigest(), over)

    def upload(self, key: str, path: Path, sha256: str, *, over: str) -> None:
        size = path.stat().st_size
        if size > PUT_LIMIT:
            self._put_parts(key, path, size, sha256, over)
            return
        with _File(
            path, self.stop
        ) as file:  # small ones as bytes: a file is asked for by "100 Continue", a trip more
            self._put(key, file.read() if size < SMALL else file, sha256, over)

    def _put(self, key: str, body: Any, sha256: str, over: str) -> str:
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        answer = self.call(
            "put_object",
            key,
            Body=body,
            ChecksumSHA256=checksum,
            Metadata={"sha256": sha256},
            **self._condition(over),
        )
        if answer.get("ChecksumSHA256", checksum) != checksum:
            raise OSError(
                f"{self.url}/{key} did not arrive as it was sent: run the same command again"
            )
        return answer["ETag"]

    def _put_parts(self, key: str, path: Path, size: int, sha256: str, over: str) -> None:
        """Each part goes with a CRC that the store checks (botocore's default). The last request has the condition."""
        upload = {
            "UploadId": self.call("create_multipart_upload", key, Metadata={"sha256": sha256})[
                "UploadId"
            ]
        }
        digest, step = hashlib.sha256(), max(PART, -(-size // 10_000))
        parts: list[dict] = []
        with (
            ExitStack() as unfinished
        ):  # whatever stops it, Ctrl-C too, takes back what is there of it
            unfinished.callback(self._abort, key, upload)
            with path.open("rb") as file:
                while data := file.read(step):
                    digest.update(data)
                    answer = self.call(
                        "upload_part", key, PartNumber=len(parts) + 1, Body=data, **upload
                    )
                    sums = {
                        name: value for name, value in answer.items() if name.startswith("Checksum")
                    }
                    parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"], **sums})
            if digest.hexdigest() != sha256:
                raise OSError(f"{path} changed while it was read: run the same command again")
            self.call(
                "complete_multipart_upload",
                key,
                MultipartUpload={"Parts": parts},
                **upload,
                **self._condition(over),
            )
            unfinished.pop_all()

    def _abort(self, key: str, upload: dict[str, str]) -> None:
        with suppress(
            OSError, KeyboardInterrupt
        ):  # what is left of it, the bucket's lifecycle rule removes
            self.call("abort_multipart_upload", key, **upload)

    def _condition(self, over: str) -> dict[str, str]:
        if not self.conditional:
            return {}
        return {"IfNoneMatch": NEW} if over == NEW else {"IfMatch": over}

    def names(self, folder: str) -> Iterator[str]:
        prefix = f"{self.prefix}{folder}/"
        more: dict[str, str] = {}
        while True:
            answer = self.call("list_objects_v2", Prefix=prefix, **more)
            yield from (entry["Key"].removeprefix(prefix) for entry in answer.get("Contents", ()))
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}


def _seen(answer: dict, data: bytes = b"") -> Seen:
    """sha256: the store's own of a whole object, else what the uploader has noted beside it."""
    own = answer.get("ChecksumSHA256", "")
    whole = own and "-" not in own and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    sha256 = base64.b64decode(own).hex() if whole else answer.get("Metadata", {}).get("sha256", "")
    return Seen(answer["ETag"], answer["ContentLength"], answer["LastModified"], sha256, data)
