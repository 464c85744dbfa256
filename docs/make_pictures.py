"""Draw the idea of each rule into docs/rules/<rule>.svg: python docs/make_pictures.py.

One language for all: data go from left to right, the way forward is blue, and what teaches is orange. The three colours
are as dark as the background can be light, and as light as it can be dark, so that both themes show the same file.
"""

import math
import random
from collections.abc import Iterable
from pathlib import Path

RULES = Path(__file__).parent / "rules"
FORWARD, TEACH, INK = "#3379d6", "#d0570f", "#7a7e86"
WIDTH, HEIGHT = 480, 220
NAMES = {FORWARD: "forward", TEACH: "teach", INK: "ink"}

Point = tuple[float, float]


def svg(title: str, *parts: str) -> str:
    """A picture with arrow heads for each colour."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="10" markerHeight="10" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
        for colour, name in NAMES.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="15" stroke-linecap="round" stroke-linejoin="round">\n'
        f"<title>{title}</title>\n<defs>{heads}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, colour: str = INK, size: float = 15, anchor: str = "middle") -> str:
    """Words whose base line is at y; _ lowers the digit or letter behind it."""
    head, *rest = words.split("_")
    lowered = "".join(
        f'<tspan dy="3" font-size="{0.75 * size:g}">{r[0]}</tspan><tspan dy="-3">{r[1:]}</tspan>' for r in rest
    )
    style = "" if size == 15 else f' font-size="{size:g}"'
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"{style}>{head}{lowered}</text>'


def line(points: Iterable[Point], colour: str = INK, width: float = 2, *, arrow: bool = False, dash: str = "") -> str:
    """A line through all points."""
    path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
    end = f' marker-end="url(#{NAMES[colour]})"' if arrow else ""
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{style}{end}/>'


def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = FORWARD, width: float = 2.5) -> str:
    return line([(x, y), (to_x, to_y)], colour, width, arrow=True)


def curve(path: str, colour: str = TEACH, width: float = 2.5) -> str:
    """An arrow along a path of Bezier curves."""
    end = f'marker-end="url(#{NAMES[colour]})"'
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" {end}/>'


def box(x: float, y: float, w: float, h: float, words: str = "", colour: str = FORWARD, size: float = 15) -> str:
    shape = (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" fill="{colour}" fill-opacity=".12" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    return shape + (text(x + w / 2, y + h / 2 + 0.35 * size, words, colour, size) if words else "")


def bar(x: float, y: float, w: float, h: float, colour: str, opacity: float = 1) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2" fill="{colour}" fill-opacity="{opacity:g}"/>'


def dot(x: float, y: float, r: float, colour: str = FORWARD, words: str = "") -> str:
    place = f'cx="{x:g}" cy="{y:g}" r="{r:g}"'
    shape = f'<circle {place} fill="{colour}" fill-opacity=".12" stroke="{colour}" stroke-width="2"/>'
    return shape + (text(x, y + 5, words, colour) if words else "")


def backprop() -> str:
    parts = [dot(40, 85, 20, INK, "x"), arrow(62, 85, 100, 85)]
    for n, x in enumerate((105, 210, 315), start=1):
        parts += [box(x, 60, 60, 50, f"W_{n}"), arrow(x + 62, 85, x + 100, 85)]
        parts += [dot(x + 30, 155, 18, TEACH, f"g_{n}"), arrow(x + 30, 135, x + 30, 116, TEACH)]
    parts += [arrow(x, 155, x - 61, 155, TEACH) for x in (220, 325)]
    parts += [box(420, 60, 50, 50, "loss", INK), line([(445, 112), (445, 155), (369, 155)], TEACH, 2.5, arrow=True)]
    parts += [text(240, 35, "forward", FORWARD), text(240, 205, "the error travels back, layer by layer", TEACH)]
    return svg("Backpropagation: the error travels back through all layers", *parts)


def forward_forward() -> str:
    parts = []
    for y, label, colour, mark in ((60, "3 is a 3", FORWARD, "right"), (118, "3 is an 8", INK, "wrong")):
        parts += [
            box(8, y - 22, 84, 44, "", colour),
            text(50, y - 2, label, colour),
            text(50, y + 15, mark, colour, 12),
        ]
        parts += [arrow(94, y, 124, y, colour)]
    for x in (130, 250, 370):
        parts += [box(x, 34, 70, 112), bar(x + 16, 50, 14, 82, FORWARD), bar(x + 40, 108, 14, 24, INK)]
        parts += [curve(f"M{x + 50} 150 C{x + 58} 192 {x + 12} 192 {x + 20} 152"), text(x + 35, 174, "L", TEACH, 13)]
    parts += [arrow(x, y, x + 44, y, c) for x in (203, 323) for y, c in ((60, FORWARD), (118, INK))]
    parts += [text(285, 22, "goodness: up for right, down for wrong", INK, 14)]
    parts += [text(240, 211, "a loss for each layer, no error between layers", TEACH, 14)]
    return svg("Forward-Forward and SymBa: every layer learns by its own loss on right and wrong labels", *parts)


def signs(x: float, y: float, code: str, step: float) -> str:
    """A square wave of pluses and minuses."""
    heights = [y - 9 if sign == "+" else y + 9 for sign in code]
    return line([(x + (n + k) * step, h) for n, h in enumerate(heights) for k in (0, 1)], TEACH)


def mgd() -> str:
    codes = ("+-+-+-+-", "++--++--", "+--++--+")
    parts = [
        text(12, 22, "a code for each weight", TEACH, 14, "start"),
        box(180, 40, 110, 112),
        text(235, 102, "network", FORWARD),
    ]
    parts += [text(235, 120, "forward only", FORWARD, 12)]
    for n, code in enumerate(codes):
        y = 55 + 41 * n
        parts += [text(18, y + 5, f"θ_{n + 1}"), signs(38, y, code, 11), arrow(132, y, 174, y)]
    total = [sum((1 if c[n] == "+" else -1) * w for c, w in zip(codes, (9, 16, 7), strict=True)) for n in range(8)]
    trace = [(345 + (n + k) * 14, 96 - level) for n, level in enumerate(total) for k in (0, 1)]
    parts += [arrow(292, 96, 335, 96), line(trace, FORWARD, 2.5), text(400, 52, "one wire: the cost", FORWARD, 14)]
    parts += [
        line([(400, 140), (400, 178), (253, 178)], TEACH, 2.5),
        line([(227, 178), (82, 178), (82, 160)], TEACH, 2.5, arrow=True),
    ]
    parts += [dot(240, 178, 13, TEACH, "×"), text(240, 212, "cost × code, averaged: the gradient", TEACH, 14)]
    return svg("Multiplexed gradient descent: each weight has a code, one cost is correlated with all", *parts)


def sparseprop() -> str:
    rows, columns, links = 5, 5, ((0, 1), (0, 4), (1, 0), (2, 2), (3, 1), (3, 3), (4, 3))
    y = [40 + 32 * n for n in range(rows)]
    parts = [text(83, 20, "a sparse matrix", INK, 14), text(338, 20, "a line for each weight", INK, 14)]
    for i in range(rows):
        for j in range(columns):
            there = (i, j) in links
            parts.append(bar(20 + 26 * j, 38 + 26 * i, 22, 22, FORWARD if there else INK, 1 if there else 0.14))
    parts += [arrow(165, 102, 215, 102, INK)]
    for i, j in links:
        slope = (y[i] - y[j]) / 170
        parts += [arrow(259, y[j] + 13 * slope - 3, 415, y[i] - 15 * slope - 3, FORWARD, 2)]
        parts += [arrow(419, y[i] - 11 * slope + 4, 261, y[j] + 16 * slope + 4, TEACH, 1.5)]
    parts += [dot(x, h, 11, INK) for x in (245, 431) for h in y]
    parts += [text(240, 210, "weights that are not there cost nothing", INK, 14)]
    return svg("SparseProp: forward and backward passes use only the weights that there are", *parts)


def quaternion() -> str:
    table = ("a −b −c −d", "b a −d c", "c d a −b", "d −c b a")
    shades = {"a": 0.24, "b": 0.16, "c": 0.1, "d": 0.04}
    y = [42 + 34 * n for n in range(4)]
    parts = [text(240, 18, "one weight, a + bi + cj + dk", FORWARD)]
    for i, unit in enumerate("1ijk"):
        parts += [dot(60, y[i], 14, FORWARD, unit), dot(420, y[i], 14, FORWARD, unit)]
        for j, entry in enumerate(table[i].split()):
            parts.append(bar(172 + 34 * j, y[i] - 15, 30, 30, FORWARD, shades[entry[-1]]))
            parts.append(text(187 + 34 * j, y[i] + 5, entry, FORWARD))
    parts += [arrow(84, 93, 160, 93), arrow(316, 93, 394, 93)]
    parts += [line([(420, 162), (420, 182), (60, 182), (60, 164)], TEACH, 2.5, arrow=True)]
    parts += [text(240, 174, "16 places, 4 numbers", INK, 13), text(240, 208, "back: Hamilton products again", TEACH)]
    return svg("Quaternions: one weight of four numbers acts on four channels by the Hamilton product", *parts)


def membrane(inputs: tuple[float, ...], *, threshold: float, end: float) -> tuple[list[Point], list[float]]:
    """Time and membrane potential of a leaky neuron, and when it spikes."""
    v, current, dt, course, spikes = 0.0, 0.0, 0.01, [], []
    for n in range(int(end / dt)):
        current += sum(1.0 for t in inputs if n == int(t / dt)) - dt * current / 0.8
        v += dt * (current - v / 2)
        if v >= threshold:
            spikes.append(n * dt)
            course.append((n * dt, threshold))
            v = 0.0
        if n % 4 == 0 or v == 0.0:
            course.append((n * dt, v))
    return course, spikes


def spiking() -> str:
    inputs = (0.3, 0.7, 0.9, 2.6, 3.2, 3.4)
    course, spikes = membrane(inputs, threshold=0.55, end=5.2)
    parts = [text(10, 38, "inputs", INK, 15, "start"), text(10, 105, "membrane", FORWARD, 15, "start")]
    parts += [text(10, 174, "spikes", FORWARD, 15, "start"), text(468, 72, "threshold", INK, 13, "end")]
    parts += [line([(95 + 68 * t, 22), (95 + 68 * t, 42)], INK, 2.5) for t in inputs]
    parts += [line([(95, 78), (468, 78)], INK, 1.5, dash="5 5")]
    parts += [line([(95 + 68 * t, 138 - 60 * v / 0.55) for t, v in course], FORWARD, 2.5)]
    for t in spikes:
        x = 95 + 68 * t
        parts += [
            line([(x, 156), (x, 182)], FORWARD, 3),
            arrow(x + 4, 169, x + 24, 169, TEACH, 2),
            dot(x, 78, 4, TEACH),
        ]
    parts += [text(280, 210, "exact derivatives of spike times, at each crossing", TEACH, 14)]
    return svg("Spiking networks: exact derivatives of the times at which membranes cross the threshold", *parts)


def hamiltonian_echo() -> str:
    steps = [n / 60 for n in range(61)]
    there = [(70 + 320 * s, 95 - 42 * math.sin(9 * s) * (1 - 0.35 * s)) for s in steps]
    back = [(x, y + 26 + 6 * math.cos((x - 70) / 40)) for x, y in reversed(there)]
    parts = [line(there, FORWARD, 3, arrow=True), line(back, TEACH, 3, arrow=True)]
    end, turn = there[-1][1], back[0][1]
    parts += [arrow(402, end, 402, turn, TEACH), text(412, turn + 2, "nudge", TEACH, 15, "start")]
    parts += [text(225, 24, "a simulation runs", FORWARD), text(250, 188, "reversed in time, it runs back", TEACH)]
    parts += [text(412, end - 8, "end", FORWARD, 15, "start"), text(36, there[0][1], "start", FORWARD)]
    parts += [line([(62, there[0][1] + 2), (62, back[-1][1] - 2)], INK, 2), text(36, 125, "gap", INK)]
    parts += [text(240, 212, "the gap tells the gradient; no step is stored", INK, 14)]
    return svg("Hamiltonian echo: a simulation is nudged at its end, reversed in time, and runs back", *parts)


def dynamical_network() -> str:
    parts = [text(105, 20, "time series of nodes"), text(375, 20, "who is coupled to whom")]
    for n, (speed, phase) in enumerate(((7, 0.0), (9, 1.2), (6, 2.5), (11, 0.6))):
        wave = [(math.sin(speed * s + phase) + 0.5 * math.sin(2.3 * speed * s)) for s in (k / 50 for k in range(51))]
        parts += [line([(15 + 3.6 * k, 50 + 38 * n - 9 * v) for k, v in enumerate(wave)], FORWARD, 2)]
        ahead = [(130 + 3.6 * k, 50 + 38 * n - 9 * (wave[32 + k] + 0.06 * k)) for k in range(19)]
        parts += [line(ahead, TEACH, 2, dash="4 4")]
    places = [(300, 60), (375, 48), (450, 66), (322, 150), (400, 108), (452, 160)]
    for a, b in ((0, 1), (1, 4), (4, 2), (3, 0), (4, 3), (5, 4), (2, 5)):
        (x, y), (u, v) = places[a], places[b]
        length = math.hypot(u - x, v - y)
        cos, sin = (u - x) / length, (v - y) / length
        parts.append(arrow(x + 15 * cos, y + 15 * sin, u - 16 * cos, v - 16 * sin, INK, 2))
    parts += [dot(x, y, 12) for x, y in places] + [arrow(212, 105, 270, 105, FORWARD, 3)]
    parts += [text(240, 209, "couplings are fitted to what predictions miss", TEACH, 14)]
    return svg("Dynamical networks: from time series of nodes to their couplings", *parts)


def residual_compensation() -> str:
    parts = [
        dot(30, 65, 18, INK, "x"),
        arrow(50, 65, 78, 65),
        text(240, 22, "principal components, layer by layer", FORWARD),
    ]
    for n, (x, height) in enumerate(((85, 34), (205, 19), (325, 10)), start=1):
        parts += [box(x, 40, 70, 50, f"layer {n}"), arrow(x + 72, 65, x + 114, 65), arrow(x + 35, 92, x + 35, 114)]
        parts += [box(x, 120, 70, 36, "solve", TEACH), bar(x + 86, 138 - height / 2, 12, height, TEACH)]
        parts += [arrow(x + 102, 138, x + 116, 138, TEACH, 2)]
    parts += [bar(24, 112, 12, 52, TEACH), arrow(42, 138, 80, 138, TEACH), text(30, 182, "target", TEACH, 14)]
    parts += [
        text(455, 70, "…", FORWARD),
        text(455, 142, "…", TEACH),
        text(270, 182, "what is left, for the next layer", TEACH, 14),
    ]
    parts += [text(240, 210, "no way back: each layer is solved for the residual", INK, 14)]
    return svg("Residual compensation: each layer is solved for what the layers before it got wrong", *parts)


def pcanet() -> str:
    random.seed(3)
    parts = [box(12, 60, 60, 60, "image", INK), arrow(75, 90, 98, 90)]
    parts += [box(103, 60, 66, 60, "filters"), arrow(172, 90, 188, 90), box(193, 60, 66, 60, "filters")]
    parts += [arrow(262, 90, 283, 90), text(181, 152, "principal components")]
    for n in range(16):
        bit = random.random() < 0.5
        parts.append(bar(290 + 15 * (n % 4), 60 + 15 * (n // 4), 12, 12, FORWARD, 1 if bit else 0.15))
    parts += [
        arrow(354, 90, 374, 90),
        *(bar(380 + 9 * n, 120 - h, 7, h, FORWARD) for n, h in enumerate((18, 44, 60, 26, 12))),
    ]
    parts += [text(319, 152, "signs"), text(402, 152, "counts")]
    parts += [box(436, 68, 38, 44, "SVM", TEACH, 13), text(240, 205, "only the classifier sees the labels", TEACH, 14)]
    return svg("PCANet: principal components, signs as binary numbers, histograms, a linear classifier", *parts)


DRAWINGS = (
    backprop, forward_forward, mgd, sparseprop, quaternion,
    spiking, hamiltonian_echo, dynamical_network, residual_compensation, pcanet,
)  # fmt: skip


def pictures() -> dict[Path, str]:
    """What each file must hold."""
    return {RULES / f"{draw.__name__}.svg": draw() for draw in DRAWINGS}


if __name__ == "__main__":
    for path, picture in pictures().items():
        path.write_text(picture)
        print(path.relative_to(RULES.parents[1]))
