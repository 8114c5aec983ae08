"""The report as a person uses it: in a browser, on a desk, on a phone, on paper; nothing is asked of any other machine."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading

import pytest
import small

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=5000"
).split()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    small.write_plan(folder, small.lines(num_tasks=2, steps_per_task=20))
    done = small.snakemake(folder, "reports/laptop/index.html")
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def page(suite):
    return suite / "reports" / "laptop" / "index.html"


def in_browser(browser, page, tmp_path, *more):
    words = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def asked(browser, page, tmp_path, script, *more):
    """What a script returns when it runs at the end of a copy of the page, beside it."""
    told = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify((() => {%s})()); });</script></body>"
    )
    copy = page.with_name("asked.html")
    copy.write_text(page.read_text().replace("</body>", told % script))
    dom = in_browser(browser, copy, tmp_path, "--dump-dom", *more)
    copy.unlink()
    title = re.search(r"<title>(.*?)</title>", dom, re.S)[1]
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        title = title.replace(entity, character)
    return json.loads(title)


def test_the_page_opens_offline_with_every_claim_and_a_figure_for_each_exhibit(browser, page, tmp_path):
    from nap_bench.experiments import EXPERIMENTS

    dom = in_browser(browser, page, tmp_path, "--dump-dom")
    for name in ("arms", "fig1_dead_units"):
        assert EXPERIMENTS[name].TITLE in dom
        for claim in EXPERIMENTS[name].CLAIMS:
            assert f'id="claim.{name}.{claim.id}"' in dom
        assert f'id="figure.{name}"' in dom
    assert dom.count('<tr id="paper.') == 21


def test_every_figure_is_drawn_and_every_link_leads_somewhere(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const size = e => { const b = e.getBoundingClientRect(); return [Math.round(b.width), Math.round(b.height)]; };
        for (const d of document.querySelectorAll('details')) d.open = true;
        const links = [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'));
        const uses = [...document.querySelectorAll('use')].map(u => u.getAttribute('href').slice(1));
        return {figures: [...document.querySelectorAll('.figure > svg')].map(size),
                drawn: [...document.querySelectorAll('.figure > svg')].map(s => s.querySelectorAll('path, use').length),
                dead: links.filter(l => l.startsWith('#') && !document.getElementById(decodeURIComponent(l.slice(1)))),
                unused: uses.filter(id => !document.getElementById(id)),
                files: links.filter(l => !l.startsWith('#') && !l.startsWith('https:')),
                away: [...new Set(links.filter(l => l.startsWith('http')))]};
        """,
        "--window-size=1400,1000",
    )
    assert len(found["figures"]) >= 2
    assert all(width > 600 and height > 150 for width, height in found["figures"])
    assert all(number > 20 for number in found["drawn"])
    assert found["dead"] == found["unused"] == []
    assert found["away"] == ["https://arxiv.org/abs/2407.01800"]
    assert len(found["files"]) > 20 and all((page.parent / name).is_file() for name in found["files"])


def test_no_request_leaves_the_page(browser, page, tmp_path):
    """Served from a folder with everything beside it, the browser asks for the page and for nothing else, whatever is clicked."""
    asked_for = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(page.parent))

        def log_message(self, *arguments):
            asked_for.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        clicked = page.with_name("clicked.html")
        script = "addEventListener('load', () => { for (const b of document.querySelectorAll('button')) b.click(); });"
        clicked.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        words = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        # every other host is an error of the browser's own resolver, which the page could not hide
        words += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        words.append(f"http://127.0.0.1:{server.server_port}/clicked.html")
        subprocess.run(words, capture_output=True, check=True, timeout=120)
        server.shutdown()
        clicked.unlink()
    assert [path for path in asked_for if path != "/favicon.ico"] == ["/clicked.html"]


