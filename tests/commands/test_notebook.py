"""The cells of the notebook, in order, in a process of their own as a notebook has one."""

import json
import pathlib

SHORT = {
    "evaluation.at_end": False,
    "evaluation.scheduled_count": 0,
    "network.multipliers": (1,),  # compiles in half the time
}
ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_notebook_runs_and_holds_no_outputs(command, tmp_path, monkeypatch):
    notebook = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    # What a run is judged by at its end, tests of commands see.
    short = "from configs.ddpm_digits import VARIANTS\nVARIANTS['smoke'] |= " + repr(SHORT)
    sources = ["".join(cell["source"]) for cell in cells]
    program = "\n".join([short, *sources, "assert path.is_file()"])
    folders = {"RUNS": str(tmp_path), "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    done = command(program=("-c", program), environment={"VARIANT": "smoke+conditional", **folders})
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-v", "tfds"]
