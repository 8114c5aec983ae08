"""Figures of an exhibit, drawn from its scores. Importing this module imports neither matplotlib nor numpy.

Shape suffixes: T points of x, S seeds. An arm looks the same (colour, dash, marker) in every figure of every exhibit.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nap_bench.store import write_whole

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores
    from nap_bench.stats import Interval

MAX_SEEDS_DRAWN = 30
"""Above this number of seeds a curve shows its mean and interval only."""

MAX_TICKS = 8
"""Up to so many points on a logarithmic axis are named themselves."""

MAX_LEGEND_COLUMNS = 5
WIDTH, ABOVE, BOTTOM, LINE = 9.0, 0.34, 0.5, 0.18
LEFT = {"curve": 0.75, "curves": 0.75, "interval": 1.5, "map": 0.75, "pooled": 1.5, "profile": 0.75}
RIGHT = {"curve": 0.12, "curves": 0.12, "interval": 0.95, "map": 0.95, "pooled": 0.95, "profile": 0.12}
"""Inches: the figure's width; room above and below a plot; a line of text; room for labels beside a plot."""
OF_MANY = ("curves", "pooled", "profile")
"""Kinds of panel that read many settings, and are left out where there is no result of any."""
PROFILE_POINTS = 41
STAMPS = {
    ".svg": ("Date", "Creator", "Format", "Type"),
    ".png": ("Software",),
    ".pdf": ("CreationDate", "Creator", "Producer"),
}
"""What a file would say of its making, which would differ from call to call or from version to version."""
INK, MUTED, FRAME = "#1b1f24", "#667085", "#98a2b3"
ON_LIGHT, ON_DARK = "#101418", "#fefefe"
"""Text on a shade of a map, which stays as it is where a page is dark."""
STYLE = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FRAME,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.7,
    "xtick.color": FRAME,
    "ytick.color": FRAME,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot of an exhibit. No arms: every arm that has the measure; they stand in the order of LOOKS.

    curve: the measure over x, one line per arm.  interval: a scalar measure, one row per arm.  map: the paired
    difference `contrast` = (a, b), a minus b, over settings written `lr=0.001 init=1 k=300`: columns, rows, then one
    grid per value of the third key.  reference: a level and what it is, e.g. (0.1, "chance").

    Over many tasks, one setting each (`settings`, or every setting that has the measure):
    curves: a small curve plot of each.  pooled: a scalar measure over seeds and settings together, one row per arm; `pool`
    is "iqm" or "mean".  profile: the share of seeds and settings whose scalar measure is above x, x from 0 to `upto`.
    """

    kind: Literal["curve", "interval", "map", "curves", "pooled", "profile"]
    measure: str
    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    arms: tuple[str, ...] = ()
    setting: str = ""
    settings: tuple[str, ...] = ()
    pool: str = "iqm"
    upto: float = 8.0
    contrast: tuple[str, str] | None = None
    reference: tuple[float, str] | None = None
    logx: bool = False
    logy: bool = False
    scales: tuple[str, ...] = ()
    """Where it is drawn, because its runs exist only there; empty: everywhere."""

    def __post_init__(self) -> None:
        name = self.title or self.measure
        if self.kind not in LEFT:
            raise ValueError(f"Panel {name!r} is a {self.kind!r}. Known kinds: {', '.join(LEFT)}.")
        if (self.kind == "map") != (self.contrast is not None):
            raise ValueError(f"Panel {name!r}: `contrast` names the two arms of a map, and only of a map.")


@dataclass(frozen=True)
class Look:
    label: str
    color: str
    dash: Any = "-"
    marker: str = "o"


# Okabe and Ito's palette, which stays apart under the common colour deficiencies, less its yellow (too pale on white).
_PLAIN = ("#4d4d4d", (0, (4, 2)), "s")
_LAYER = ("#e69f00", "-", "^")
LOOKS: dict[str, Look] = {
    "nap": Look("NaP", "#0072b2", "-", "o"),
    "nap_linear": Look("NaP, linear decay", "#d55e00", "-", "s"),
    "nap_head": Look("NaP, head too", "#56b4e9", (0, (6, 1.5, 1, 1.5)), "D"),
    "ln_weight_decay": Look("LN + weight decay", "#cc79a7", (0, (2, 1)), ">"),
    "norm_only": Look("norm only", *_LAYER),
    "layer_norm": Look("LayerNorm", *_LAYER),
    "rms_norm": Look("RMSNorm", "#d55e00", (0, (5, 1)), "v"),
    "projection_only": Look("projection only", "#009e73", (0, (3, 1, 1, 1)), "P"),
    "baseline": Look("baseline", *_PLAIN),
    "none": Look("no norm", *_PLAIN),
    "off": Look("NaP switched off", "#999999", (0, (1, 1.5)), "d"),
    "mlp": Look("perceptron", "#0072b2", "-", "s"),
    "cnn": Look("convolutional network", "#d55e00", (0, (5, 1)), "D"),
    "batch_norm": Look("BatchNorm", "#c2185b", (0, (8, 2)), "<"),
    "group_norm": Look("GroupNorm", "#1b7837", (0, (8, 2)), "<"),
    "l2": Look("L2", "#7b3294", (0, (6, 1.5)), "v"),
    "regenerative": Look("regenerative", "#1b7837", "-", "P"),
    "shrink_perturb": Look("Shrink & Perturb", "#a6611a", (0, (3, 1, 1, 1)), "X"),
    "redo": Look("ReDo", "#c2185b", "-", "*"),
    "leaky_relu": Look("leaky ReLU", "#00838f", (0, (2, 1)), ">"),
    "noisy_updates": Look("noisy updates", "#d55e00", (0, (1, 1.5)), "h"),
    "continual_backprop": Look("continual BP", "#009e73", (0, (3, 1, 1, 1)), "*"),
    "crelu": Look("CReLU", "#7b3294", (0, (2, 1)), "D"),
    "layer_reset": Look("layer reset", "#a6611a", (0, (6, 1.5, 1, 1.5)), "D"),
    "full_reset": Look("full reset", "#c2185b", (0, (1, 1.5)), "d"),
    "optimizer_reset": Look("optimizer reset", "#00838f", (0, (8, 2)), "h"),
    "plasticity_injection": Look("plasticity injection", "#7b3294", (0, (5, 1, 1, 1, 1, 1)), "p"),
    "spectral": Look("spectral", "#a6611a", (0, (5, 1, 1, 1, 1, 1)), "p"),
    "parseval": Look("Parseval", "#1b7837", (0, (5, 1, 1, 1, 1, 1)), "p"),
    "weight_clipping": Look("weight clipping", "#c2185b", (0, (5, 1, 1, 1, 1, 1)), "p"),
    "weight_norm": Look("weight normalisation", "#00838f", (0, (5, 1, 1, 1, 1, 1)), "p"),
    "hyperspherical": Look("hyperspherical", "#7b3294", (0, (1, 1)), "8"),
    "snr": Look("SNR", "#a6611a", (0, (1, 1)), "8"),
    "hare_tortoise": Look("Hare & Tortoise", "#1b7837", (0, (1, 1)), "8"),
    "upgd": Look("UPGD", "#c2185b", (0, (1, 1)), "8"),
    "dash": Look("DASH", "#00838f", (0, (1, 1)), "8"),
    "infer": Look("InFeR", "#7b3294", (0, (8, 2)), "H"),
    "regrama": Look("ReGraMa", "#a6611a", (0, (8, 2)), "H"),
    "weight_decay": Look("weight decay", "#1b7837", (0, (8, 2)), "H"),
    "conditional": Look("conditional", "#d55e00", (0, (4, 2)), "X"),
    "unconditional": Look("unconditional", "#0072b2", "-", "^"),
    "self_normalised": Look("self-normalised", "#7b3294", (0, (3, 1, 1, 1)), "P"),
    "stable": Look("StableDRL", "#1b7837", "-", "s"),
    "gradient_scaling": Look("gradient scaling", "#a6611a", (0, (2, 1)), "h"),
}
WITH = {"nap": "NaP", "layer_norm": "LN", "projection": "projection"}
"""What a method is combined with: an arm `l2+nap` looks like `l2` and is called by both."""
CONTROL = "_fresh"
"""What an arm's name ends with that is the control of another, a fresh agent: it looks like that one, dotted."""
_SPARE = [
    (color, dash, marker)
    for dash, marker in (((0, (5, 1, 1, 1, 1, 1)), "*"), ((0, (1, 1)), "h"), ((0, (8, 2)), "<"))
    for color in ("#7b3294", "#a6611a", "#1b7837", "#c2185b", "#00838f")
]


