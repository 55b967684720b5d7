"""A triplet to listen to: its three members side by side, each with a player for headphones, a compass and its caption.

Static HTML without scripts, nothing fetched from a network; captions and labels are data from outside and are escaped. Numbers on
the compass are the order of the events, their colours those of the direction words in the caption.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from lib.audio.binaural import binaural
from lib.audio.directions import DIRECTIONS, direction_word
from lib.display import clips
from lib.display.clips import Html

ROLES = {"positive": "Positive", "temporal": "Temporal negative: the order is reversed",
         "spatial": "Spatial negative: the places are swapped"}
_COLOURS = ("#0173b2", "#a34a00", "#027a59", "#8a3f7f")  # of the events; white letters are legible on each
_WORD = re.compile(rf"\b({'|'.join(DIRECTIONS)})\b", re.IGNORECASE)  # whole words: "southeast" ends in "east"
_RADIUS, _DOT = 62, 10  # of the compass's circle and an event's dot, in its own units
_STYLE = """<style>
.triplet{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:14px;margin:6px 0;font:13px/1.45 sans-serif}
.triplet section{min-width:0;border-top:4px solid rgba(128,128,128,.5);padding-top:6px;overflow-wrap:anywhere}
.triplet section.triplet-positive{border-top-color:#029e73}
.triplet h4{margin:0 0 4px;font-size:14px;line-height:1.3;min-height:2.6em}
.triplet svg{display:block;width:100%;max-width:240px;margin:0 auto;color:inherit}
.triplet ol{margin:4px 0;padding-left:22px}
.triplet p{margin:6px 0}
.triplet-note{font:12px/1.4 sans-serif;opacity:.72;margin:6px 0}
.triplet mark{color:inherit;background:rgba(128,128,128,.22);border-bottom:3px solid #808080;border-radius:2px;padding:0 2px;\
font-weight:bold}
</style>"""


def triplet_page(members: Sequence[Mapping]) -> Html:
    """The three members of a triplet as columns: positive, temporal negative, spatial negative.

    Args:
        members: three mappings in any order, one of each role, with "waveform" (4, samples) W, Y, Z, X of full scale +-1,
            "sample_rate" in Hz, "caption" (text, or a list of them), "role" ("positive", "temporal" or "spatial"), and for each
            event in the order of time "azimuth" and "elevation" in degrees, "onset" in seconds (nan: unknown) and, where known,
            "labels" (texts; an empty list numbers the events).

    The sound is at its own level, or, where the binaural decoding would be cut, lowered alike for all three, which the page says.

    Raises:
        ValueError: other roles, a missing entry, lists of different lengths, an angle that is not finite, or a waveform that is
            no first-order ambisonics; the member's role is named.
    """
    by_role = {str(member.get("role")): member for member in members}
    if len(members) != len(ROLES) or by_role.keys() != ROLES.keys():
        raise ValueError(f"a triplet has one member of each role {list(ROLES)}, got {[member.get('role') for member in members]}")
    with_role = [_Member(role, by_role[role]) for role in ROLES]
    # One gain for all three, because they are compared by ear: what the ears hear can be louder than W.
    peak = max(float(abs(member.sound).max()) for member in with_role)
    gain = 0.999 / peak if 1 < peak < math.inf else 1.0  # rounding must not reach 1
    players = [clips.player(member.sound * gain, member.sample_rate, title=member.heading.partition(":")[0])
               for member in with_role]
    columns = "".join(member.column(player) for member, player in zip(with_role, players))
    note = f'<p class="triplet-note">All three are {-20 * math.log10(gain):.1f} dB lower than decoded, so that none is cut.</p>'
    return Html(f'{_STYLE}<div class="triplet">{columns}</div>{note if gain < 1 else ""}', len(players),
                sum(player.embedded_bytes for player in players))


class _Member:
    """A checked member: its sound at the two ears, its events, its captions."""

    def __init__(self, role: str, member: Mapping):
        self.role, self.heading = role, ROLES[role]
        try:
            foa, self.sample_rate, captions = member["waveform"], member["sample_rate"], member["caption"]
            shape = tuple(getattr(foa, "shape", ()))
            if len(shape) != 2 or shape[0] != 4 or not shape[1]:
                raise ValueError(f"waveform has shape {shape}, expected (4, samples): W, Y, Z, X of first-order ambisonics")
            self.sound, self.events = binaural(foa, int(self.sample_rate)), _events(member)
        except KeyError as error:
            raise ValueError(f"the {role} member has no entry {error}; it has {sorted(member)}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"the {role} member: {error}") from error
        self.captions = [captions] if isinstance(captions, str) else list(captions)

    def column(self, player: Html) -> str:
        """HTML of the member; every text from outside is escaped here."""
        events = "".join(f"<li>{escape(event['said'])}</li>" for event in self.events)
        words = [event["word"] for event in self.events]
        captions = "".join(f"<p>{highlighted(caption, words)}</p>" for caption in self.captions)
        return (f'<section class="triplet-{self.role}" aria-label="{self.heading}"><h4>{self.heading}</h4>{_compass(self.events)}'
                f'<ol>{events}</ol>{player.html}{captions}</section>')


def _events(member: Mapping) -> list[dict]:
    """What the compass and the list say of each event, checked."""
    azimuth, elevation, onset = (list(map(float, member[name])) for name in ("azimuth", "elevation", "onset"))
    labels = [str(label) for label in member.get("labels", ())] or [f"event {i + 1}" for i in range(len(azimuth))]
    if not 1 <= len(azimuth) == len(elevation) == len(onset) == len(labels) <= len(_COLOURS):
        raise ValueError(f"expected 1 to {len(_COLOURS)} events with one azimuth, elevation, onset and label each, got "
                         f"{len(azimuth)}, {len(elevation)}, {len(onset)} and {len(labels)}")
    if not all(map(math.isfinite, elevation)) or max(map(abs, elevation)) > 90:
        raise ValueError(f"elevation must be -90 to 90 degrees, got {elevation}")
    events = []
    for label, degrees, height, start in zip(labels, azimuth, elevation, onset):
        word = direction_word(degrees)
        begins = f"starts at {start:.1f}\u00a0s" if math.isfinite(start) else "start unknown"
        events.append({"label": label, "word": word, "azimuth": degrees, "said":
                       f"{label}: {word} (azimuth {degrees:.0f}°, elevation {height:+.0f}°), {begins}"})
    return events


def highlighted(caption: str, words: Sequence[str] = ()) -> str:
    """HTML of a caption, escaped, with its direction words marked.

    Args:
        words: direction of each event; a word of the caption takes the colour of the first event that has it, others are grey.
    """
    def mark(found: re.Match) -> str:
        word = found[1].lower()
        colour = f' style="border-bottom-color:{_COLOURS[list(words).index(word)]}"' if word in words else ""
        return f"<mark{colour}>{found[1]}</mark>"

    return _WORD.sub(mark, escape(str(caption)))


def _compass(events: list[dict]) -> str:
    """SVG seen from above: north at the top, the listener in the middle, the events on the circle."""
    said = "; ".join(f"{i}. {event['label']} from the {event['word']}" for i, event in enumerate(events, 1))
    drawn, dots = "", []
    for number, (event, colour) in enumerate(zip(events, _COLOURS), 1):
        turn, radius = math.radians(event["azimuth"]), _RADIUS
        x, y = radius * math.sin(turn), radius * math.cos(turn)
        # Places close to each other would cover each other: the later event moves towards the listener.
        while any(math.hypot(x - a, y - b) < 2 * _DOT + 2 for a, b in dots) and radius > 2 * _DOT:
            radius -= _DOT / 2
            x, y = radius * math.sin(turn), radius * math.cos(turn)
        dots.append((x, y))
        drawn += (f'<line x1="0" y1="0" x2="{x:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"/>'
                  f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{colour}"/>'
                  f'<text x="{x:.1f}" y="{y + 4:.1f}" fill="#fff" font-weight="bold">{number}</text>')
    names = "".join(f'<text x="{x}" y="{y}" fill="currentColor" text-anchor="{anchor}">{word}</text>' for word, x, y, anchor in (
        ("north", 0, -_RADIUS - 14, "middle"), ("south", 0, _RADIUS + 22, "middle"),
        ("east", _RADIUS + 14, 4, "start"), ("west", -_RADIUS - 14, 4, "end")))
    borders = "".join(f'<line x1="{0.3 * x:.1f}" y1="{0.3 * y:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>' for x, y in (
        (_RADIUS * math.sin(a), _RADIUS * math.cos(a)) for a in (math.radians(22.5 + 45 * k) for k in range(8))))
    seen = escape(f"Compass seen from above, north at the top: {said}")
    return (f'<svg viewBox="-112 -92 224 182" role="img" aria-label="{seen}" '
            'font-family="sans-serif" font-size="12" text-anchor="middle">'
            f'<circle r="{_RADIUS}" fill="none" stroke="currentColor" stroke-opacity=".45"/>'
            f'<g stroke="currentColor" stroke-opacity=".2">{borders}</g><circle r="4" fill="currentColor"/>{names}{drawn}</svg>')
