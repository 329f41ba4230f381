"""What `launch.py --mode=NAME` does: a file for each command, which notebooks and tests call too.

A command's file holds, in this order:

  FLAGS   the flags that it takes beside --config, --workdir, --mode, --debug and those of several
          hosts: a tuple of literal strings. launch.py reads it from the text of the file, and the
          first line of the file's docstring too, so that --help need not wait for JAX.
  main    (flags) -> None, called by launch.py: hands the values of the flags on to `run`. `flags`
          has an attribute for each of FLAGS, and `config` (a ConfigDict, None without --config),
          `workdir` (a Path) and `origin` (() -> what a report says of the command line).
  run     (workdir, ..., config=None, *, ...) -> the command itself, with plain Python arguments. It
          reads the config and hands parts of it on; nothing below it takes a whole config.

A new command is a file here, its name in `launch.COMMANDS`, and the definition in launch.py of each
flag that no other command has. What several commands share is in `common`.
"""
