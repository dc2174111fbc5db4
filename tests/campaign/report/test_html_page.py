"""The page and the figures: whole without a network, read and clicked in a browser at two widths, closed to hostile names."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from reported_campaigns import campaign, singles, sweep
from tiny_campaigns import mlp, ran, samples

from onnxfi.campaign.report.differences import NOTHING_SHARED
from onnxfi.campaign.report.html_page import LIBRARIES, harmful, page, recipes, write_page
from onnxfi.campaign.report.report import report
from onnxfi.campaign.report.tables import (
    comparison_rows,
    layer_bit_cells,
    report_labels,
    write_csv_of_all,
    write_latex,
)
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.spec_file import command_line, parse_spec
from onnxfi.errors import OutputError

pytest.importorskip("jinja2", reason="pages need the extra report")
pytest.importorskip("matplotlib", reason="figures need the extra report")
from onnxfi.campaign.report.figures import figures, write_figures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
SVG = "{http://www.w3.org/2000/svg}"


class Tags(HTMLParser):
    """Tags of a page with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# What it says


def test_the_page_needs_nothing_else_and_shows_everything(here: Path) -> None:
    found = singles(here)
    text = page([found])
    for tag, attributes in Tags(text).found:
        assert tag not in ("iframe", "object", "embed", "base", "form") or (
            tag == "form" and "action" not in attributes
        )
        for name in ("src", "href"):
            assert re.match("data:|#", attributes.get(name) or "#"), attributes
    shown = text[: text.index('<script type="text/plain"')]
    assert "http" not in re.sub(r"http-equiv|data:image\S+", "", shown)
    read = html.unescape(re.sub("</?span[^>]*>", "", shown))
    assert read.count(command_line(campaign(single=True, margin=0.2), "s.db")) == 1
    with Store.open(here / "s.db") as opened:
        assert opened.get("campaign") in shown
        for value in opened.get("environment").values():
            assert html.escape(value) in shown
    for fold in (*found.by_layer, *(fold for fold in found.by_bit if fold.trials)):
        assert f">{fold.key}</td>" in shown
    [worst, *_] = harmful(found)
    for word in (worst.rows[0]["before"], worst.rows[0]["after"], str(worst.trial)):
        assert word in shown
    assert "<h1>m</h1>" in shown, "the title is the model's"
    first = re.search(r'<ul class="lead"><li>(.*?)</li>', shown)
    assert first and ("one answer in" in first[1] or "Too few trials" in first[1]), "the verdict comes first"


@pytest.mark.parametrize("data", ["d.npz", None])
def test_sentences_have_a_space_between_them(here: Path, data: str | None) -> None:
    mlp(here)
    samples(here)
    ran(campaign(data=data, single=True, trials=6), here / "s.db")
    text = page([report(here / "s.db")])
    shown = html.unescape(re.sub("</?(span|code|b)[^>]*>", "", text[: text.index('<script type="text/plain"')]))
    assert not re.findall(r"[a-z%][.:;][A-Z][a-z]+ .*", re.sub(r"<style.*?</style>", "", shown, flags=re.S))


