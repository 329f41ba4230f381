"""The page of a run: what it shows, what it survives, and that a browser shows all of it."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from aigc_jax.commands import report as command
from aigc_jax.report import page as report
from aigc_jax.report import plots

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROW = {"n": 500, "network": "digits", "reference": "digits train (1501)", "sampler": "ancestral"}
ROW |= {"steps": 100, "weights": "EMA", "seed": 7, "note": "", "error": None}
SECTIONS = ["result", "samples", "generated", "reconstructions", "pictures", "curves", "config"]
SECTIONS += ["environment"]


def picture(path, size=(40, 30)):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def put(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def evaluation(step, value, **more):
    rows = [ROW | {"metric": "fd_digits", "value": value} | more.pop("row", {})]
    return {"step": step, "scheduled": False, "rows": rows} | more


def everything(folder):
    """A run's folder with everything that may lie in one."""
    run = folder / "ddpm_toy"
    base = {"family": "diffusion", "data": {"name": "digits"}, "train": {"steps": 9, "batch": 64}}
    published = [["fd_digits", 3.17, "Someone 2020, table 1"], ["recall", 0.6, "Other 2021"]]
    config = base | {"train": {"steps": 4000, "batch": 64}, "published": published}
    put(run / "config.json", config)
    image = {"kind": "image", "shape": [8, 8, 1], "classes": 0}
    put(run / "spec.json", {"fields": {"x": image}, "conditions": {}, "sizes": {}})
    packages = {"python": "3.11.7", "packages": {"jax": "0.10.2"}, "commit": None}
    sessions = [{"step": s, "time": "2026-11-22", "devices": "8 x cpu"} for s in (0, 1500)]
    origin = {"config": "configs/ddpm_toy.py:v", "command": "python launch.py --config=x"}
    origin |= {"base": base | {"published": published}}
    put(run / "origin.json", origin | {"sessions": [s | packages for s in sessions]})
    rows = [{"step": s, "net/loss": 1000.0 / s**2, "skipped": 0.0} for s in range(10, 4000, 10)]
    rows += [{"step": 2000, "net/norm": None}, {"step": 4000, "test/loss": 0.5, "net/norm": 1.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(100, 4001, 100):
        picture(run / f"samples/{step:08d}.png")
    picture(run / "reconstructions/00003000.png")
    picture(run / "reconstructions/00004000.png")
    put(run / "reconstructions/00004000.json", {"caption": "noised, reconstructed"})
    for name in "abcd":
        picture(run / f"generated/{name}.png")
    picture(run / "evaluations/near.png", size=(500, 60))
    near = {"sample, nearest": "evaluations/near.png"}
    more = {"error": 0.123, "real": 0.56789}
    put(run / "evaluations/a.json", evaluation(4000, 3.21456, pictures=near, row=more))
    put(run / "evaluations/b.json", evaluation(2000, 9.87654))
    for step in (1000, 2000):
        row = {"n": 250}
        put(run / f"evaluations/{step}.json", evaluation(step, 55.5, scheduled=True, row=row))
    return run


@pytest.fixture
def run(tmp_path):
    """A folder with everything, to be changed and damaged."""
    return everything(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(a folder with everything, its page); read only."""
    run = everything(tmp_path_factory.mktemp("whole"))
    return run, report.write(run).read_text()


def text(page):
    """What a reader sees of a piece of HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def section(page, name):
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


def plot_of(page, title):
    """The figure with this title."""
    figures = re.findall(r"<figure><figcaption><b>.*?</figure>", page, re.DOTALL)
    (figure,) = [figure for figure in figures if f"<b>{title}</b>" in figure]
    return figure


def test_everything_in_the_folder_is_shown_in_order(whole):
    run, page = whole
    assert (run / "report.html").read_text() == page
    assert re.findall(r'<section id="(\w+)">', page) == SECTIONS
    assert "<h1>ddpm_toy</h1>" in page
    assert "diffusion · digits 8×8×1 · step 4,000 of 4,000" in page
    assert "Could not be read" not in page
    assert "went back" not in page
    assert not list(run.glob("*.partial"))
    steps = re.findall(r"samples at step (\d+)", section(page, "samples"))
    assert len(steps) == report.MOST_SAMPLES
    assert steps[0] == "4000"  # the newest is shown large, above the rest
    assert steps[1] == "100"
    assert section(page, "generated").count("<img") == report.MOST_GENERATED
    assert "Step 4,000: noised, reconstructed" in text(section(page, "reconstructions"))
    assert "sample, nearest" in text(section(page, "pictures"))
    settings = text(section(page, "config").split("<details>")[0])
    assert settings.endswith("setting default this run train.steps 9 4000")
    environment = text(section(page, "environment"))
    assert "1,500 2026-11-22 8 x cpu — — 3.11.7 — as before" in environment


def test_what_is_published_stands_beside_what_was_measured(whole):
    result = section(whole[1], "result")
    newest, earlier = (text(part) for part in result.split("<details>"))
    protocol = "500 digits digits train (1501) ancestral 100 EMA 7"
    assert f"fd_digits 3.215 ± 0.12 0.5679 3.17 Someone 2020, table 1 {protocol}" in newest
    assert "recall not measured — 0.6 Other 2021" in newest
    assert "images feature network reference sampler sampling steps weights seed" in newest
    assert "note" not in newest.split()  # a column that says nothing is left out
    assert f"fd_digits 9.877 — 3.17 Someone 2020, table 1 {protocol}" in earlier
    assert "55.5" not in result  # made while training: a curve


def test_curves_are_grouped_marked_and_scaled(whole):
    _, page = whole
    loss, norm = plot_of(page, "loss"), plot_of(page, "norm")
    assert text(loss.split("<svg")[0]) == "loss net/loss test/loss"
    assert "× not finite" in norm
    assert "× not finite" not in loss
    assert "0.001" in text(loss.split("<svg")[1])  # a tick of a log scale only
    assert "images: 250" in plot_of(page, "fd_digits")
    assert "Constant: skipped is 0." in page
    assert plots.INK not in page
    assert "currentColor" in loss


def test_evaluations_of_one_metric_are_told_apart(run):
    named = ROW | {"metric": "fd_digits", "value": 7.0, "evaluation": "fid_ddim"}
    usual = ROW | {"metric": "fd_digits", "value": 5.0, "evaluation": ""}
    content = {"step": 4000, "scheduled": False, "rows": [usual, named]}
    put(run / "evaluations/a.json", content)
    put(run / "evaluations/2000.json", content | {"step": 2000, "scheduled": True})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2000, "eval/fid_ddim/fd_digits": 7.0}) + "\n")
    page = report.write(run).read_text()
    result = text(section(page, "result"))
    assert "fd_digits 5 — 3.17 Someone 2020, table 1" in result
    assert "fid_ddim/fd_digits 7 — —" in result  # what is published is of the usual protocol
    assert plot_of(page, "fid_ddim/fd_digits")
    assert "eval/fid_ddim" not in page  # the same scores, logged without their protocol


