"""DICOM headers by the Basic Application Level Confidentiality Profile (PS3.15, annex E, table E.1-1 of 2026c).

The table and its actions come from `dicomanonymizer`. It handles the outermost level, makes random UIDs and leaves
what the table does not name; so here every level is walked, UIDs are keyed (one UID becomes the same one in every file
and in every run), X removes and Z empties in earnest, and what the table does not name is looked at as well: private
elements, elements of unknown kind, every person's name, every date, and any text that repeats one of the file's own
identifiers. Preamble, file meta and trailing padding are written anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import cache

from dicomanonymizer import simpledicomanonymizer as library
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID

from vlm.data.deidentify.keyring import Keyring
from vlm.data.deidentify.texts import TextScrubber

TABLE = "dicomfields_2026c"
METHOD = "Radscribe: PS3.15 E basic profile, table 2026c"
_CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
}
_IDENTIFYING = (
    "PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName", "PatientMotherBirthName",
    "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord", "RequestingPhysician", "OperatorsName", "ResponsiblePerson", "InstitutionName",
    "AdmissionID", "IssuerOfPatientID", "PatientAddress", "PatientTelephoneNumbers", "MilitaryRank", "StudyID",
)  # fmt: skip
_PATIENT = ("PatientID", "PatientName", "StudyInstanceUID")
_KEPT_SHORT = 4  # identifiers shorter than this are too common to be searched for in other elements
_TEXT = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_TIMES = frozenset(("DA", "DT", "TM"))
_DICOM_ROOT = "1.2.840.10008."
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_BIRTH = frozenset((0x00100030, 0x00100032))
_META = ("MediaStorageSOPClassUID", "TransferSyntaxUID")

_Action = Callable[[Dataset, tuple[int, int]], None]


class HeaderCleaner:
    """Cleans headers in place.

    Args:
        keyring: makes the pseudonyms.
        scrubber: for the texts that remain.
        shift_dates: move every date by the patient's own number of days in place of taking it out.
        masked: the pixels are cleaned as well, which the header then says.
    """

    def __init__(
        self, keyring: Keyring, scrubber: TextScrubber, shift_dates: bool = False, masked: bool = False
    ) -> None:
        self.keyring, self.scrubber, self.shift_dates, self.masked = keyring, scrubber, shift_dates, masked

    def clean(self, dataset: Dataset, counts: Counter[str]) -> None:
        """Takes every identifier out of a dataset; `counts` grows by keyword ("PatientName", "private", ...)."""
        patient = str(
            dataset.get("PatientID", "") or dataset.get("PatientName", "") or dataset.get("StudyInstanceUID", "")
        )
        own = [word for word in identifiers(dataset) if len(word) >= _KEPT_SHORT]
        repeated = re.compile("|".join(re.escape(w) for w in own), re.I) if own else None
        self._level(dataset, counts, repeated, self.keyring.days(patient))
        pseudonym = self.keyring.pseudonym(patient) if patient else ""
        dataset.PatientName = dataset.PatientID = pseudonym
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = METHOD
        dataset.LongitudinalTemporalInformationModified = "MODIFIED" if self.shift_dates else "REMOVED"
        used = ["113100"] + ["113101"] * self.masked + ["113107"] * self.shift_dates
        dataset.DeidentificationMethodCodeSequence = [_code(value) for value in used]
        if self.masked:
            dataset.BurnedInAnnotation = "NO"
        self._meta(dataset, counts)

    def _level(self, dataset: Dataset, counts: Counter[str], repeated: re.Pattern[str] | None, days: int) -> None:
        """One level and the items of its sequences."""
        for tag in list(dataset.keys()):
            if tag in _PIXELS:
                continue
            name = keyword_for_tag(tag) or "unknown"
            try:
                element = dataset[tag]
            except (
                Exception
            ):  # the value makes no sense to pydicom, whatever it raises: it cannot be judged, so it goes
                del dataset[tag]
                counts[f"{name} (unreadable)"] += 1
                continue
            if tag.is_private or element.VR == "UN" or tag.group in (0xFFFC, 0xFFFA) or tag.group < 8:
                del dataset[tag]
                counts["private" if tag.is_private else name] += 1
                continue
            if self._by_table(dataset, element, days):
                counts[name] += 1
            elif element.VR == "SQ":
                for item in element.value:
                    self._level(item, counts, repeated, days)
            elif self._beyond_table(dataset, element, repeated, days, counts):
                counts[name] += 1

    def _by_table(self, dataset: Dataset, element: DataElement, days: int) -> bool:
        """Does what table E.1-1 says; whether there was a value that went."""
        action = _action(element.tag)
        if action is None:
            return False
        filled = element.VM > 0 and element.value not in ("", None)
        if element.VR in _TIMES and self.shift_dates and element.tag not in _BIRTH:
            _shift(element, days)
        elif element.VR == "UI" and action is not library.delete:
            self._replace_uids(element)
        elif action is library.delete:
            del dataset[element.tag]
        elif action in (library.empty, library.delete_or_empty, library.delete_or_empty_or_replace_UID):
            if element.VR == "SQ" and action is library.delete_or_empty_or_replace_UID:
                for item in element.value:
                    self._level(item, Counter(), None, days)
            else:
                element.value = [] if element.VR == "SQ" else None
        elif element.VR == "SQ":
            # D on a sequence: a dummy of the same shape would be one text in every place; an empty one is safer.
            element.value = []
        else:
            try:
                library.replace_element(element)
            except NotImplementedError:
                del dataset[element.tag]
        return filled

    def _beyond_table(
        self, dataset: Dataset, element: DataElement, repeated: re.Pattern[str] | None, days: int, counts: Counter[str]
    ) -> bool:
        """What the table leaves: names, dates, UIDs that are not DICOM's own, and texts that repeat an identifier."""
        if element.VM == 0 or element.value in ("", None):
            return False
        if element.VR in _TIMES:
            if self.shift_dates:
                _shift(element, days)
            else:
                element.value = None
            return True
        if element.VR == "PN":
            element.value = None
            return True
        if element.VR == "UI":
            return self._replace_uids(element)
        if element.VR in _TEXT:
            value = "\\".join(map(str, element.value)) if isinstance(element.value, MultiValue) else str(element.value)
            if repeated is not None and repeated.search(value):
                element.value = None
                return True
            if element.VR in ("LT", "ST", "UT", "UC") or (element.VR in ("LO", "SH") and element.VM == 1):
                clean = self.scrubber.scrub(value, counts)
                if clean != value:
                    element.value = clean[:16] if element.VR == "SH" else clean[:64] if element.VR == "LO" else clean
        elif isinstance(element.value, bytes) and repeated is not None:
            found = repeated.search(element.value.decode("latin-1")) is not None
            if found:
                del dataset[element.tag]
            return found
        return False

    def _replace_uids(self, element: DataElement) -> bool:
        """Every UID that is not one of DICOM's own classes, consistently."""
        old = [str(v) for v in element.value] if isinstance(element.value, MultiValue) else [str(element.value)]
        new = [v if v.startswith(_DICOM_ROOT) or not v else self.keyring.uid(v) for v in old]
        element.value = new if len(new) > 1 else new[0]
        return new != old

    def _meta(self, dataset: Dataset, counts: Counter[str]) -> None:
        """File meta with nothing but what a reader needs; the preamble may have held anything."""
        old = dataset.file_meta
        new = FileMetaDataset()
        for name in _META:
            if name in old:
                setattr(new, name, getattr(old, name))
        if "SOPInstanceUID" in dataset:
            new.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
        for element in old:
            if element.keyword not in (*_META, "FileMetaInformationGroupLength", "FileMetaInformationVersion"):
                counts["private" if element.tag.is_private else element.keyword or "unknown"] += 1
        dataset.file_meta = new
        preamble = getattr(dataset, "preamble", None)  # pydicom: absent in a dataset that was not read from a file
        if preamble and preamble.strip(b"\0"):
            counts["preamble"] += 1
        dataset.preamble = b"\0" * 128


