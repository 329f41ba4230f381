"""A VAE by command: what is not asked of a diffusion model, codes and denoising."""

import json

import numpy as np
import pytest
from PIL import Image


def test_a_vae_trains_evaluates_denoises_and_gives_codes(launch, tmp_path, capsys):
    folder = tmp_path / "vae"
    launch("--config=configs/vae_digits.py:smoke", f"--workdir={folder}",
           "--config.evaluation.at_end=True", "--config.evaluation.count=40")  # fmt: skip
    said = capsys.readouterr().out
    (path,) = (folder / "evaluations").glob("step*.json")
    rows = {row["metric"] for row in json.loads(path.read_text())["rows"]}
    assert {"neg_elbo", "neg_log_p_iw4", "active_units", "psnr/reconstruction"} <= rows
    assert "fd_digits" in said
    assert "interpolations" in str(json.loads(path.read_text())["pictures"])
    launch("--mode=sample", f"--workdir={folder}", "--num=10", "--frames=4", "--pictures")
    names = [path.stem.split("-")[-1] for path in (folder / "generated").glob("*.png")]
    assert sorted(names) == ["interpolations", "n10", "strip", "traversals"]
    (drawn,) = (folder / "generated").glob("*-n10.png")
    taken = tmp_path / "out" / f"{drawn.stem}-traversals.png"
    taken.parent.mkdir()
    taken.write_text("mine")
    with pytest.raises(SystemExit, match=r"-traversals\.png is there already: name another"):
        launch("--mode=sample", f"--workdir={folder}", "--num=10", "--pictures",
               f"--output={taken.parent}")  # fmt: skip
    assert taken.read_text() == "mine"
    assert list(taken.parent.iterdir()) == [taken]
    launch("--mode=evaluate", "--config=configs/vae_digits.py:smoke+mixture", "--num=40",
           f"--workdir={folder}", "--evaluations=fid")  # fmt: skip
    assert "mixture, EMA" in capsys.readouterr().out
    assert len(list((folder / "evaluations").glob("step*.json"))) == 2  # beside the other
    launch("--mode=encode", f"--workdir={folder}")
    codes = np.load(folder / "codes" / "train.npz")
    assert codes["mean"].shape == (1501, 4)
    for i in range(3):
        picture = Image.fromarray(np.full((8, 8), 40 * i, np.uint8))
        save = tmp_path / "in" / f"{i}.png"
        save.parent.mkdir(exist_ok=True)
        picture.save(save)
    launch("--mode=denoise", f"--workdir={folder}", f"--input={tmp_path / 'in'}")
    assert len(list((folder / "denoised").glob("*.png"))) == 3
    with pytest.raises(SystemExit, match="denoised is not empty: name another --output"):
        launch("--mode=denoise", f"--workdir={folder}", f"--input={tmp_path / 'in'}")
    with pytest.raises(SystemExit, match=r"codes/train\.npz is there already"):
        launch("--mode=encode", f"--workdir={folder}")
    with pytest.raises(SystemExit, match="name the images to denoise"):
        launch("--mode=denoise", f"--workdir={folder}")
    with pytest.raises(SystemExit, match="family 'vae' has no 'steps' of sampling to set"):
        launch("--mode=sample", f"--workdir={folder}", "--steps=3")
