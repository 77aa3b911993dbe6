"""Names, dates and numbers in free text: the rules, and what takes the place of what they find.

| rule | what is found |
|---|---|
| known | identifiers that stand in the DICOM headers of the same set: patient, physicians, institution, numbers |
| name | after a title (Dr., Mrs.), before a degree (MD), after a cue (signed by, discussed with, Patient:), after a common given name |
| date | 2019-03-14, 14.03.2019, 3/14/19, March 3rd 2019, Mar 2019; 3/14 only after on, from, since, dated |
| time | 14:32, 2:15 pm; not the clock position of a lesion |
| number | after MRN, accession, ID, account and their kin; runs of six digits and more; letters before five digits |
| contact | e-mail, web and IP addresses, telephone and social security numbers |
| place | hospitals and clinics by name, streets, postal codes after a state |
| age | 90 and above |

Measurements, levels (T12), ratios, slices ("image 45/120") and years by themselves stay: a report without them is none.
The mark is "XXXX" because that is what training already passes over (Open-i's de-identifier wrote it).
"""

# ruff: noqa: E501  a pattern on one line is read more easily than one in pieces
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from re import Match

MARK = "XXXX"

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|(?-i:May|MAY)|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_CAP = r"[A-Z][a-zA-ZÀ-ÿ]*(?:['’\-][A-ZÀ-Ý]?[a-zA-ZÀ-ÿ]+)*"
_PLAIN = (  # capitalised words that begin a clause and end a name
    r"(?:The|At|On|By|And|Or|Who|In|Of|For|With|From|To|Was|Is|Are|Has|No|There|This|Chest|Lungs?|Heart|Left|Right|"
    r"Findings?|Impression|Indication|Comparison|Technique|Pain|History|Status|Date|Time|Exam|Study|Report|Phone|AT|ON|"
    r"BY|AND|OR|WHO|IN|OF|FOR|WITH|FROM|TO|WAS|IS|ARE|HAS|NO|THE|THERE|THIS|DATE|TIME|MRN|DOB|MD|DO|RN)\b"
)
_NAME = rf"(?!{_PLAIN}){_CAP}(?:,?[ ]+(?!{_PLAIN})(?:[A-Z]\.|{_CAP})){{0,3}}"
_GIVEN = (
    "James|John|Robert|Michael|William|David|Richard|Joseph|Thomas|Charles|Christopher|Daniel|Matthew|Anthony|Donald|"
    "Steven|Paul|Andrew|Joshua|Kenneth|Kevin|Brian|George|Edward|Ronald|Timothy|Jason|Jeffrey|Ryan|Jacob|Gary|Nicholas|"
    "Eric|Jonathan|Stephen|Larry|Justin|Scott|Brandon|Benjamin|Samuel|Gregory|Frank|Alexander|Raymond|Patrick|Jack|"
    "Dennis|Jerry|Tyler|Aaron|Jose|Adam|Henry|Nathan|Douglas|Peter|Zachary|Kyle|Walter|Ethan|Jeremy|Harold|Keith|"
    "Mary|Patricia|Jennifer|Linda|Elizabeth|Barbara|Susan|Jessica|Sarah|Karen|Lisa|Nancy|Betty|Margaret|Sandra|Ashley|"
    "Kimberly|Emily|Donna|Michelle|Carol|Amanda|Dorothy|Melissa|Deborah|Stephanie|Rebecca|Sharon|Laura|Cynthia|"
    "Kathleen|Amy|Angela|Shirley|Anna|Brenda|Pamela|Emma|Nicole|Helen|Samantha|Katherine|Christine|Debra|Rachel|Carolyn|"
    "Janet|Catherine|Maria|Heather|Diane|Ruth|Julie|Olivia|Joyce|Virginia|Victoria|Kelly|Lauren|Christina|Joan|Evelyn|"
    "Judith|Andrea|Hannah|Megan|Cheryl|Jacqueline|Martha|Gloria|Teresa|Ann|Sara|Madison|Frances|Kathryn|Janice|Jean|"
    "Alice|Julia|Sophia|Jane|Marie|Ahmed|Mohammed|Muhammad|Ali|Fatima|Wei|Hiroshi|Yuki|Raj|Priya|Carlos|Juan|Luis|"
    "Miguel|Hans|Klaus|Jürgen|Stefan|Pierre|Jean|Giovanni|Marco|Ivan|Olga|Dmitri|Svetlana|Chen|Ming|Kim"
)
_CUES = (
    r"(?:electronically[ ]+)?(?:signed|dictated|transcribed|interpreted|verified|approved|reported|performed|ordered|"
    r"requested|authenticated|finalized|supervised)[ ]+(?:by|to)|(?:discussed|reviewed|communicated|relayed|called|conveyed|"
    r"telephoned|reported)[ ]+(?:with|to)|(?:notified|informed)"
)
_LABELS = (
    r"(?:patient(?:'s)?(?:[ ]+name)?|name|referring(?:[ ]+(?:physician|doctor))?|ref\.?[ ]+(?:physician|doctor)|attending"
    r"(?:[ ]+(?:physician|radiologist))?|radiologist|resident|technologist|physician|provider|author|surgeon|nurse)"
)
_NUMBER_CUES = (
    r"(?:MRN|MR[ ]?#|M\.R\.N\.|medical[ ]+record(?:[ ]+(?:number|no\.?))?|accession(?:[ ]+(?:number|no\.?))?|acc\.?[ ]?#|"
    r"(?:patient|pt\.?|study|case|order|visit|account|encounter|exam)[ ]+(?:id|number|no\.?|#)|SSN|NHS[ ]+(?:number|no\.?)|"
    r"insurance[ ]+(?:id|number|no\.?)|licen[cs]e[ ]+(?:number|no\.?)|ID)"
)

RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("contact", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    ("contact", re.compile(r"\b(?:https?://|www\.)[^\s,;)]+", re.I)),
    ("contact", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\d|\.\d)")),
    ("contact", re.compile(r"\b\d{3}-\d{2}-\d{4}\b")),
    ("contact", re.compile(r"(?<![\d.])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}\b(?:[ ]*x[ ]?\d+)?")),
    ("contact", re.compile(r"\b(?:phone|tel|telephone|fax|pager|beeper|ext)\b\.?[ ]*[:#]?[ ]*(?P<cut>\+?\d[\d ().-]{2,}\d)", re.I)),
    ("date", re.compile(r"(?<![\d/.-])(?:19|20)\d{2}[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])(?![\d/-])")),
    ("date", re.compile(r"(?<![\d/.-])(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\1(?:(?:19|20)\d{2})(?![\d/-])")),
    ("date", re.compile(r"(?<![\d/.-])(?:0?[1-9]|[12]\d|3[01])([-/])(?:0?[1-9]|[12]\d|3[01])\1\d{2}(?![\d/-])")),
    ("date", re.compile(rf"\b{_MONTH}[ ]+\d{{1,2}}(?:st|nd|rd|th)?(?:,?[ ]+(?:19|20)\d{{2}})?\b", re.I)),
    ("date", re.compile(rf"\b\d{{1,2}}(?:st|nd|rd|th)?(?:[ ]+of)?[ -]{_MONTH}(?:,?[ -]+(?:19|20)?\d{{2}})?\b", re.I)),
    ("date", re.compile(rf"\b{_MONTH},?[ ]+(?:of[ ]+)?(?:19|20)\d{{2}}\b", re.I)),
    ("date", re.compile(r"\b(?:on|dated|from|since|of|exam|study|radiographs?|compared to)[ ]+(?P<cut>(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01]))(?![\d/])", re.I)),
    ("date", re.compile(r"\b(?:DOB|D\.O\.B\.|birth[ ]?date|date of birth)[ ]*[:=]?[ ]*(?P<cut>[\d/.-]{4,}|\d{8})", re.I)),
    ("time", re.compile(r"(?<![\d:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?![\d:])(?:[ ]?(?:am|pm|a\.m\.|p\.m\.|hrs|hours)\b)?(?![ ]*(?:o'?clock|position|axis|radian))", re.I)),
    ("time", re.compile(r"\b(?:1[0-2]|[1-9])[ ]?(?:am|pm|a\.m\.|p\.m\.)(?![a-z])", re.I)),
    ("number", re.compile(rf"\b{_NUMBER_CUES}(?:[ ]+is)?[ ]*[:#=.-]*[ ]*(?P<cut>(?=[A-Z0-9/-]*\d)[A-Z0-9][A-Z0-9/-]{{2,}})", re.I)),
    ("number", re.compile(r"(?<![\w.,])\d{6,}(?![\w]|\.\d)")),
    ("number", re.compile(r"(?<![\w.-])[A-Z]{1,4}-?\d{5,}\b")),
    ("place", re.compile(r"(?:\b(?:St\.?|Saint|Mount|Mt\.)[ ]+)?\b(?!The\b|At\b|In\b|From\b)[A-Z][\w'’-]+(?:[ ]+(?:of[ ]+)?[A-Z][\w'’-]+){0,4}?[ ]+(?:Hospitals?|Medical[ ]+Cent(?:er|re)|Clinic|Infirmary|Health[ ]+(?:System|Cent(?:er|re))|Imaging[ ]+Cent(?:er|re)|Klinikum)\b")),
    ("place", re.compile(r"\b\d{1,5}[ ]+(?:[NSEW]\.?[ ]+)?[A-Z][a-z]+(?:[ ]+[A-Z][a-z]+){0,2}[ ]+(?:Street|St\.|Avenue|Ave\b\.?|Road|Rd\b\.?|Boulevard|Blvd\b\.?|Lane|Ln\b\.?|Drive|Court|Ct\.|Way|Place)")),
    ("place", re.compile(r"\b(?:[A-Z][a-z]+,[ ]+)?[A-Z]{2}[ ]+\d{5}(?:-\d{4})?\b")),
    ("name", re.compile(rf"\b(?:Drs?|Mr|Mrs|Ms|Miss|Prof|Doctor|Professor|DR|MR|MRS|MS)\b\.?[ ]+(?P<cut>{_NAME}(?:[ ]+and[ ]+(?={_CAP}){_NAME})?)")),
    ("name", re.compile(rf"\b(?P<cut>{_NAME}),?[ ]+(?:M\.?D\.?|D\.?O\.?|R\.?N\.?|PA-C|N\.?P\.?|Ph\.?D\.?|FRCR|MBBS)(?![\w])")),
    ("name", re.compile(rf"\b(?i:{_CUES})[ ]*:?[ ]+(?:(?i:the[ ]+)?(?i:{_LABELS})[ ]+)?(?P<cut>{_NAME})")),
    ("name", re.compile(rf"\b(?i:{_LABELS})[ ]*:[ ]*(?P<cut>{_NAME})")),
    ("name", re.compile(rf"\b(?P<cut>(?:{_GIVEN}|{_GIVEN.upper()})(?:[ ]+[A-Z]\.)?[ ]+(?!{_PLAIN}){_CAP})\b")),
    ("age", re.compile(r"\b(?:9\d|1[01]\d)(?=[ -]?(?:years?|yrs?|y/?o|year-old)\b)", re.I)),
)  # fmt: skip
"""Kind and pattern, in the order in which they are used; the group "cut", where there is one, is what is taken out."""