def test_what_was_left_out_has_no_value_and_says_why(run):
    lacks = {"metric": "kid", "n": 0, "note": "needs at least 2 samples, not 1"}
    put(run / "evaluations/a.json", evaluation(4000, None, row=lacks))
    (row,) = report.contents(run)["result"]["rows"]
    assert (row["metric"], row["value"]) == ("kid", "—")
    assert lacks["note"] in row["cells"]


def test_points_have_no_size_to_show(run):
    points = {"kind": "points", "shape": [2], "classes": 0}
    put(run / "spec.json", {"fields": {"x": points}, "conditions": {}, "sizes": {}})
    assert "diffusion · digits points · step" in report.write(run).read_text()


def test_a_long_curve_keeps_its_ends_and_extremes():
    values = np.sin(np.arange(100_000.0))
    values[[33_333, 77_777]] = -50, 50
    kept = plots.thin(values)
    assert plots.MOST_POINTS / 2 < len(kept) <= plots.MOST_POINTS + 2
    assert {0, 33_333, 77_777, 99_999} <= set(kept)
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3.21456, "3.215"), (1234.56, "1235"), (123_456, "123,500"), (1e-9, "1e-09"), (None, None)],
)
def test_numbers_have_four_digits(run, value, shown):
    put(run / "evaluations/a.json", evaluation(4000, value))
    result = section(report.write(run).read_text(), "result")
    assert f"<b>{shown or 'not finite'}</b>" in result


