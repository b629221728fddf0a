"""Plain text, Markdown and source code to `Content`.

Markdown keeps its headings as breadcrumbs and its fences whole; code is cut at top-level definitions; a table
drawn with blanks and a dump of `key = value` lines are described as what they are (columns, names, ranges), since
a wall of numbers says nothing to a search. Everything else is prose, kept complete up to a bound. Takes text that
is already decoded; raises nothing but BadDocument(EMPTY).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import PurePosixPath

from shoal.documents.charset import clean
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.profiles import profile, to_numbers
from shoal.errors import BadDocument, DeadReason

TEXT_CHARS_MAX = 4_000_000  # 4 MB of prose are some 4,000 chunks; the pipeline bounds them further
LINES_MAX = 200_000
KEYS_MAX = 400
KEYS_SHOWN = 60
_MARKDOWN = frozenset({".md", ".markdown", ".mdx", ".rst"})
_CODE = {
    ".py": "Python", ".js": "JavaScript", ".mjs": "JavaScript", ".ts": "TypeScript", ".tsx": "TypeScript",
    ".java": "Java", ".go": "Go", ".rs": "Rust", ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++", ".hpp": "C++",
    ".cs": "C#", ".rb": "Ruby",
    ".php": "PHP", ".sh": "shell", ".bash": "shell", ".sql": "SQL", ".r": "R", ".scala": "Scala", ".kt": "Kotlin",
    ".swift": "Swift", ".lua": "Lua", ".pl": "Perl", ".jl": "Julia", ".ps1": "PowerShell", ".css": "CSS",
    ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".ini": "INI", ".proto": "Protocol Buffers",
    ".graphql": "GraphQL",
}  # fmt: skip
_SHEBANG = re.compile(r"#!\s*\S*?(?:/env\s+)?(?:[\w./-]*/)?(python|bash|sh|node|ruby|perl|php|Rscript)[\d.]*\b")
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_FRONT_MATTER = re.compile(r"---\n(?:[\w-]{1,60}:.*\n|[ -].*\n|\n){1,100}---\n")
_UNDERLINE = re.compile(r"(=+|-+|~+|\^+)\s*$")
_DEFINITION = re.compile(
    r"(?:export\s+|public\s+|private\s+|async\s+|static\s+|pub\s+)*"
    r"(?:def|class|function|func|fn|interface|struct|enum|trait|impl|type|module|CREATE\s+\w+)\s+([\w.$<>]+)|@\w+",
    re.I,
)
_KEY_VALUE = re.compile(r"\s*([^\s:=|{}][^:=|{}\n]{0,60}?)\s*(?:[:=]\s*|\t+)(\S.*?)\s*$")
_GAP = re.compile(r"\s{2,}|\t+|\s*\|\s*")
_KEY = re.compile(r"[\\\"']{1,4}([A-Za-z_][\w ]{1,40})[\\\"']{1,4}\s*:")
_WORDS = re.compile(r":\s*[\\\"']{1,4}([^\W\d_][^\"'\\{}<>:;#]{2,100} [^\"'\\{}<>:;#]{2,100})[\\\"']")
_PAIRS = re.compile(r"(?:^|[&;])\s*([\w.\[\]-]{1,60})=([^&;]*)")


def read_text(text: str, name: str) -> Content:
    """Read text as TEXT, MARKDOWN or CODE, by what it is called and what it shows.

    `name` is the file's name. Raises BadDocument(EMPTY) where nothing but white space is left.
    """
    warnings: tuple[str, ...] = ()
    text = clean(text)
    if not text.strip():
        raise BadDocument(DeadReason.EMPTY, "the text is empty")
    if len(text) > TEXT_CHARS_MAX:
        text = text[:TEXT_CHARS_MAX]
        warnings = (f"text cut after {TEXT_CHARS_MAX} characters",)
    suffix = PurePosixPath(name).suffix.lower()
    language = _CODE.get(suffix)
    if language is None and (shebang := _SHEBANG.match(text)):
        language = {"sh": "shell", "bash": "shell"}.get(shebang[1], shebang[1].capitalize())
    if language is not None:
        return Content("CODE", tuple(_code(text, name, language)), title=PurePosixPath(name).name, warnings=warnings)
    if suffix in _MARKDOWN or (suffix in ("", ".txt") and _looks_markdown(text)):
        sections = tuple(_markdown(text))
        return Content("MARKDOWN", sections, title=_markdown_title(text), warnings=warnings)
    return _plain(text, warnings)


def _looks_markdown(text: str) -> bool:
    head = text[:20_000].splitlines()
    headings = sum(1 for line in head if _HEADING.match(line))
    marks = sum(1 for line in head if _FENCE.match(line) or re.match(r"\s*[-*] \S|\[.+\]\(.+\)", line))
    return headings >= 2 and (marks >= 1 or headings * 20 >= len(head))


def _markdown(text: str) -> Iterator[Section]:
    headings: list[tuple[int, str]] = []
    lines: list[str] = []
    fence: str | None = None

    untold = False  # the last heading has no text of its own yet

    def flush() -> Iterator[Section]:
        nonlocal untold
        body = "\n".join(lines).strip("\n")
        lines.clear()
        if body.strip():
            untold = False
            yield Section(body, _breadcrumb(headings))

    def flush_heading() -> Iterator[Section]:
        """A heading without text is told as text: else its words would be lost with it."""
        nonlocal untold
        if untold:
            untold = False
            yield Section(headings[-1][1], _breadcrumb(headings[:-1]))

    source = _without_front_matter(text).split("\n")
    for i, line in enumerate(source):
        if fence is not None:
            lines.append(line)
            if line.strip().startswith(fence):
                fence = None
            continue
        if match := _FENCE.match(line):
            fence = match[1]
            lines.append(line)
            continue
        level, title = 0, ""
        if match := _HEADING.match(line):
            level, title = len(match[1]), match[2]
        elif (
            i + 1 < len(source)
            and line.strip()
            and not line.startswith((" ", "-", "*", "|", ">"))
            and len(source[i + 1].strip()) >= min(3, len(line.strip()))
            and _UNDERLINE.match(source[i + 1])
            and (not lines or not lines[-1].strip())
        ):
            level, title = (1 if source[i + 1][0] == "=" else 2), line.strip()
        elif lines == [] and _UNDERLINE.match(line) and i and source[i - 1].strip():
            continue  # the underline of a heading just taken
        if level:
            yield from flush()
            if headings and headings[-1][0] >= level:
                yield from flush_heading()
            headings = [(lv, t) for lv, t in headings if lv < level]
            headings.append((level, title[:200]))
            untold = True
        else:
            lines.append(line)
    yield from flush()
    yield from flush_heading()


def _breadcrumb(headings: list[tuple[int, str]]) -> str | None:
    return " > ".join(title for _, title in headings) or None


def _without_front_matter(text: str) -> str:
    """Without the YAML header of static sites, of which the title was taken."""
    match = _FRONT_MATTER.match(text)
    return text[match.end() :] if match else text


def _markdown_title(text: str) -> str | None:
    for line in text[:20_000].splitlines():
        if match := _HEADING.match(line):
            return match[2][:300]
        if line.startswith("title:"):
            return line[6:].strip().strip("\"'")[:300]
    return None


def _code(text: str, name: str, language: str) -> Iterator[Section]:
    """Sections that begin at top-level definitions; each is whole, the chunker splits what is too long."""
    path = PurePosixPath(name).name
    lines: list[str] = []
    symbol: str | None = None
    for line in text.split("\n"):
        match = _DEFINITION.match(line) if line[:1] not in (" ", "\t", "#", "}") else None
        if match and lines and sum(map(len, lines)) > 400 and not lines[-1].startswith("@"):
            yield _code_section(lines, path, symbol, language)
            lines, symbol = [], None
        if match and symbol is None and match[1]:
            symbol = match[1]
        lines.append(line)
    if any(line.strip() for line in lines):
        yield _code_section(lines, path, symbol, language)


def _code_section(lines: list[str], path: str, symbol: str | None, language: str) -> Section:
    return Section("\n".join(lines).strip("\n"), f"{path} ({language})" + (f" > {symbol}" if symbol else ""))


def _plain(text: str, warnings: tuple[str, ...]) -> Content:
    lines = text.split("\n", LINES_MAX)[:LINES_MAX]
    if (pairs := _pairs(text)) is not None:
        sections, fields = _dump(pairs)
        return Content("TEXT", sections, fields, warnings=warnings, records=len(pairs))
    if (machine := _machine_made(text)) is not None:
        return Content("TEXT", (machine,), warnings=warnings)
    table = _fixed_width(lines)
    if table is not None:
        before, headers, rows, after = table
        fields = tuple(
            profile(header, [row[i] for row in rows if i < len(row)], name=header).profile
            for i, header in enumerate(headers[:KEYS_MAX])
        )
        shown = "\n".join("; ".join(f"{h}: {v}" for h, v in zip(headers, row, strict=False)) for row in rows[:3])
        said = f"Table of {len(rows)} rows with the columns {', '.join(headers)}\n{shown}"
        words = [part for part in ("\n".join(before).strip(), said, "\n".join(after).strip()) if part]
        return Content(
            "TEXT", (Section("\n\n".join(words)),), fields, _first_line(before), warnings=warnings, records=len(rows)
        )
    return Content("TEXT", (Section(text.strip("\n")),), title=_first_line(lines), warnings=warnings)


def _first_line(lines: Sequence[str]) -> str | None:
    """The first line as a title, where it looks like one."""
    line = next((line.strip() for line in lines if line.strip()), "")
    letters = sum(c.isalpha() or c == " " for c in line)
    return line if 3 < len(line) <= 120 and letters > 0.6 * len(line) else None


def _pairs(text: str) -> list[tuple[str, str]] | None:
    """The pairs of a dump: `a=1&b=2`, or lines of `key: value`, if that is (nearly) all there is."""
    flat = unescape(text[:200_000]).strip()
    if "\n" not in flat and flat.count("=") >= 2 and "&" in flat:
        found = [(key, " ".join(value.split())) for key, value in _PAIRS.findall(flat)]
        if len(found) >= 2 and sum(len(k) + len(v) + 2 for k, v in found) > 0.7 * len(flat):
            return [(key, value if value.count("\ufffd") < 3 else "") for key, value in found]  # lost in decoding
        return None
    lines = [line for line in text.split("\n", LINES_MAX)[:LINES_MAX] if line.strip()]
    matched = [match for line in lines if len(line) < 400 and (match := _KEY_VALUE.fullmatch(line))]
    if len(lines) < 3 or len(matched) < 0.8 * len(lines):
        return None
    found = [(match[1].strip("\"' "), match[2].strip("\"',; ")) for match in matched]
    # Sentences with a colon are no keys: keys are short, and most come with data.
    data = sum(1 for _, value in found if len(value) <= 60)
    return found if data > 0.7 * len(found) and sum(len(k.split()) <= 5 for k, _ in found) > 0.8 * len(found) else None


def _dump(pairs: list[tuple[str, str]]) -> tuple[tuple[Section, ...], tuple[FieldProfile, ...]]:
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        if key in values or len(values) < KEYS_MAX:
            values.setdefault(key, []).append(value)
    fields = tuple(profile(key, texts, name=key).profile for key, texts in values.items())
    lines = []
    for key, texts in values.items():
        distinct = dict.fromkeys(text for text in texts if text)
        if distinct and (len(texts) == 1 or to_numbers(texts) is None):
            lines.append(f"{key}: {', '.join(list(distinct)[:8])[:400]}")
    return (Section("\n".join(lines)) if lines else Section(", ".join(values)),), fields


def _machine_made(text: str) -> Section | None:
    """Serialised objects that no reader took (a callback's reply, a log of JSON): their keys and their words."""
    sample = text[:50_000]
    if sample.count("\n") * 300 > len(sample) or len(sample) < 1000 or len(_KEY.findall(sample)) < 20:
        return None
    keys: dict[str, int] = {}
    words: dict[str, None] = {}
    for match in _KEY.finditer(text, 0, 2_000_000):
        keys[match[1]] = keys.get(match[1], 0) + 1
    for match in _WORDS.finditer(text, 0, 2_000_000):
        value = match[1].strip()
        if len(words) < 200 and sum(c.isalpha() or c == " " for c in value) > 0.7 * len(value):
            words[value] = None
    usual = sorted(keys, key=lambda key: -keys[key])[:KEYS_SHOWN]
    said = f"{', '.join(words)}\n" if words else ""
    return Section(f"{said[:6000]}Serialised objects with the fields: {', '.join(usual)}")


def _fixed_width(lines: Sequence[str]) -> tuple[list[str], list[str], list[list[str]], list[str]] | None:
    """A table drawn with blanks or bars: text before, headings, rows, text after. None where there is none."""
    split = [[cell for cell in _GAP.split(line.strip().strip("|")) if cell] for line in lines]
    start = best_start = best_length = 0
    while start < len(split):
        width = len(split[start])
        end = start
        if width >= 3:
            while end < len(split) and (len(split[end]) == width or (not split[end] and end + 1 < len(split))):
                end += 1
            if end - start > best_length:
                best_start, best_length = start, end - start
        start = max(end, start + 1)
    rows = [row for row in split[best_start : best_start + best_length] if row and set("".join(row)) - set("-=+:")]
    if len(rows) < 4:
        return None
    data = sum(1 for row in rows[1:] for cell in row if to_numbers([cell]) is not None or any(map(str.isdigit, cell)))
    if data * 3 < sum(map(len, rows[1:])):
        return None  # columns of words are prose with gaps
    before = list(lines[:best_start])
    if any(any(map(str.isalpha, cell)) for cell in rows[0]) and all(to_numbers([cell]) is None for cell in rows[0]):
        headers, rows = rows[0], rows[1:]
    else:
        headers = [f"column {i + 1}" for i in range(len(rows[0]))]
    return before, [h[:120] for h in headers], rows, list(lines[best_start + best_length :])
