"""Sample scrapes beside the market feeds: registries, weather, pages, notices, sheets and API documents.

As in `sample_markets`: shapes of the real, invented content, the same bytes for the same generator and time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from html import escape
from random import Random
from xml.sax.saxutils import escape as xml_escape

from shoal.cluster.sample_markets import FUELS, csv_text, demand, gzip_bytes, json_bytes, price, sun, zip_bytes

EU_AREAS = {"10YFR-RTE------C": "France", "10YBE----------2": "Belgium", "10YNL----------L": "Netherlands"}
PSR_TYPES = {"B04": 3900.0, "B14": 42_000.0, "B16": 5200.0, "B19": 9100.0, "B12": 7400.0, "B10": 1800.0}
PLANTS = ("Alder Creek 1", "Alder Creek 2", "Bridgewater CC", "Cedar Point GT3", "Dunmore Nuclear", "Eagle Rock Hydro",
          "Fallbrook Wind", "Granite Bay ST1", "Harlan Solar", "Ironwood 4", "Juniper Flats BESS")  # fmt: skip
CAUSES = ("Planned maintenance", "Forced outage: boiler tube leak", "Fuel limitation", "Transformer inspection",
          "Ambient temperature derate", "Turbine vibration")  # fmt: skip
TOKYO = timedelta(hours=9)


# --- ENTSO-E ----------------------------------------------------------------------------------


def entsoe_generation(rng: Random, at: datetime) -> bytes:
    """A GL_MarketDocument: actual generation per type, a TimeSeries each."""
    day = at.replace(hour=0, minute=0, second=0)
    area = rng.choice(list(EU_AREAS))
    series = []
    for number, (kind, size) in enumerate(PSR_TYPES.items(), 1):
        values = ((size * (sun(n / 4) if kind == "B16" else rng.uniform(0.5, 1))) for n in range(96))
        points = "".join(
            f"<Point><position>{n}</position><quantity>{value:.0f}</quantity></Point>"
            for n, value in enumerate(values, 1)
        )
        series.append(
            f"<TimeSeries><mRID>{number}</mRID><businessType>A01</businessType>"
            "<objectAggregation>A08</objectAggregation>"
            f'<inBiddingZone_Domain.mRID codingScheme="A01">{area}</inBiddingZone_Domain.mRID>'
            "<quantity_Measure_Unit.name>MAW</quantity_Measure_Unit.name><curveType>A01</curveType>"
            f"<MktPSRType><psrType>{kind}</psrType></MktPSRType><Period><timeInterval><start>{day:%Y-%m-%dT%H:%MZ}</start>"
            f"<end>{day + timedelta(days=1):%Y-%m-%dT%H:%MZ}</end></timeInterval><resolution>PT15M</resolution>"
            f"{points}</Period></TimeSeries>"
        )
    return _market_document("GL_MarketDocument", "generationloaddocument:3:0", "A75", series, rng, at)


def entsoe_prices(rng: Random, at: datetime) -> bytes:
    day = at.replace(hour=0, minute=0, second=0) + timedelta(days=1)
    area = rng.choice(list(EU_AREAS))
    points = "".join(
        f"<Point><position>{hour + 1}</position><price.amount>{price(rng, hour, 75):.2f}</price.amount></Point>"
        for hour in range(24)
    )
    series = (
        "<TimeSeries><mRID>1</mRID><businessType>A62</businessType>"
        f'<in_Domain.mRID codingScheme="A01">{area}</in_Domain.mRID>'
        f'<out_Domain.mRID codingScheme="A01">{area}</out_Domain.mRID>'
        "<currency_Unit.name>EUR</currency_Unit.name><price_Measure_Unit.name>MWH</price_Measure_Unit.name>"
        f"<Period><timeInterval><start>{day:%Y-%m-%dT%H:%MZ}</start>"
        f"<end>{day + timedelta(days=1):%Y-%m-%dT%H:%MZ}</end></timeInterval>"
        f"<resolution>PT60M</resolution>{points}</Period></TimeSeries>"
    )
    return _market_document("Publication_MarketDocument", "publicationdocument:7:0", "A44", [series], rng, at)


def _market_document(root: str, schema: str, kind: str, series: Sequence[str], rng: Random, at: datetime) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="urn:iec62325.351:tc57wg16:451-6:{schema}">'
        f"<mRID>{rng.randbytes(16).hex()}</mRID><revisionNumber>1</revisionNumber><type>{kind}</type>"
        "<process.processType>A16</process.processType>"
        '<sender_MarketParticipant.mRID codingScheme="A01">10X1001A1001A450</sender_MarketParticipant.mRID>'
        f"<createdDateTime>{at:%Y-%m-%dT%H:%M:%SZ}</createdDateTime>{''.join(series)}</{root}>"
    ).encode()


# --- statistics, weather, grids ---------------------------------------------------------------


def eia_region_demand(rng: Random, at: datetime) -> bytes:
    """EIA's API v2: the request is echoed beside the response."""
    regions = {"CISO": "California ISO", "ERCO": "ERCOT", "MISO": "Midcontinent ISO", "PJM": "PJM Interconnection"}
    kinds = {"D": "Demand", "DF": "Day-ahead demand forecast", "NG": "Net generation", "TI": "Total interchange"}
    data = [
        {
            "period": f"{at - timedelta(hours=back):%Y-%m-%dT%H}", "respondent": code, "respondent-name": name,
            "type": kind, "type-name": kinds[kind], "value": f"{demand(rng, at.hour - back, 30_000):.0f}",
            "value-units": "megawatthours",
        }
        for back in range(rng.choice((6, 24, 48)))
        for code, name in regions.items()
        for kind in kinds
    ]  # fmt: skip
    return json_bytes(
        {
            "response": {
                "total": str(len(data) * 40), "dateFormat": 'YYYY-MM-DD"T"HH24', "frequency": "hourly", "data": data,
                "description": "Hourly demand, forecast, net generation and interchange by balancing authority.",
            },
            "request": {
                "command": "/v2/electricity/rto/region-data/data/",
                "params": {"frequency": "hourly", "data": ["value"], "offset": 0, "length": 5000},
            },
            "apiVersion": "2.1.8",
        }
    )  # fmt: skip


