"""Take the screenshot of the dashboard for the README: docs/pictures/dashboard.png.

    python scripts/documentation/screenshot.py        requires chromium; a few seconds

Serves models/, sends the example digit repeatedly, tries a digit on the page, and takes the screenshot.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "dashboard.png"
ROUNDS, REQUESTS = 12, 100


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server is ready.

    Raises:
        SystemExit: The server ended, or was not ready within a minute.
    """
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def main() -> None:
    """Serve, send requests, take the screenshot."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("chromium is not installed; on Debian: apt-get install chromium")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "--model-dir", "models", "--port", str(port), "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(url, server)
        digit = (ROOT / "examples" / "digit.json").read_bytes()
        with httpx.Client() as client, sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
            page.goto(url)
            for _ in range(ROUNDS):  # fills the charts
                for _ in range(REQUESTS):
                    client.post(f"{url}/predict", content=digit)
                page.wait_for_timeout(1000)
            page.locator(".samples button").nth(6).click()
            page.wait_for_timeout(1000)
            page.screenshot(path=PICTURE)
            chromium.close()
    finally:
        server.terminate()
        server.wait()
    print(f"wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