def identifiers(dataset: Dataset) -> list[str]:
    """What the header says of persons and places, on any level: words of names, numbers, institutions."""
    found: dict[str, None] = {}
    for element in _walk(dataset):
        if element.keyword not in _IDENTIFYING and element.VR != "PN":
            continue
        values = element.value if isinstance(element.value, MultiValue) else [element.value]
        for value in values:
            text = str(value or "").strip()
            if element.VR == "PN":
                words = [w for w in re.split(r"[\^=\s,]+", text) if len(w) >= 3 and not w.isdigit()]
                found.update(dict.fromkeys(words))
            elif len(text) >= 3:
                found[text] = None
    return list(found)


def _walk(dataset: Dataset) -> Iterable[DataElement]:
    for tag in list(dataset.keys()):
        if tag in _PIXELS or tag.is_private:
            continue
        try:
            element = dataset[tag]
        except Exception:  # as above: it goes when the header is cleaned
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _walk(item)
        else:
            yield element


@cache
def _table() -> tuple[dict[tuple[int, int], _Action], tuple[tuple[tuple[int, int, int, int], _Action], ...]]:
    """Actions by tag, and those for groups that repeat, with their masks."""
    actions = library.initialize_actions(TABLE)
    return (
        {tag: action for tag, action in actions.items() if len(tag) == 2},
        tuple((tag, action) for tag, action in actions.items() if len(tag) == 4),
    )


def _action(tag: BaseTag) -> _Action | None:
    plain, masks = _table()
    action = plain.get((tag.group, tag.element))
    if action is not None or tag.group < 0x5000:
        return action
    for (group, element, group_mask, element_mask), repeating in masks:
        if tag.group & group_mask == group & group_mask and tag.element & element_mask == element & element_mask:
            return repeating
    return None


def _shift(element: DataElement, days: int) -> None:
    """Moves dates; the time of day stays. A value that is no date is emptied."""
    if element.VR == "TM":
        return
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    moved = []
    for value in values:
        text = str(value or "").strip()
        try:
            day = datetime.strptime(text[:8], "%Y%m%d") + timedelta(days=days)
            moved.append(day.strftime("%Y%m%d") + (text[8:] if element.VR == "DT" else ""))
        except (ValueError, OverflowError):
            moved.append("")
    element.value = moved if len(moved) > 1 else moved[0]


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", _CODES[value]
    return item
