"""The live Poincaré disk as a person uses it, in a real Chromium that has no network: pointing, pressing, dragging, typing."""
from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from lib.display import disk_page
from lib.display.disk import Atlas
from lib.display.disk_arcs import geodesic
from lib.settings import ROOT

PICTURES = ROOT / "build" / "browser"
FLAGS = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--autoplay-policy=user-gesture-required",
         *(["--no-sandbox"] if os.getuid() == 0 else [])]
HOSTILE = '</script><img src=x onerror="alert(1)"> & \'"'
POINTS = np.array([[0, 0], [0.5, 0.3], [-0.6, 0.2], [0.7, 0.6], [0.85, 0.2]])
CLIPS = np.array([[-0.2, -0.6], [0.3, -0.7]])
EDGES = [(0, 1), (0, 2), (1, 3), (1, 4)]
PLACES = """box => [...box.querySelectorAll("[data-point]")].sort((a, b) => a.dataset.point - b.dataset.point).map(mark =>
    mark.getAttribute("transform").match(/-?[\\d.]+/g).map(Number))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    chromium = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    assert chromium, "the system package chromium is missing: apt-get install chromium, or CHROMIUM=/path/of/it"
    folder = tmp_path_factory.mktemp("a 'disk' & more")
    atlas = Atlas(POINTS, ["sound", HOSTILE, "human", "dog", "cat"], EDGES, ["", "animal", "human", "animal", "animal"],
                  [0, 1, 1, 2, 2], CLIPS, ["-first clip", "second"], ["human", "animal"], c=0.25)
    sounds = [{"waveform": 0.2 * np.sin(np.arange(32000) / 9), "sample_rate": 16000, "title": HOSTILE}] * 2
    shown = disk_page.page(atlas, sounds, title=HOSTILE)
    linked = disk_page.page(atlas, sounds, byte_budget=0, folder=folder / "clips")     # its sounds are files beside the page
    assert len(linked.linked) == 2
    (folder / "disk.html").write_text(f'<!doctype html><meta charset="utf-8">{shown.html}{linked.html}', encoding="utf-8")
    complaints, asked = [], []
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 900}, reduced_motion="reduce")
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / "disk.html").as_uri())
        yield page
        page.screenshot(path=PICTURES / "disk.png")
        browser.close()
    assert not complaints
    assert all(url.startswith(("file:", "data:")) for url in asked)


def distances(box) -> np.ndarray:
    """Hyperbolic distances among the points as they lie on the screen."""
    x = np.array(box.evaluate(PLACES)) / (500 / 1.02)
    gap = ((x[:, None] - x) ** 2).sum(-1)
    return np.arccosh(1 + 2 * gap / np.outer(1 - (x**2).sum(1), 1 - (x**2).sum(1)))


@pytest.fixture
def box(page):
    box = page.locator(".disk-live").first
    box.get_by_role("button", name="Back to the start").click()
    page.wait_for_timeout(100)
    return box


def mark(box, number: int):
    return box.locator(f"[data-point='{number}']")


def test_what_is_drawn_is_what_was_given(page, box):
    assert np.allclose(np.array(box.evaluate(PLACES)) / (500 / 1.02), np.concatenate([POINTS, CLIPS]) * [1, -1], atol=1e-4)
    for (p, q), path in zip(EDGES, box.locator("svg > path:not([data-point])").all()):
        drawn = path.evaluate("""path => Array.from({length: 9}, (_, i) => path.getPointAtLength(path.getTotalLength() * i / 8))
            .map(place => [place.x, place.y])""")
        assert np.allclose(np.array(drawn) / (500 / 1.02) * [1, -1], geodesic(POINTS[p], POINTS[q], 9), atol=1e-3)
    assert box.locator("svg text", has_text="</script><img").count() == 1 and page.locator("img[src=x]").count() == 0
    assert not box.locator(".disk-stage img").is_visible() and box.locator(".clip-card:visible").count() == 0


def test_pointing_says_what_a_point_is(box):
    mark(box, 1).hover()
    expect(box.locator(".disk-tip")).to_contain_text(HOSTILE)
    radius = 2 * 2 * np.arctanh(np.hypot(0.5, 0.3))
    expect(box.locator(".disk-tip")).to_contain_text(f"d(0, x) = {radius:.2f}")
    expect(box.locator(".disk-tip")).to_contain_text("depth 1")
    mark(box, 5).hover()
    expect(box.locator(".disk-tip")).to_contain_text("-first clip")


def test_pressing_a_node_brings_it_to_the_centre_and_keeps_all_distances(box):
    before = distances(box)
    mark(box, 3).click()
    assert np.allclose(box.evaluate(PLACES)[3], 0, atol=0.1) and np.allclose(distances(box), before, atol=2e-3)


def test_dragging_moves_the_disk_and_keeps_all_distances(page, box):
    before, places = distances(box), np.array(box.evaluate(PLACES))
    frame = box.locator("svg").bounding_box()
    middle = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 30, steps=4)
    page.mouse.move(middle[0] + 120, middle[1] + 60, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)
    moved = np.array(box.evaluate(PLACES))
    assert np.allclose(moved[0], np.array([120, 60]) * 1020 / frame["width"], atol=1.5), "the point under the pointer follows it"
    assert np.abs(moved - places).max() > 50 and np.allclose(distances(box), before, atol=2e-3)


@pytest.mark.parametrize("which", [0, 1], ids=["embedded", "linked"])
def test_a_pressed_clip_plays_and_stops_the_other(page, which):
    box = page.locator(".disk-live").nth(which)
    for number in (5, 6):
        mark(box, number).click()
        sounds = box.locator("audio")
        page.wait_for_function("audio => audio.currentTime > 0.1 && !audio.paused", timeout=10_000,
                               arg=sounds.nth(number - 5).element_handle())
        assert sounds.nth(6 - number).evaluate("audio => audio.paused") and box.locator(".clip-card:visible").count() == 1
        assert "Not played" not in box.locator(".disk-tip").inner_text()


def test_everything_can_be_done_by_keyboard(page, box):
    for audio in box.locator("audio").all():
        audio.evaluate("audio => { audio.pause(); audio.currentTime = 0; }")
    mark(box, 0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(box.locator(".disk-tip b")).to_have_text("human")
    page.keyboard.press("Enter")
    assert np.allclose(box.evaluate(PLACES)[2], 0, atol=0.1)
    page.keyboard.press("Tab")                      # the clips are one stop, after the nodes
    expect(box.locator(".disk-tip b")).to_have_text("-first clip")
    page.keyboard.press("ArrowLeft")
    expect(box.locator(".disk-tip b")).to_have_text("second")
    page.keyboard.press("Enter")
    page.wait_for_function("audio => audio.currentTime > 0.1", arg=box.locator("audio").nth(1).element_handle(), timeout=10_000)
