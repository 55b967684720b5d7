"""The live Poincaré disk: one piece of HTML with its script, for JupyterLab and for reports, that fetches nothing.

Hover or focus shows a point; pressing a node, or Enter on it, brings it to the centre; pressing a clip plays it; dragging moves
the disk by Möbius translations, under which every distance stays. Where scripts do not run (a notebook that is not trusted) the
static picture stands in its place and all players are listed below. Names travel as JSON in an attribute and reach the page as
text only.
"""
from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from html import escape

from lib.display import clips
from lib.display.disk import Atlas, disk, ring_distances, view_limit

_STYLE = """<style>
.disk-live{display:flex;flex-wrap:wrap;gap:14px;font:13px/1.45 sans-serif;margin:6px 0;align-items:flex-start}
.disk-live .disk-stage{flex:3 1 420px;max-width:760px;min-width:0;position:relative;background:#fff;color:#222}
.disk-live .disk-stage img{width:100%;display:block}
.disk-live .disk-side{flex:1 1 220px;min-width:0}
.disk-live svg{width:100%;display:block;touch-action:none;cursor:grab;user-select:none;-webkit-user-select:none}
.disk-live svg.disk-drag{cursor:grabbing}
.disk-live svg [data-point]{cursor:pointer;outline:none}
.disk-live svg [data-point]:focus-visible{stroke:#000;stroke-width:4px}
.disk-live svg text{pointer-events:none;fill:#222;paint-order:stroke;stroke:#fafafa;stroke-width:4px;stroke-linejoin:round}
.disk-live .disk-tip{min-height:5.8em;overflow-wrap:anywhere}.disk-live .disk-tip b{font-size:15px;display:block}
.disk-live ul{font-size:13px;list-style:none;margin:8px 0;padding:0}.disk-live li{overflow-wrap:anywhere}
.disk-live li:before{content:"";display:inline-block;width:10px;height:10px;border-radius:5px;background:var(--shade);\
margin-right:7px}
.disk-live .disk-words{opacity:.75;font-size:12px}
.disk-live:not([data-ready]) .disk-needs-script,.disk-live[data-ready] .disk-stage img{display:none}
.disk-live:not([data-ready]) .disk-side{flex-basis:100%}
.disk-live[data-ready] .clip-gallery{grid-template-columns:1fr!important}
.disk-live[data-ready] .clip-card:not(.disk-chosen){display:none}
</style>"""

