"""Remote model repositories for tests: one in memory with failures on demand, S3 by moto, and a web server."""

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from app.config.model_url import ModelUrl
from app.repository.remote.checksums import Checksum
from app.repository.remote.store import MANIFEST, RemoteFile, Store

BUCKET = "models"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


class MemoryStore(Store):
    """Files in memory.

    ``fails`` maps a path, or "" for the listing, to the exception to raise; ``sent`` to bytes unlike the listing.
    """

    def __init__(self, files: dict[str, bytes], *, checksums: bool = True) -> None:
        super().__init__(ModelUrl("s3://bucket/models"))
        self.contents = dict(files)
        self.fails: dict[str, Exception] = {}
        self.sent: dict[str, bytes] = {}
        self.checksums = checksums
        self.downloads: list[str] = []
        self.before_download = lambda path: None

    def files(self, scratch: Path) -> dict[str, RemoteFile]:
        if "" in self.fails:
            raise self.fails[""]
        return {name: self._file(content) for name, content in self.contents.items()}

    def _file(self, content: bytes) -> RemoteFile:
        md5 = hashlib.md5(content).hexdigest()
        return RemoteFile(len(content), md5, Checksum("md5", md5) if self.checksums else None)

    def download(self, path: str, target: Path, received) -> None:
        self.downloads.append(path)
        self.before_download(path)
        if path in self.fails:
            raise self.fails[path]
        content = self.sent.get(path, self.contents[path])
        received(len(content))
        target.write_bytes(content)


class Bucket:
    """A bucket of a real S3 server in this process."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes, **more) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, **more)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def upload(self, folder: Path, prefix: str) -> None:
        """Put all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextmanager
def s3() -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        bucket = Bucket("http://{}:{}".format(*server.get_host_and_port()))
        yield bucket
        bucket.client.close()
    finally:
        server.stop()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.server.authorization
        if wanted is not None and self.headers.get("authorization") != wanted:
            self.send_error(401)
            return
        super().do_GET()

    def log_message(self, *_) -> None:
        pass


@contextmanager
def web(folder: Path, authorization: str | None = None) -> Iterator[str]:
    """A web server of a folder; its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    server.authorization = authorization
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_manifest(folder: Path) -> None:
    """Write ``SHA256SUMS`` with the documented command."""
    command = f"cd {folder} && find * -type f ! -name {MANIFEST} -exec sha256sum {{}} + > .new && mv .new {MANIFEST}"
    assert os.system(command) == 0