def zonal_forecast(rng: Random, at: datetime) -> bytes:
    """A paged JSON API of a small operator: one object an interval and zone."""
    zones = {"NORTH": 4200.0, "CENTRAL": 8800.0, "COAST": 6100.0, "ISLANDS": 700.0}
    data = [
        {
            "interval_start": f"{at + timedelta(hours=hour):%Y-%m-%dT%H:00:00Z}",
            "zone": zone,
            "forecast_mw": round(demand(rng, at.hour + hour, size), 1),
            "model_run": f"{at:%Y-%m-%dT%H:%M:00Z}",
        }
        for hour in range(rng.choice((24, 48, 168)))
        for zone, size in zones.items()
    ]
    return json_bytes({"data": data, "next_page_token": rng.randbytes(6).hex(), "unit": "MW"})


def weather_grid(rng: Random, at: datetime) -> bytes:
    """A point forecast as the weather service gives it: a series per quantity, each with its unit code."""
    units = {"temperature": "wmoUnit:degC", "windSpeed": "wmoUnit:km_h-1", "skyCover": "wmoUnit:percent",
             "probabilityOfPrecipitation": "wmoUnit:percent", "relativeHumidity": "wmoUnit:percent"}  # fmt: skip
    hours = rng.choice((24, 72, 156))

    def series(unit: str) -> dict[str, object]:
        middle, spread = {"wmoUnit:degC": (-2.0, 6.0), "wmoUnit:km_h-1": (18.0, 9.0)}.get(unit, (55.0, 30.0))
        values = [
            {
                "validTime": f"{at + timedelta(hours=hour):%Y-%m-%dT%H:00:00}+00:00/PT1H",
                "value": round(middle + spread * demand(rng, hour, 1.0) - spread, 2),
            }
            for hour in range(hours)
        ]
        return {"uom": unit, "values": values}

    office, x, y = rng.choice(("OKX", "LWX", "BOX")), rng.randint(10, 90), rng.randint(10, 90)
    return json_bytes(
        {
            "@context": ["https://geojson.org/geojson-ld/geojson-context.jsonld", {"@version": "1.1"}],
            "id": f"https://api.weather.gov/gridpoints/{office}/{x},{y}",
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(-74 + rng.random(), 4), round(40 + rng.random(), 4)]},
            "properties": {"updateTime": at.isoformat(), "gridId": office, **{k: series(u) for k, u in units.items()}},
        },
        indent=2,
    )