# Elements are made by name and filled with textContent: nothing from the data is ever read as markup.
_SCRIPT = r"""<script>
(() => {
const NS = "http://www.w3.org/2000/svg", SCALE = 500;
const add = (a, b) => [a[0] + b[0], a[1] + b[1]], less = (a, b) => [a[0] - b[0], a[1] - b[1]];
const times = (a, b) => [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]], conj = a => [a[0], -a[1]];
const scaled = (a, s) => [a[0] * s, a[1] * s], norm = a => Math.hypot(a[0], a[1]);
const within = (z, most) => norm(z) > most ? scaled(z, most / norm(z)) : z;
// A map is [alpha, beta]: z -> (alpha z + beta) / (conj(beta) z + conj(alpha)), |alpha|^2 - |beta|^2 = 1.
const applied = ([a, b], z) => {
  const up = add(times(a, z), b), down = add(times(conj(b), z), conj(a));
  return within(scaled(times(up, conj(down)), 1 / (down[0] ** 2 + down[1] ** 2)), 1 - 1e-12);
};
const unit = (a, b) => { const s = 1 / Math.sqrt(norm(a) ** 2 - norm(b) ** 2); return [scaled(a, s), scaled(b, s)]; };
const after = ([a, b], [c, d]) => unit(add(times(a, c), times(b, conj(d))), add(times(a, d), times(b, conj(c))));
const translation = a => unit([1, 0], a);
// The translation that takes s to t: a - s t conj(a) = t - s.
const taking = (s, t) => {
  const st = times(s, t), gap = less(t, s);
  return translation(scaled(add(gap, times(st, conj(gap))), 1 / (1 - norm(st) ** 2)));
};

function start(box) {
  const atlas = JSON.parse(box.dataset.atlas), count = atlas.labels.length, zoom = SCALE / atlas.limit;
  const points = atlas.points, stage = box.querySelector(".disk-stage"), tip = box.querySelector(".disk-tip");
  const cards = box.querySelectorAll(".clip-card");
  const make = (name, attributes, parent) => {
    const element = document.createElementNS(NS, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };
  const svg = make("svg", {viewBox: "-510 -510 1020 1020", role: "group", "aria-label": atlas.title}, stage);
  make("circle", {r: zoom, fill: "#fafafa", stroke: "#8c8c8c", "stroke-width": 2}, svg);
  for (const [d, r] of atlas.rings) {
    make("circle", {r: zoom * r, fill: "none", stroke: "#b8b8b8", "stroke-dasharray": "6 4"}, svg);
    make("text", {y: -zoom * r + 4, "text-anchor": "middle", "font-size": 12}, svg).textContent = "d = " + d;
  }
  const edges = atlas.edges.map(([p, q]) => make("path", {fill: "none", stroke: atlas.shades[q], "stroke-opacity": .55,
    "stroke-width": count > 60 ? 1 : 1.7}, svg));
  const marks = [];
  // The deepest nodes first, clips last and small: what lies on top can be pressed, what lies below is seen around it.
  for (const i of points.map((_, k) => k).sort((i, j) => (atlas.depths[j] ?? -1) - (atlas.depths[i] ?? -1))) {
    const shade = atlas.shades[i], rim = atlas.highlighted.includes(i) ? ["#000", 3] : ["#fff", 1];
    marks[i] = i < count ? make("circle", {r: atlas.sizes[i], fill: shade, stroke: rim[0], "stroke-width": rim[1]}, svg)
      : make("path", {d: "M0-6 6 0 0 6-6 0Z", fill: "#fff", stroke: shade, "stroke-width": 2}, svg);
    marks[i].dataset.point = i;
    marks[i].setAttribute("role", "button");
    marks[i].setAttribute("tabindex", i === 0 || i === count ? 0 : -1);       // one stop for nodes, one for clips
    marks[i].setAttribute("aria-label", said(i).join(", ") + (i < count ? ", to the centre" : ", play"));
  }
  const texts = make("g", {}, svg), names = Array.from({length: Math.min(count, 48)}, () => make("text", {}, texts));
  let view = [[1, 0], [0, 0]], now = points, waiting = 0, moving = 0;

  function said(i) {
    const lines = [i < count ? atlas.labels[i] : atlas.clipLabels[i - count], i < count ? "depth " + atlas.depths[i] : "clip"];
    if (atlas.branches[i] && atlas.branches[i] !== lines[0]) lines.push("in " + atlas.branches[i]);
    return [...lines, "d(0, x) = " + atlas.radii[i].toFixed(2)];
  }
  function show(i) {
    tip.textContent = "";
    said(i).forEach((line, place) => {
      tip.appendChild(document.createElement(place ? "div" : "b")).textContent = line;
    });
  }
  function draw() {
    waiting = 0;
    now = points.map(z => applied(view, z));
    const at = now.map(([x, y]) => [zoom * x, -zoom * y]);
    marks.forEach((mark, i) => mark.setAttribute("transform", `translate(${at[i][0].toFixed(2)} ${at[i][1].toFixed(2)})`));
    edges.forEach((edge, k) => {
      const [i, j] = atlas.edges[k], w = times(conj(now[i]), now[j]), angle = -Math.atan2(-w[1], 1 - w[0]);
      const r = (zoom * norm(less(now[j], now[i])) / 2 / Math.abs(Math.sin(angle))).toFixed(2);
      const way = Math.abs(angle) < 1e-6 ? "L" : `A${r} ${r} 0 0 ${angle > 0 ? 1 : 0} `;        // straight: through the centre
      edge.setAttribute("d", `M${at[i].map(v => v.toFixed(2))}${way}${at[j].map(v => v.toFixed(2))}`);
    });
    write(at);
  }
  // Names from the centre outwards, general ones first; each where it covers no other and the fewest points.
  function write(at) {
    const taken = atlas.rings.map(([, r]) => [-25, -zoom * r - 9, 25, -zoom * r + 9]);
    const rank = i => (atlas.highlighted.includes(i) ? -9 : 0) + norm(now[i]) + .12 * atlas.depths[i];
    const order = atlas.labels.map((_, i) => i).filter(i => count <= 60 || norm(now[i]) < .985).sort((i, j) => rank(i) - rank(j));
    let used = 0;
    for (const i of order) {
      if (used === names.length) break;
      const top = atlas.depths[i] <= 1, size = top ? 15 : 13, word = atlas.labels[i];
      const text = word.length > 26 ? word.slice(0, 25) + "…" : word;
      const wide = text.length * size * (top ? .64 : .56), [x, y] = at[i], off = atlas.sizes[i] + 5;
      let best = null;
      for (const [cx, cy, anchor] of [[x + off, y, "start"], [x - off, y, "end"], [x, y - off - size / 2, "middle"],
                                      [x, y + off + size / 2, "middle"]]) {
        const left = cx - wide * {start: 0, middle: .5, end: 1}[anchor];
        const b = [left, cy - size * .62, left + wide, cy + size * .62];
        if (b[0] < -510 || b[2] > 510 || b[1] < -510 || b[3] > 510) continue;
        if (taken.some(o => b[0] < o[2] && o[0] < b[2] && b[1] < o[3] && o[1] < b[3])) continue;
        const covered = at.filter(p => p[0] > b[0] && p[0] < b[2] && p[1] > b[1] && p[1] < b[3]).length;
        if (!best || covered < best.covered) best = {covered, b, cx, cy, anchor};
      }
      if (!best) continue;
      taken.push(best.b);
      const element = names[used++];
      element.textContent = text;
      const attributes = {x: best.cx.toFixed(1), y: (best.cy + size * .35).toFixed(1), "font-size": size,
        "text-anchor": best.anchor, "font-weight": top ? 700 : 400};
      for (const key in attributes) element.setAttribute(key, attributes[key]);
    }
    names.slice(used).forEach(element => { element.textContent = ""; });
  }
  const redraw = () => { waiting = waiting || requestAnimationFrame(draw); };

  function moveTo(target, from = view) {                  // `target` comes to the centre along its geodesic
    cancelAnimationFrame(moving);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const begin = performance.now(), far = Math.atanh(norm(target));
    const step = time => {
      const part = still ? 1 : Math.min(1, Math.max(0, time - begin) / 450), eased = part * part * (3 - 2 * part);
      if (far > 0) view = after(translation(scaled(target, -Math.tanh(eased * far) / norm(target))), from);
      draw();
      if (part < 1) moving = requestAnimationFrame(step);
    };
    step(begin);
  }
  function press(i) {
    show(i);
    if (i < count) return moveTo(now[i]);
    cards.forEach((card, k) => {
      card.classList.toggle("disk-chosen", k === i - count);
      const sound = card.querySelector("audio,video");
      if (!sound) return;
      if (k !== i - count) return sound.pause();
      sound.currentTime = 0;
      sound.play().catch(error => {
        if (error.name === "AbortError") return;              // another clip was pressed meanwhile
        tip.appendChild(document.createElement("div")).textContent = "Not played: " + error.message;
      });
    });
  }
  const point = event => { const mark = event.target.closest("[data-point]"); return mark ? +mark.dataset.point : -1; };
  const place = event => {
    const frame = svg.getBoundingClientRect(), pixel = 1020 / frame.width / zoom;
    return [(event.clientX - frame.left - frame.width / 2) * pixel, -(event.clientY - frame.top - frame.height / 2) * pixel];
  };
  let held = null;
  svg.addEventListener("pointerover", event => { if (point(event) >= 0 && !(held && held.dragged)) show(point(event)); });
  svg.addEventListener("focusin", event => { if (point(event) >= 0) show(point(event)); });
  svg.addEventListener("pointerdown", event => {
    if (event.button || norm(place(event)) > 1) return;
    cancelAnimationFrame(moving);
    held = {at: place(event), x: event.clientX, y: event.clientY, view, point: point(event), dragged: false};
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", event => {
    if (!held || !held.dragged && Math.hypot(event.clientX - held.x, event.clientY - held.y) < 4) return;
    held.dragged = true;
    svg.classList.add("disk-drag");
    view = after(taking(within(held.at, .96), within(place(event), .96)), held.view);
    redraw();
  });
  const letGo = event => {
    const done = held;
    held = null;
    svg.classList.remove("disk-drag");
    if (done && !done.dragged && done.point >= 0 && event.type === "pointerup") press(done.point);
  };
  svg.addEventListener("pointerup", letGo);
  svg.addEventListener("pointercancel", letGo);
  svg.addEventListener("keydown", event => {
    const i = point(event), step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (i < 0 || !step && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();                              // JupyterLab has its own use for these keys
    if (!step) return press(i);
    const [low, high] = i < count ? [0, count] : [count, points.length];
    const next = low + (i - low + step + high - low) % (high - low);
    marks[i].setAttribute("tabindex", -1);
    marks[next].setAttribute("tabindex", 0);
    marks[next].focus();
  });
  box.querySelector("button").addEventListener("click", () => {
    cancelAnimationFrame(moving);
    view = [[1, 0], [0, 0]];
    redraw();
  });
  draw();
}
for (const box of document.querySelectorAll(".disk-live:not([data-ready])")) {
  start(box);
  box.dataset.ready = "1";                                // only now: a page whose script failed keeps the picture
}
})();
</script>"""