def test_a_plan_is_shown_and_a_damaged_one_told_of(run):
    (run / "metrics.jsonl").unlink()  # plots take seconds
    shutil.rmtree(run / "evaluations")
    rows = [["a step: at the peaks", "12 ms, bound by memory"]]
    put(run / "plan.json", {"plans": [{"topology": "v5e:4x4", "chips": 16, "rows": rows}]})
    page = report.write(run).read_text()
    shown = text(section(page, "plan"))
    assert "v5e:4x4, 16 chips" in shown
    assert "a step: at the peaks" in shown
    assert "12 ms, bound by memory" in shown
    put(run / "plan.json", {"plans": [{"topology": "v5e:4x4"}]})
    page = report.write(run).read_text()
    assert '<section id="plan">' not in page
    assert "plan.json: damaged" in page


def test_a_run_that_only_began_says_what_comes_next(run):
    for child in list(run.iterdir()):
        if child.name != "config.json":
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    page = report.write(run).read_text()
    assert re.findall(r'<section id="(\w+)">', page) == ["result", "config"]
    assert f"python launch.py --mode=evaluate --workdir={run}" in page
    assert "3.17 Someone 2020, table 1" in text(page)
    assert "<img" not in page


def test_nothing_of_a_file_is_taken_for_html(run):
    bad = "<script>alert(1)</script>&amp;"
    origin = json.loads((run / "origin.json").read_text())
    session = origin["sessions"][0] | {"devices": bad, "packages": {bad: bad}}
    put(run / "origin.json", origin | {"command": f"python {bad}", "sessions": [session]})
    put(run / "config.json", {"family": bad, bad: bad, "published": [["fd_digits", bad, bad]]})
    put(run / "reconstructions/00004000.json", {"caption": bad})
    pictures = {bad: "evaluations/near.png"}
    rows = {"metric": bad, "note": bad, "sampler": bad}
    put(run / "evaluations/a.json", evaluation(4000, 1.0, pictures=pictures, row=rows))
    put(run / "evaluations/1000.json", evaluation(1000, 1.0, scheduled=True, row=rows))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, bad: 1.0, "$x_$": 2.0}))
    (run / "generated/d.png").rename(run / "generated" / "<script>.png")
    page = report.write(run).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 15
    assert "$x_$" in page  # no formula either


def test_damaged_files_are_told_of_and_passed_over(run, whole):
    _, pristine = whole
    for name in ("spec.json", "origin.json", "evaluations/a.json"):
        (run / name).write_text((run / name).read_text()[:-9])
    put(run / "evaluations/b.json", evaluation(2000, "much"))
    put(run / "evaluations/1000.json", [1, 2])
    near = {"nearest": "../secret.png", "gone": "evaluations/gone.png"}
    put(run / "evaluations/c.json", evaluation(3000, 7.5, pictures=near))
    picture(run.parent / "secret.png")
    last = run / "samples/00004000.png"
    last.write_bytes(last.read_bytes()[:1500])
    (run / "reconstructions/00004000.png").write_bytes(b"<svg/>")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4010, "net/lo')
    page = report.write(run).read_text()
    told = re.search(r'class="warn">(.*?)</div>', page, re.DOTALL)[1]
    for name in (
        *("spec.json", "origin.json", "evaluations/a.json", "evaluations/b.json"),
        *("evaluations/1000.json", "samples/00004000.png", "reconstructions/00004000.png"),
        *("metrics.jsonl: 1 line", "../secret.png", "evaluations/gone.png"),
    ):
        assert name in told
    assert told.count("<li>") == 10
    assert str(run) not in told
    assert "fd_digits 7.5 — 3.17" in text(section(page, "result"))
    assert "samples at step 3900" in page
    assert section(page, "samples").count("<img") == report.MOST_SAMPLES
    assert "reconstructions at step 3000" in page
    assert plot_of(page, "loss") == plot_of(pristine, "loss")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "origin.json"])