def test_scripts_and_styles_are_those_that_the_policy_names(here: Path) -> None:
    text = page([singles(here)])
    [policy] = [str(a["content"]) for tag, a in Tags(text).found if tag == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == len(LIBRARIES) + 1 and text.count("<style>") == 1
    for body in (*scripts, *re.findall(r"<style>(.*?)</style>", text, re.S)):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not [a for _, a in Tags(text).found if "style" in a], "the policy forbids styles of elements"


def data_of(text: str) -> Any:
    [packed] = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', text, re.S)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_a_page_stays_below_its_size_and_says_what_it_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = singles(here)
    whole = page([found])
    [data] = data_of(whole)
    assert len(data["trials"]["columns"]["trial"]) == found.everything.trials
    most = len(whole.encode()) - 400
    monkeypatch.setattr("onnxfi.campaign.report.html_page.MOST_BYTES", most)
    monkeypatch.setattr("onnxfi.campaign.report.html_page.MOST_TRIALS", found.everything.trials)
    small = page([found])
    assert len(small.encode()) <= most
    [fewer] = data_of(small)
    kept = fewer["trials"]["columns"]["trial"]
    assert 0 < len(kept) < found.everything.trials == fewer["trials"]["all"]
    assert kept == data["trials"]["columns"]["trial"][: len(kept)], "the most harmful stay"


def test_the_most_harmful_are_the_most_harmful(here: Path) -> None:
    single = singles(here)
    with Store.open(here / "s.db") as opened:
        rows = [row for row in opened.rows() if row.outcome == "due" or row.metrics["sdc1"] > 0]
        best = sorted((row.metrics["sdc1"] for row in rows), reverse=True)[:20]
        found = harmful(single)
        assert [harm.values[0] for harm in found] == best
        for harm in found:
            assert [row["trial"] for row in harm.rows] == [harm.trial] and harm.faults == 1
    for harm in harmful(sweep(here)):
        assert harm.ber in (1e-4, 1e-3, 1e-2) and len(harm.rows) == min(3, harm.faults)


def test_trials_kept_as_a_recipe_do_not_fill_the_list(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.faults.faultlist.MAX_LINES", 2)
    monkeypatch.setattr("onnxfi.campaign.report.html_page.MAX_LINES", 2)
    found = sweep(here)
    left_out = recipes(found)
    assert left_out and all(harm.rows and harm.faults <= 2 for harm in harmful(found))
    text = page([found])
    assert f"{left_out} trials" in text and "the store keeps the recipe" in text and "kept as a recipe</td>" not in text


def test_cells_are_means_of_their_trials(here: Path) -> None:
    singles(here)
    with Store.open(here / "s.db") as opened:
        rows = list(opened.rows())
    found = layer_bit_cells(here / "s.db")
    assert sum(cell.trials for cell in found) == len(rows)
    for cell in found:
        mine = [row.metrics["sdc1"] for row in rows if (row.layer, row.bit) == (cell.layer, cell.bit)]
        assert cell.trials == len(mine) and cell.means["sdc1"] == pytest.approx(sum(mine) / len(mine))
    sweep(here)
    assert layer_bit_cells(here / "sweep.db") == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"single": True, "margin": 0.02, "per": "layer", "confidence": 0.9, "seed": 3},
        {"ber": (1e-7, 0.3), "repeat": 2, "include": ("conv 1", "re:$x"), "due": ("error", "crash"), "samples": 9},
        {"exhaustive": True, "bits": "0-3", "allow_links": True, "tolerance": 0.5, "model": "it's.onnx"},
        {"mix": ({"fault": "stuck-at-1", "count": 2, "include": ("a, b", "c: d")}, {"ber": 1e-6}), "repeat": 3},
    ],
)
def test_the_command_gives_the_campaign(here: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from click.testing import CliRunner

    from onnxfi.campaign.spec.spec_file import print_spec
    from onnxfi.cli.commands import group

    wanted = campaign(**fields)
    assert parse_spec(print_spec(wanted)) == wanted
    words = shlex.split(command_line(wanted))
    assert words[:2] == ["onnxfi", "run"]
    done = CliRunner().invoke(group, ["plan", *words[2:], "--print-spec"])
    assert done.exit_code == 0, done.output
    assert parse_spec(done.output) == wanted


# Figures


def test_a_missing_extra_is_reported_before_anything_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = singles(here)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: write_page([found], here / "p.html"), lambda: write_figures([found], here / "f")):
        with pytest.raises(OutputError, match=r"is not installed; pip install 'onnxfi\[report\]'"):
            call()
    assert not (here / "p.html").exists() and not (here / "f").exists()


# Several


def test_several_side_by_side(here: Path) -> None:
    one, other = sweep(here, "a.db"), singles(here, "b.db")
    assert report_labels([one, other]) == ["a", "b"] and report_labels([one, one]) == [str(one.store)] * 2
    lines = comparison_rows([one, other])
    assert [(s.label, s.ber, s.fold.trials) for s in lines] == [
        ("a", "0.0001", 5), ("a", "0.001", 5), ("a", "0.01", 5), ("b", None, other.everything.trials),
    ]  # fmt: skip
    text = page([one, other])
    assert "Side by side" in text and text.count(">Run it again<") == 2 and NOTHING_SHARED in text
    written = write_csv_of_all([one, other], here / "csv")
    assert [file.name for file in written] == [
        "detail.csv", "summary.csv", "rates.csv", "layers.csv", "bits.csv", "classes.csv",
    ]  # fmt: skip
    summary = (here / "csv" / "summary.csv").read_text().splitlines()
    assert summary[0].startswith("store,trials,") and [line.split(",")[0] for line in summary[1:]] == [
        str(here / "a.db"), str(here / "b.db"),
    ]  # fmt: skip


