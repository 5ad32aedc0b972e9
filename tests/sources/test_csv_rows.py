"""CSV files that would lose rows or columns without a word: an error names the line, or the row fails."""

import pytest

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.sources import manifest, open_source


def listed(folder, data, **options):
    (folder / "m.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(open_source(SourceOptions(input=f"{folder}/m.csv", **options)))


BROKEN = {
    "open at the end": ('uri,caption\na.jpg,"a 12 inch screen\nb.jpg,x\nc.jpg,y\n', r"line 2: a quote that opens here is never closed"),
    "open late": ("uri,caption\n" + "a.jpg,x\n" * 300 + 'b.jpg,"12\nc.jpg,y\n', r"line 302: a quote that opens here is never closed"),
    "closed by a later row": ('uri,caption\na.jpg,x\nb.jpg,"12 inch\nc.jpg,"y"\n', r"line 3: a quote that opens here is closed in line 4"),
    "swallowed": ('uri,caption\nb.jpg,"12 inch\nc.jpg,y\nd.jpg,"\n', r"line 2: .* closed in line 4 only.*c\.jpg,y"),
    "swallowed by the last field": ('caption,uri\n"12 inch,b.jpg\ny,c.jpg\nz",d.jpg\n', r"line 2: .* closed in line 4 only"),
    "two of a name": ("uri,tag,tag\na.jpg,first,second\n", r"line 1, has two columns of the name `tag`"),
    "two uris": ("uri,tag,uri\na.jpg,x,b.jpg\n", r"two columns of the name `uri`"),
    "semicolons": ("uri;tag\na.jpg;x\n", r"line 1: columns are separated by semicolons; write commas"),
    "quoted semicolons": ('"uri";"tag"\n"a.jpg";"x"\n', r"line 1: .*semicolons"),
    "semicolons and commas": ("tag;note, long;uri\nx;y;a.jpg\n", r"line 1: columns are separated by semicolons"),
    "tabs": ("tag\turi\nx\ta.jpg\n", r"line 1: columns are separated by tabs"),
    "bars": ("uri|tag\na.jpg|x\n", r"line 1: columns are separated by bars"),
    "sep=": ("sep=,\nuri,tag\na.jpg,x\n", r"line 1: 'sep='"),
    "utf-16": ("uri,tag\na.jpg,x\n".encode("utf-16"), r"line 1: it is UTF-16"),
    "utf-16-be": (b"\xfe\xff" + "uri,tag\na.jpg,x\n".encode("utf-16-be"), r"line 1: it is UTF-16"),
    "name in latin-1": (b"uri,caf\xe9\na.jpg,x\n", r"line 1: a column's name is not UTF-8"),
    "spaces before names": ("uri, box\na.jpg,x\n", r"` box`: write `box`"),
}


@pytest.mark.parametrize("data", BROKEN, ids=list(BROKEN))
def test_a_file_that_is_not_read_as_it_is_meant_stops_with_the_line(tmp_path, data):
    text, said = BROKEN[data]
    with pytest.raises(SourceError, match=said):
        listed(tmp_path, text)


BAD_ROWS = {
    "latin-1": (b"uri,tag\na.jpg,x\nb.jpg,caf\xe9\nc.jpg,x\n", "`tag` in line 3 is not UTF-8"),
    "quote inside": (b'uri,tag\na.jpg,x\nb.jpg,"x" y\nc.jpg,x\n', "line 3 is not CSV"),
    "fields": (b"uri,tag\na.jpg,x\nb.jpg,x,y\nc.jpg,x\n", "3 fields under a header of 2 in line 3"),
    "value without name": (b"uri,\na.jpg,\nb.jpg,x\nc.jpg,\n", "'x' in line 3 stands under no name"),
}


@pytest.mark.parametrize("data", BAD_ROWS, ids=list(BAD_ROWS))
def test_a_bad_row_costs_itself(tmp_path, data):
    text, said = BAD_ROWS[data]
    a, b, c = listed(tmp_path, text)
    assert (a.failure, c.failure, b.failure.code) == (None, None, "manifest_bad_row")
    assert said in b.failure.message


def test_what_is_fine_is_read(tmp_path):
    text = 'uri,caption,,\na.jpg,"two\nlines, of ""text""",,\r\n"b, c.jpg",12" screen,,\n'
    a, b = listed(tmp_path, text)
    assert a.extra == {"caption": 'two\nlines, of "text"'}
    assert (b.uri, b.extra) == (f"{tmp_path}/b, c.jpg", {"caption": '12" screen'})
    (a, b) = listed(tmp_path, "uri,tag\ra.jpg,x\rb.jpg,y\r")
    assert [a.extra["tag"], b.extra["tag"]] == ["x", "y"]


def test_a_long_line_is_a_failed_row_and_a_long_quote_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_ROW_BYTES", 5000)
    a, b, c = listed(tmp_path, "uri,tag\na.jpg,x\nb.jpg," + "y" * 20_000 + "\nc.jpg,x\n")
    assert (a.failure, c.failure, b.failure.code) == (None, None, "row_too_large")
    with pytest.raises(SourceError, match="line 3: a quote that opens here is not closed within 5000"):
        listed(tmp_path, 'uri,tag\na.jpg,x\nb.jpg,"' + "12 inch\n" * 2000 + 'c.jpg,"\n')


def test_the_index_that_pandas_writes_passes_through(tmp_path):
    a, b = listed(tmp_path, ",uri,tag\n0,a.jpg,x\n1,b.jpg,y\n")
    assert (a.uri, a.failure, a.extra) == (f"{tmp_path}/a.jpg", None, {"Unnamed: 0": "0", "tag": "x"})
    assert b.extra == {"Unnamed: 0": "1", "tag": "y"}


def test_lines_of_nothing_or_of_separators_alone_are_blank(tmp_path):
    a, b = listed(tmp_path, "\n\r\nuri,tag\n,\na.jpg,x\n\n,\nb.jpg,\n,\n,\n")
    assert (a.extra, b.uri, b.failure) == ({"tag": "x"}, f"{tmp_path}/b.jpg", None)
    (bad,) = listed(tmp_path, "uri,tag\n,x\n")
    assert bad.failure.code == "manifest_no_uri"


@pytest.mark.parametrize("name", ["file_name", "filepath", "Image", "image_path", "URI", "imageGcsUri"])
def test_a_column_of_files_under_another_name_is_named(tmp_path, name):
    with pytest.raises(SourceError, match=f"rename `{name}` to `uri`"):
        listed(tmp_path, f"tag,{name}\nx,a.jpg\n")
