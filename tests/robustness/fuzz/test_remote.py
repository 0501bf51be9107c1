"""URLs, names and manifests of remote model repositories, as odd as they may be."""

import contextlib
import tempfile
from pathlib import Path

from helpers.remote import MemoryStore
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.config.model_url import ModelUrl, is_url, redacted
from app.config.settings_file import SettingsError
from app.config.settings_sources import read_settings
from app.repository.remote.cache import now
from app.repository.remote.errors import RemoteError
from app.repository.remote.mirror import Mirror, MirrorOptions
from app.repository.remote.names import sort_names
from app.repository.remote.store import parse_manifest

SECRET = "xS3CRETx"
PIECES = st.sampled_from([
    "s3", "gs", "az", "http", "https", "S3://", ":", "/", "//", "://", "@", "?", "#", "[", "]", "%2e", "..", ".",
    "\\", "\0", " ", "\n", "\udc80", "é", "bucket", "a.b", "127.0.0.1", "[::1]", ":80", ":99999", "*", "-", "x" * 300,
])  # fmt: skip
ENDS = st.lists(PIECES, max_size=8).map("".join)
URLS = st.one_of(ENDS, st.tuples(st.sampled_from(["s3://", "https://"]), ENDS).map("".join), st.text(max_size=60))
PARTS = st.sampled_from(["a", "1", "2", "", ".", "..", "model.onnx", "panther.toml", "\\", "\0", "\ud800", ".x", "é"])
NAMES = st.one_of(st.lists(PARTS, max_size=6).map("/".join), st.text(max_size=30))
LINES = st.tuples(st.just("a" * 64 + "  "), NAMES).map(lambda parts: "".join(parts).encode(errors="surrogatepass"))


def rounds(count: int):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def outcome(read, text: str) -> str:
    """What is shown of a URL that is taken, or the message where it is refused."""
    try:
        found = read(text)
    except (ValueError, SettingsError) as error:
        return str(error)
    return f"{found} {found!r}"


@rounds(200)
@given(URLS)
@example("https://[")
@example("s3://bucket/\ud800")
def test_a_url_is_taken_or_refused_with_its_rule(text):
    with contextlib.suppress(ValueError):  # nothing else
        url = ModelUrl(text)
        assert is_url(text)
        assert ".." not in url.root.split("/")
        assert url == ModelUrl(text)


@rounds(60)
@given(st.sampled_from(["https://", "http://", "s3://", "ftp://", "s3:", "HTTPS://"]), ENDS, st.booleans())
def test_a_secret_is_never_shown(scheme, rest, as_user):
    """Neither a password, which ends at the last @ before the path, nor a query, however wrong the rest is."""
    host = rest.translate(dict.fromkeys(map(ord, "/?#\\@\0")))
    text = f"{scheme}me:{SECRET}@{host}/m" if as_user else f"{scheme}{host}/m?sig={SECRET}"
    assert SECRET not in redacted(text)
    assert SECRET not in outcome(ModelUrl, text)
    assert SECRET not in outcome(lambda given: read_settings(["--model-dir", given]).model_dir, text)


@rounds(100)
@given(st.lists(NAMES, max_size=8))
def test_names_stay_below_their_folder(names):
    found = sort_names(names)
    for name in found.accepted():
        path = Path("/root") / name
        assert path.resolve() == path
        assert path.is_relative_to("/root")
        assert len(path.parts) >= 4
    assert not set(found.accepted()) & set(found.refused)
    assert set(found.accepted()) | set(found.refused) <= set(names)


@rounds(30)
@given(st.lists(NAMES, max_size=6), st.lists(NAMES, max_size=6))
@example(["a/b", "a/1/x"], ["a/b/c", "a/1"])
def test_a_mirror_writes_nothing_outside_of_it(before, after):
    """Two listings, one after the other: the folder is like the second one, and nothing lies elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore({})
        mirror = Mirror(store.url, MirrorOptions(Path(folder) / "a" / "b" / "c"), store)
        for names in (before, after, after):
            store.contents = {"m/1/model.onnx": b"model", **dict.fromkeys(names, b"content")}
            with contextlib.suppress(RemoteError):  # where a folder takes a file's place, the next pass succeeds
                mirror.sync(now())
        files = {path for path in Path(folder).rglob("*") if not path.is_dir()}
        inside = {path.relative_to(mirror.folder).as_posix() for path in files if path.is_relative_to(mirror.folder)}
        assert inside == set(sort_names(store.contents).accepted())
        assert {path.name for path in files if not path.is_relative_to(mirror.folder)} == {"lock", "state.json"}


@rounds(100)
@given(st.one_of(st.binary(max_size=200), LINES))
def test_a_manifest_is_read_or_refused(content):
    with contextlib.suppress(RemoteError):
        found = parse_manifest(content)
        assert all(name and file.checksum is not None for name, file in found.items())
