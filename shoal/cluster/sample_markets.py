"""Sample scrapes of market operators: the shapes of real feeds, filled with invented numbers.

Each builder makes the bytes of one publication from a seeded generator and the time it is of; the same input
gives the same bytes. Names, units, preambles, nesting and quirks follow what such feeds look like; no number
in them was ever published by anyone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

NY_ZONES = ("Capitl", "Centrl", "Dunwod", "Genese", "Hud Vl", "Longil", "Mhk Vl", "Millwd", "N.Y.C.", "North", "West")
CA_ZONES = ("TH_NP15_GEN-APND", "TH_SP15_GEN-APND", "TH_ZP26_GEN-APND", "DLAP_PGAE-APND", "DLAP_SCE-APND")
TX_POINTS = ("HB_BUSAVG", "HB_HOUSTON", "HB_NORTH", "HB_SOUTH", "HB_WEST", "LZ_AEN", "LZ_CPS", "LZ_HOUSTON", "LZ_WEST")
MISO_NODES = ("ARKANSAS.HUB", "ILLINOIS.HUB", "INDIANA.HUB", "LOUISIANA.HUB", "MICHIGAN.HUB", "MINN.HUB", "TEXAS.HUB")
FUELS = ("Natural Gas", "Nuclear", "Wind", "Solar", "Hydro", "Coal", "Other")
EASTERN, CENTRAL, PACIFIC = timedelta(hours=-5), timedelta(hours=-6), timedelta(hours=-8)
BRISBANE = timedelta(hours=10)


def demand(rng: Random, hour: float, base_mw: float) -> float:
    """A load in MW: low at night, a morning and a higher evening peak, and a little noise."""
    morning, evening = math.exp(-(((hour % 24) - 8) ** 2) / 8), math.exp(-(((hour % 24) - 18.5) ** 2) / 10)
    return base_mw * (0.78 + 0.14 * morning + 0.24 * evening + rng.gauss(0, 0.008))


def price(rng: Random, hour: float, base: float) -> float:
    """A price per MWh that follows the load, with a spike now and then and a few below zero."""
    value = base * demand(rng, hour, 1.0) ** 3 + rng.gauss(0, 2)
    return value * rng.uniform(4, 12) if rng.random() < 0.004 else value


def sun(hour: float) -> float:
    """Share of solar capacity in use, 0 at night."""
    return max(0.0, math.sin((hour % 24 - 7) / 10.5 * math.pi)) if 7 < hour % 24 < 17.5 else 0.0


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False).encode()


def csv_text(rows: Iterable[Sequence[object]], *, quote_all: bool = False) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL).writerows(rows)
    return out.getvalue()


def zip_bytes(members: dict[str, bytes], at: datetime) -> bytes:
    """A zip whose bytes depend on its content and `at` only."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, at.timetuple()[:6]), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def gzip_bytes(data: bytes, at: datetime) -> bytes:
    return gzip.compress(data, mtime=int(at.timestamp()))


# --- NYISO ------------------------------------------------------------------------------------


def nyiso_load_forecast(rng: Random, at: datetime) -> bytes:
    """A CSV with a preamble: seven days of hourly forecasts by zone."""
    start = (at + EASTERN).replace(hour=0, minute=0, second=0)
    rows: list[Sequence[object]] = [
        ("NYISO Zonal Load Forecast (P-7)",),
        (f"Report generated {at + EASTERN:%m/%d/%Y %H:%M} EST", "", "Unit: MW"),
        (),
        ("Time Stamp", *NY_ZONES, "NYISO"),
    ]
    sizes = [rng.uniform(500, 2500) for _ in NY_ZONES]
    for hour in range(24 * 7):
        zones = [round(demand(rng, hour, size)) for size in sizes]
        rows.append((f"{start + timedelta(hours=hour):%m/%d/%Y %H:%M}", *zones, sum(zones)))
    return csv_text(rows).encode()


