"""Figures: the same scores give the same bytes, every seed is drawn, nothing that went wrong is hidden."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nap_bench.report import figures
from nap_bench.report.figures import LOOKS, Panel, draw, look, middle, ordered
from nap_bench.report.scores import Score, Scores

CURVE = Panel(kind="curve", measure="accuracy", title="Accuracy", xlabel="task", ylabel="accuracy")
ROWS = Panel(kind="interval", measure="late", title="Late accuracy")
MAP = Panel(kind="map", measure="late", title="Map", contrast=("nap", "norm_only"))


def curves(arms=("nap", "baseline"), num_seeds=3, setting="", dead_seed=None):
    generator = np.random.default_rng(0)
    return [
        Score(
            arm, setting, "accuracy", float(x), seed, math.nan if seed == dead_seed and x > 2 else generator.uniform()
        )
        for arm in arms
        for x in range(5)
        for seed in range(num_seeds)
    ]


def scalars(arms=("nap", "norm_only"), num_seeds=3, setting="", values=None):
    generator = np.random.default_rng(0)
    return [
        Score(arm, setting, "late", None, seed, values(arm, seed) if values else generator.uniform())
        for arm in arms
        for seed in range(num_seeds)
    ]


@pytest.fixture
def svg(tmp_path):
    def made(rows, *panels, exhibit="arms", name="a"):
        draw(exhibit, panels, Scores(rows), tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
        return (tmp_path / f"{name}.svg").read_text()

    return made


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn: in the SVG itself, text is paths."""
    from matplotlib.text import Text

    found = []
    drawn = Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (found.append(self.get_text()), drawn(self, renderer))[1])
    return found


def test_the_same_scores_give_the_same_bytes(svg, tmp_path):
    settings = [f"lr={lr} k={k}" for lr in ("0.01", "0.1") for k in (100, 300)]
    rows = curves() + scalars() + [row for setting in settings for row in scalars(setting=setting)]
    first, second = (svg(rows, CURVE, ROWS, MAP, name=name) for name in "ab")
    assert first == second
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bytes_do_not_depend_on_the_process_or_on_a_users_own_settings(svg, tmp_path):
    here = svg(curves(), CURVE)
    (tmp_path / "matplotlibrc").write_text("axes.linewidth: 9\n")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_figures import CURVE, curves; from nap_bench.report.figures import draw\n"
        "from nap_bench.report.scores import Scores\n"
        "draw('arms', (CURVE,), Scores(curves()), Path(sys.argv[1]) / 'b.svg', Path(sys.argv[1]) / 'b.png')\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "HOME": str(tmp_path)}
    tests = Path(__file__).parent
    words = [sys.executable, "-c", code, str(tmp_path), str(tests)]
    subprocess.run(words, check=True, env=environment | {"PYTHONPATH": str(tests.parents[1])}, cwd=tmp_path)
    assert (tmp_path / "b.svg").read_text() == here


def test_importing_the_panel_imports_neither_matplotlib_nor_numpy():
    code = "import sys, nap_bench.report.figures; sys.exit(bool({'matplotlib', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("num_seeds", "num_drawn"), [(1, 2), (8, 16), (30, 60), (31, 0)])
def test_every_seed_is_a_line_up_to_thirty(svg, num_seeds, num_drawn):
    found = re.findall(r'id="panel-0\.(\w+)\.seed-(\d+)"', svg(curves(num_seeds=num_seeds), CURVE))
    assert len(set(found)) == len(found) == num_drawn


def test_every_seed_is_a_dot_of_its_row(svg):
    text = svg(scalars(num_seeds=8), ROWS)
    for arm in ("nap", "norm_only"):
        group = text.split(f'id="panel-0.{arm}.seeds"')[1].split("<g id=")[0]
        assert len(re.findall(r"<use [^>]*style", group)) == 8


def test_a_diverged_seed_ends_in_a_cross_and_is_counted(svg, written):
    draw_of = {dead: svg(curves(num_seeds=4, dead_seed=dead), CURVE) for dead in (None, 2)}
    assert ".ends" not in draw_of[None]
    assert set(re.findall(r'id="(\S+)\.ends"', draw_of[2])) == {"panel-0.nap.seed-2", "panel-0.baseline.seed-2"}
    assert any("diverged: NaP 1 of 4, baseline 1 of 4" in text for text in written)
    assert 'id="panel-0.nap.seed-2"' in draw_of[2]
    svg(scalars(values=lambda arm, seed: math.nan if seed == 1 else 0.5), ROWS)
    assert "n=2, 1 diverged" in written


def test_one_seed_has_a_mean_and_no_interval(svg, written):
    assert middle([0.5]).estimate == 0.5
    assert math.isnan(middle([0.5]).low)
    assert middle([math.nan]) is None
    svg(curves(num_seeds=1) + scalars(num_seeds=1), CURVE, ROWS)
    assert "n=1" in written


@pytest.mark.parametrize("panel", [CURVE, ROWS, MAP])
def test_a_panel_without_results_says_so(svg, written, panel):
    svg([], panel)
    assert "no results yet" in written


