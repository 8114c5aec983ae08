"""SVG for pages: matplotlib's figures made small, theme-aware and addressable by arm; and a few plain charts of our own.

Colours that arms and frames use become variables of the page's style (`var(--kRRGGBB)`), so a dark page can lighten them; an
element that belongs to an arm carries `data-arm`, so a page's legend can hide it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nap_bench.report import figures
from nap_bench.report.figures import FRAME, INK, MUTED, legend_height, look, ordered, told_apart

GRID, WHITE = "#e6e8ec", "#ffffff"
NEUTRAL = {INK: "--ink", MUTED: "--soft", FRAME: "--frame", GRID: "--grid", WHITE: "--page"}
DARK_PAGE = "#14171b"
LEAST_CONTRAST = 4.0
OF_AN_ARM = re.compile(r"panel-\d+\.(.+)\.(?:seed-\d+(?:\.ends)?|line|band|seeds|bar|mark)")


def variable(color: str) -> str:
    """The CSS value of a colour: a variable of the page's style."""
    return f"var({NEUTRAL[color]})" if color in NEUTRAL else f"var(--k{color[1:]})"


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def on_dark(color: str) -> str:
    """The colour, mixed with as little white as a dark page needs."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    for share in range(101):
        mixed = "#" + "".join(f"{round(p + (255 - p) * share / 100):02x}" for p in parts)
        if contrast(mixed, DARK_PAGE) >= LEAST_CONTRAST:
            return mixed
    raise AssertionError("white is bright enough")


class Drawn(NamedTuple):
    """A figure as part of a page: its SVG, and what its legend names."""

    svg: Any
    arms: tuple[str, ...]


class Inliner:
    """Puts figures into one page: styles that recur become classes, and colours variables, of one style sheet."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._shapes: dict[str, str] = {}
        self._count = 0
        self.colors: set[str] = set()

    def color(self, color: str) -> str:
        """A colour that the page's style will define."""
        if color not in NEUTRAL:
            self.colors.add(color)
        return variable(color)

    def put(self, svg: str, title: str) -> Drawn:
        """A figure's file without its prolog, fixed size and own legend; with a name, and ids that no other figure has.

        Shapes that figures use (letters, mostly) go once into `shapes`.
        """
        import markupsafe

        body = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S)
        body = re.sub(r'\sxmlns(:xlink)?="[^"]*"|\sversion="[^"]*"', "", body).replace("xlink:href", "href")
        drawn = [found[1] for found in map(OF_AN_ARM.fullmatch, re.findall(r'<g id="([^"]+)"', body)) if found]
        lines = re.findall(r'<g id="panel-\d+\.([^"]+)\.line"', body)
        arms = tuple(told_apart(ordered(lines)))
        body = re.sub(r'<g id="([^"]+)"', lambda found: self._group(found[1], arms or tuple(drawn)), body)
        body = re.sub(r' style="([^"]*)"', lambda found: f' class="{self._class(found[1])}"', body)
        body = re.sub(r'(\s[dxy])="([^"]*)"', lambda found: f'{found[1]}="{_shortened(found[2])}"', body)
        body = self._renamed(body)
        body = re.sub(r">\s+<", "><", body).strip()
        head, rest = body.split(">", 1)
        head = re.sub(r'\s(width|height)="[^"]*"', "", head)
        wide, tall = map(float, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', head).groups())  # type: ignore[union-attr]
        top = round(72 * legend_height(len(arms)), 1)
        head = re.sub(r'viewBox="[^"]*"', f'viewBox="0 {top:g} {wide:g} {tall - top:g}"', head)
        return Drawn(markupsafe.Markup(f'{head} role="img" aria-label="{markupsafe.escape(title)}">{rest}'), arms)

    def shapes(self) -> Any:
        """What the figures' ids refer to, to stand once in the page."""
        import markupsafe

        drawn = "".join(f'<path id="{name}" {shape}/>' for shape, name in self._shapes.items())
        return markupsafe.Markup(
            f'<svg class="shapes" width="0" height="0" aria-hidden="true"><defs>{drawn}</defs></svg>'
        )

    def style(self) -> str:
        """The style sheet of everything that was put in so far."""
        light = "".join(f"--k{c[1:]}:{c};" for c in sorted(self.colors))
        dark = "".join(f"--k{c[1:]}:{on_dark(c)};" for c in sorted(self.colors))
        rules = [f":root{{{light}}}", f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"]
        rules += [f".{name}{{{style}}}" for style, name in self._classes.items()]
        return "\n".join(rules)

    def _group(self, name: str, legend: Sequence[str]) -> str:
        found = OF_AN_ARM.fullmatch(name)
        return f'<g id="{name}"' + (f' data-arm="{_key(found[1], legend)}"' if found else "")

    def _class(self, style: str) -> str:
        style = (
            re.sub(r"#[0-9a-f]{6}", lambda found: self._known(found[0]), style).replace(": ", ":").replace("; ", ";")
        )
        return self._classes.setdefault(style, f"q{len(self._classes)}")

    def _known(self, color: str) -> str:
        return self.color(color) if color in NEUTRAL or color in _colors() else color

    def _renamed(self, body: str) -> str:
        """Ids that something refers to, short and unlike any other of the page; the others go."""
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
        names: dict[str, str] = {}

        def shape(found: re.Match) -> str:
            names[found[1]] = self._shapes.setdefault(found[2], f"s{len(self._shapes)}")
            return ""

        body = re.sub(r'<path id="([^"]+)" ([^>]*)/>', shape, body)
        for old in re.findall(r'\sid="([^"]+)"', body):
            if old in used and old not in names:
                names[old] = f"i{self._count}"
                self._count += 1
        body = re.sub(r'\sid="([^"]+)"', lambda f: f' id="{names[f[1]]}"' if f[1] in names else "", body)
        body = re.sub(r'(href="|url\()#([^")]+)', lambda f: f"{f[1]}#{names[f[2]]}", body)
        return re.sub(r"<defs>\s*</defs>", "", body)


def _colors() -> frozenset[str]:
    return frozenset({look.color for look in figures.LOOKS.values()} | {color for color, *_ in figures._SPARE})


def _key(arm: str, legend: Sequence[str]) -> str:
    """The arm of the legend by which another is shown and hidden: itself, or the method that it looks like."""
    return arm if arm in legend else arm.rpartition("+")[0] or arm


def _shortened(numbers: str) -> str:
    """Coordinates to a tenth of a point, which is less than a pixel shows; to a hundredth where a shape is small."""

    def rounded(found: re.Match) -> str:
        value = float(found[0])
        return f"{value:.1f}".rstrip("0").rstrip(".") if abs(value) >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")

    short = re.sub(r"-?\d+\.\d+", rounded, numbers)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", short.strip()).replace("\n", " ").replace("-0 ", "0 ")


def legend(arms: Iterable[str], inliner: Inliner, shown: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Entries of a legend that hides and shows: arm, label, a swatch, whether it is shown at first."""
    shown = None if shown is None else set(shown)
    return [
        {
            "arm": arm,
            "label": look(arm).label,
            "swatch": swatch(arm, inliner),
            "shown": shown is None or arm in shown,
        }
        for arm in arms
    ]


def swatch(arm: str, inliner: Inliner) -> Any:
    """A short line as an arm is drawn."""
    import markupsafe

    own = look(arm)
    dash = "" if own.dash == "-" else " ".join(f"{2 * x:g}" for x in own.dash[1])
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return markupsafe.Markup(
        f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" style="stroke:{inliner.color(own.color)}"'
        f"{dashed}/></svg>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high."""
    import math

    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Mapping[str, Any]],
    inliner: Inliner,
    *,
    title: str,
    xlabel: str,
    xs: Sequence[float],
    ylim: tuple[float, float],
    size: tuple[int, int] = (1000, 330),
) -> Any:
    """A chart of lines with bands over common x. series: dicts of arm, ys, low, high (or None), shown. Text is the page's."""
    import markupsafe

    wide, tall = size
    left, right, above, below = 44, 10, 10, 38
    (x0, x1), (y0, y1) = (xs[0], xs[-1]), ylim

    def at(x: float, y: float) -> str:
        px = left + (x - x0) / (x1 - x0) * (wide - left - right)
        py = tall - below - (min(max(y, y0), y1) - y0) / (y1 - y0) * (tall - above - below)
        return f"{px:.1f} {py:.1f}"

    parts = []
    for y in ticks(y0, y1, 5):
        px, py = at(x0, y).split()
        parts.append(
            f'<path class="grid" d="M{left} {py}H{wide - right}"/><text x="{left - 6}" y="{py}" dy=".32em" class="end">{y:g}</text>'
        )
    for x in ticks(x0, x1):
        px, _ = at(x, y0).split()
        parts.append(f'<text x="{px}" y="{tall - below + 16}" class="mid">{x:g}</text>')
    parts.append(
        f'<text x="{(left + wide - right) / 2:g}" y="{tall - 4}" class="mid">{markupsafe.escape(xlabel)}</text>'
    )
    for one in series:
        own = look(one["arm"])
        color = inliner.color(own.color)
        dash = "" if own.dash == "-" else f' stroke-dasharray="{" ".join(f"{2 * x:g}" for x in own.dash[1])}"'
        off = "" if one.get("shown", True) else ' class="off"'
        band = ""
        if one["low"] is not None:
            edge = [at(x, y) for x, y in zip(xs, one["high"], strict=True)]
            edge += [at(x, y) for x, y in zip(reversed(xs), reversed(list(one["low"])), strict=True)]
            band = f'<path d="M{"L".join(edge)}Z" style="fill:{color}" fill-opacity=".13"/>'
        line = "L".join(at(x, y) for x, y in zip(xs, one["ys"], strict=True))
        parts.append(
            f'<g data-arm="{markupsafe.escape(one["arm"])}"{off}><title>{markupsafe.escape(own.label)}</title>{band}'
            f'<path class="line" d="M{line}" style="stroke:{color}"{dash}/></g>'
        )
    return markupsafe.Markup(
        f'<svg class="chart" viewBox="0 0 {wide} {tall}" role="img" aria-label="{markupsafe.escape(title)}">{"".join(parts)}</svg>'
    )