class TextScrubber:
    """Takes identifiers out of free text.

    Args:
        known: identifiers of this set, as the headers state them; shorter than three characters are passed over.
        mark: what takes the place of each.
    """

    def __init__(self, known: Iterable[str] = (), mark: str = MARK) -> None:
        self.mark = mark
        words = sorted({w.strip() for w in known if len(w.strip()) >= 3}, key=lambda w: (-len(w), w))
        forms = [form for w in words for form in dict.fromkeys((w, w.title(), w.upper()))]
        pattern = "|".join(re.escape(form) for form in forms)
        self._known = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)") if pattern else None

    def scrub(self, text: str, counts: Counter[str]) -> str:
        """The text without what the rules find; `counts` grows by rule."""
        if self._known is not None:
            text = self._replace("known", self._known, text, counts)
        for kind, pattern in RULES:
            text = self._replace(kind, pattern, text, counts)
        return text

    def _replace(self, kind: str, pattern: re.Pattern[str], text: str, counts: Counter[str]) -> str:
        def put(match: Match[str]) -> str:
            start, end = match.span("cut" if "cut" in pattern.groupindex else 0)
            found = text[start:end]
            if set(found) <= set(self.mark + " ,.") or found.strip(" ,.") == self.mark:
                return match[0]
            counts[kind] += 1
            mark = "90" if kind == "age" else self.mark
            return match[0][: start - match.start()] + mark + match[0][end - match.start() :]

        return pattern.sub(put, text)
