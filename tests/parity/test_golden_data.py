"""The golden data is what was recorded: a file that changed proves nothing."""

import hashlib
import json


def test_every_file_is_what_was_recorded(golden):
    sums = json.loads((golden / "sha256sums.json").read_text())
    there = {path.relative_to(golden).as_posix(): path for path in golden.rglob("*") if path.is_file()}
    assert there.keys() - {"README.md", "prompts.json", "sha256sums.json"} == sums.keys()
    assert {name: hashlib.sha256(there[name].read_bytes()).hexdigest() for name in sums} == sums