def outage_map(rng: Random, at: datetime) -> bytes:
    """Customers without power, as GeoJSON."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(rng.gauss(-121, 1), 5), round(rng.gauss(38, 1), 5)]},
            "properties": {
                "outageNumber": str(rng.randint(1_000_000, 9_999_999)),
                "outageStartTime": (at - timedelta(minutes=rng.randint(5, 900))).isoformat(),
                "estCustAffected": rng.randint(1, 2400), "cause": rng.choice(CAUSES),
                "crewCurrentStatus": rng.choice(("Assigned", "On site", "En route", "Assessing damage")),
                "currentEtor": (at + timedelta(minutes=rng.randint(30, 600))).isoformat(),
            },
        }
        for _ in range(rng.choice((5, 30, 120, 600)))
    ]  # fmt: skip
    return json_bytes({"type": "FeatureCollection", "updated": at.isoformat(), "features": features})


def turbine_lines(rng: Random, at: datetime) -> bytes:
    """Gzip of JSON lines: one reading of a wind turbine a line."""
    lines = (
        json_bytes(
            {
                "ts": (at - timedelta(minutes=10 * step)).isoformat(), "turbine": f"WTG-{unit:02d}",
                "wind_speed_m_s": round(rng.weibullvariate(8, 2), 2), "active_power_kw": round(rng.uniform(0, 3600), 1),
                "status": rng.choice(("RUN", "RUN", "RUN", "CURTAILED", "STOP")),
            }
        )
        for step in range(rng.choice((24, 144)))
        for unit in range(12)
    )  # fmt: skip
    return gzip_bytes(b"\n".join(lines) + b"\n", at)


def tepco_area_csv(rng: Random, at: datetime) -> bytes:
    """Area demand and supply of a Japanese utility, in Shift-JIS with a preamble."""
    local = at + TOKYO
    rows: list[Sequence[object]] = [
        (f"{local:%Y/%m/%d} {local:%H:%M} UPDATE",), ("単位[MW平均]", "エリア需給実績"),
        ("DATE", "TIME", "エリア需要", "原子力", "火力(LNG)", "火力(石炭)", "水力", "太陽光発電実績",
         "風力発電実績", "連系線"),
    ]  # fmt: skip
    for step in range(48):
        load = demand(rng, step / 2, 38_000)
        parts = (load, 0, load * 0.5, load * 0.2, load * 0.06, 14_000 * sun(step / 2), rng.uniform(20, 300), load * 0.1)
        rows.append((f"{local:%Y/%m/%d}", f"{step // 2}:{step % 2 * 30:02d}", *(f"{value:.0f}" for value in parts)))
    return csv_text(rows).encode("cp932")


# --- pages, notices, documents ----------------------------------------------------------------


def _outages(rng: Random, at: datetime, count: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for _ in range(count):
        begin = at + timedelta(hours=rng.randint(-200, 200))
        size = rng.randint(20, 900)
        rows.append(
            (rng.choice(PLANTS), rng.choice(FUELS), str(size), str(int(size * rng.random())), rng.choice(CAUSES),
             f"{begin:%Y-%m-%d %H:%M}", f"{begin + timedelta(hours=rng.randint(4, 400)):%Y-%m-%d %H:%M}")
        )  # fmt: skip
    return rows


_OUTAGE_COLUMNS = ("Resource", "Fuel", "Capacity (MW)", "Curtailed (MW)", "Nature of work", "Start", "End")


def outage_page(rng: Random, at: datetime) -> bytes:
    """An HTML page with a table of generator outages between navigation and scripts."""
    head = "".join(f"<th>{escape(name)}</th>" for name in _OUTAGE_COLUMNS)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in _outages(rng, at, rng.choice((12, 40, 150, 900)))
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Generation outages and curtailments</title>
<script>window.dataLayer = window.dataLayer || []; function track(e) {{ dataLayer.push(e); }}</script>
<style>.grid td {{ padding: 4px }}</style></head>
<body><nav><a href="/">Home</a> <a href="/markets">Markets</a> <a href="/api-docs">Market data API</a></nav>
<h1>Generation outages and curtailments</h1>
<p>Prior trade date report, {at:%d %B %Y}. Units that are out of service or derated, planned and forced, as
reported to the outage management system. Published daily at 15:00.</p>
<table class="grid"><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
<footer>Data is preliminary. Contact: outage-desk@example.com</footer></body></html>
""".encode()


def market_notice(rng: Random, at: datetime) -> bytes:
    """Plain text, as operators mail and post it."""
    subject = rng.choice(("MINIMUM GENERATION ALERT", "COLD WEATHER ADVISORY", "CAPACITY DEFICIENCY, STEP 1",
                          "TRANSMISSION LOADING RELIEF LEVEL 3A", "RESTORATION OF DAY-AHEAD PUBLICATION"))  # fmt: skip
    begin, end = at + timedelta(hours=rng.randint(2, 20)), at + timedelta(hours=rng.randint(21, 60))
    reasons = "\n".join(
        f"  - {plant}: {cause.lower()}, {rng.randint(40, 800)} MW"
        for plant, cause in zip(rng.sample(PLANTS, 3), rng.choices(CAUSES, k=3), strict=True)
    )
    return f"""MARKET NOTICE {at:%Y}-{rng.randint(100, 999)}
Issued:    {at:%Y-%m-%d %H:%M} UTC
Effective: {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC
Audience:  all market participants

SUBJECT: {subject}

The system operator declares the above for the whole control area. The expected peak load is
{rng.randint(15, 90) * 1000:,} MW against available capacity of {rng.randint(91, 120) * 1000:,} MW. Contributing:
{reasons}

Participants must follow dispatch instructions and report changes of availability at once. Maintenance on
critical equipment should be postponed. Operating reserve requirements are raised by {rng.randint(2, 9) * 100} MW.
""".encode()