# Hostile names


HOSTILE = ("</script><script>alert(1)</script>", "--><img src=x onerror=alert(2)>", "$\\frac{$", "\x1b[31m\u202eevil\n")


def hostile(here: Path) -> None:
    """A model whose names are markup, TeX and control characters."""
    mlp(here)
    model = onnx.load("m.onnx")
    for node, name in zip(model.graph.node, HOSTILE, strict=False):
        node.name = name
    initializer = model.graph.initializer[0]
    old, initializer.name = initializer.name, '"><svg onload=alert(3)>'
    for node in model.graph.node:
        node.input[:] = [initializer.name if name == old else name for name in node.input]
    onnx.save(model, "m.onnx")


@pytest.mark.slow
def test_hostile_names_stay_text(here: Path) -> None:
    hostile(here)
    found = singles(here)
    text = page([found])
    tags = Tags(text).found
    assert sum(tag == "script" for tag, _ in tags) == len(LIBRARIES) + 2
    assert {a.get("class") for tag, a in tags if tag == "svg"} == {"bar"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    shown = text[: text.index('<script type="text/plain"')] + json.dumps(data_of(text), ensure_ascii=False)
    assert "\x1b" not in shown and "\u202e" not in shown and "alert(1)" in shown
    for file in write_latex(found, here / "tex"):
        kept = file.read_text()
        assert "\x1b" not in kept and "$" not in kept.replace("\\$", "") and "\\frac" not in kept
    for figure in figures([found]):
        if figure.draw is not None:
            root = ET.fromstring(figure.bytes("svg"))
            assert not [1 for element in root.iter() if element.tag.endswith("}script") or element.tag == f"{SVG}img"]


# In a browser


LOOK = """<!doctype html><body>%s<script>
const found = [];
const boxes = (root) => [...root.querySelectorAll("h1,h2,h3,h4,p,li,figure,.tile,.wide,pre,dl,figcaption,img,.chart > svg,select")];
const until = (test) => new Promise((done) => { const go = () => test() ? done() : setTimeout(go, 25); go(); });
const visible = (e) => e.getClientRects().length;
addEventListener("load", async () => { for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement, measured = {width: frame.clientWidth};
  const tries = Date.now();
  await until(() => root.dataset.ready || Date.now() - tries > 3000);
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  measured.overflow = root.scrollWidth - root.clientWidth;
  measured.overlaps = [];
  const all = boxes(page).filter(visible);
  for (const [k, a] of all.entries()) for (const b of all.slice(k + 1)) {
    if (a.contains(b) || b.contains(a)) continue;
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
      measured.overlaps.push(a.textContent.slice(0, 30) + " / " + b.textContent.slice(0, 30));
  }
  measured.broken = [];
  for (let room = 0; room < 160; room += 8) {
    page.body.style.paddingRight = `calc(1rem + ${room}px)`;
    for (const text = page.createTreeWalker(page.body, 4); text.nextNode();) {
      if (text.currentNode.parentElement.closest("script,svg,style")) continue;
      for (const option of text.currentNode.data.matchAll(/(?<![\\w-])--[a-z][a-z-]*/g)) {
        const range = page.createRange();
        range.setStart(text.currentNode, option.index), range.setEnd(text.currentNode, option.index + option[0].length);
        if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) measured.broken.push(option[0]);
      }
    }
  }
  page.body.style.paddingRight = "";
  measured.outside = all.filter((e) => !e.closest(".wide") && e.getBoundingClientRect().right > root.clientWidth + 1).length;
  measured.cut = [...page.querySelectorAll(".harmful")].map((table) => table.parentElement.scrollWidth - table.parentElement.clientWidth);
  measured.charts = [...page.querySelectorAll(".chart > svg")].map((svg) => [svg.getBoundingClientRect().width, svg.querySelectorAll("rect,path,circle,line").length]);
  measured.tables = [...page.querySelectorAll("table.sorts")].map((table) => {
    const column = (k) => [...table.tBodies[0].rows].map((r) => r.cells[k].dataset.v ?? r.cells[k].textContent);
    const heads = [...table.tHead.rows[0].cells], before = column(0);
    const at = heads.findIndex((h) => h.textContent.startsWith("SDC-1") || ["Value", "First"].includes(h.textContent));
    heads[at].querySelector("button").click();
    const up = column(at);
    heads[at].querySelector("button").click();
    return {up, down: column(at), rows: before.length, sort: heads[at].getAttribute("aria-sort")};
  });
  const view = frame.contentWindow, seen = (part) => page.querySelector("#explore-0 ." + part)?.textContent ?? "";
  const steps = measured.steps = [];
  const click = async (element, part) => {
    const before = seen("crumbs"), tries = Date.now();
    if (!element) return steps.push(null);
    if (element instanceof view.SVGElement) element.dispatchEvent(new view.MouseEvent("click", {bubbles: true, cancelable: true}));
    else element.click();
    await until(() => seen("crumbs") !== before || Date.now() - tries > 2000);
    steps.push({crumbs: seen("crumbs"), text: seen(part)});
  };
  const layer = page.querySelector("a.layer[href]");
  if (layer) {
    const links = () => [...page.querySelectorAll("#explore-0 a")], link = (a) => a.getAttribute("href") ?? a.href.baseVal;
    const cells = () => links().filter((a) => a.closest(".bits svg")), press = async (key) => {
      const before = view.location.hash, tries = Date.now(), arrow = key.startsWith("Arrow");
      page.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
      await until(() => arrow || view.location.hash !== before || Date.now() - tries > 2000);
      await new Promise((done) => setTimeout(done, 60));
      return [view.location.hash, link(page.activeElement)];
    };
    measured.stops = layer.tabIndex === 0 && links().every((a) => cells().includes(a) || a.tabIndex === 0);
    await click(layer, "trials");
    measured.charts_stops = cells().filter((a) => a.tabIndex === 0).length;
    cells().find((a) => a.tabIndex === 0).focus();
    measured.arrows = [link(page.activeElement), (await press("ArrowRight"))[1], (await press("ArrowLeft"))[1], (await press("ArrowUp"))[1]];
    await click(page.querySelector("#explore-0 .bits svg a"), "trials");
    await click(page.querySelector("#explore-0 .trials tbody a"), "fault");
    measured.digits = [...page.querySelectorAll("#explore-0 .word")].map((w) => [w.textContent.replaceAll(" ", ""), w.querySelectorAll("mark").length]);
    measured.hash = view.location.hash;
    measured.escapes = [await press("Escape"), await press("Escape"), await press("Escape")];
  }
  found.push(measured);
}
const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
document.body.replaceChildren(out); });
</script></body>"""


def look(folder: Path, *pages: str) -> tuple[list[Any], str]:
    """Open pages at 1,280 and 400 pixels in a browser: what was measured there, and what its console said."""
    frames = "".join(
        f'<iframe src="{p}" width={w} height=900 style="border:0"></iframe>' for p in pages for w in (1280, 400)
    )
    (folder / "look.html").write_text(LOOK % frames, encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run",
        "--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=10000", "--dump-dom", (folder / "look.html").as_uri(),
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match is not None, done.stderr[-2000:]
    return json.loads(html.unescape(match[1])), done.stderr


@pytest.mark.slow
@browser
def test_a_person_would_not_frown(here: Path) -> None:
    """No console error, nothing overlaps or sticks out at 1,280 and at 400 pixels, figures are there, tables sort."""
    model = onnx.load("m.onnx")
    for node in model.graph.node:
        node.name = node.name.replace("fc1", "a_rather_long_name_of_a_module_that_nobody_would_break.fc1")
    onnx.save(model, "m.onnx")
    one, other = singles(here), sweep(here)
    write_page([one], here / "one.html")
    write_page([one, other], here / "two.html")
    found, console = look(here, "one.html", "two.html")
    assert not [line for line in console.splitlines() if "CONSOLE" in line]
    assert [measured["width"] for measured in found] == [1280, 400, 1280, 400]
    for measured in found:
        assert measured["overflow"] <= 0 and measured["outside"] == 0 and measured["overlaps"] == []
        assert measured["width"] == 400 or not any(measured["cut"]), (
            "the words of the most harmful faults are seen whole"
        )
        assert measured["broken"] == [], "no option ends its line behind a hyphen"
        assert measured["charts"] and all(250 < width <= 900 and marks > 3 for width, marks in measured["charts"])
        assert len(measured["tables"]) >= 4
        for table in measured["tables"]:
            values = [float(v) if v else float("-inf") for v in table["up"]]
            assert values == sorted(values) and table["sort"] == "descending" and len(values) == table["rows"] > 0
            assert [float(v) if v else float("-inf") for v in table["down"]] == sorted(values, reverse=True)


@pytest.mark.slow
@browser
def test_a_click_leads_from_a_layer_to_a_fault(here: Path) -> None:
    """Layer, bit, trial, fault: by links, which keys reach too; an address with a fragment opens the same."""
    one = singles(here)
    write_page([one], here / "one.html")
    [wide, narrow], console = look(here, "one.html")
    assert not [line for line in console.splitlines() if "CONSOLE" in line]
    assert wide["hash"] == narrow["hash"] and wide["stops"] and wide["charts_stops"] == 1
    first, right, *left = wide["arrows"]
    bits = [int(re.findall(r"bit=(\d+)", where)[0]) for where in (first, right)]
    assert bits[0] > bits[1] and left == [first, first], "arrows go from bit to bit, and not beyond"
    opened = [wide["hash"], wide["hash"].rpartition("&")[0], wide["hash"].rpartition("&bit")[0]]
    closed = [opened[1], opened[2], "#c=0"]
    assert wide["escapes"] == [*map(list, zip(closed, opened, strict=True))], "Escape leads back to what was opened"
    layer, bit, trial = wide["steps"]
    assert layer["crumbs"].startswith("All layers › ") and bit["crumbs"].startswith(layer["crumbs"] + " › bit ")
    assert f"{one.by_layer[0].trials} trials" in layer["text"]
    number = int(trial["crumbs"].rpartition(" ")[2])
    with Store.open(here / "s.db") as opened:
        planned, row = opened.trial(number), next(row for row in opened.rows() if row.trial == number)
    fault = json.loads(planned["lines"])
    assert planned["layer"] in layer["crumbs"] and bit["crumbs"].endswith(f"bit {planned['bit']}")
    for said in (fault["before"], fault["after"], f"{fault['target']}[{fault['index']}]", row.outcome.upper()):
        assert said in trial["text"] or said.lower() in trial["text"]
    (before, marks), (after, _) = wide["digits"]
    assert int(before, 2) == int(fault["before"], 16) and int(after, 2) == int(fault["after"], 16) and marks == 1
    changed = round(row.metrics["sdc1"] * 12)
    assert (f"{changed} of 12 answers changed silently" if changed else "No answer changed silently") in trial["text"]
    (here / "again.html").write_text((here / "one.html").read_text())
    found, _ = look(here, f"again.html{wide['hash']}")
    assert found[0]["hash"] == wide["hash"]


@pytest.mark.slow
@browser
def test_hostile_names_stay_text_in_a_browser(here: Path) -> None:
    hostile(here)
    write_page([singles(here)], here / "bad.html")
    found, console = look(here, "bad.html")
    assert not [line for line in console.splitlines() if "CONSOLE" in line]
    assert all(step is not None for step in found[0]["steps"]) and "<script>" in found[0]["steps"][0]["crumbs"]


@pytest.mark.slow
@browser
@pytest.mark.skipif(sys.platform == "win32", reason="names of files")
def test_the_look_sees_what_is_wrong(here: Path) -> None:
    (here / "bad.html").write_text(
        '<body><h1 style="width:5000px">wide</h1><p style="margin-top:-2em">over</p><p style="width:1em">take --repeat-at-last 9</p><script>nothing()</script></body>'
    )
    found, console = look(here, "bad.html")
    assert all(measured["overflow"] > 0 and measured["overlaps"] and measured["broken"] for measured in found)
    assert "nothing is not defined" in console
