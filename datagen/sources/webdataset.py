"""Tar archives, with or without WebDataset's grouping: every image or video member is an asset, read where it lies.

Members whose names are equal up to the first dot behind the last slash (the key) belong together and follow one another, as WebDataset has
it: `000123.jpg`, `000123.json`, `000123.txt`. The `.json` is a manifest row without a `uri`, other JSON and `.txt` members are columns
named by their extension. Where names have more dots, `img.01.json` and `img.01.txt` are those of `img.01.jpg`, and not of `img.02.jpg`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from datagen.errors import SourceError, StorageError
from datagen.ids import asset_id_of
from datagen.job import S3Options, SourceOptions
from datagen.ranges import open_ranges
from datagen.records import Asset, Failure, Span
from datagen.sources.columns import COLUMNS, count, not_read
from datagen.sources.files import Files
from datagen.sources.listing import companion_of, count_apple_double, count_file, refuse_nothing
from datagen.sources.prompts import SHORTHANDS, given_prompts
from datagen.sources.rows import fill, plain
from datagen.sources.uris import inside, inside_uri, media_type_of, member_path, uri_of
from datagen.sources.values import parse_json
from datagen.tar import COMPRESSED_SUFFIXES, Member, TarReader, compressed

_METADATA_SUFFIXES = (".json", ".txt")
_METADATA_BYTES = 16 << 20
_OF_PROMPTS = ("prompts", *SHORTHANDS)


class TarSource:
    """The media members of tar archives, archive by archive, in the order of their headers.

    What is wrong with a member is its failure: `archive_bad_member` (a link, a device, a name that leads out, a second member of a name),
    `archive_not_grouped` (its metadata stand elsewhere), `manifest_bad_row`, `manifest_bad_prompts`. An archive that breaks off or is none
    is a failed asset itself, with the codes of TarReader; what could be read of it is listed.
    """

    def __init__(self, place: str, options: SourceOptions, s3: S3Options) -> None:
        self.skipped: Counter[str] = Counter()
        self._files = Files(place, s3, (".tar", *COMPRESSED_SUFFIXES))
        self._options, self._s3 = options, s3
        if self._files.is_one and place.lower().endswith(COMPRESSED_SUFFIXES):
            raise SourceError(f"{place}: {compressed('by its name').message}")

    def describe(self) -> str:
        """One line for a person."""
        kinds = "images and videos" if self._options.media == "any" else f"{self._options.media}s"
        return f"{kinds} in {'the tar archive' if self._files.is_one else 'tar archives of'} {self._files.place}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when a folder cannot be listed or nothing is found, StorageError when a bucket refuses."""
        self.skipped.clear()
        is_empty = True
        for asset in self._listed():
            is_empty = False
            yield asset
        self.skipped.update(self._files.skipped)
        if is_empty:
            refuse_nothing(f"in {self._files.place}", self._options.media, self.skipped)

    def _listed(self) -> Iterator[Asset]:
        for file in self._files:
            if file.lower().endswith(".tar"):
                yield from self._archive(file)
            elif file.lower().endswith(COMPRESSED_SUFFIXES):
                yield self._failed_archive(file, compressed("by its name"))
            else:
                count_file(self.skipped, file)

    def _archive(self, file: str) -> Iterator[Asset]:
        uri = uri_of(file)
        archive = None
        try:
            if inside(uri):
                raise SourceError("its name reads as that of a member of an archive; rename it", code="unsupported_uri")
            archive = _Archive(uri, TarReader(open_ranges(file, self._s3)), self._options, self.skipped)
            yield from archive.assets()
        except SourceError as error:
            if archive:
                yield from archive.rest()
            yield self._failed_archive(file, error)
        except FileNotFoundError:
            yield self._failed_archive(file, SourceError("there is no such file", code="missing_file"))
        except OSError as error:
            yield self._failed_archive(file, SourceError(f"it cannot be read: {error.strerror or error}", code="unreadable"))
        except StorageError as error:
            if error.code != "precondition":
                raise
            yield self._failed_archive(file, SourceError(error.message, code="archive_damaged"))

    def _failed_archive(self, file: str, error: SourceError) -> Asset:
        uri = uri_of(file)
        return Asset(asset_id_of(uri), uri, failure=Failure(error.code, f"{uri}: {plain(error.message)}"))


