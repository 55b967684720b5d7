"""Notebook 12 as a person uses it: a real JupyterLab, a real Chromium, typing, pressing, listening, uploading."""
from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Page, expect, sync_playwright

from lib.settings import ROOT
from lib.workbook.parameters import load_yaml
from lib.workbook.processes import end_marked, new_mark

PICTURES = ROOT / "build" / "browser"
PROFILE = load_yaml((ROOT / "notebooks/profiles/tiny.yaml").read_text(), "tiny.yaml")
TINY = {"num_samples": PROFILE["all"]["num_samples"], "threads": 1}
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", *(["--no-sandbox"] if os.getuid() == 0 else [])]
UPLOADS = '--ServerApp.tornado_settings={"websocket_max_message_size": 268435456}'      # as `make lab` has it
READY = "audio => audio.readyState >= 1 && Number.isFinite(audio.duration) && audio.duration > 1 && audio.error === null"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a tiny training by notebook 10, as if it had been run by hand, and an environment that points to them."""
    folder = tmp_path_factory.mktemp("browser")
    environment = os.environ | {f"WORKBOOK_{name.upper()}": str(folder / name) for name in ("data", "runs", "reports")}
    values = {name: value for name, value in PROFILE["all"].items() if name != "clips_shown"} | PROFILE["10_retrieval_train"] | TINY
    (folder / "tiny.json").write_text(json.dumps(values | {"control_epochs": 0}))
    done = subprocess.run([sys.executable, "-m", "lib.workbook.run", "--notebook", "notebooks/10_retrieval_train.ipynb", "--report",
                           folder / "reports/interactive", "--parameters", folder / "tiny.json"],
                          cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, environment


@pytest.fixture(scope="module")
def lab(trained):
    """Address of a JupyterLab whose folder holds notebook 12 with tiny parameters."""
    folder, environment = trained
    document = load_notebook_node(str(ROOT / "notebooks/12_retrieval_search.ipynb"))
    (folder / "home").mkdir()
    nbformat.write(parameterize_notebook(document, TINY), folder / "home/12_retrieval_search.ipynb")
    quiet = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"     # asks the network for nothing
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, mark = secrets.token_hex(16), new_mark()
    environment |= {"JUPYTER_TOKEN": token, "WORKBOOK_BROWSER_TEST": mark, "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT),
                    **{f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
                    **{f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0", "--ip=127.0.0.1",
               f"--notebook-dir={folder / 'home'}", UPLOADS, *(["--allow-root"] if os.getuid() == 0 else [])]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: list((folder / "runtime").glob("jpserver-*.json")) or server.poll() is not None, 90)
        assert server.poll() is None, (folder / "lab.log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/lab/tree/12_retrieval_search.ipynb?token={token}"
    finally:
        end_marked("WORKBOOK_BROWSER_TEST", mark)
        server.wait(30)


@pytest.fixture(scope="module")
def complaints():
    """What the browser's console complained about."""
    return []


@pytest.fixture(scope="module")
def page(lab, complaints):
    """The notebook after Run All."""
    chromium = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    assert chromium, "the system package chromium is missing: apt-get install chromium, or CHROMIUM=/path/of/it"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.on("console", lambda said: complaints.append(f"{said.text} ({said.location['url']})") if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        try:
            page.goto(lab)
            page.locator(".jp-Notebook h1").first.wait_for(timeout=60_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            yield page
        finally:
            page.screenshot(path=PICTURES / "last.png")
            browser.close()


def wait_until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.2)


def players(page: Page, count: int):
    """The players of the panel, once there are `count` of them and all can be played."""
    found = page.locator(".search-panel audio")
    expect(found).to_have_count(count, timeout=60_000)
    for audio in found.all():
        audio.scroll_into_view_if_needed()
        wait_until(lambda: audio.evaluate(READY), 15)
    return found


def test_run_all_reaches_the_last_cell(page, trained):
    wait_until((trained[0] / "reports/interactive/results/12_retrieval_search.json").is_file, 120)
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.get_by_text("Traceback").count() == 0


def test_typing_and_pressing_brings_five_players_that_play(page):
    box = page.locator(".search-panel input[type=text]").first
    box.scroll_into_view_if_needed()
    box.fill("a \"dog\" barks, then <b>waves</b> break")
    page.locator(".search-panel").get_by_role("button", name="Search").click()
    found = players(page, 5)
    page.locator(".search-panel").evaluate("panel => panel.scrollIntoView()")
    page.screenshot(path=PICTURES / "search.png")
    assert page.locator(".search-panel b", has_text="waves").count() == 0 and page.get_by_text("“a \"dog\" barks, then <b>waves").count()
    assert page.locator(".search-panel img[alt='log-mel spectrogram']").evaluate_all("all => all.every(image => image.naturalWidth > 100)")
    for place, audio in enumerate(found.all()):
        if place == 0:
            audio.click(position={"x": 20, "y": 17})        # its play button
        else:
            audio.evaluate("audio => audio.play()")
        wait_until(lambda: audio.evaluate("audio => audio.currentTime") > 0.2, 15)
        audio.evaluate("audio => audio.pause()")


def test_enter_searches_and_an_empty_box_says_what_to_do(page):
    box = page.locator(".search-panel input[type=text]").first
    box.fill("")
    box.press("Enter")
    expect(page.locator(".search-panel [role=alert]")).to_contain_text("Type what you want to hear")
    page.locator(".search-panel input[type=number]").fill("3")
    page.locator(".search-panel input[type=number]").press("Tab")
    box.fill("a bell tolls")
    box.press("Enter")
    players(page, 3)


def test_uploaded_recordings(page, tmp_path):
    """One larger than the 10 MB that a server takes by default, as a minute from a microphone is; then one that is no sound."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "my voice.wav", (0.1 * rng.normal(size=(48000 * 40, 2))).astype(np.float32), 48000, subtype="PCM_24")
    (tmp_path / "it's \"noise\".wav").write_bytes(b"no sound")
    assert (tmp_path / "my voice.wav").stat().st_size > 11e6
    assert UPLOADS.partition("=")[2] in (ROOT / "Makefile").read_text()
    upload = page.locator(".search-panel").get_by_role("button", name=re.compile("By a recording"))
    for name, count in (("my voice.wav", 4), ("it's \"noise\".wav", 0)):
        with page.expect_file_chooser() as chooser:
            upload.click()
        chooser.value.set_files(tmp_path / name)
        expect(page.locator(".search-panel")).to_contain_text(name, timeout=60_000)
        players(page, count)
        page.locator(".search-panel").evaluate("panel => panel.scrollIntoView()")
        page.screenshot(path=PICTURES / f"upload_{count}.png")
    expect(page.locator(".search-panel [role=alert]")).to_be_visible()


def test_the_console_has_no_error(page, complaints):
    assert not complaints