def nyiso_fuel_mix(rng: Random, at: datetime) -> bytes:
    start = (at + EASTERN).replace(hour=0, minute=0, second=0)
    rows: list[Sequence[object]] = [("Time Stamp", "Time Zone", "Fuel Category", "Gen MW")]
    kinds = ("Dual Fuel", "Hydro", "Natural Gas", "Nuclear", "Other Fossil Fuels", "Other Renewables", "Wind")
    for step in range(int(rng.triangular(24, 288, 96))):
        moment = start + timedelta(minutes=5 * step)
        rows += [(f"{moment:%m/%d/%Y %H:%M:%S}", "EST", kind, round(rng.uniform(20, 5200), 1)) for kind in kinds]
    return csv_text(rows).encode()


def nyiso_prices_zip(rng: Random, at: datetime) -> bytes:
    """A monthly archive: one CSV of day-ahead prices per day."""
    members = {}
    for back in range(rng.randint(3, 9)):
        day = (at + EASTERN - timedelta(days=back)).replace(hour=0, minute=0, second=0)
        rows: list[Sequence[object]] = [
            ("Time Stamp", "Name", "PTID", "LBMP ($/MWHr)", "Marginal Cost Losses ($/MWHr)",
             "Marginal Cost Congestion ($/MWHr)")
        ]  # fmt: skip
        for hour in range(24):
            for number, zone in enumerate(NY_ZONES):
                lbmp = price(rng, hour, 45)
                losses, congestion = lbmp * rng.uniform(-0.05, 0.09), rng.choice((0.0, 0.0, rng.uniform(-18, 4)))
                moment = f"{day + timedelta(hours=hour):%m/%d/%Y %H:%M}"
                rows.append((moment, zone.upper(), 61752 + number, f"{lbmp:.2f}", f"{losses:.2f}", f"{congestion:.2f}"))
        members[f"{day:%Y%m%d}damlbmp_zone.csv"] = csv_text(rows, quote_all=False).encode()
    return zip_bytes(members, at)


# --- CAISO ------------------------------------------------------------------------------------


def _oasis(report: str, items: Iterable[str], at: datetime, units: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<m:OASISReport xmlns:m="http://www.caiso.com/soa/OASISReport_v1.xsd">\n'
        f"<m:MessageHeader>\n<m:TimeDate>{at:%Y-%m-%dT%H:%M:%S}-00:00</m:TimeDate>\n<m:Source>OASIS</m:Source>\n"
        "<m:Version>v20131201</m:Version>\n</m:MessageHeader>\n<m:MessagePayload>\n<m:RTO>\n<m:name>CAISO</m:name>\n"
        "<m:REPORT_ITEM>\n<m:REPORT_HEADER>\n<m:SYSTEM>OASIS</m:SYSTEM>\n<m:TZ>PPT</m:TZ>\n"
        f"<m:REPORT>{report}</m:REPORT>\n<m:UOM>{units}</m:UOM>\n<m:INTERVAL>ENDING</m:INTERVAL>\n"
        "<m:SEC_PER_INTERVAL>3600</m:SEC_PER_INTERVAL>\n</m:REPORT_HEADER>\n"
        f"{''.join(items)}</m:REPORT_ITEM>\n</m:RTO>\n</m:MessagePayload>\n</m:OASISReport>\n"
    ).encode()


def _oasis_hours(start: datetime) -> list[str]:
    """The elements that tell the hour, for each hour of the day from `start`."""
    begins = [start + timedelta(hours=hour) for hour in range(25)]
    return [
        f"<m:OPR_DATE>{start:%Y-%m-%d}</m:OPR_DATE>\n<m:INTERVAL_NUM>{hour + 1}</m:INTERVAL_NUM>\n"
        f"<m:INTERVAL_START_GMT>{begins[hour]:%Y-%m-%dT%H:%M:%S}-00:00</m:INTERVAL_START_GMT>\n"
        f"<m:INTERVAL_END_GMT>{begins[hour + 1]:%Y-%m-%dT%H:%M:%S}-00:00</m:INTERVAL_END_GMT>\n"
        for hour in range(24)
    ]


def _oasis_row(item: str, name: str, hour: str, value: float) -> str:
    return (
        f"<m:REPORT_DATA>\n<m:DATA_ITEM>{item}</m:DATA_ITEM>\n<m:RESOURCE_NAME>{name}</m:RESOURCE_NAME>\n{hour}"
        f"<m:VALUE>{value:.5f}</m:VALUE>\n</m:REPORT_DATA>\n"
    )