def test_tables_sort_by_number_and_by_word_and_back(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const table = document.getElementById('table.own'), heads = [...table.tHead.rows[0].cells];
        const column = at => [...table.tBodies[0].rows].map(r => r.cells[at].dataset.v ?? r.cells[at].textContent.trim());
        const click = at => heads[at].querySelector('button').click();
        const before = column(1);
        click(0); const up = column(0), state = heads[0].getAttribute('aria-sort');
        click(0); const down = column(0), turned = heads[0].getAttribute('aria-sort');
        click(1); const words = column(1);
        const long = t => t.tHead.textContent.includes('IQM') && t.tBodies[0].rows.length > 3;
        const numbers = [...document.querySelectorAll('table.data')].find(long);
        const mean = [...numbers.tHead.rows[0].cells].findIndex(c => c.textContent.trim().startsWith('mean'));
        numbers.tHead.rows[0].cells[mean].querySelector('button').click();
        const means = [...numbers.tBodies[0].rows].map(r => parseFloat(r.cells[mean].textContent));
        return {before, up, down, words, state, turned, left: heads[0].getAttribute('aria-sort'), means};
        """,
    )
    assert found["up"] == sorted(found["up"], key=int) and found["down"] == found["up"][::-1] != found["up"]
    assert (found["state"], found["turned"], found["left"]) == ("ascending", "descending", None)
    assert sorted(found["before"]) == sorted(found["words"])
    assert [w.lower() for w in found["words"]] == sorted(w.lower() for w in found["words"])
    assert found["means"] == sorted(found["means"]) and len(set(found["means"])) > 1


def test_tables_are_filtered_by_words_and_by_verdict_and_say_how_many_rows_are_left(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const table = document.getElementById('table.verdicts'), region = table.closest('.scroll');
        const tools = region.previousElementSibling, field = tools.querySelector('input');
        const shown = () => [...table.tBodies[0].rows].filter(r => r.getBoundingClientRect().height).map(r => r.id);
        const all = shown();
        field.value = 'rainbow linear'; field.dispatchEvent(new Event('input'));
        const words = shown(), said = tools.querySelector('.count').textContent;
        field.value = ''; field.dispatchEvent(new Event('input'));
        const chip = document.querySelector('.chips button[data-verdict="NOT RUN"]'); chip.click();
        const run = shown(), pressed = chip.getAttribute('aria-pressed'); chip.click();
        const not_run = table.querySelectorAll('tr[data-verdict="NOT RUN"]').length;
        return {all, words, said, run, pressed, again: shown(), not_run};
        """,
    )
    assert found["all"] == found["again"] == [f"paper.{i}" for i in range(1, 22)]
    assert found["words"] == ["paper.8", "paper.13"] and found["said"] == "2 of 21 rows"
    assert found["pressed"] == "false" and len(found["run"]) == 21 - found["not_run"] < 21


def test_a_legend_hides_and_shows_its_arms_alone_and_all(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const figure = document.getElementById('figure.arms'), legend = document.querySelector('[data-for="figure.arms"]');
        const button = legend.querySelector('[data-key="nap"]');
        const wide = e => e.getBoundingClientRect().width > 0;
        const shown = key => [...figure.querySelectorAll(`[data-arm="${key}"]`)].filter(wide).length;
        const before = [shown('nap'), shown('baseline')];
        button.click(); const off = [shown('nap'), shown('baseline'), button.getAttribute('aria-pressed')];
        button.click(); const on = [shown('nap'), shown('baseline')];
        button.dispatchEvent(new MouseEvent('dblclick', {bubbles: true})); const alone = [shown('nap'), shown('baseline')];
        button.dispatchEvent(new MouseEvent('dblclick', {bubbles: true}));
        const names = [...legend.querySelectorAll('button')].map(b => b.textContent);
        return {before, off, on, alone, all: [shown('nap'), shown('baseline')], names};
        """,
        "--window-size=1400,1000",
    )
    assert min(found["before"]) > 3 and found["off"] == [0, found["before"][1], "false"]
    assert found["on"] == found["all"] == found["before"] and found["alone"] == [found["before"][0], 0]
    assert {"NaP", "baseline", "norm only"} <= set(found["names"])


def test_the_pointer_is_told_what_it_is_on_and_any_run_s_rates_can_be_chosen(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const drawn = document.querySelector('#figure\\\\.arms [data-arm="nap"] > *:not(title)');
        drawn.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
        const tip = document.getElementById('tip'), told = [tip.hidden, tip.textContent];
        document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}));
        const run = document.getElementById('rates.run'), lines = () => document.querySelectorAll('#rates\\\\.rate .layer').length;
        const first = [lines(), document.getElementById('rates.rate').innerHTML];
        run.selectedIndex = run.options.length - 1; run.dispatchEvent(new Event('change'));
        return {told, gone: tip.hidden, options: run.options.length, first: first[0], last: lines(),
                changed: first[1] !== document.getElementById('rates.rate').innerHTML,
                command: document.getElementById('rates.command').textContent,
                name: document.getElementById('rates.rate').getAttribute('aria-label')};
        """,
    )
    assert found["told"][0] is False and found["told"][1].startswith("NaP") and found["gone"] is True
    assert found["options"] >= 2 and min(found["first"], found["last"]) >= 3 and found["changed"]
    assert "nap-bench run random_labels" in found["command"] and found["name"].startswith("Set rate \u00d7")


