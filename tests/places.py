"""Where the tests find what is not committed: real data and weights."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("AIGC_SHARED", ROOT.parent / "shared"))