def test_a_map_prints_the_paired_difference_and_marks_only_what_excludes_zero(svg, written):
    sure = {"nap": 0.7, "norm_only": 0.2}
    rows = scalars(setting="lr=0.1 k=100", values=lambda arm, seed: sure[arm] + 0.01 * seed * (arm == "nap"))
    rows += scalars(setting="lr=0.01 k=100", values=lambda arm, seed: seed * (1.0 if arm == "nap" else 0.9))
    rows += scalars(setting="lr=0.1 k=30", values=lambda arm, seed: math.nan if (arm, seed) == ("nap", 0) else 0.1)
    svg(rows, MAP)
    assert "+0.51 \u2022" in written  # mean of 0.50, 0.51, 0.52
    assert "+0.10" in written  # mean of 0.0, 0.1, 0.2: the interval holds zero
    assert "+0.00\n1 diverged" in written
    assert "\u2013" in written  # lr=0.01 k=30 was not run
    assert written.index("0.01") < written.index("0.1")  # numbers in order, whatever the order of the scores


def test_settings_of_a_map_share_their_keys(svg):
    with pytest.raises(ValueError, match="same keys in one order"):
        svg(scalars(setting="k=1 lr=2") + scalars(setting="lr=2 k=1"), MAP)
    with pytest.raises(ValueError, match="three at most"):
        svg(scalars(setting="a=1 b=2 c=3 d=4"), MAP)


def test_panels_of_one_measure_share_their_scale(monkeypatch, svg):
    from matplotlib.figure import Figure

    limits = []
    save = Figure.savefig

    def spied(self, *args, **how):
        limits.extend(ax.get_ylim() for ax in self.axes)
        return save(self, *args, **how)

    monkeypatch.setattr(Figure, "savefig", spied)
    rows = curves(setting="sgd") + [row._replace(value=row.value * 9) for row in curves(setting="adam")]
    svg(rows, *(Panel(kind="curve", measure="accuracy", setting=setting) for setting in ("sgd", "adam")))
    assert limits[0] == limits[1]
    assert limits[0][1] > 5


def test_arms_look_apart_and_an_unknown_arm_looks_the_same_everywhere():
    shared = [{"norm_only", "layer_norm"}, {"baseline", "none"}]
    looks = {}
    for arm, style in LOOKS.items():
        looks.setdefault((style.color, style.marker), set()).add(arm)
    assert all(len(arms) == 1 or arms in shared for arms in looks.values())
    assert look("nap+redo") == look("nap+redo")
    assert look("nap+redo").label == "nap+redo"
    assert ordered(["zeta", "baseline", "alpha", "nap", "nap"]) == ["nap", "baseline", "alpha", "zeta"]


def test_a_method_combined_with_a_norm_looks_like_the_method_and_stands_beside_it():
    assert look("l2+nap").label == "L2 + NaP" and look("redo+layer_norm").label == "ReDo + LN"
    assert (look("redo+nap").color, look("redo+nap").marker) == (look("redo").color, look("redo").marker)
    assert ordered(["redo+nap", "l2", "zeta", "redo", "nap"]) == ["nap", "l2", "redo", "redo+nap", "zeta"]


def test_a_logarithmic_axis_of_few_points_names_them(svg, written):
    rows = [row._replace(x=10.0**row.x) for row in curves()]
    svg(rows, Panel(kind="curve", measure="accuracy", logx=True))
    assert {"1", "10", "100", "1000", "10000"} <= set(written)


@pytest.mark.parametrize("wrong", [dict(kind="pie"), dict(kind="map"), dict(kind="curve", contrast=("a", "b"))])
def test_an_impossible_panel_is_refused(wrong):
    with pytest.raises(ValueError, match="Panel 'late'"):
        Panel(**{"measure": "late", **wrong})


def test_the_legend_names_a_method_once_where_it_stands_with_and_without_nap(svg, monkeypatch):
    named = []
    monkeypatch.setattr(figures, "_legend", lambda figure, arms: named.extend(arms))
    svg(curves(("l2", "l2+nap", "redo+nap", "nap")), CURVE)
    assert named == ["nap", "l2", "redo+nap"]


def test_a_panel_is_drawn_only_at_its_scales():
    everywhere, large = Panel(kind="interval", measure="a"), Panel(kind="interval", measure="b", scales=("paper",))
    assert figures.at((everywhere, large), "laptop") == (everywhere,)
    assert figures.at((everywhere, large), "paper") == (everywhere, large)


def test_a_control_looks_like_its_arm_dotted_and_stands_beside_it():
    own, control = figures.look("nap"), figures.look("nap_fresh")
    assert (control.color, control.marker, control.label) == (own.color, own.marker, "NaP, fresh")
    assert control.dash != own.dash
    assert figures.ordered({"redo_fresh", "nap_fresh", "redo", "nap"}) == ["nap", "nap_fresh", "redo", "redo_fresh"]