def at(panels: Iterable[Panel], scale: str) -> tuple[Panel, ...]:
    """The panels that are drawn at a scale."""
    return tuple(panel for panel in panels if not panel.scales or scale in panel.scales)


Cell = tuple["Interval | None", int]
"""Paired difference of the seeds that diverged on neither side, and how many did."""


def look(arm: str) -> Look:
    """How an arm is called and drawn, everywhere. An arm without an entry gets a look from its name."""
    if arm.endswith(CONTROL):
        own = look(arm.removesuffix(CONTROL))
        return replace(own, label=f"{own.label}, fresh", dash=(0, (1, 1.2)))
    method, _, partner = arm.rpartition("+")
    if method and partner in WITH:
        return replace(look(method), label=f"{look(method).label} + {WITH[partner]}")
    return LOOKS.get(arm) or Look(arm.replace("_", " "), *_SPARE[zlib.crc32(arm.encode()) % len(_SPARE)])


def ordered(arms: Iterable[str]) -> list[str]:
    """Each arm once: known ones in the order of LOOKS, each before its combinations, then the others by name."""
    known = list(LOOKS)

    def place(name: str) -> tuple[int, str, str]:
        arm = name.removesuffix(CONTROL)
        method = arm if arm in LOOKS else arm.rpartition("+")[0]
        return known.index(method) if method in LOOKS else len(known), arm, name

    return sorted(set(arms), key=place)


