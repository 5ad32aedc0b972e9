"""Job files say what they say: no key twice, and no reading of a word or a time that nobody meant."""

import pytest

from datagen.errors import JobError
from datagen.job import load_job, parse_job
from datagen.options import parse_yaml

VALUES = {
    "22:30": "22:30",
    "1:30.5": "1:30.5",
    "no": "no",
    "off": "off",
    "Yes": "Yes",
    "ON": "ON",
    "y": "y",
    "2026-11-26": "2026-11-26",
    "2026-11-26 06:00:00": "2026-11-26 06:00:00",
    "true": True,
    "False": False,
    "0": 0,
    "-12": -12,
    "1_000": 1000,
    "0x1F": 31,
    "0b11": 3,
    "1e-6": 1e-6,
    "1E3": 1000.0,
    "3.": 3.0,
    ".5": 0.5,
    "-1.5e+3": -1500.0,
    ".inf": float("inf"),
    "~": None,
    "null": None,
    "": None,
    "1.2.3": "1.2.3",
    "1d": "1d",
    "'010'": "010",
    "[no, 22:30]": ["no", "22:30"],
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_what_it_looks_like(text):
    assert parse_yaml(f"key: {text}", "x") == {"key": VALUES[text]}


@pytest.mark.parametrize("text", ["010", "0755", "-010", "0o17", "00", "[1, 010]", "{a: 010}"])
def test_numbers_that_readers_disagree_on_are_refused_with_the_line(text):
    with pytest.raises(JobError, match=r"job\.yaml, line 2: .* begins with a zero, which is octal to some"):
        parse_yaml(f"a: 1\nkey: {text}", "job.yaml")


REPEATED = {
    "a: 1\nb: 2\na: 3\n": r"line 3: the key `a` stands there for the second time, first in line 1",
    "g:\n  a: 1\n  a: 1\n": r"line 3: the key `a`",
    "g: {a: 1, 'a': 2}\n": r"line 1: the key `a`",
    "l:\n- a: 1\n  b: 2\n  b: 3\n": r"line 4: the key `b`",
    "1: a\n'1': b\n": r"line 2: the key `1`",
    "x: &x {a: 1}\ny: *x\nz: {<<: *x, b: 1, b: 2}\n": r"line 3: the key `b`",
}


@pytest.mark.parametrize("text", REPEATED)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text):
    with pytest.raises(JobError, match=REPEATED[text]):
        parse_yaml(text, "job.yaml")


def test_an_anchor_may_be_used_again_and_changed():
    assert parse_yaml("x: &x {a: 1}\ny: *x\nz: {<<: *x, a: 2}\n", "job.yaml")["z"] == {"a": 2}


def test_a_job_file_with_a_group_twice(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("describe: {languages: [en, zh]}\nname: x\ndescribe:\n  tasks: [label]\n")
    with pytest.raises(JobError, match=r"job\.yaml, line 3: the key `describe` .* first in line 1"):
        load_job(path)


def test_words_mean_what_the_option_takes(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: no\nsource: {input: off}\nperceive: {drop_absent: yes}\n")
    job = load_job(path, ["source.reprocess_changed=on", "decode.shots=no"])
    assert (job.name, job.source.input, job.perceive.drop_absent) == ("no", "off", True)
    assert (job.source.reprocess_changed, job.decode.shots) == (True, False)
    with pytest.raises(JobError, match=r"describe.languages.0.*found 'no'"):
        load_job(path, ["describe.languages=[no]"])


DEADLINES = {
    "22:30": r"deadline.*'22:30' may be a time of some day or a duration; write the day, too: 2026-11-26T22:30; or a duration: 22h30m",
    "6:05:00": r"write the day, too: 2026-11-26T06:05; or a duration: 6h05m",
    "1350": r"1350 has no unit; write a duration such as 90m",
    "1.5": r"1\.5 has no unit",
    "tomorrow": r"'tomorrow' is neither a time nor a duration",
    "yes": r"'yes' is neither",
    "0600": r"begins with a zero",
}


@pytest.mark.parametrize("text", DEADLINES)
def test_a_deadline_that_is_none_is_named_as_it_was_written(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{budget: {{deadline: {text}}}}}\n")
    with pytest.raises(JobError, match=DEADLINES[text]):
        load_job(path)


@pytest.mark.parametrize("text", ["2126-11-26", "2126-11-26 06:00:00", "2126-11-26T06:00:00Z", "2126-11-26T06:00+01:00", "90m"])
def test_deadlines_that_are_some(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{budget: {{deadline: {text}}}}}\n")
    assert load_job(path).run.budget.deadline == text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": {"retry_failed": True}}, "`run`: `retry_failed`"),
        ({"write": {"assets_per_part": False}}, "`write`: `assets_per_part`"),
        ({"run": {"max_failed_fraction": True}}, "`run`: `max_failed_fraction`"),
        ({"describe": {"max_tokens": {"label": True}}}, "`describe.max_tokens`: `label`"),
    ],
)
def test_true_and_false_are_no_numbers(options, said):
    with pytest.raises(JobError, match=f"{said}: a number is expected"):
        parse_job(options)


def test_a_field_of_yes_and_no_takes_numbers_as_before():
    assert parse_job({"perceive": {"drop_absent": 1}}).perceive.drop_absent is True