def notices_feed(rng: Random, at: datetime) -> bytes:
    """An RSS feed of notices."""
    items = "".join(
        f"<item><title>{xml_escape(rng.choice(PLANTS))}: {xml_escape(rng.choice(CAUSES))}</title>"
        f"<link>https://www.example-iso.org/notices/{rng.randint(10_000, 99_999)}</link>"
        f"<pubDate>{at - timedelta(hours=3 * n):%a, %d %b %Y %H:%M:%S} GMT</pubDate>"
        f"<description>Unit availability changed by {rng.randint(10, 700)} MW.</description></item>"
        for n in range(rng.choice((5, 20, 60)))
    )
    return (
        '<?xml version="1.0"?><rss version="2.0"><channel><title>Grid condition notices</title>'
        "<link>https://www.example-iso.org/notices</link>"
        "<description>Operating messages of the control room</description>"
        f"{items}</channel></rss>"
    ).encode()


def api_guide(rng: Random, at: datetime) -> bytes:
    """Markdown: how to call a data API, with auth, limits and paging."""
    version, limit = rng.choice(("v1", "v2", "v3")), rng.choice((60, 100, 600))
    kind = rng.choice(("forecast/load", "prices/day-ahead", "generation/fuel-mix", "outages/generators"))
    return f"""# Grid Data API {version}: `{kind}`

Last updated {at:%Y-%m-%d}. Base URL: `https://api.example-grid.org/{version}`

## Authentication
Send your key in the header `Ocp-Apim-Subscription-Key`. Keys are free and bound to a person.

## Rate limits
{limit} requests per minute per key. Above that the answer is `429` with `Retry-After` in seconds.

## GET /{kind}
| parameter | type | meaning |
|---|---|---|
| `start` | date-time | first interval, inclusive (ISO 8601, UTC) |
| `end` | date-time | last interval, exclusive |
| `zone` | string | load zone; all zones if absent |
| `page_token` | string | the cursor of the page before |

```json
{{"data": [{{"interval_start": "{at:%Y-%m-%dT%H:00:00Z}", "zone": "NORTH", "value_mw": {rng.randint(900, 9000)}}}],
 "next_page_token": "{rng.randbytes(6).hex()}"}}
```

New intervals are published every {rng.choice((5, 15, 60))} minutes. Values are in megawatts.
""".encode()


def capacity_sheet(rng: Random, at: datetime) -> bytes:
    """A spreadsheet: planned outages and installed capacity by fuel."""
    by_fuel: list[Sequence[object]] = [
        ("Installed capacity by fuel", f"{at:%Y-%m-%d}"),
        (),
        ("Fuel", "Units", "Capacity (MW)"),
    ]
    by_fuel += [(fuel, rng.randint(2, 90), rng.randint(200, 30_000)) for fuel in FUELS]
    outages = [_OUTAGE_COLUMNS, *_outages(rng, at, rng.choice((20, 60, 250)))]
    return _xlsx({"Capacity": by_fuel, "Planned outages": outages}, at)


def _xlsx(sheets: dict[str, Sequence[Sequence[object]]], at: datetime) -> bytes:
    """The smallest workbook that spreadsheets open: inline strings, no styles."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    numbers = range(1, len(sheets) + 1)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        + _join(f'<Override PartName="/xl/sheet{n}.xml" ContentType="{kind}.worksheet+xml"/>' for n in numbers)
        + "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>'
        + _join(
            f'<sheet name="{xml_escape(name)}" sheetId="{n}" r:id="rId{n}"/>'
            for n, name in zip(numbers, sheets, strict=True)
        )
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        + _join(f'<Relationship Id="rId{n}" Type="{relations}/worksheet" Target="sheet{n}.xml"/>' for n in numbers)
        + "</Relationships>",
    }
    for n, rows in zip(numbers, sheets.values(), strict=True):
        body = _join(f"<row>{_join(_cell(value) for value in row)}</row>" for row in rows)
        parts[f"xl/sheet{n}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
    declaration = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
    return zip_bytes({name: (declaration + text).encode() for name, text in parts.items()}, at)


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t>{xml_escape(str(value))}</t></is></c>'


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)
