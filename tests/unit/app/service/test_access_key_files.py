"""Files of API keys: what they may hold, and that they are read again when they change."""

import hashlib
import time

import pytest
from helpers import build

from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.errors import UnauthorizedError
from app.service.access import Access, Keys, warn_of_open_doors

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
PREDICT, SECOND, CONTROL = "predict-key-0123456789", "second-key-0123456789", "control-key-0123456789"
DIGEST = "sha256:" + hashlib.sha256(SECOND.encode()).hexdigest()


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_a_file_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# for the shop\n{PREDICT}\n\n  {DIGEST}  \n")
    keys = Keys("predict_keys", None, file)
    assert keys.has(hashlib.sha256(PREDICT.encode()).digest())
    assert keys.has(hashlib.sha256(SECOND.encode()).digest())
    assert not keys.has(hashlib.sha256(CONTROL.encode()).digest())
    both = Keys("predict_keys", CONTROL, file)
    assert all(both.has(hashlib.sha256(key.encode()).digest()) for key in (PREDICT, SECOND, CONTROL))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("short\n", r"line 1 of '.*keys': a key has 5 characters; at least 16 are required"),
        ("# one\n\nsha256:abc\n", r"line 3 of '.*keys': a digest must be 'sha256:' and 64 hexadecimal digits"),
        ("a key with spaces in it\n", r"line 1 of '.*keys': a key must consist of printable ASCII"),
        ("schlüssel-schlüssel-schlüssel\n", r"line 1 of '.*keys': a key must consist of printable ASCII"),
        ("# none\n", r"'.*keys' \(predict_keys_file\) holds no keys"),
        (None, r"the file of keys '.*keys' can't be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_of_keys_is_told_without_the_key(tmp_path, text, said):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=said) as raised:
        Access.of(Settings(predict_keys_file=file))
    if text:
        assert text.strip().splitlines()[-1] not in str(raised.value)


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_keys(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(PREDICT)
    access = Access.of(Settings(predict_keys_file=file))

    def knows(key):
        try:
            access.check_predict({b"x-api-key": key.encode()})
        except UnauthorizedError:
            return False
        return True

    assert not access.refresh()
    file.write_text(f"{SECOND}\n{CONTROL}")
    assert access.refresh()
    assert (knows(PREDICT), knows(SECOND), knows(CONTROL)) == (False, True, True)
    file.write_text("short")
    assert not access.refresh()
    assert knows(SECOND)
    assert "keeping the previous API keys: line 1" in caplog.text
    file.unlink()
    assert not access.refresh()
    assert knows(SECOND)
    file.write_text("# nobody any more\n")
    assert access.refresh()
    assert not knows(SECOND)


def test_a_key_that_was_taken_away_opens_nothing_any_more(tiny_dir, tmp_path, monkeypatch):
    """Not even by a head that was let in before."""
    monkeypatch.setattr("app.service.access.REREAD_S", 0.02)
    file = tmp_path / "keys"
    file.write_text(f"{PREDICT}\n{SECOND}\n")
    with build.running(tiny_dir, predict_keys_file=file) as client:
        for _ in range(3):
            assert client.post("/predict", json={"inputs": [ROW]}, headers=bearer(PREDICT)).status_code == 200
        file.write_text(f"{SECOND}\n")
        deadline = time.monotonic() + 60
        while client.post("/predict", json={"inputs": [ROW]}, headers=bearer(PREDICT)).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.post("/predict", json={"inputs": [ROW]}, headers=bearer(SECOND)).status_code == 200


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_key_file_that_others_can_read_is_warned_of(tmp_path, caplog, mode, warned):
    file = tmp_path / "keys"
    file.write_text(PREDICT)
    file.chmod(mode)
    warn_of_open_doors(Settings(predict_keys_file=file))
    assert ("keys' (predict_keys_file) is readable by every user of this machine" in caplog.text) == warned
    assert PREDICT not in caplog.text
