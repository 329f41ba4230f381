"""What docs/ablations has: its tables, and every number of its texts, are those of the runs."""

import json
import pathlib
import re

import pytest

from aigc_jax.report import ablation
from aigc_jax.report.ablation import Run

PAGES = sorted(pathlib.Path(__file__).resolve().parents[1].glob("docs/ablations/*.md"))


def comparison(page):
    """The comparison of the runs in the JSON beside a page."""
    about = json.loads(page.with_suffix(".json").read_text())
    runs = {
        (run["variant"], run["seed"]): Run(
            {k: v for k, v in run["values"].items() if v is not None}, {}, {0: run["seconds"]}
        )
        for run in about["runs"]
    }
    assert len(runs) == len(about["variants"]) * len(about["seeds"])
    assert len(about["seeds"]) >= 5
    return ablation.summarised(about, runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_is_that_of_its_runs(page):
    assert ablation.markdown(comparison(page), {}) in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_decimal_of_the_text_stands_in_the_table(page):
    table = ablation.markdown(comparison(page), {})
    _, _, text = page.read_text().partition(table)
    numbers = re.findall(r"(?<![\d.])\d+\.\d+(?![\d.]*\d)", text)
    assert numbers
    about = json.loads(page.with_suffix(".json").read_text())
    beside = json.dumps([about["variants"], about.get("followed_up", {})])
    known = re.findall(r"\d+\.\d+", table + beside)
    assert [number for number in numbers if number not in known] == []
