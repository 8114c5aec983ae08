"""The report as a person sees it: in a browser, wide and on a phone."""

from __future__ import annotations

import subprocess

import pytest
import small

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=5000"
).split()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    small.write_plan(folder, small.lines(num_tasks=2, steps_per_task=20))
    done = small.snakemake(folder, "reports/laptop/index.html")
    assert done.returncode == 0, done.stdout
    return folder / "reports" / "laptop" / "index.html"


def in_browser(browser, page, tmp_path, *more):
    words = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_page_opens_offline_with_every_claim_and_a_figure_for_each_exhibit(browser, page, tmp_path):
    from nap_bench.experiments import EXPERIMENTS

    dom = in_browser(browser, page, tmp_path, "--dump-dom")
    for name in ("arms", "fig1_dead_units"):
        assert EXPERIMENTS[name].TITLE in dom
        for claim in EXPERIMENTS[name].CLAIMS:
            assert f'id="claim.{name}.{claim.id}"' in dom
    assert dom.count("<figure>") == 2


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_is_not_blank_and_fits_its_window(browser, page, tmp_path, width):
    """A page wider than its window would be cut off or scroll sideways: a script in a copy of the page measures it."""
    measured = tmp_path / "measured.html"
    script = "<script>document.title='measured '+document.documentElement.scrollWidth</script></body>"
    measured.write_text(page.read_text().replace("</body>", script))
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe id="f" src="measured.html" style="width:{width}px;height:900px;border:0"></iframe>')
    picture = tmp_path / "page.png"
    flags = ("--allow-file-access-from-files", "--window-size=1400,1000")
    in_browser(browser, frame, tmp_path, *flags, f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000
    read = "<script>onload=()=>document.title=document.getElementById('f').contentDocument.title</script>"
    frame.write_text(frame.read_text() + read)
    dom = in_browser(browser, frame, tmp_path, *flags, "--dump-dom")
    found = int(dom.split("<title>measured ")[1].split("<")[0])
    assert found <= width