def caiso_prices_xml(rng: Random, at: datetime) -> bytes:
    """An OASIS report of day-ahead prices at hubs, and now and then at dozens of nodes."""
    start = (at + PACIFIC).replace(hour=8, minute=0, second=0)
    hours = _oasis_hours(start)
    nodes = list(CA_ZONES) + [f"NODE_{n}_7_N{n:03d}" for n in range(rng.choice((0, 0, 0, 4, 20, 60)))]
    rows = (
        _oasis_row(item, node, words, price(rng, hour, 42) * share)
        for node in nodes
        for item, share in (("LMP_PRC", 1.0), ("LMP_ENE_PRC", 0.94), ("LMP_CONG_PRC", 0.04), ("LMP_LOSS_PRC", 0.02))
        for hour, words in enumerate(hours)
    )
    return _oasis("PRC_LMP", rows, at, "US$/MWh")


def caiso_renewables_zip(rng: Random, at: datetime) -> bytes:
    """A zip as OASIS answers: one XML report with the wind and solar forecast."""
    start = (at + PACIFIC).replace(hour=8, minute=0, second=0)
    hours = _oasis_hours(start)
    rows = (
        _oasis_row(f"RENEW_FCST_DA_MW_{kind}", hub, words, size * (sun(hour) if kind == "SOLAR" else rng.random()))
        for hub, size in (("NP15", 3100.0), ("SP15", 9800.0), ("ZP26", 2400.0))
        for kind in ("SOLAR", "WIND")
        for hour, words in enumerate(hours)
    )
    name = f"{start:%Y%m%d}_{start:%Y%m%d}_SLD_REN_FCST_DAM_{at:%Y%m%d_%H_%M_%S}_v1.xml"
    return zip_bytes({name: _oasis("SLD_REN_FCST", rows, at, "MW")}, at)


# --- ERCOT ------------------------------------------------------------------------------------