def test_no_cut_breaks_the_page(run, name):
    whole = (run / name).read_bytes()
    for child in list(run.iterdir()):
        if child.name not in ("config.json", name):
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    for length in np.linspace(0, len(whole) - 1, 8).astype(int):
        (run / name).write_bytes(whole[:length])
        assert "</html>" in report.write(run).read_text()


def test_the_same_folder_gives_the_same_bytes(run, tmp_path, monkeypatch):
    (run / "generated/d.png").write_text("not a picture")
    first = report.write(run).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert report.write(run).read_bytes() == first
    assert report.write(shutil.move(run, tmp_path / "b" / run.name)).read_bytes() == first


def test_the_page_refers_to_nothing_outside_and_no_id_stands_twice(whole):
    _, page = whole
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page  # a browser would refuse anything else
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_the_page_names_classes_and_what_a_run_that_went_back_changed(run, tmp_path):
    spec = json.loads((run / "spec.json").read_text())
    names = ["a", "b<", "c", "d", "e", "f", "g"]
    label = {"kind": "label", "shape": [], "classes": 1234, "names": names}
    put(run / "spec.json", spec | {"conditions": {"label": label}})
    origin = json.loads((run / "origin.json").read_text())
    back = origin["sessions"][1] | {
        "from_step": 1500,
        "changes": ["seed: 0 -> 1", "ema.ramp: 0 -> 1"],
    }
    put(run / "origin.json", origin | {"sessions": [*origin["sessions"], back]})
    page = report.write(run).read_text()
    assert "digits 8×8×1 · 1,234 classes: a, b&lt;, c, d, e, f, ... · step" in page
    told = text(section(page, "environment"))
    assert "packages went back" in told
    assert told.endswith("as before back to step 1,500: seed: 0 -&gt; 1; ema.ramp: 0 -&gt; 1")
    put(run / "spec.json", spec | {"conditions": {"label": {"classes": 3}}})
    assert "· 3 classes · step" in report.write(run).read_text()


def test_a_folder_is_a_run_by_its_spec_as_for_every_command(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no run in .*: train first, or name its folder"):
        command.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "config.json").rename(tmp_path / "spec.json")
    assert command.run(tmp_path).is_file()


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, monkeypatch):
    before = report.write(run).read_bytes()
    (run / "spec.json").unlink()

    def full(self, content):
        self.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(report.pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.partial"))


def test_a_browser_shows_every_picture_and_scrolls_only_down(run, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} on PATH")
    origin = json.loads((run / "origin.json").read_text())
    put(run / "origin.json", origin | {"command": "python launch.py --x=" + "long" * 99})
    page = report.write(run).read_text()
    page = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (tmp_path / "page.html").write_text(
        page
        + """<script>onload = () => {
          const shown = image => image.naturalWidth > 0 && image.clientWidth > 0
          const images = [...document.images], root = document.documentElement
          const plots = [...document.querySelectorAll("svg")].filter(svg => svg.clientWidth > 200)
          parent.postMessage([innerWidth, root.scrollWidth - root.clientWidth,
                              images.filter(shown).length, plots.length].join(" "), "*")
        }</script>"""
    )
    frames = [f'<iframe src="page.html" width={w} height=900></iframe>' for w in (1280, 400)]
    (tmp_path / "frames.html").write_text(
        "<p></p><script>onmessage = e => document.querySelector('p').append(e.data + ';')</script>"
        + "".join(frames)
    )
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-component-update"
    quiet += " disable-background-networking disable-sync dump-dom virtual-time-budget=5000"
    flags = [f"--{flag}" for flag in quiet.split()] + [f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *flags, (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    said = re.search(r"<p>(.*?)</p>", done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    seen = sorted(tuple(map(int, line.split())) for line in said[1].strip(";").split(";"))
    images, plots = page.count("<img"), page.count("<svg")
    assert seen == [(400, 0, images, plots), (1280, 0, images, plots)]
