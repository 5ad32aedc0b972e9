import inspect
import pickle

import pytest

from datagen import errors
from datagen.errors import DatagenError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, DatagenError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_a_pickle(kind):
    error = kind("what was found, what to do", code="special", asset_id="a1")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.message, back.code, back.asset_id) == (str(error), error.message, "special", "a1")
    assert back.exit_code == kind.exit_code


def test_codes_are_distinct_and_exit_codes_are_the_documented_ones():
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert {kind.exit_code for kind in CLASSES} <= {2, 3, 4}


def test_the_tree_at_the_head_of_the_file_is_the_real_one():
    drawn = [line.split()[0] for line in (errors.__doc__ or "").splitlines() if line.strip() and line.split()[0].endswith("Error")]
    assert sorted(drawn) == sorted(kind.__name__ for kind in CLASSES)


def test_errors_are_raised_only_from_the_tree():
    """Every exception class of the package that leaves its module is a DatagenError."""
    import ast
    from pathlib import Path

    root = Path(errors.__file__).parent
    strays = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in ("Exception", "BaseException") for base in node.bases):
                strays.append(node.name)
    assert [name for name in strays if not name.startswith("_")] == ["DatagenError"]