def middle(values: Iterable[float]) -> Interval | None:
    """Mean and 95 % t interval of the finite values; one value has no interval (NaN), no value gives None."""
    from nap_bench import stats

    finite = [float(v) for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return stats.Interval(finite[0], math.nan, math.nan, 1, stats.CONFIDENCE, "one seed") if finite else None
    return stats.mean_interval(finite)


def draw(
    exhibit: str,
    panels: tuple[Panel, ...],
    scores: Scores,
    path_svg: Path,
    path_png: Path,
    added: Mapping[str, str] | None = None,
    path_pdf: Path | None = None,
) -> None:
    """Draw an exhibit's panels into one SVG and one PNG (and one PDF); the same scores give the same bytes.

    added: arms that a user's own plan adds -> the arm each is made of; they stand in every panel that names this one.
    Text is drawn as paths of a font that comes with matplotlib, so it looks the same offline and without that font. In the
    SVG, what belongs to an arm has an id `panel-K.ARM.seed-N`, `.line`, `.band`, `.seeds`, `.bar` or `.mark`, and a title
    that says what it is: pages show it at the pointer.
    """
    import matplotlib
    from matplotlib.figure import Figure

    for name, arm in (added or {}).items():
        panels = tuple(replace(p, arms=(*p.arms, name)) if arm in p.arms else p for p in panels)
    panels = _expanded(panels, scores)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the bytes
        matplotlib.rcParams.update(STYLE | {"svg.hashsalt": exhibit})
        lines = ("curve", "curves", "profile")
        arms = told_apart(ordered(arm for panel in panels if panel.kind in lines for arm in _arms(panel, scores)))
        legend = legend_height(len(arms))
        rows = _rows(panels)
        heights = [_height(row, scores) for row in rows]
        top = sum(heights) + legend
        figure = Figure(figsize=(WIDTH, top))
        if arms:
            _legend(figure, arms)
        curves: dict[str, list[Any]] = {}
        top -= legend
        for row, height in zip(rows, heights, strict=True):
            for i, panel in enumerate(row):
                if panel.kind == "map":
                    _map(figure, top, height, panel, scores)
                    continue
                cell, left, right = WIDTH / _columns(panels, panel.kind), LEFT[panel.kind], RIGHT[panel.kind]
                low = BOTTOM + LINE * bool(_diverged(row, scores))
                ax = _axes(figure, i * cell + left, top - height + low, cell - left - right, height - ABOVE - low)
                ax.set_gid(f"panel-{panels.index(panel)}")
                ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
                DRAWN[panel.kind](ax, panel, scores)
                if panel.kind == "curve":
                    curves.setdefault(panel.measure, []).append(ax)
            top -= height
        for same in curves.values():  # panels of one measure are compared by eye: one scale
            limits = [ax.get_ylim() for ax in same if ax.has_data()]
            for ax in same if limits else []:
                ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        titles = {artist.get_gid(): artist.get_label() for artist in figure.findobj(lambda a: a.get_gid() is not None)}
        for path in (path_svg, path_png, *((path_pdf,) if path_pdf else ())):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], metadata=dict.fromkeys(STAMPS[path.suffix]), dpi=160)
            is_svg = path.suffix == ".svg"
            write_whole(path, titled(buffer.getvalue().decode(), titles) if is_svg else buffer.getvalue())


