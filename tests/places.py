"""Where tests find what is not committed, real data and weights; how they compile."""

import importlib.metadata
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("AIGC_SHARED", ROOT.parent / "shared"))
# How XLA compiles for tests: nearly all that they do is compiling. Without LLVM's optimisation and
# with the older emitters the same programs are there in a third of the time.
QUICK_XLA = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no others, and end
    QUICK_XLA += " --xla_cpu_use_fusion_emitters=false"  # a process whose flags they do not know
