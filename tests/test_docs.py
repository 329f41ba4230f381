"""What a reader would paste: the README's commands, and where its links lead."""

import pathlib
import re
import shlex

import pytest
from absl import flags

import launch

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("python launch.py")], ids=str
)
def test_commands_of_the_readme_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = shlex.split(command)[1:]
    monkeypatch.setattr("sys.argv", argv)  # where config_flags looks for --config.key
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.get_flags_for_module(launch):
        flag.unparse()  # so that `present` is of this command
    try:
        if "--help" in argv:
            with pytest.raises(SystemExit):
                launch.parse(argv)
            return
        assert launch.parse(argv) == argv[:1]
        launch.check_flags(launch.MODE.value, launch.command(launch.MODE.value).flags)
    finally:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # made by config_flags for this command
        flags.FLAGS.unparse_flags()


def test_every_other_command_is_known():
    others = {c.split()[0] for c in COMMANDS if not c.startswith("python launch.py")}
    assert others <= {"make", "pip"}
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in COMMANDS:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets
        if words[0] == "pip":
            assert (ROOT / words[words.index("-r") + 1]).is_file()


@pytest.mark.parametrize("page", ["README.md", *[f"docs/{p.name}" for p in ROOT.glob("docs/*.md")]])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_every_config_stands_in_the_readme_with_its_command():
    for path in (ROOT / "configs").glob("[a-z]*.py"):
        assert f"| `{path.stem}` |" in README
        assert f"--config=configs/{path.name}" in path.read_text()


def test_every_command_stands_in_the_readme():
    for mode in launch.COMMANDS:
        assert mode == "train" or f"--mode={mode} " in README, mode