def titled(svg: str, titles: Mapping[str, Any]) -> str:
    """The SVG with a title in each group that has one: what a pointer or a screen reader is told."""
    from xml.sax.saxutils import escape

    def put(found: re.Match) -> str:
        text = str(titles.get(found[1], "_"))
        return found[0] if not text or text.startswith("_") else f"{found[0]}<title>{escape(text)}</title>"

    return re.sub(r'<g id="([^"]+)">', put, svg)


def legend_height(num_arms: int) -> float:
    """Inches that the legend takes at the top of a figure."""
    return 0.24 * math.ceil(num_arms / MAX_LEGEND_COLUMNS) + 0.14 if num_arms else 0.0


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in inches. No layout engine: matplotlib's solver differs in the last bits from call to call."""
    total = figure.get_size_inches()[1]
    return figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))


def _expanded(panels: tuple[Panel, ...], scores: Scores) -> tuple[Panel, ...]:
    """Panels to draw: `curves` as one per setting, and of the kinds that read many settings only those with results."""
    found: list[Panel] = []
    for panel in panels:
        if panel.kind not in OF_MANY:
            found.append(panel)
            continue
        settings = _settings(panel, scores)
        if panel.kind == "curves":
            found += [replace(panel, setting=setting, title=setting.replace("_", " ")) for setting in settings]
        elif settings:
            found.append(replace(panel, settings=tuple(settings)))
    return tuple(found) or panels[:1]


def _settings(panel: Panel, scores: Scores) -> list[str]:
    """The settings of a panel of many in which every arm that has results has some, so that arms are compared on the same."""
    arms = panel.arms or scores.arms()
    settings = panel.settings or sorted(scores.settings(), key=setting_order)
    if panel.kind == "curves":
        return [s for s in settings if any(scores.has(panel.measure, arm, s) for arm in arms)]
    arms = [arm for arm in arms if any(scores.has(panel.measure, arm, s) for s in settings)]
    return [s for s in settings if arms and all(scores.has(panel.measure, arm, s) for arm in arms)]


def _columns(panels: tuple[Panel, ...], kind: str) -> int:
    """Two to a row are readable on a phone too; curves that fill rows of three are laid out so."""
    if kind == "curves":
        return 3
    kinds = [panel.kind for panel in panels if panel.kind not in ("map", "curves")]
    return min(len(kinds), 3 if set(kinds) == {"curve"} and len(kinds) % 3 == 0 else 2)