def test_everything_can_be_reached_by_keyboard_and_is_named_for_a_screen_reader(browser, page, tmp_path):
    found = asked(
        browser,
        page,
        tmp_path,
        """
        const name = e => (e.getAttribute('aria-label') || e.textContent || e.title || '').trim();
        const all = what => [...document.querySelectorAll(what)];
        const named = 'button, a[href], select, summary, [role="region"], [role="img"], [role="group"]';
        const nameless = all(named).filter(e => !name(e) && !e.labels?.length).map(e => e.outerHTML.slice(0, 120));
        return {nameless,
                unreachable: all('.scroll, .figure').filter(e => e.tabIndex !== 0).length,
                skipped: all('button, a[href], select, summary').filter(e => e.tabIndex < 0).length,
                language: document.documentElement.lang, mains: all('main').length, first: all('h1').length,
                headless: all('table').filter(t => !t.tHead).length, skip: all('a.skip').length,
                levels: all('h1, h2, h3, h4').map(h => +h.tagName[1])};
        """,
    )
    assert found["nameless"] == [] and found["unreachable"] == found["skipped"] == found["headless"] == 0
    assert (found["language"], found["mains"], found["first"], found["skip"]) == ("en", 1, 1, 1)
    assert all(b <= a + 1 for a, b in zip(found["levels"], found["levels"][1:], strict=False))


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


def test_dark_and_light_differ_and_text_can_be_read_in_both(browser, page, tmp_path):
    script = """
        const part = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
        const weights = [0.2126, 0.7152, 0.0722];
        const light = s => s.match(/[\\d.]+/g).map(Number).slice(0, 3).reduce((sum, c, i) => sum + weights[i] * part(c), 0);
        const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
        const ground = e => {
          const own = e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)';
          return /, 0\\)$/.test(own) ? ground(e.parentElement) : own;
        };
        const against = e => Math.round(10 * ratio(getComputedStyle(e).color, ground(e))) / 10;
        const text = 'h1, h2, p, td, th, .badge, .tile b, .meta, .n, .mini, summary, a, .legend button';
        const low = [...document.querySelectorAll(text)]
          .filter(e => e.textContent.trim() && e.getBoundingClientRect().width && !e.closest('.heat'))
          .map(e => [against(e), e.outerHTML.slice(0, 80)]).filter(([r]) => r < 4.5);
        return {body: getComputedStyle(document.body).backgroundColor, low: low.slice(0, 5)};
    """
    seen = [asked(browser, page, tmp_path, script, f"--blink-settings=preferredColorScheme={n}") for n in (1, 0)]
    assert [found["body"] for found in seen] == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    assert [found["low"] for found in seen] == [[], []]


def test_on_paper_there_are_verdicts_and_figures_and_no_tools(browser, page, tmp_path):
    paper = tmp_path / "page.pdf"
    in_browser(browser, page, tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 100_000
    style = page.read_text().split("@media print {", 1)[1]
    assert ".side, .skip, .chips, .tools, .explorer" in style.split("display: none")[0]


def test_what_is_folded_is_printed_but_for_long_lists(browser, page, tmp_path):
    script = """
        const folded = [...document.querySelectorAll('details')].filter(d => !d.open);
        dispatchEvent(new Event('beforeprint')); const open = folded.filter(d => d.open).length;
        dispatchEvent(new Event('afterprint')); return [folded.length, open, folded.filter(d => d.open).length];
    """
    folded, opened, left = asked(browser, page, tmp_path, script)
    assert 3 < opened <= folded and left == 0


def test_snakemake_s_own_report_holds_the_figures_and_the_page(suite):
    words, settings = small.command(suite, "reports/laptop/index.html")
    at = words.index("--")
    words[at:at] = ["--report", "snakemake.html"]
    done = subprocess.run(words, **settings, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    text = (suite / "snakemake.html").read_text()
    for name in ("arms.svg", "fig1_dead_units.svg", "index.html"):
        assert name in text
    assert "Figures" in text and "each thin line a seed" in text
