"""Rows as a table and as JSON."""

import json

import pytest

from aigc_jax.evaluation import results
from aigc_jax.evaluation.results import Row

ROWS = [
    Row("fid", 12.345678, 500, 0.25, 3.0, "inception", "cifar10 train (50000)", "ddim", 50,
        "EMA", 0, "biased"),
    Row("loss", float("nan"), 10, reference="cifar10 test"),
]  # fmt: skip
NAMED = Row("fid", 8.5, 500, network="inception", sampler="ddim", steps=10, evaluation="fid_10")


def test_a_table_shows_each_value_beside_what_was_published():
    published = [("fid", 3.17, "Ho et al."), ("fid", 9.17, "Song et al."), ("other", 1.0, "x")]
    text = results.table(ROWS, published)
    header, fid, loss, *sources = text.splitlines()
    for word in ("12.35 ± 0.25", "3.17 / 9.17", "cifar10 train (50000)", "ddim, 50 steps, EMA"):
        assert word in fid
    assert fid.index("inception") == header.index("network")
    assert "nan" in loss
    assert sources == ["published: fid 3.17: Ho et al.", "published: fid 9.17: Song et al."]
    assert "published" not in results.table(ROWS)
    assert "evaluation" not in header  # a column that says nothing is left out


def test_what_was_left_out_has_no_value_and_says_why():
    text = results.table([Row("kid", float("nan"), 0, note="needs at least 2 samples, not 1")])
    (line,) = text.splitlines()[1:]
    assert line.split()[:3] == ["kid", "—", "0"]
    assert "(needs at least 2 samples, not 1)" in line
    assert "nan" not in text


def test_evaluations_of_one_metric_are_told_apart():
    assert (ROWS[0].key, NAMED.key) == ("fid", "fid_10/fid")
    published = [("fid", 3.17, "1,000 steps"), ("fid_10/fid", 13.36, "10 steps")]
    header, fid, _, named, *sources = results.table([*ROWS, NAMED], published).splitlines()
    assert header.startswith("evaluation  metric")
    assert "3.17" in fid
    assert "13.36" not in fid
    assert named.startswith("fid_10")
    assert "13.36" in named
    assert sources == ["published: fid 3.17: 1,000 steps", "published: fid_10/fid 13.36: 10 steps"]


def test_results_are_json_that_any_reader_takes(tmp_path):
    path = tmp_path / "evaluations" / "x.json"
    shown = {"caption": "evaluations/x.png"}
    results.write(path, [*ROWS, NAMED], step=7, scheduled=True, pictures=shown)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["step"] == 7
    assert content["scheduled"]
    assert content["pictures"] == shown
    assert content["rows"][1]["value"] is None
    assert Row(**content["rows"][0]) == ROWS[0]
    assert Row(**content["rows"][2]) == NAMED
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