def _rows(panels: tuple[Panel, ...]) -> list[tuple[Panel, ...]]:
    """Panels in reading order; a map has a row of its own, and so have the plots of `curves`."""
    rows: list[tuple[Panel, ...]] = []
    for panel in panels:
        kinds = {panel.kind, rows[-1][0].kind} if rows else {"map"}
        may_join = kinds == {"curves"} or not kinds & {"map", "curves"}
        if may_join and len(rows[-1]) < _columns(panels, panel.kind):
            rows[-1] += (panel,)
        else:
            rows.append((panel,))
    return rows


def _height(row: tuple[Panel, ...], scores: Scores) -> float:
    """Inches."""
    if row[0].kind == "map":
        return ABOVE + LINE + 0.55 * max(1, len(_cells(row[0], scores)[2][1])) + BOTTOM
    narrow = len(row) > 2 or row[0].kind == "curves"
    plots = [1.6 if narrow else 1.9 for panel in row if panel.kind in ("curve", "curves", "profile")]
    plots += [0.27 * max(1, len(_arms(panel, scores))) for panel in row if panel.kind in ("interval", "pooled")]
    return ABOVE + max(plots) + BOTTOM + LINE * bool(_diverged(row, scores))


def _diverged(row: tuple[Panel, ...], scores: Scores) -> list[str]:
    """Arms of a row's curves of which seeds diverged, with how many."""
    found = []
    for panel in row:
        for arm in _arms(panel, scores) if panel.kind in ("curve", "curves") else ():
            last_S = scores.curve(panel.measure, arm, panel.setting)[2][-1]
            if lost := sum(not math.isfinite(value) for value in last_S):
                found.append(f"{look(arm).label} {lost} of {len(last_S)}")
    return found


def _arms(panel: Panel, scores: Scores) -> list[str]:
    """The arms of a panel that have something to show."""
    settings = panel.settings if panel.kind in ("pooled", "profile") else (panel.setting,)
    arms = ordered(panel.arms or scores.arms())
    return [arm for arm in arms if any(scores.has(panel.measure, arm, setting) for setting in settings)]


def told_apart(arms: list[str]) -> list[str]:
    """The arms without the combinations, like `l2+nap`, whose method is among them: these look alike; titles say which."""
    return [arm for arm in arms if arm.rpartition("+")[0] not in arms or arm.rpartition("+")[2] not in WITH]


def _legend(figure: Any, arms: list[str]) -> None:
    from matplotlib.lines import Line2D

    looks = [look(arm) for arm in arms]
    lines = [Line2D([], [], color=k.color, linestyle=k.dash, marker=k.marker, markersize=5, linewidth=2) for k in looks]
    columns = math.ceil(len(arms) / math.ceil(len(arms) / MAX_LEGEND_COLUMNS))
    figure.legend(lines, [k.label for k in looks], loc="upper left", ncols=columns, frameon=False, handlelength=3)


def _note(ax: Any, text: str, at: tuple[float, float], offset: tuple[float, float], transform: Any, **how: Any) -> None:
    ax.annotate(text, at, offset, xycoords=transform, textcoords="offset points", fontsize=7.5, color=MUTED, **how)