def _ercot(report: str, fields: Sequence[tuple[str, str, str]], data: list[list[Any]]) -> bytes:
    size = 1000
    return json_bytes(
        {
            "_meta": {
                "totalRecords": len(data) * 3, "pageSize": size, "totalPages": max(1, len(data) * 3 // size),
                "currentPage": 1, "query": {"size": size, "page": 1},
            },
            "report": {
                "reportTypeId": int(report.split("-")[1]) + 12000, "reportEMIL": report, "securityClassification": "P",
                "reportName": report, "lastUpdated": "5 minutes",
            },
            "fields": [
                {"name": name, "label": label, "dataType": kind, "sortable": True, "hasRange": kind != "VARCHAR"}
                for name, label, kind in fields
            ],
            "data": data,
            "_links": {
                "self": {"href": f"https://api.ercot.com/api/public-reports/{report}?page=1&size={size}"},
                "next": {"href": f"https://api.ercot.com/api/public-reports/{report}?page=2&size={size}"},
            },
        }
    )  # fmt: skip


def ercot_day_ahead_prices(rng: Random, at: datetime) -> bytes:
    """A table as arrays: `fields` names the columns of `data`."""
    day = at + CENTRAL + timedelta(days=1)
    points = list(TX_POINTS) + [f"RN_{n:04d}_UNIT1" for n in range(rng.choice((0, 0, 10, 40, 120)))]
    data = [
        [f"{day:%Y-%m-%d}", f"{hour + 1:02d}:00", point, round(price(rng, hour, 38), 2), False]
        for hour in range(24)
        for point in points
    ]
    fields = (
        ("deliveryDate", "Delivery Date", "DATE"), ("hourEnding", "Hour Ending", "VARCHAR"),
        ("settlementPoint", "Settlement Point", "VARCHAR"), ("settlementPointPrice", "Price ($/MWh)", "DOUBLE"),
        ("DSTFlag", "Repeated Hour", "BOOLEAN"),
    )  # fmt: skip
    return _ercot("np4-190-cd", fields, data)


def ercot_load_by_zone(rng: Random, at: datetime) -> bytes:
    zones = (("coast", 13000), ("east", 1900), ("farWest", 5200), ("north", 1600), ("northCentral", 14000),
             ("southCentral", 8000), ("southern", 4000), ("west", 1500))  # fmt: skip
    day = at + CENTRAL
    fields = [("operatingDay", "Operating Day", "DATE"), ("hourEnding", "Hour Ending", "VARCHAR")]
    data: list[list[Any]] = []
    for hour in range(24 * rng.choice((1, 1, 2, 7))):
        loads = [round(demand(rng, hour, size), 2) for _, size in zones]
        moment = day - timedelta(days=hour // 24)
        data.append([f"{moment:%Y-%m-%d}", f"{hour % 24 + 1:02d}:00", *loads, round(sum(loads), 2)])
    columns = [(name, f"{name} weather zone actual load (MW)", "DOUBLE") for name, _ in zones]
    return _ercot("np6-345-cd", [*fields, *columns, ("total", "Total (MW)", "DOUBLE")], data)


# --- ISO-NE, MISO, PJM, AEMO ------------------------------------------------------------------


def isone_hourly_prices(rng: Random, at: datetime) -> bytes:
    """Row-typed CSV: C is a comment, H a heading (names, then types), D data, T the count of rows."""
    day = at + EASTERN + timedelta(days=1)
    rows: list[Sequence[object]] = [
        ("C", "Day-Ahead Energy Market Hourly LMP Report"), ("C", f"Filename: WW_DALMP_ISO_{day:%Y%m%d}.csv"),
        ("C", f"Report for: {day:%m/%d/%Y} - {day:%m/%d/%Y}"),
        ("C", f"Report generated: {at + EASTERN:%m/%d/%Y %H:%M:%S} EST"),
        ("H", "Date", "Hour Ending", "Location ID", "Location Name", "Location Type", "Locational Marginal Price",
         "Energy Component", "Congestion Component", "Marginal Loss Component"),
        ("H", "Date", "HE", "Number", "String", "String", "$/MWh", "$/MWh", "$/MWh", "$/MWh"),
    ]  # fmt: skip
    places = [(4000, ".H.INTERNAL_HUB", "HUB")]
    places += [
        (4001 + n, f".Z.{name}", "LOAD ZONE")
        for n, name in enumerate(("MAINE", "NEWHAMPSHIRE", "VERMONT", "CONNECTICUT", "RHODEISLAND", "SEMASS", "NEMASS"))
    ]
    places += [(300 + n, f"UN.NODE{n:03d}", "NETWORK NODE") for n in range(rng.choice((0, 10, 80)))]
    for number, name, kind in places:
        for hour in range(24):
            energy = price(rng, hour, 60)
            loss, congestion = energy * rng.uniform(-0.02, 0.03), rng.choice((0.0, 0.0, rng.uniform(-5, 5)))
            parts = (energy + loss + congestion, energy, congestion, loss)
            rows.append(("D", f"{day:%m/%d/%Y}", f"{hour + 1:02d}", number, name, kind, *(f"{v:.2f}" for v in parts)))
    rows.append(("T", len(rows) - 6))
    return csv_text(rows, quote_all=True).encode()


def miso_five_minute_prices(rng: Random, at: datetime) -> bytes:
    """Nested JSON with numbers as text, as its web API gives them."""
    moment = at - timedelta(hours=5)

    def node(name: str) -> dict[str, str]:
        lmp = price(rng, moment.hour, 33)
        parts = {"LMP": lmp, "MLC": lmp * rng.uniform(-0.06, 0.06), "MCC": rng.choice((0.0, rng.uniform(-9, 9)))}
        return {"name": name, **{part: f"{value:.2f}" for part, value in parts.items()}}

    names = list(MISO_NODES) + [f"ALTE.NODE{n}" for n in range(rng.choice((0, 30, 200)))]
    rounded = moment.replace(minute=moment.minute // 5 * 5)
    return json_bytes(
        {
            "LMPData": {
                "RefId": f"{rounded:%d-%b-%Y} - Interval {rounded:%H:%M} EST",
                "HourlyIntegratedLMP": {"HourAndMin": f"{rounded:%H}:00", "PricingNode": [node(n) for n in names]},
                "FiveMinLMP": {"HourAndMin": f"{rounded:%H:%M}", "PricingNode": [node(n) for n in names]},
            }
        }
    )


def miso_fuel_mix(rng: Random, at: datetime) -> bytes:
    shares = {fuel: rng.uniform(300, 26_000) for fuel in FUELS}
    interval = f"{at + EASTERN:%Y-%m-%d %I:%M:00 %p}"
    return json_bytes(
        {
            "RefId": f"{at + EASTERN:%d-%b-%Y} - Interval {at + EASTERN:%H:%M} EST",
            "TotalMW": f"{sum(shares.values()):.0f}",
            "Fuel": {
                "Type": [
                    {"INTERVALEST": interval, "CATEGORY": fuel, "ACT": f"{value:.0f}"} for fuel, value in shares.items()
                ]
            },
        },
        indent=1,
    )


def pjm_load(rng: Random, at: datetime) -> bytes:
    """JSON with links to pages, of an API that wants a subscription key."""
    areas = ("AE", "AEP", "AP", "ATSI", "BC", "COMED", "DAYTON", "DEOK", "DOM", "DPL", "DUQ", "PECO", "PEPCO", "PS")
    url = "https://api.pjm.com/api/v1/inst_load"
    items = [
        {
            "datetime_beginning_utc": f"{at - timedelta(minutes=5 * step):%Y-%m-%dT%H:%M:00}",
            "datetime_beginning_ept": f"{at + EASTERN - timedelta(minutes=5 * step):%Y-%m-%dT%H:%M:00}",
            "area": area,
            "instantaneous_load": round(demand(rng, at.hour - 5, 4500), 3),
        }
        for step in range(rng.choice((12, 36, 72, 288)))
        for area in areas
    ]
    rels = {"self": 1, "first": 1, "next": len(items) + 1, "last": len(items) * 9 + 1}
    return json_bytes(
        {
            "links": [{"rel": rel, "href": f"{url}?rowCount={len(items)}&startRow={at_}"} for rel, at_ in rels.items()],
            "items": items,
            "searchSpecification": {
                "rowCount": len(items), "sort": "datetime_beginning_utc", "order": "Desc", "startRow": 1,
                "isActiveMetadata": True, "fields": list(items[0]), "filters": [],
            },
            "totalRows": len(items) * 10,
        }
    )  # fmt: skip


def aemo_dispatch_zip(rng: Random, at: datetime) -> bytes:
    """A NEMWEB zip: one CSV of several tables; C comments, I headings, D data."""
    local = at + BRISBANE
    number = f"{local:%Y%m%d%H%M}"
    rows: list[Sequence[object]] = [
        ("C", "NEMP.WORLD", "DISPATCHIS", "AEMO", "PUBLIC", f"{local:%Y/%m/%d}", f"{local:%H:%M:%S}", number),
        ("I", "DISPATCH", "REGIONSUM", 4, "SETTLEMENTDATE", "RUNNO", "REGIONID", "TOTALDEMAND", "AVAILABLEGENERATION",
         "DEMANDFORECAST", "DISPATCHABLEGENERATION", "NETINTERCHANGE"),
    ]  # fmt: skip
    regions = (("NSW1", 8200), ("QLD1", 6900), ("SA1", 1500), ("TAS1", 1100), ("VIC1", 5200))
    steps = [local + timedelta(minutes=5 * step) for step in range(rng.choice((1, 6, 12, 48)))]
    stamp = "%Y/%m/%d %H:%M:00"
    for moment in steps:
        for region, size in regions:
            load = demand(rng, moment.hour, size)
            values = (load, load * 1.4, rng.gauss(0, 40), load * rng.uniform(0.8, 1.1), rng.gauss(0, 300))
            rows.append(
                ("D", "DISPATCH", "REGIONSUM", 4, f"{moment:{stamp}}", 1, region, *(f"{v:.2f}" for v in values))
            )
    rows.append(("I", "DISPATCH", "PRICE", 4, "SETTLEMENTDATE", "RUNNO", "REGIONID", "DISPATCHINTERVAL", "RRP", "EEP"))
    for moment in steps:
        for region, _ in regions:
            rrp = f"{price(rng, moment.hour, 80):.5f}"
            rows.append(("D", "DISPATCH", "PRICE", 4, f"{moment:{stamp}}", 1, region, f"{moment:%Y%m%d%H%M}", rrp, 0))
    rows.append(("C", "END OF REPORT", len(rows) + 1))
    return zip_bytes({f"PUBLIC_DISPATCHIS_{number}_0000000{number}.CSV": csv_text(rows).encode()}, at)
