from pathlib import Path

import pytest

from app.config.model_url import ModelUrl, is_url, redacted
from app.config.settings_file import SettingsError
from app.config.settings_sources import effective, read_settings


@pytest.mark.parametrize(
    ("url", "root", "shown"),
    [
        ("s3://bucket/a/b/", "bucket/a/b", "s3://bucket/a/b"),
        ("S3://bucket", "bucket", "s3://bucket"),
        ("gs://bucket/models", "bucket/models", "gs://bucket/models"),
        ("az://container/x%2F", "container/x%2F", "az://container/x%2F"),
        ("https://example.org/m/", "https://example.org/m", "https://example.org/m"),
        (
            "https://me:secret@example.org:8443/m",
            "https://me:secret@example.org:8443/m",
            "https://***@example.org:8443/m",
        ),
        ("https://example.org/m?sig=secret", "https://example.org/m", "https://example.org/m?***"),
    ],
)
def test_what_a_url_names_and_what_is_shown(url, root, shown):
    found = ModelUrl(url)
    assert (found.root, str(found), repr(found)) == (root, shown, f"ModelUrl({shown!r})")
    assert found == ModelUrl(url)
    assert found != ModelUrl("s3://other")
    assert len({found, ModelUrl(url)}) == 1


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://example.org/m", "must be a folder, or a URL with s3://, gs://, az://, https://, http://"),
        ("s3:/bucket/m", "must be a folder, or a URL with s3://"),
        ("s3:///m", "must name a bucket"),
        ("s3://bu cket", "a URL must not contain spaces"),
        ("s3://b\\c/m", "spaces, control characters or backslashes"),
        ("s3://KEY:SECRET@bucket/m", "must be s3://BUCKET/FOLDER only; credentials and endpoints come from"),
        ("gs://bucket/m?x=SECRET", "must be gs://BUCKET/FOLDER only"),
        ("s3://bucket/../m", r"must not have '\.\.' in its path"),
        ("s3://bucket//m", "must not have '//' in its path"),
        ("https://example.org/%2e%2E/m", r"must not have '%2e%2E' in its path"),
        ("https:///m", "must name a host"),
        ("https://example.org:0/m", "port must be 1 to 65535, not 0"),
        ("https://example.org:66000/m", "out of range"),
        ("https://u:SECRET@[::1/m", "IPv6"),
        ("https://example.org/m#part", "must not have a fragment"),
        ("s3://bucket/" + "a" * 2048, "at most 2048 characters; this one has 2060"),
    ],
)
def test_a_wrong_url_is_refused_with_its_rule_and_without_its_secrets(url, rule):
    with pytest.raises(ValueError, match=rule):
        ModelUrl(url)
    with pytest.raises(SettingsError, match=rule) as raised:
        read_settings(["--model-dir", url])
    assert "SECRET" not in str(raised.value)
    assert "PANTHER_MODEL_DIR" in str(raised.value)


def test_folders_are_no_urls():
    for text in ("models", "/srv/models", "./s3", "a:b/c", "s3/bucket", "c:\\models"):
        assert not is_url(text)
        assert redacted(text) == text
        assert str(read_settings(["--model-dir", text]).model_dir) == str(Path(text))


def test_the_settings_show_a_url_without_its_secrets(monkeypatch):
    monkeypatch.setenv("PANTHER_MODEL_DIR", "https://me:secret@example.org/m?sig=more")
    settings = read_settings([])
    assert settings.model_dir == ModelUrl("https://me:secret@example.org/m?sig=more")
    assert effective(settings)["model_dir"] == ("https://***@example.org/m?***", "PANTHER_MODEL_DIR")


def test_secrets_are_taken_out_of_the_messages_of_libraries():
    url = ModelUrl("https://me:se%20cret@example.org/m?sig=more")
    text = "401 for https://me:se%20cret@example.org/m/a?sig=more (se cret)"
    assert url.scrub(text) == "401 for https://***@example.org/m/a?*** (***)"
    assert ModelUrl("s3://bucket/m").scrub("no secrets: ") == "no secrets: "
