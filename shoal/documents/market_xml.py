"""One readable summary of an electricity market document, from the codes that are all it holds.

`MarketSummary` listens to the leaves of an XML document as the reader streams past them. For an IEC 62325
document (ENTSO-E transparency platform) or a CAISO OASIS report it ends as a few sentences: what the document
is, for which areas, production types and period, in which unit and resolution; and as the units of its value
fields. For any other document it says nothing. It keeps a bounded number of distinct codes, never the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.documents import market_codes as codes
from shoal.documents.content import FieldProfile

_DISTINCT_MAX = 30  # production types and areas of one document; a document with more is a catalogue
_VALUES = {"quantity": "Quantities", "price.amount": "Prices"}
_NAMES = ("production_RegisteredResource", "asset_RegisteredResource", "registeredResource")


class MarketSummary:
    """The codes seen so far in a market document whose root is `root` (local name)."""

    def __init__(self, root: str) -> None:
        self.is_iec = root.endswith(("MarketDocument", "_Document")) and "_" in root
        self.is_oasis = root == "OASISReport"
        self._root = root
        self._seen: dict[str, list[str]] = {}
        self._series_count = 0

    def start(self, name: str) -> None:
        if self.is_iec and name == "TimeSeries":
            self._series_count += 1

    def leaf(self, path: str, value: str) -> None:
        """A leaf element or attribute at `path` (local names joined by '/')."""
        name = path.rsplit("/", 1)[-1]
        if name in ("position", "quantity", "price.amount", "VALUE", "@codingScheme"):
            return
        if self.is_iec and not name.startswith("@"):
            key = name
            if name in ("start", "end"):
                key = f"{name} of {'series' if '/TimeSeries' in path else 'document'}"
            elif name == "type" and path.count("/") == 1:
                key = "document type"
            _note(self._seen, key, value)
        elif self.is_oasis:
            _note(self._seen, name, value)

    def units(self) -> dict[str, str]:
        """The unit of a value field, by the field's local name."""
        found: dict[str, str] = {}
        if self.is_iec:
            if quantity := self._unit("quantity_Measure_Unit.name"):
                found["quantity"] = quantity
            currency, per = self._unit("currency_Unit.name"), self._unit("price_Measure_Unit.name")
            if currency or per:
                found["price.amount"] = f"{currency}/{per}" if currency and per else currency or per
        elif self.is_oasis and (unit := "/".join(self._seen.get("UOM", [])[:3])):
            found["VALUE"] = unit
        return found

    def title(self) -> str | None:
        """A short name of the document: what it is and for which areas."""
        if self.is_oasis:
            items = [codes.OASIS_REPORTS.get(r, r) for r in self._seen.get("REPORT", [])[:3]]
            return f"CAISO OASIS report: {'; '.join(items)}" if items else "CAISO OASIS report"
        if not self.is_iec:
            return None
        kinds = _named(self._seen.get("document type", []), codes.DOCUMENT_TYPES, code=False)
        where = self._areas(code=False)
        name = kinds or _words(self._root)
        return f"{name[0].upper()}{name[1:]}{f', {where}' if where else ''}"

    def text(self, fields: Sequence[FieldProfile]) -> str | None:
        """The summary, with the ranges of the value fields; None for a document of another kind."""
        if self.is_oasis:
            return self._oasis_text()
        return self._iec_text(fields) if self.is_iec else None

    def _unit(self, name: str) -> str:
        return "/".join(codes.UNITS.get(unit, unit) for unit in self._seen.get(name, [])[:2])

    def _areas(self, code: bool = True) -> str:
        into = self._some("in_Domain.mRID", "inBiddingZone_Domain.mRID", "acquiring_Domain.mRID")
        out = self._some("out_Domain.mRID", "outBiddingZone_Domain.mRID", "connecting_Domain.mRID")
        other = self._some("biddingZone_Domain.mRID", "area_Domain.mRID", "controlArea_Domain.mRID")
        if into and out and into != out:
            return f"from {_named(out, codes.AREAS, code)} to {_named(into, codes.AREAS, code)}"
        return _named(into or out or other, codes.AREAS, code)

    def _some(self, *names: str) -> list[str]:
        return next((self._seen[name] for name in names if name in self._seen), [])

    def _iec_text(self, fields: Sequence[FieldProfile]) -> str:
        seen = self._seen
        parts = [f"Electricity market document {self._root} (IEC 62325, ENTSO-E transparency platform)"]
        for label, key, table in (
            ("Document type", "document type", codes.DOCUMENT_TYPES),
            ("Process", "process.processType", codes.PROCESS_TYPES),
            ("Business type", "businessType", codes.BUSINESS_TYPES),
            ("Status", "value", codes.DOCUMENT_STATUSES),
        ):
            if values := seen.get(key):
                parts.append(f"{label}: {_named(values, table)}")
        if where := self._areas():
            parts.append(f"Area: {where}")
        if kinds := self._some(
            "psrType", "production_RegisteredResource.pSRType.psrType", "asset_RegisteredResource.pSRType.psrType"
        ):
            parts.append(f"Production types: {_named(kinds, codes.PRODUCTION_TYPES)}")
        for key, values in seen.items():
            if key.startswith(_NAMES) and key.endswith("name"):
                what = "Location" if "location" in key else "Unit" if "powerSystemResources" in key else "Plant"
                parts.append(f"{what}: {', '.join(values[:10])}")
        starts, ends = seen.get("start of document", []), seen.get("end of document", [])
        if starts and ends:
            parts.append(f"Period: {min(starts)} to {max(ends)}")
        if steps := seen.get("resolution"):
            named = [f"{codes.RESOLUTIONS[s]} ({s})" if s in codes.RESOLUTIONS else s for s in steps[:4]]
            parts.append(f"Resolution: {', '.join(named)}")
        for field in fields:
            if (name := field.path.rsplit("/", 1)[-1]) in _VALUES:
                parts.append(
                    f"{_VALUES[name]}: {field.count} points in {self._series_count} time series,"
                    f" from {field.low} to {field.high} {field.unit or ''}".rstrip()
                )
        if reasons := seen.get("text"):
            parts.append(f"Reason: {'; '.join(reasons[:5])}")
        return ".\n".join(parts) + "."

    def _oasis_text(self) -> str:
        seen = self._seen
        parts = ["CAISO OASIS report (California ISO open access same-time information system)"]
        for label, key, table in (
            ("Report", "REPORT", codes.OASIS_REPORTS),
            ("Market", "MKT_TYPE", codes.OASIS_MARKETS),
            ("Unit", "UOM", {}),
            ("Data items", "DATA_ITEM", {}),
            ("Resources", "RESOURCE_NAME", {}),
            ("Operating date", "OPR_DATE", {}),
            ("Seconds per interval", "SEC_PER_INTERVAL", {}),
            ("Time zone", "TZ", {}),
            ("Disclaimer", "DISCLAIMER_ITEM", {}),
        ):
            if values := seen.get(key):
                parts.append(f"{label}: {_named(values, table)}")
        for code, description in zip(seen.get("ERR_CODE", []), seen.get("ERR_DESC", []), strict=False):
            parts.append(f"Error {code}: {description}")
        return ".\n".join(parts) + "."


def _note(into: dict[str, list[str]], key: str, value: str) -> None:
    values = into.setdefault(key, [])
    if len(values) < _DISTINCT_MAX and value not in values:
        values.append(value[:300])


def _named(values: list[str], table: Mapping[str, str], code: bool = True) -> str:
    shown = []
    for value in values[:_DISTINCT_MAX]:
        name = table.get(value)
        shown.append(value if name is None else f"{name} ({value})" if code else name)
    return ", ".join(shown)


def _words(name: str) -> str:
    return name.replace("_", " ")
