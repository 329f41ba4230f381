"""What data a run was trained on, small enough to be kept with it and compared when it goes on.

An identity is JSON: {"name": of the data set, "classes": how many, "names": of the classes,
"splits": {split: {"size": examples, "digest": of what is listed of them}}}. A split of images in a
zip has "checksum" too. Nothing is decoded for it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

Identity = Mapping[str, Any]


def digest(entries: Iterable[Any]) -> str:
    """Of JSON values, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for entry in entries:
        found.update(json.dumps(entry).encode() + b"\n")
    return found.hexdigest()


def differences(old: Identity, new: Identity) -> list[str]:
    """In words, how the data that are here, `new`, differ from those of a run, `old`.

    Splits that only one of the two has were not asked for in the other, and say nothing.
    """
    if old["name"] != new["name"]:
        return [f"data set {new['name']} here, {old['name']} in the run"]
    found = list(_classes(old, new))
    for split, here in new["splits"].items():
        run = old["splits"].get(split, here)
        if run["size"] != here["size"]:
            found.append(f"{split}: {here['size']:,} examples here, {run['size']:,} in the run")
        elif run["digest"] != here["digest"]:
            found.append(f"{split}: as many as in the run, but other names, sizes or labels")
        elif {"checksum"} <= run.keys() & here.keys() and run["checksum"] != here["checksum"]:
            found.append(f"{split}: the names and sizes of the run, but other contents")
    return found


def _classes(old: Identity, new: Identity) -> Iterable[str]:
    here, run = list(new["names"]), list(old["names"])
    if new["classes"] != old["classes"]:
        found = f"{new['classes']} classes here, {old['classes']} in the run"
    elif here != run:
        found = f"{new['classes']} classes here and in the run, but not the same"
    else:
        return
    for word, names, others in (("new", here, run), ("gone", run, here)):
        only = [name for name in names if name not in set(others)]
        found += f"; {word}: {', '.join(only)}" * bool(only)
    yield found
