"""Lists and reports: JSON, JSONL, CSV, TSV and plain text without identifiers, their references to files kept alive.

What a value is, its key says first (`patient_id`, `referring_physician`, `study_date`); a value that is the name of a
file of the set takes the file's new name; all other text goes through the rules of `texts`. Keys of objects are looked
at as well: some lists are kept by patient.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vlm.data.deidentify.keyring import Keyring
from vlm.data.deidentify.texts import TextScrubber
from vlm.data.files import MAX_FIELD, read_text
from vlm.types import InputError

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".rpt")
_WORD = r"(?:^|_)(?:{})(?:$|_)"
_ID = re.compile(
    _WORD.format(
        "id|ids|uid|uids|mrn|patient|subject|case|accession|pat|pid|studyid|imageid|patientid|subjectid|uuid|number"
    )
)
_PERSON = re.compile(
    _WORD.format(
        "names?|physicians?|doctors?|radiologists?|author|authors|referrer|referring|operators?|technologists?|signed|"
        "institution|hospital|clinic|department|address|street|city|zip|zipcode|postcode|phone|telephone|fax|email|mail|"
        "ssn|insurance|employer|relative|contact|station|ward|room"
    )
)
_DATE = re.compile(_WORD.format("date|dates|datetime|time|timestamp|dob|birth|birthday|birthdate|created|modified"))
_NAMES_OF_THINGS = frozenset(("file_name", "filename", "dataset_name", "label_name", "class_name", "category_name"))
_PATH = re.compile(r"\.(dcm|png|jpe?g|tiff?|bmp|nii|nii\.gz|txt|json|csv|xml)$", re.I)


class TableCleaner:
    """Cleans lists and reports.

    Args:
        keyring, scrubber: pseudonyms and rules.
        files: paths of the set's files, relative to its root.
    """

    def __init__(self, keyring: Keyring, scrubber: TextScrubber, files: Iterable[str]) -> None:
        self.keyring, self.scrubber = keyring, scrubber
        self.endings: dict[str, str] = {}
        for file in files:
            parts = PurePosixPath(file).parts
            for k in range(len(parts)):
                self.endings.setdefault("/".join(parts[k:]), file)

    def clean(self, path: Path, counts: Counter[str]) -> str:
        """The new content of a file.

        Raises:
            InputError: not UTF-8, or not of the form that its ending states.
        """
        suffix = path.suffix.lower()
        try:
            if suffix == ".json":
                return (
                    json.dumps(self._value("", json.loads(read_text(path)), counts), ensure_ascii=False, indent=1)
                    + "\n"
                )
            if suffix in (".jsonl", ".ndjson"):
                rows = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
                return "".join(json.dumps(self._value("", r, counts), ensure_ascii=False) + "\n" for r in rows)
        except json.JSONDecodeError:
            raise InputError("is not valid JSON") from None
        except RecursionError:
            raise InputError("is nested too deeply") from None
        except InputError:
            raise InputError("is not UTF-8 text, or cannot be read") from None
        if suffix in (".csv", ".tsv"):
            return self._table(path, "\t" if suffix == ".tsv" else ",", counts)
        try:
            return self.scrubber.scrub(read_text(path), counts)
        except InputError:
            raise InputError("is not UTF-8 text, or cannot be read") from None

    def _table(self, path: Path, delimiter: str, counts: Counter[str]) -> str:
        csv.field_size_limit(MAX_FIELD)
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        header: list[str] | None = None
        try:
            for row in csv.reader(io.StringIO(read_text(path)), delimiter=delimiter):
                if header is None:
                    header = row
                    writer.writerow([self.scrubber.scrub(name, counts) for name in row])
                    continue
                named = zip([*header, *[""] * len(row)], row, strict=False)
                writer.writerow([self._cell(name, value, counts) for name, value in named])
        except csv.Error:
            raise InputError("is not valid CSV") from None
        except InputError:
            raise InputError("is not UTF-8 text, or cannot be read") from None
        return out.getvalue()

    def _cell(self, name: str, value: str, counts: Counter[str]) -> str:
        """A cell; several files in one are split by ";" as the schema says."""
        if ";" in value and all(self._file(x.strip()) for x in value.split(";") if x.strip()):
            return ";".join(self._text(name, x.strip(), counts) for x in value.split(";") if x.strip())
        return self._text(name, value, counts)

    def _value(self, name: str, value: Any, counts: Counter[str]) -> Any:
        if isinstance(value, Mapping):
            return {self._key(k, counts): self._value(k, v, counts) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(name, v, counts) for v in value]
        if isinstance(value, str):
            return self._text(name, value, counts)
        if isinstance(value, int) and not isinstance(value, bool):
            kind = self._kind(name)
            if kind in ("id", "date") and abs(value) >= 10_000:
                counts[f"field {kind}"] += 1
                return self.keyring.pseudonym(str(value)) if kind == "id" else None
        return value

    def _key(self, key: str, counts: Counter[str]) -> str:
        if re.search(r"\d{4,}", key):
            counts["field key"] += 1
            return self.keyring.pseudonym(key)
        return self.scrubber.scrub(key, counts)

    def _kind(self, name: str) -> str | None:
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace(" ", "_").replace("-", "_").replace("'s", "")
        if plain in _NAMES_OF_THINGS:
            return None
        if _DATE.search(plain):
            return "date"
        if _PERSON.search(plain):
            return "person"
        return "id" if _ID.search(plain) else None

    def _file(self, value: str) -> str | None:
        """The set's file that a value names; None when it names none."""
        return self.endings.get(value.replace("\\", "/").lstrip("./")) if value else None

    def _text(self, name: str, value: str, counts: Counter[str]) -> str:
        if not value.strip() or value.strip(" .,") == self.scrubber.mark:
            return value
        file = self._file(value)
        if file is not None:
            own = PurePosixPath(value.replace("\\", "/").lstrip("./"))
            renamed = "/".join(PurePosixPath(self.keyring.path(file)).parts[-len(own.parts) :])
            counts["file name"] += renamed != value
            return renamed
        kind = self._kind(name)
        if kind == "id":
            counts["field id"] += 1
            return self.keyring.pseudonym(value)
        if kind is not None:
            counts[f"field {kind}"] += 1
            return self.scrubber.mark if kind == "person" else ""
        if _PATH.search(value) and " " not in value:
            counts["file name"] += 1
            return self.keyring.path(value.replace("\\", "/").lstrip("./"))
        return self.scrubber.scrub(value, counts)