def page(atlas: Atlas, sounds: Iterable[Mapping] = (), *, title: str = "Poincaré disk",
         byte_budget: int | None = clips.BYTE_BUDGET, **where) -> clips.Html:
    """The atlas to explore, with the sound of its clips.

    Args:
        sounds: the arguments of `lib.display.clips.player`, one mapping a clip of the atlas in its order; (): no sound.
        byte_budget: characters of embedded sound and pictures, the static picture included; None embeds everything.
        where: what else `clips.gallery` takes for sounds beyond it (folder, link_prefix).
    Raises:
        ValueError: as many sounds as clips are needed, or none.
    """
    sounds = list(sounds)
    if sounds and len(sounds) != len(atlas.clips):
        raise ValueError(f"sounds has {len(sounds)} entries, the atlas {len(atlas.clips)} clips: give one for each, or none")
    picture = base64.b64encode(disk(atlas, title=title)._repr_png_()).decode()
    left = byte_budget if byte_budget is None else max(0, byte_budget - len(picture))
    players = clips.gallery(sounds, columns=3, byte_budget=left, **where) if sounds else clips.Html("", 0)
    legend = "".join(f'<li style="--shade:{shade}">{escape(branch)}</li>' for branch, shade in atlas.colours.items() if branch)
    hint = ("Press a node to bring it to the centre, drag to move the disk" + "; press a diamond to hear its clip" * bool(sounds)
            + ". By keyboard: Tab, arrows, Enter. Rings: distance d to the point in the centre.")
    start = "Point at a node or a clip to see what it is."
    html = (f'{_STYLE}<div class="disk-live" data-atlas="{escape(json.dumps(_data(atlas, title), allow_nan=False))}">'
            f'<div class="disk-stage"><img alt="{escape(title)}" src="data:image/png;base64,{picture}"></div>'
            f'<div class="disk-side"><div class="disk-needs-script"><div class="disk-tip" role="status">{start}</div>'
            f'<p class="disk-words">{hint}</p><button type="button">Back to the start</button>'
            f"<ul>{legend}</ul></div>{players.html}</div></div>{_SCRIPT}")
    return clips.Html(html, players.players, players.embedded_bytes + len(picture), players.linked)


def _data(atlas: Atlas, title: str) -> dict:
    """What the script draws: nodes and then clips in one list."""
    many, branches = len(atlas.points) > 60, [*atlas.branches, *atlas.clip_branches]
    limit = view_limit(atlas)
    rings = {d: math.tanh(math.sqrt(atlas.c) * d / 2) for d in ring_distances(limit, atlas.c)}
    return {"title": title, "limit": limit, "rings": [[f"{d:g}", r] for d, r in rings.items()],
            "points": [*atlas.points.tolist(), *atlas.clips.tolist()], "edges": atlas.edges.tolist(),
            "labels": [str(label) for label in atlas.labels], "clipLabels": [str(label) for label in atlas.clip_labels],
            "depths": [int(depth) for depth in atlas.depths], "highlighted": [int(i) for i in atlas.highlighted],
            "branches": branches, "shades": [atlas.colours[branch] for branch in branches],
            "radii": [*atlas.radii().tolist(), *atlas.radii(atlas.clips).tolist()],
            "sizes": [round((7 if many else 11) / (1 + max(depth, 0)) ** (0.45 if many else 0.3), 2) for depth in atlas.depths]}
