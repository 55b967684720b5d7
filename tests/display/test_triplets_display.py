"""The page of a triplet: three members in order, heard binaurally, with a compass that is right and text that stays text."""
from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch

from lib.audio.ambisonics import encode
from lib.audio.binaural import binaural
from lib.display.triplets import highlighted, triplet_page

RATE = 24000


def member(role: str, *events: tuple, caption="one from the east", amplitude: float = 0.1, **other) -> dict:
    """Half a second of a chord for each event (label, azimuth, elevation, onset)."""
    waveform, time = torch.zeros(4, 2 * RATE), torch.arange(RATE // 2) / RATE
    for i, (_, azimuth, elevation, onset) in enumerate(events):
        start = int(onset * RATE) if math.isfinite(onset) else RATE
        chord = amplitude * sum(torch.sin(2 * torch.pi * (i + 3) * 150 * tone * time) for tone in (1, 2.1, 4.3, 6.7))
        waveform[:, start:start + RATE // 2] += encode(chord, azimuth, elevation)
    columns = dict(zip(("labels", "azimuth", "elevation", "onset"), map(list, zip(*events))))
    return {"role": role, "waveform": waveform, "sample_rate": RATE, "caption": caption} | columns | other


A, B = ("dog", 95.0, 10.0), ("rain", -140.0, -20.0)


def triplet(**other) -> list[dict]:
    return [member("positive", (*A, 0.2), (*B, 1.0), caption="A dog from the east, then rain from the northwest.", **other),
            member("temporal", (*B, 0.2), (*A, 1.0), caption="Rain from the northwest, then a dog from the east.", **other),
            member("spatial", ("dog", *B[1:], 0.2), ("rain", *A[1:], 1.0),
                   caption="A dog from the northwest, then rain from the east.", **other)]


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def heard(page: Page) -> list[np.ndarray]:
    files = (io.BytesIO(base64.b64decode(audio["src"].partition(",")[2])) for audio in page.all("audio"))
    return [soundfile.read(file, dtype="float32")[0].T for file in files]


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_three_columns_in_one_order_each_heard_at_both_ears(kind):
    members = [m | {"waveform": m["waveform"].numpy() if kind == "numpy" else m["waveform"]} for m in triplet()]
    shown = triplet_page(members[::-1])
    page = Page(shown.html)
    assert not page.open and shown.players == 3 and shown.html == shown._repr_html_() and shown.embedded_bytes > 3000
    assert [s["class"] for s in page.all("section")] == ["triplet-positive", "triplet-temporal", "triplet-spatial"]
    assert [a["aria-label"] for a in page.all("audio")] == ["Positive", "Temporal negative", "Spatial negative"]
    for sound, m in zip(heard(page), members):
        expected = np.asarray(binaural(m["waveform"], RATE))
        assert sound.shape == expected.shape == (2, 2 * RATE)
        for ear, mine in zip(expected, sound):
            assert np.corrcoef(ear, mine)[0, 1] > 0.95 and mine.std() == pytest.approx(ear.std(), rel=0.1)
    first, second = (np.std(heard(page)[0][:, span], axis=1) for span in (slice(5000, 16000), slice(25000, 35000)))
    assert first[0] > 1.3 * first[1] and second[1] > 1.05 * second[0], "azimuth 95 is heard at the left, -140 at the right"


def test_the_compass_has_north_at_the_top_and_the_order_of_the_events():
    page = Page(triplet_page(triplet()).html)
    drawings = page.all("svg")
    seen = "Compass seen from above, north at the top: "
    assert drawings[0]["aria-label"] == seen + "1. dog from the east; 2. rain from the northwest"
    assert drawings[1]["aria-label"].endswith("1. rain from the northwest; 2. dog from the east")
    assert all(drawing["role"] == "img" for drawing in drawings)
    dots = [(float(c["cx"]), float(c["cy"]), c["fill"]) for c in page.all("circle") if c.get("fill", "").startswith("#")]
    (x, y, colour), (x2, y2, colour2) = dots[:2]
    assert x > 55 and abs(y) < 12 and x2 < -30 and y2 < -40, "east is right, northwest up and left (y grows downwards)"
    assert colour != colour2 and [d[2] for d in dots] == [colour, colour2] * 3
    assert all(math.hypot(x, y) == pytest.approx(62, abs=0.1) for x, y, _ in dots)
    text = " ".join(page.text.split())
    assert "dog: east (azimuth 95°, elevation +10°), starts at 0.2 s" in text
    assert "the order is reversed" in text and "the places are swapped" in text


def test_close_places_do_not_cover_each_other_and_four_events_fit():
    close = [("a", 22.0, 0.0, 0.1), ("b", 23.0, 0.0, 0.5), ("c", 24.0, 0.0, 1.0), ("d", -170.0, 0.0, math.nan)]
    page = Page(triplet_page([member(role, *close) for role in ("positive", "temporal", "spatial")]).html)
    dots = np.array([(float(c["cx"]), float(c["cy"])) for c in page.all("circle") if c.get("fill", "").startswith("#")])[:4]
    for i in range(3):
        assert np.linalg.norm(dots[i + 1:] - dots[i], axis=1).min() >= 20
        assert math.degrees(math.atan2(*dots[i])) == pytest.approx(22 + i, abs=0.5), "moved towards the listener, not turned"
    assert "start unknown" in page.text


def test_direction_words_take_the_colour_of_their_event():
    html = triplet_page(triplet()).html
    fills = re.findall(r'<circle cx[^>]*fill="(#\w+)"', html)
    captions = re.findall(r"<p>(A dog|Rain)(.*?)</p>", html)
    for _, caption in captions:
        assert re.findall(r'<mark style="border-bottom-color:(#\w+)">(\w+)</mark>', caption) in (
            [(fills[0], "east"), (fills[1], "northwest")], [(fills[0], "northwest"), (fills[1], "east")])
    assert highlighted("From the Southeast & the eastern north.", ["north"]) == (
        f'From the <mark>Southeast</mark> &amp; the eastern <mark style="border-bottom-color:{fills[0]}">north</mark>.')


def test_text_from_outside_stays_text_and_nothing_is_fetched():
    evil = """</p></div><script>alert("1")</script><img src=x onerror='alert(2)'> " onload="alert(3)" ' & east"""
    members, plain = triplet(), triplet()
    for m, p in zip(members, plain):
        m["caption"], m["labels"], p["caption"], p["labels"] = [evil, evil], [evil, evil], ["east", "east"], ["x", "y"]
    html = triplet_page(members).html
    page, reference = Page(html), Page(triplet_page(plain).html)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in reference.tags] and page.text.count("<script>") == 12
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert not re.search(r"https?://", html) and not {"script", "link", "img"} & {tag for tag, _ in page.tags}


def test_loud_members_are_lowered_alike_and_it_is_said():
    loud = triplet()
    loud[2]["waveform"] = 12 * loud[2]["waveform"]
    page = Page(triplet_page(loud).html)
    peak = max(float(np.abs(np.asarray(binaural(m["waveform"], RATE))).max()) for m in loud)
    assert peak > 1 and f"{20 * math.log10(peak / 0.999):.1f} dB lower" in page.text and "clipped" not in page.text
    quiet = np.asarray(binaural(loud[0]["waveform"], RATE)).std() * 0.999 / peak
    assert heard(page)[0].std() == pytest.approx(quiet, rel=0.15)
    assert "lower than decoded" not in Page(triplet_page(triplet()).html).text
    broken = triplet()
    broken[1]["waveform"][0, 9] = math.nan
    assert len(heard(Page(triplet_page(broken).html))) == 2 and "NaN" in Page(triplet_page(broken).html).text


@pytest.mark.parametrize("change, message", [
    (dict(waveform=torch.zeros(1, 100)), r"the temporal member: waveform has shape \(1, 100\), expected \(4, samples\)"),
    (dict(waveform=torch.zeros(4, 0)), r"\(4, 0\)"),
    (dict(azimuth=[1.0]), "temporal member: expected 1 to 4 events.* got 1, 2, 2 and 2"),
    (dict(azimuth=[1.0, math.nan]), "temporal member: azimuth must be finite"),
    (dict(elevation=[1.0, 100.0]), "temporal member: elevation must be -90 to 90"),
    (dict(labels=["x"]), "2, 2, 2 and 1"),
    (dict(role="positive"), r"each role \['positive', 'temporal', 'spatial'\], got \['positive', 'positive', 'spatial'\]"),
])
def test_members_that_are_none_are_refused_by_name(change, message):
    members = triplet()
    members[1] |= change
    with pytest.raises(ValueError, match=message):
        triplet_page(members)


def test_missing_entries_are_named_and_labels_may_be_absent():
    members = triplet()
    del members[2]["onset"]
    with pytest.raises(ValueError, match="the spatial member has no entry 'onset'"):
        triplet_page(members)
    with pytest.raises(ValueError, match="got \\['positive', 'temporal'\\]"):
        triplet_page(members[:2])
    assert "1. event 1 from the east" in Page(triplet_page(triplet(labels=[])).html).all("svg")[0]["aria-label"]
