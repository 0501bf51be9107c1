import hashlib

import pytest
from helpers.remote import BUCKET, s3, web

from app.config.model_url import ModelUrl
from app.repository.remote import extra
from app.repository.remote.checksums import Checksum
from app.repository.remote.errors import MissingExtraError, RemoteError
from app.repository.remote.store import MANIFEST, open_store, parse_manifest

DIGEST = hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize(
    ("url", "missing", "said"),
    [
        (
            "s3://bucket/m",
            "s3fs",
            r"model_dir=s3://bucket/m requires the extra 's3' \(pip install 'panther-sketch\[s3\]'\)",
        ),
        ("gs://bucket/m", "gcsfs", "extra 'gs'"),
        ("az://bucket/m", "adlfs", "extra 'az'"),
        ("https://me:secret@h/m", "aiohttp", r"model_dir=https://\*\*\*@h/m requires the extra 'https'"),
    ],
)
def test_without_the_extra_the_message_says_what_is_missing(monkeypatch, url, missing, said):
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(MissingExtraError, match=f"{said}.*package '{missing}' is not installed"):
        open_store(ModelUrl(url))


def test_objects_of_s3(monkeypatch, tmp_path):
    with s3() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        bucket.put("m/a/1/model.onnx", b"one")
        bucket.put("m/a/1/secret", b"two", ServerSideEncryption="aws:kms", SSEKMSKeyId="key")
        bucket.put("more/a/1/model.onnx", b"of another folder")
        store = open_store(ModelUrl(f"s3://{BUCKET}/m"))
        files = store.files(tmp_path / "scratch")
        assert set(files) == {"a/1/model.onnx", "a/1/secret"}
        one = files["a/1/model.onnx"]
        assert (one.size, one.checksum) == (3, Checksum("md5", hashlib.md5(b"one").hexdigest()))
        received = []
        store.download("a/1/model.onnx", tmp_path / "file", received.append)
        assert (tmp_path / "file").read_bytes() == b"one"
        assert received[-1] == 3
        assert (store.is_md5("a/1/model.onnx"), store.is_md5("a/1/secret")) == (True, False)
        bucket.put("m/a/1/model.onnx", b"two")
        assert store.files(tmp_path / "scratch")["a/1/model.onnx"].token != one.token


def test_files_of_a_web_server(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "1").mkdir(parents=True)
    (root / "a" / "1" / "w %?#é.bin").write_bytes(b"one")
    with web(root) as url:
        store = open_store(ModelUrl(url))
        with pytest.raises(RemoteError, match=rf"{MANIFEST}, the list of files, is missing; in the folder of models"):
            store.files(tmp_path / "scratch")
        (root / MANIFEST).write_text(f"{DIGEST}  a/1/w %?#é.bin\n")
        assert set(store.files(tmp_path / "scratch")) == {"a/1/w %?#é.bin"}
        store.download("a/1/w %?#é.bin", tmp_path / "file", lambda _: None)
        assert (tmp_path / "file").read_bytes() == b"one"
        with pytest.raises(FileNotFoundError):
            store.download("a/2/model.onnx", tmp_path / "file", lambda _: None)


def test_manifests():
    found = parse_manifest(f"{DIGEST}  a/1/model.onnx\r\n{DIGEST.upper()} *./b/x y\n\n".encode())
    assert set(found) == {"a/1/model.onnx", "b/x y"}
    assert {file.checksum for file in found.values()} == {Checksum("sha256", DIGEST)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>not found</html>", "line 1: '<html>not found</html>' must be 64 hexadecimal digits"),
        (DIGEST.encode(), "line 1"),
        (b"\\" + DIGEST.encode() + b"  a\\nb", "line 1"),
        (f"{DIGEST}  a\n{'0' * 64}  a\n".encode(), "line 2: 'a' is listed with two checksums"),
        (b"\xff", "is not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(content, said):
    with pytest.raises(RemoteError, match=f"{MANIFEST}.*{said}"):
        parse_manifest(content)