def _nothing(ax: Any) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, "no results yet", transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _reference(ax: Any, panel: Panel) -> None:
    if panel.reference is None:
        return
    level, name = panel.reference
    if panel.kind in ("curve", "curves"):
        ax.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        _note(ax, name, (0.01, level), (0, 2), ax.get_yaxis_transform())
    else:
        ax.axvline(level, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        _note(ax, name, (level, 1), (3, -1), ax.get_xaxis_transform(), va="top")


def _line(ax, xs, ys, style: Look, **how: Any) -> None:
    """An arm's line in its own looks."""
    common = dict(linewidth=2, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5)
    ax.plot(xs, ys, color=style.color, linestyle=style.dash, marker=style.marker, **common, **how)


def _curve(ax: Any, panel: Panel, scores: Scores) -> None:
    """Mean, 95 % t interval at each x, each seed as a thin line; a diverged one ends in a cross and leaves the mean."""
    import numpy as np

    arms = _arms(panel, scores)
    if not arms:
        return _nothing(ax)
    ax.set(xscale="log" if panel.logx else "linear", yscale="log" if panel.logy else "linear")
    for order, arm in enumerate(arms):
        x_T, seeds_S, values_TS = scores.curve(panel.measure, arm, panel.setting)
        style = look(arm)
        dead_S = ~np.isfinite(values_TS[-1])
        for seed, values_T, dead in zip(seeds_S, values_TS.T, dead_S, strict=True):
            gid = f"{ax.get_gid()}.{arm}.seed-{seed}"
            told = dict(gid=gid, label=f"{style.label}, seed {seed}")
            if len(seeds_S) <= MAX_SEEDS_DRAWN:
                ax.plot(x_T, values_T, color=style.color, alpha=0.28, linewidth=0.6, zorder=2, **told)
            alive_T = np.flatnonzero(np.isfinite(values_T))
            if dead and len(alive_T):
                x, y = x_T[alive_T[-1]], values_T[alive_T[-1]]
                ax.plot(x, y, "x", color=style.color, markersize=6, markeredgewidth=1.6, zorder=9, gid=f"{gid}.ends")
        kept = [(x, mean) for x, row in zip(x_T, values_TS, strict=True) if (mean := middle(row)) is not None]
        xs, means = [x for x, _ in kept], [mean for _, mean in kept]
        every = max(1, len(xs) // 7)
        mark = (order * every // len(arms), every)
        told = _told(ax, arm, "line", f"{style.label}, mean{_ends(means)}")
        _line(ax, xs, [mean.estimate for mean in means], style, markevery=mark, zorder=5 - 0.1 * order, **told)
        low, high = [mean.low for mean in means], [mean.high for mean in means]
        told = _told(ax, arm, "band", f"{style.label}, 95 % interval of the mean")
        ax.fill_between(xs, low, high, color=style.color, alpha=0.16, linewidth=0, zorder=1.5, **told)
    points = sorted({x for arm in arms for x in scores.curve(panel.measure, arm, panel.setting)[0].tolist()})
    if panel.logx and len(points) <= MAX_TICKS:  # what was tried, rather than powers of ten
        ax.set_xticks(points, [f"{x:g}" for x in points])
        ax.set_xticks([], minor=True)
    _reference(ax, panel)
    if diverged := _diverged((panel,), scores):
        ax.set_xlabel(f"{ax.get_xlabel()}\n\u00d7 diverged: {', '.join(diverged)}".strip())


def _told(ax: Any, arm: str, what: str, label: str) -> dict[str, str]:
    return dict(gid=f"{ax.get_gid()}.{arm}.{what}", label=label)


def _ends(means: list[Interval]) -> str:
    """The last value of a curve in words."""
    return f"; at the end {_value(means[-1])}, n = {means[-1].n}" if means else ""


def _value(found: Interval) -> str:
    span = "" if math.isnan(found.low) else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.estimate:.3g}{span}".replace("-", "\u2212")


def _interval(ax: Any, panel: Panel, scores: Scores) -> None:
    """One row per arm: mean and 95 % interval above, every seed as a dot below; n and diverged seeds at the right."""
    arms = _arms(panel, scores)
    if not arms:
        return _nothing(ax)
    ax.set_xscale("log" if panel.logx else "linear")
    for row, arm in enumerate(arms):
        values, style = scores.values(panel.measure, arm, panel.setting), look(arm)
        finite = [value for value in values.values() if math.isfinite(value)]
        dots = dict(color=style.color, alpha=0.5, markersize=3.4, markeredgewidth=0)
        ax.plot(finite, [row + 0.2] * len(finite), "o", **dots, **_told(ax, arm, "seeds", f"{style.label}, each seed"))
        mean = middle(finite)
        if mean is not None:
            _span(ax, row - 0.1, mean, style, arm, f"{style.label}: {_value(mean)}, n = {mean.n}")
        lost = f", {len(values) - len(finite)} diverged" if len(values) > len(finite) else ""
        _note(ax, f"n={len(finite)}{lost}", (1, row), (3, 0), ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(arms)), [look(arm).label for arm in arms], color=INK)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    _reference(ax, panel)


def _span(ax: Any, y: float, found: Interval, style: Look, arm: str, text: str) -> None:
    """An estimate and its interval, lying."""
    ax.plot([found.low, found.high], [y] * 2, color=style.color, linewidth=2.2, **_told(ax, arm, "bar", text))
    how = dict(color=style.color, markersize=6.5, markeredgecolor="white")
    ax.plot(found.estimate, y, style.marker, **how, **_told(ax, arm, "mark", text))


def _pool(panel: Panel, arm: str, scores: Scores) -> tuple[Any, int]:
    """Values [S, T] of the seeds that are finite in every setting, and how many seeds are not."""
    import numpy as np

    by_setting = [scores.values(panel.measure, arm, setting) for setting in panel.settings]
    seeds = sorted(set.intersection(*(set(values) for values in by_setting)))
    values_ST = np.array([[values[seed] for values in by_setting] for seed in seeds]).reshape(-1, len(by_setting))
    is_finite_S = np.isfinite(values_ST).all(axis=1)
    return values_ST[is_finite_S], int((~is_finite_S).sum())


def _pooled(ax: Any, panel: Panel, scores: Scores) -> None:
    """One row per arm: the pooled score with its 95 % interval; how many settings, seeds and diverged seeds at the right."""
    from nap_bench import stats

    arms = _arms(panel, scores)
    if not arms:
        return _nothing(ax)
    for row, arm in enumerate(arms):
        values_ST, num_lost = _pool(panel, arm, scores)
        if len(values_ST):
            found, style = stats.pooled_interval(values_ST, panel.pool), look(arm)
            _span(ax, row, found, style, arm, f"{style.label}, {panel.pool}: {_value(found)}")
        lost = f", {num_lost} diverged" if num_lost else ""
        note = f"{len(panel.settings)} x n={len(values_ST)}{lost}"
        _note(ax, note, (1, row), (3, 0), ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(arms)), [look(arm).label for arm in arms], color=INK)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    _reference(ax, panel)


