import base64
import hashlib

import pytest

from app.repository.remote.checksums import Checksum, checksum_of

MD5 = hashlib.md5(b"content")
AS_TEXT = base64.b64encode(MD5.digest()).decode()


@pytest.mark.parametrize(
    ("scheme", "info", "expected"),
    [
        ("s3", {"ETag": f'"{MD5.hexdigest()}"'}, Checksum("md5", MD5.hexdigest())),
        ("s3", {"ETag": f'"{MD5.hexdigest()}-2"'}, None),  # of an upload in parts
        ("s3", {}, None),
        ("gs", {"md5Hash": AS_TEXT, "crc32c": "AAAAAA=="}, Checksum("md5", MD5.hexdigest())),
        ("gs", {"crc32c": "AAAAAQ=="}, Checksum("crc32c", "00000001")),
        ("gs", {"md5Hash": "no base64!"}, None),
        ("az", {"content_settings": {"content_md5": bytearray(MD5.digest())}}, Checksum("md5", MD5.hexdigest())),
        ("az", {"content_settings": {"content_md5": None}}, None),
        ("az", {}, None),
    ],
)
def test_what_listings_say(scheme, info, expected):
    assert checksum_of(scheme, info, "bucket") == expected


def test_etags_of_directory_buckets_are_no_checksums():
    assert checksum_of("s3", {"ETag": MD5.hexdigest()}, "models--use1-az4--x-s3") is None


def test_the_checksum_of_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    for kind in ("md5", "sha256"):
        assert Checksum(kind, "").of_file(file) == hashlib.new(kind, b"content").hexdigest()
