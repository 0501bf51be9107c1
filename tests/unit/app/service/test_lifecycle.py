"""The start of an application whose model folder can't be read at first."""

import asyncio
import errno
from pathlib import Path

import httpx
from helpers import build

from app.application import create_app
from app.config.settings import Settings

LIMIT_S = 60


def test_a_folder_that_can_not_be_read_at_the_start_is_read_later(tmp_path, monkeypatch):
    build.put(tmp_path, build.Tiny().graph(), "m", "1")
    iterdir, full = Path.iterdir, [True]

    def limited(path):
        if full[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", limited)
    loaded = []
    application = create_app(
        Settings(model_dir=tmp_path, device="cpu", trial_load_s=0), on_loaded=lambda: loaded.append(True)
    )

    async def scenario():
        lifecycle = application.lifecycle
        await lifecycle.start()
        transport = httpx.ASGITransport(application)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            asyncio.timeout(LIMIT_S),
        ):
            while "can't be read" not in (ready := await client.get("/health/ready")).text:
                await asyncio.sleep(0.01)
            assert ready.json()["error"] == "the model folder can't be read: Too many open files"
            assert (await client.post("/models/m/predict", json={"inputs": [[0.0] * 6]})).status_code == 503
            assert loaded == []
            full[0] = False
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            assert (await client.post("/models/m/predict", json={"inputs": [[0.0] * 6]})).status_code == 200
        assert loaded == [True]
        await lifecycle.stop()

    asyncio.run(scenario())


def test_an_empty_folder_is_named_in_the_log_and_in_no_answer(tmp_path, caplog):
    application = create_app(Settings(model_dir=tmp_path, device="cpu", trial_load_s=0))

    async def scenario():
        lifecycle = application.lifecycle
        await lifecycle.start()
        transport = httpx.ASGITransport(application)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            asyncio.timeout(LIMIT_S),
        ):
            while (
                f"no model was found; the model folder must contain NAME/VERSION/model.onnx (model_dir is '{tmp_path}')"
                not in (caplog.text)
            ):
                await asyncio.sleep(0.01)
            answer = await client.get("/health/ready")
        await lifecycle.stop()
        return answer

    answer = asyncio.run(scenario())
    assert answer.status_code == 503
    assert tmp_path.name not in answer.text