@dataclass
class _Group:
    """Members of one key. media: by name. row: what their metadata say. failure: what is wrong with it. dotted: what members with
    further dots say, such as `01.json`, or what is wrong with them; whose they are is known once all pictures are. is_described: there
    are metadata.
    """

    key: bytes = b""
    media: list[tuple[str, Asset]] = field(default_factory=list)
    row: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    dotted: dict[str, Any] = field(default_factory=dict)
    is_described: bool = False

    def of_pictures(self, stems: Collection[str]) -> dict[str, dict[str, Any]]:
        """What is said of single pictures, by the stem of their extension, as columns; the rest goes into `row` and `failure`."""
        found: dict[str, dict[str, Any]] = {}
        for column, value in self.dotted.items():
            stem, rest = column, ""
            while stem and stem not in stems:
                stem, _, last = stem.rpartition(".")
                rest = f"{last}.{rest}" if rest else last
            if stem:
                found.setdefault(stem, {})[rest] = value
            elif isinstance(value, Failure):
                self.failure = self.failure or value
            else:
                self.row[column] = value
        return found


class _Archive:
    """One archive on its way: the group at hand, and of the groups before only hashes of their names."""

    def __init__(self, uri: str, reader: TarReader, options: SourceOptions, skipped: Counter[str]) -> None:
        self._uri, self._reader, self._options, self._skipped = uri, reader, options, skipped
        self._group = _Group()
        self._columns_read = tuple(name for name in COLUMNS if name not in options.pass_through)
        self._names: set[bytes] = set()
        self._keys_with_media: set[bytes] = set()
        self._keys_with_metadata: set[bytes] = set()

    def assets(self) -> Iterator[Asset]:
        """All but those of `rest`. Raises as TarReader does."""
        for member in self._reader:
            if member.kind == "folder" or count_apple_double(self._skipped, member.name):
                continue
            is_metadata = member.name.lower().endswith(_METADATA_SUFFIXES)
            if media_type_of(member.name, self._options.media) == "other" and not is_metadata:
                count_file(self._skipped, member.name)
                continue
            key = _hash(_key(member.name))
            if key != self._group.key:
                yield from self._finished()
                self._group = _Group(key)
            failed = self._add_metadata(member, key) if is_metadata else self._add_media(member, key)
            if failed:
                yield failed
        yield from self._finished()
        if not self._reader.has_end_mark:
            self._skipped["end mark of an archive that may be cut"] += 1

    def rest(self) -> Iterator[Asset]:
        """The group at hand where the archive breaks off. Where its pictures have metadata, those of the last may be lost."""
        cut = self._reader.cut
        group = self._group
        is_metadata_cut = cut is not None and cut.name.lower().endswith(_METADATA_SUFFIXES) and _hash(_key(cut.name)) == group.key
        last = _extension(cut.name) if cut and is_metadata_cut else f"{_stem(group.media[-1][0])}.json" if group.media else ""
        is_without = (self._keys_with_metadata or group.dotted) and not group.row and last not in group.dotted
        if is_metadata_cut or is_without:
            failure = Failure("archive_truncated", f"{self._uri} breaks off behind it, so that its metadata may be missing")
            if "." in last.removeprefix("."):
                group.dotted[last] = failure
            else:
                group.failure = group.failure or failure
        yield from self._finished()

    def _add_media(self, member: Member, key: bytes) -> Asset | None:
        """Put it into the group; given back where it is no use."""
        media_type = "video" if media_type_of(member.name, self._options.media) == "video" else "image"
        if self._options.media not in (media_type, "any"):
            self._skipped[media_type] += 1
            return None
        asset = self._asset(member)
        asset.media_type = "video" if media_type == "video" else "image"
        if asset.failure is None and key in self._keys_with_metadata:
            message = f"{asset.uri}: other members stand between it and its metadata, which were read before; sort the archive by name"
            asset.failure = Failure("archive_not_grouped", message)
        if asset.failure:
            return asset
        self._group.media.append((member.name, asset))
        return None

    def _add_metadata(self, member: Member, key: bytes) -> Asset | None:
        """Put what it says into the group; an asset that tells the failure, where its picture was listed before."""
        asset = self._asset(member)
        if key in self._keys_with_media:
            message = f"{asset.uri}: the picture that it belongs to was listed before, without it; sort the archive by name"
            asset.failure = Failure("archive_not_grouped", message)
            return asset
        column = _extension(member.name)
        said = self._group.dotted if "." in column else self._group.row
        self._group.is_described = True
        if asset.failure is None:
            try:
                columns = self._columns(member)
                twice = [name for name in columns if name in said and said[name] != columns[name]]
                if twice:
                    raise ValueError(f"another member of its key says something else of `{twice[0]}`; keep one")
                said.update(columns)
            except ValueError as error:
                asset.failure = Failure(getattr(error, "code", "manifest_bad_row"), f"{asset.uri}: {plain(str(error))}")
        if asset.failure and "." in column:
            self._group.dotted[column] = asset.failure
        else:
            self._group.failure = self._group.failure or asset.failure
        return None

    def _columns(self, member: Member) -> dict[str, Any]:
        """What a metadata member says. Raises ValueError."""
        if member.size > _METADATA_BYTES:
            raise ValueError(f"it has {member.size} bytes; at most {_METADATA_BYTES} are read of metadata")
        text = self._reader.read(member).decode("utf-8-sig")
        column = _extension(member.name)
        if column.lower().endswith("txt"):
            return {column: text}
        found = parse_json(text)
        if column.lower() != "json":
            return {column: found}
        if not isinstance(found, dict):
            raise ValueError(f"it is not a JSON object, found {type(found).__name__}")
        return found

    def _asset(self, member: Member) -> Asset:
        """A member by itself, with its failure where it is no plain file, named twice, or named so that it leads out."""
        span = Span(member.offset, member.size, self._reader.ranges.version)
        version = f"{member.size}-{member.mtime}" if self._options.reprocess_changed else ""
        try:
            name, wrong = member_path(member.name), ""
        except SourceError as error:
            name, wrong = member.name, error.message
        uri = inside_uri(self._uri, name)
        if not wrong and member.kind != "file":
            wrong = f"it is a {member.kind}; put the file itself into the archive"
        digest = _hash(name)
        if digest in self._names:
            wrong = (
                wrong or f"there is a member of this name before it, which is the one that counts; this one is at byte {member.header_at}"
            )
            uri += f"%40{member.header_at}"  # no name is ever written with this escape
        self._names.add(digest)
        failure = Failure("archive_bad_member", f"{uri}: {plain(wrong)}") if wrong else None
        return Asset(asset_id_of(uri, version), uri, failure=failure, span=span)

    def _finished(self) -> Iterator[Asset]:
        """The assets of the group at hand, which is over."""
        group, self._group = self._group, _Group()
        if group.media:
            self._keys_with_media.add(group.key)
        if group.is_described or group.failure is not None:
            self._keys_with_metadata.add(group.key)
            if not group.media:
                self._skipped["metadata without a picture"] += 1
        pictures = self._without_companions(group.media)
        plain_names = {name for name, _ in pictures if not _stem(name)}
        own_rows = group.of_pictures({_stem(name) for name, _ in pictures} - {""})
        asked: dict[str, list[str]] = {}
        for name, asset in pictures:
            row, asset.failure = group.row, group.failure
            if len(pictures) > 1 and asset.media_type not in asked:
                asked[asset.media_type] = self._asked(row, asset)
            asks = asked.get(asset.media_type, []) if asset.failure is None else []
            if asks and len(plain_names) != 1:
                message = f"{asset.uri}: {', '.join(asks)} would be those of {len(pictures)} members of one key; give each a key of its own"
                asset.failure = Failure("manifest_bad_prompts", message)
            if asset.failure or name not in plain_names:
                row = {column: value for column, value in row.items() if column not in asks}
            own = own_rows.get(_stem(name), {})
            asset.failure = asset.failure or next((value for value in own.values() if isinstance(value, Failure)), None)
            own = {column: value for column, value in own.items() if not isinstance(value, Failure)}
            said = own.pop("json") if isinstance(own.get("json"), dict) else {}
            self._fill(asset, row | own | said)
            yield asset

    def _without_companions(self, media: list[tuple[str, Asset]]) -> list[tuple[str, Asset]]:
        """The pictures and videos of a group without masks and the like that lie beside one, which are counted."""
        stems = {posixpath.splitext(name)[0] for name, _ in media if companion_of(name) is None}
        kept = []
        for name, asset in media:
            companion = companion_of(name)
            if companion is not None and companion[0] in stems:
                self._skipped[companion[1]] += 1
            else:
                kept.append((name, asset))
        return kept

    def _asked(self, row: dict[str, Any], asset: Asset) -> list[str]:
        """The columns that only one picture can have, of those that are there."""
        try:
            given = given_prompts(row, asset.media_type, self._columns_read, lenient=True)
            used = given.used if given.num else frozenset[str]()
        except ValueError:
            used = frozenset(_OF_PROMPTS)
        return [name for name in ("asset_id", *_OF_PROMPTS) if row.get(name) and (name == "asset_id" or name in used)]

    def _fill(self, asset: Asset, row: dict[str, Any]) -> None:
        given = fill(asset, row, asset.uri, self._columns_read, passed=self._options.pass_through, lenient=True)
        count(self._skipped, not_read(row, given, self._options.pass_through, self._columns_read))
        if row.get("uri") is not None:  # where the picture came from, as img2dataset and others write it; the member is what is read
            asset.extra["uri"] = plain(row["uri"])


def _key(name: str) -> str:
    folder, slash, base = name.removeprefix("./").rpartition("/")
    return folder + slash + base[:1] + base[1:].partition(".")[0]


def _stem(name: str) -> str:
    """The extension without its last part: `01` of `img.01.jpg`, empty for `img.jpg`."""
    return _extension(name).rpartition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition("/")[2][1:].partition(".")[2]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=10).digest()