def _profile(ax: Any, panel: Panel, scores: Scores) -> None:
    """Share of seeds and settings above x, with its 95 % stratified bootstrap interval at each x (Agarwal et al. 2021)."""
    import numpy as np

    from nap_bench import stats

    arms = _arms(panel, scores)
    if not arms:
        return _nothing(ax)
    xs = np.linspace(0.0, panel.upto, PROFILE_POINTS)
    for order, arm in enumerate(arms):
        values_ST, _ = _pool(panel, arm, scores)
        if not len(values_ST):
            continue
        style = look(arm)
        found = [stats.pooled_interval(values_ST > x, "mean") for x in xs]
        told = _told(ax, arm, "line", f"{style.label}, share above")
        _line(ax, xs, [share.estimate for share in found], style, markevery=(order * 6 // len(arms), 6), **told)
        low, high = np.clip([[share.low, share.high] for share in found], 0.0, 1.0).T
        told = _told(ax, arm, "band", f"{style.label}, 95 % interval")
        ax.fill_between(xs, low, high, color=style.color, alpha=0.16, linewidth=0, zorder=1.5, **told)
    ax.set_ylim(0.0, 1.0)


DRAWN = {"curve": _curve, "curves": _curve, "interval": _interval, "pooled": _pooled, "profile": _profile}


def parse_setting(setting: str) -> dict[str, str]:
    """`lr=0.001 init=1` -> {"lr": "0.001", "init": "1"}; a setting without `=` has no keys."""
    return dict(word.split("=", 1) for word in setting.split() if "=" in word)


def setting_order(setting: str) -> tuple[Any, ...]:
    """Sorts settings by their values as numbers, words after them."""
    return tuple(_number(value) for value in parse_setting(setting).values()), setting


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _cells(panel: Panel, scores: Scores) -> tuple[list[str], dict[tuple[str, ...], Cell], list[list[str]]]:
    """Keys of the settings, cells by the keys' values, and each key's values in order."""
    a, b = panel.contrast  # type: ignore[misc]
    cells: dict[tuple[str, ...], Cell] = {}
    keys: list[str] = []
    for setting in scores.settings():
        parsed = parse_setting(setting)
        if not parsed or not (scores.has(panel.measure, a, setting) and scores.has(panel.measure, b, setting)):
            continue
        if keys not in ([], list(parsed)) or len(parsed) > 3:
            raise ValueError(
                f"Map {panel.title!r}: wanted settings of the same keys in one order, three at most; found {setting!r}"
                + (f" beside the keys {', '.join(keys)}." if keys else ".")
            )
        keys = list(parsed)
        ours, theirs = scores.values(panel.measure, a, setting), scores.values(panel.measure, b, setting)
        pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        cells[tuple(parsed.values())] = middle(pairs), sum(not math.isfinite(pair) for pair in pairs)
    places = [sorted({cell[i] for cell in cells}, key=_number) if i < len(keys) else [""] for i in range(3)]
    return keys, cells, places


def _map(figure: Any, top: float, height: float, panel: Panel, scores: Scores) -> None:
    """Paired difference of two arms, per setting: colour and number; a dot where the 95 % interval excludes zero.

    top, height: of the map's row, in inches.
    """
    import matplotlib

    a, b = panel.contrast  # type: ignore[misc]
    keys, cells, (columns, rows, grids) = _cells(panel, scores)
    left, bottom, tall = LEFT["map"], top - height + BOTTOM, height - ABOVE - LINE - BOTTOM
    wide = (WIDTH - left - RIGHT["map"]) / len(grids)
    axes = [_axes(figure, left + i * wide, bottom, wide - 0.4 * (len(grids) > 1), tall) for i in range(len(grids))]
    above = {"xytext": (0, 8 + 72 * LINE), "textcoords": "offset points", "fontsize": 9.5, "fontweight": "bold"}
    axes[0].annotate(panel.title, (0, 1), xycoords="axes fraction", **above)
    if not cells:
        return _nothing(axes[0])
    most = max((abs(mean.estimate) for mean, _ in cells.values() if mean is not None), default=0.0) or 1.0
    shades = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-most, most), "RdBu")
    for ax, grid in zip(axes, grids, strict=True):
        for (x, column), (y, row) in product(enumerate(columns), enumerate(rows)):
            mean, lost = cells.get((column, row, grid)[: len(keys)], (None, 0))
            face = shades.to_rgba(mean.estimate) if mean is not None else matplotlib.colors.to_rgba("#f2f4f7")
            ax.add_patch(matplotlib.patches.Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=face))
            sure = mean is not None and (mean.low > 0 or mean.high < 0)
            text = f"{mean.estimate:+.2f}".replace("-", "\u2212") if mean is not None else "\u2013"
            text += (" \u2022" if sure else "") + (f"\n{lost} diverged" if lost else "")
            is_dark = 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] < 0.5
            how = dict(color=ON_DARK if is_dark else ON_LIGHT, fontweight="bold" if sure else "normal")
            ax.text(x, y, text, ha="center", va="center", fontsize=7 if lost else 8.5, **how)
        ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_xlabel(panel.xlabel or keys[0])
        ax.set_title(f"{keys[2]} = {grid}" if grid else "", fontsize=8.5, fontweight="normal")
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel(panel.ylabel or "".join(keys[1:2]))
    bar = figure.colorbar(shades, cax=_axes(figure, WIDTH - RIGHT["map"], bottom, 0.14, tall))
    bar.outline.set_visible(False)
    bar.set_label(f"{look(a).label} \u2212 {look(b).label}")
