"""What the short words of electricity data mean: operators, countries, abbreviations, terms in other languages.

Data, and three look-ups over it. A person asks for "New York fuel mix" or "wind generation in Argentina"; the file
says NYISO, or `eolica` and AR. The names here go into the text that is embedded, so that the question finds it.
An unknown word expands to nothing.
"""

from __future__ import annotations

from itertools import pairwise

from shoal.documents.words import split_words

OPERATORS: dict[str, str] = {
    "nyiso": "New York ISO, New York state",
    "isone": "ISO New England",
    "iso-ne": "ISO New England",
    "pjm": "PJM Interconnection, eastern United States",
    "miso": "Midcontinent ISO, central United States",
    "spp": "Southwest Power Pool, central United States",
    "ercot": "Electric Reliability Council of Texas",
    "caiso": "California ISO",
    "eia": "U.S. Energy Information Administration, United States",
    "pge": "Pacific Gas and Electric, California",
    "bpa": "Bonneville Power Administration, Pacific Northwest",
    "tva": "Tennessee Valley Authority",
    "sce": "Southern California Edison",
    "ladwp": "Los Angeles Department of Water and Power",
    "ieso": "Independent Electricity System Operator, Ontario, Canada",
    "aeso": "Alberta Electric System Operator, Canada",
    "hydroquebec": "Hydro-Québec, Quebec, Canada",
    "nbpower": "New Brunswick Power, Canada",
    "nspower": "Nova Scotia Power, Canada",
    "entsoe": "European transmission system operators ENTSO-E",
    "entso-e": "European transmission system operators ENTSO-E",
    "jao": "Joint Allocation Office, European cross-border capacity",
    "nordpool": "Nord Pool, Nordic power exchange",
    "epex": "EPEX SPOT, European power exchange",
    "elexon": "Elexon BMRS, Great Britain",
    "bmrs": "Elexon BMRS, Great Britain",
    "neso": "National Energy System Operator, Great Britain",
    "ngeso": "National Grid ESO, Great Britain",
    "smartgriddashboard": "EirGrid Smart Grid Dashboard, Ireland and Northern Ireland",
    "eirgrid": "EirGrid, Ireland",
    "semo": "Single Electricity Market Operator, Ireland",
    "rte": "RTE, France",
    "eco2mix": "RTE, France",
    "ree": "Red Eléctrica, Spain",
    "esios": "ESIOS Red Eléctrica, Spain",
    "omie": "OMIE, Iberian electricity market, Spain and Portugal",
    "terna": "Terna, Italy",
    "gme": "GME, Italian power exchange",
    "elia": "Elia, Belgium",
    "tennet": "TenneT, Netherlands and Germany",
    "amprion": "Amprion, Germany",
    "50hertz": "50Hertz, Germany",
    "smard": "SMARD Bundesnetzagentur, Germany",
    "apg": "Austrian Power Grid",
    "swissgrid": "Swissgrid, Switzerland",
    "energinet": "Energinet, Denmark",
    "energidataservice": "Energinet, Denmark",
    "bornholm": "Bornholm island, Denmark",
    "statnett": "Statnett, Norway",
    "svk": "Svenska kraftnät, Sweden",
    "fingrid": "Fingrid, Finland",
    "landsnet": "Landsnet, Iceland",
    "pse": "PSE, Poland",
    "ceps": "ČEPS, Czech Republic",
    "mavir": "MAVIR, Hungary",
    "hops": "HOPS transmission operator, Croatia",
    "hrote": "HROTE market operator, Croatia",
    "eles": "ELES, Slovenia",
    "transelectrica": "Transelectrica, Romania",
    "admie": "IPTO ADMIE, Greece",
    "moldoelectrica": "Moldelectrica, Moldova",
    "ukrenergo": "Ukrenergo, Ukraine",
    "epias": "EPİAŞ market operator, Turkey",
    "aemo": "Australian Energy Market Operator, Australia",
    "nem": "National Electricity Market, Australia",
    "opennem": "OpenNEM, Australia",
    "openelectricity": "Open Electricity, Australia",
    "ntesmo": "Northern Territory System and Market Operator, Australia",
    "transpower": "Transpower, New Zealand",
    "enercal": "Enercal, New Caledonia",
    "occto": "OCCTO, Japan",
    "tepco": "Tokyo Electric Power, Japan",
    "kepco": "Kansai Electric Power, Japan",
    "jepx": "Japan Electric Power Exchange",
    "kpx": "Korea Power Exchange, South Korea",
    "taipower": "Taiwan Power Company, Taiwan",
    "iemop": "Independent Electricity Market Operator of the Philippines",
    "iex": "Indian Energy Exchange, India",
    "posoco": "Grid Controller of India",
    "nldc": "National Load Despatch Centre, India",
    "wrldc": "Western Regional Load Despatch Centre, India",
    "srldc": "Southern Regional Load Despatch Centre, India",
    "erldc": "Eastern Regional Load Despatch Centre, India",
    "pgcb": "Power Grid Company of Bangladesh",
    "pcgb": "Power Grid Company of Bangladesh",
    "ceb": "Ceylon Electricity Board, Sri Lanka",
    "gso": "Grid System Operator, Malaysia",
    "egat": "Electricity Generating Authority of Thailand",
    "mea": "Metropolitan Electricity Authority, Thailand",
    "eskom": "Eskom, South Africa",
    "ons": "ONS national system operator, Brazil",
    "ccee": "CCEE, Brazil",
    "cammesa": "CAMMESA, Argentina",
    "cenace": "CENACE, Mexico",
    "cndc": "CNDC, Bolivia",
    "coes": "COES, Peru",
    "xm": "XM, Colombia",
    "adme": "ADME, Uruguay",
    "ute": "UTE, Uruguay",
    "cence": "CENCE, Costa Rica",
    "estadistico": "Unidad de Transacciones, El Salvador",
    "ente": "ENTE regional operator, Central America",
}

AREAS: dict[str, str] = {
    "jp-hkd": "Hokkaido", "jp-hr": "Hokuriku", "jp-th": "Tohoku", "jp-tk": "Tokyo", "jp-cb": "Chubu", "jp-kn": "Kansai",
    "jp-cg": "Chugoku", "jp-sk": "Shikoku", "jp-ky": "Kyushu", "jp-on": "Okinawa",
    "au-nsw": "New South Wales", "au-qld": "Queensland", "au-sa": "South Australia", "au-tas": "Tasmania",
    "au-vic": "Victoria", "au-wa": "Western Australia", "au-nt": "Northern Territory",
    "ca-on": "Ontario", "ca-qc": "Quebec", "ca-ab": "Alberta", "ca-bc": "British Columbia", "ca-nb": "New Brunswick",
    "ca-ns": "Nova Scotia", "ca-mb": "Manitoba", "ca-sk": "Saskatchewan", "ca-nl": "Newfoundland and Labrador",
    "in-ap": "Andhra Pradesh", "in-hp": "Himachal Pradesh", "in-ka": "Karnataka", "in-pb": "Punjab", "in-gj": "Gujarat",
    "in-ea": "eastern India", "in-we": "western India", "in-so": "southern India", "in-no": "northern India",
    "in-ne": "north-eastern India", "us-hi": "Hawaii", "us-ca": "California", "us-tx": "Texas", "us-ny": "New York",
    "us-ne": "New England", "us-nw": "Pacific Northwest", "us-sw": "Southwest", "us-car": "Carolinas",
    "us-cal": "California", "us-fla": "Florida", "us-mida": "Mid-Atlantic", "us-midw": "Midwest", "us-se": "Southeast",
    "us-ten": "Tennessee", "us-cent": "central states", "us-ak": "Alaska",
    "fr-cor": "Corsica", "fr-gf": "French Guiana", "fr-gp": "Guadeloupe", "fr-mq": "Martinique", "fr-re": "Réunion",
    "aus-tas": "Tasmania", "au-tas-ki": "King Island", "au-tas-fi": "Flinders Island", "aus-tas-ki": "King Island",
    "aus-tas-fi": "Flinders Island", "aus-ri": "Rottnest Island",
    "es-cn": "Canary Islands", "es-ib": "Balearic Islands",
    "es-ce": "Ceuta", "es-ml": "Melilla", "es-ma": "Morocco interconnection", "gb-nir": "Northern Ireland",
    "br-s": "southern Brazil", "br-ne": "north-eastern Brazil", "br-cs": "central Brazil", "br-n": "northern Brazil",
    "dk-dk1": "western Denmark", "dk-dk2": "eastern Denmark",
}  # fmt: skip

_COUNTRIES = """
ae United Arab Emirates|al Albania|am Armenia|ao Angola|ar Argentina|at Austria|au Australia|aus Australia
aw Aruba|az Azerbaijan
ba Bosnia and Herzegovina|bd Bangladesh|be Belgium|bg Bulgaria|bo Bolivia|br Brazil|by Belarus|ca Canada
ch Switzerland
cl Chile|cn China|co Colombia|cr Costa Rica|cu Cuba|cy Cyprus|cz Czech Republic|de Germany|ger Germany|dk Denmark
do Dominican Republic|dz Algeria|ec Ecuador|ee Estonia|eg Egypt|es Spain|fi Finland|fo Faroe Islands|fr France
gb Great Britain|ge Georgia|gf French Guiana|gh Ghana|gp Guadeloupe|gr Greece|gt Guatemala|hk Hong Kong|hn Honduras
hr Croatia|hu Hungary|id Indonesia|ie Ireland|il Israel|in India|iq Iraq|ir Iran|is Iceland|it Italy|jo Jordan
jp Japan
ke Kenya|kr South Korea|kw Kuwait|kz Kazakhstan|lk Sri Lanka|lt Lithuania|lu Luxembourg|lv Latvia|ma Morocco
md Moldova
me Montenegro|mk North Macedonia|mn Mongolia|mq Martinique|mt Malta|mx Mexico|my Malaysia|nc New Caledonia
ng Nigeria
ni Nicaragua|nl Netherlands|no Norway|nz New Zealand|om Oman|pa Panama|pe Peru|pf French Polynesia|ph Philippines
pk Pakistan|pl Poland|pr Puerto Rico|pt Portugal|py Paraguay|qa Qatar|re Réunion|ro Romania|rs Serbia|ru Russia
sa Saudi Arabia|se Sweden|sg Singapore|si Slovenia|sk Slovakia|sv El Salvador|th Thailand|tn Tunisia|tr Turkey
tw Taiwan
ua Ukraine|uk United Kingdom|us United States|uy Uruguay|uz Uzbekistan|ve Venezuela|vn Vietnam|xk Kosovo
za South Africa
"""
COUNTRIES: dict[str, str] = {
    code: name for code, _, name in (entry.partition(" ") for entry in _COUNTRIES.strip().replace("\n", "|").split("|"))
}
# English words that begin dataset names as often as countries do.
_AMBIGUOUS = frozenset(
    {"in", "is", "it", "no", "do", "me", "my", "at", "as", "by", "to", "so", "am", "de", "id", "co", "re"}
)

_TERMS = """
lmp=locational marginal price|lmps=locational marginal prices|mcc=congestion component|mlc=loss component
mec=energy component
da=day-ahead|rt=real-time|dam=day-ahead market|rtm=real-time market|rtbm=real-time balancing market|hasp=hour-ahead
as=ancillary services|nsi=net scheduled interchange|nai=net actual interchange|btm=behind-the-meter
atc=available transfer capacity
ntc=net transfer capacity|ttc=total transfer capacity|regup=regulation up|regdn=regulation down
nspin=non-spinning reserve
nspnm=non-spinning reserve|onns=online non-spinning reserve|offns=offline non-spinning reserve
rrspfr=responsive reserve
rrsffr=responsive reserve fast frequency response|rrsufr=responsive reserve|rrs=responsive reserve
ecrs=contingency reserve service|ecrsm=contingency reserve service|ecrss=contingency reserve service
lfc=load forecast
fcst=forecast|gen=generation|genfuelmix=generation fuel mix|wpp=wind power production|pvgr=solar power production
stwpf=short-term wind power forecast|stppf=short-term solar power forecast|wgrpp=wind generation forecast
hsl=high sustained limit
sld=system load demand|slds=system load demand|7da=7-day-ahead|bmu=balancing mechanism unit
boalf=bid-offer acceptance|isolf=load forecast
ev=electric vehicle|pv=solar photovoltaic|ccgt=combined cycle gas|ocgt=open cycle gas turbine
poe=probability of exceedance
eolica=wind|eolico=wind|eolicas=wind|eolien=wind|eolienne=wind|eólica=wind|eol=wind|wlk=wind
hidraulica=hydro|hidraulico=hydro|hidro=hydro|hydraulique=hydro|hidroelectrica=hydro|hidráulica=hydro|hidrica=hydro
termica=thermal|termico=thermal|thermique=thermal|térmica=thermal|fotovoltaica=solar|fotovoltaico=solar
photovoltaique=solar
solaire=solar|nucleaire=nuclear|nucleoelectrica=nuclear|carbón=coal|charbon=coal|carboelectrica=coal
biomasa=biomass|biomasse=biomass|bioenergies=bioenergy|biocombustible=biofuel|bagasse=biomass|geotermica=geothermal
geothermie=geothermal|geotermoelectrica=geothermal|combinado=combined cycle
demanda=demand|demande=demand|consommation=consumption|consumo=consumption|carga=load|generacion=generation
generación=generation
geracao=generation|geração=generation|produccion=production|produktion=production|precio=price|precios=prices
preco=price
prix=price|preis=price|importacion=import|exportacion=export|intercambio=interchange|intercambios=interchange
intercambiosbrasil=interchange with Brazil|potencia=power|puissance=power|energia=energy|energía=energy
energie=energy
pronostico=forecast|prevision=forecast|previsao=forecast|renovable=renewable|renovables=renewable
renouvelable=renewable
planta=plant|centrales=power plants|tecnologia=technology
enlace=interconnection|agua=water|proy=projected|vapor=steam|programada=scheduled
peninsula=peninsular Spain|baleares=Balearic Islands|canarias=Canary Islands|lagomera=La Gomera|lanzarote=Lanzarote
tung=oil|vand=hydro|vind=wind|plin=gas|vjetar=wind|voda=hydro|saldo=net exchange|interconexion=interconnector
aes=nuclear|ges=hydro|tes=thermal
yosoku=forecast|jisseki=actual results|keikaku=plan|juyo=demand|jukyu=supply and demand|jyukyu=supply and demand
jyukyu2=supply and demand
eria=area|keito=grid|genkai=Genkai nuclear plant|sendai=Sendai nuclear plant
"""
GLOSSARY: dict[str, str] = {
    term: meaning
    for term, _, meaning in (entry.partition("=") for entry in _TERMS.strip().replace("\n", "|").split("|"))
}
# Terms of writing systems without spaces: found inside a name.
_INSIDE: tuple[tuple[str, str], ...] = (
    ("需要", "demand"), ("発電", "generation"), ("太陽光", "solar"), ("風力", "wind"),
    ("水力", "hydro"), ("火力", "thermal"), ("原子力", "nuclear"), ("地熱", "geothermal"), ("バイオマス", "biomass"),
    ("揚水", "pumped storage"), ("蓄電池", "battery"), ("連系線", "interconnector"), ("石炭", "coal"), ("石油", "oil"),
    ("予測", "forecast"), ("予想", "forecast"), ("実績", "actual"), ("計画", "plan"), ("抑制", "curtailment"),
    ("制御量", "curtailment"), ("供給力", "supply capacity"), ("使用率", "usage rate"), ("ピーク", "peak"),
    ("エリア", "area"), ("予備", "reserve"), ("時刻", "time"), ("日付", "date"), ("更新", "update"), ("価格", "price"),
    ("출력", "output"), ("전력", "power"), ("수요", "demand"),
    ("태양광", "solar"), ("풍력", "wind"), ("공급", "supply"),
    ("核能", "nuclear"), ("燃煤", "coal"), ("燃氣", "gas"), ("风电", "wind"), ("風電", "wind"), ("太陽能", "solar"),
    ("負載", "load"), ("机组", "generating unit"), ("機組", "generating unit"), ("电价", "price"),
    ("генерац", "generation"), ("потребл", "consumption"), ("мощност", "capacity"), ("прогноз", "forecast"),
    ("цен", "price"), ("ветр", "wind"), ("солн", "solar"), ("АЭС", "nuclear"), ("ГЭС", "hydro"), ("ТЭС", "thermal"),
)  # fmt: skip

DATA_TYPES: dict[str, str] = {
    "load": "electricity demand",
    "load_forecast": "electricity demand forecast",
    "fuel_mix": "generation by fuel type",
    "generation": "power generation",
    "price": "electricity prices",
    "lmp": "locational marginal prices",
    "interchange": "cross-border exchange, power flow",
    "outage": "outages",
    "ancillary_services": "ancillary services, reserves",
    "renewable_forecast": "wind and solar forecast",
}


def places(*names: str) -> list[str]:
    """Full names of the operators, countries and areas that `names` (sources, datasets) mention, each once.

    A country's code counts where a name begins with it, and codes that are English words only where they are
    the whole name or the name is written in capitals (a source, not a dataset).
    """
    areas: dict[str, None] = {}
    found: dict[str, None] = {}
    for name in names:
        words = split_words(name)
        joined = "-".join(words[:3])
        if joined in OPERATORS or name.lower() in OPERATORS:
            found[OPERATORS.get(joined) or OPERATORS[name.lower()]] = None
        for start in range(min(len(words), 4)):
            area = next((a for w in (3, 2) if (a := AREAS.get("-".join(words[start : start + w])))), None)
            if area is not None:
                areas[area] = None
        first = words[0] if words else ""
        if first in COUNTRIES and (first not in _AMBIGUOUS or name.isupper() or "-".join(words[:2]) in AREAS):
            found[COUNTRIES[first]] = None
        for one, other in pairwise(words[:6]):  # a border: be_nl, if1_fr_gb
            if {one, other} <= COUNTRIES.keys() - _AMBIGUOUS and f"{one}-{other}" not in AREAS:
                found[COUNTRIES[one]] = found[COUNTRIES[other]] = None
        for word in words[:6]:
            if word in OPERATORS and len(word) > 2:
                found[OPERATORS[word]] = None
    found = {**areas, **found}
    kept = [name for name in found if not any(name != other and name in other for other in found)]
    return kept[:5]


def meanings(names: list[str], most: int) -> list[str]:
    """English meanings of the abbreviations and foreign words in `names`, each once, in order of first use."""
    found: dict[str, None] = {}
    for name in names:
        for word in split_words(name):
            meaning = GLOSSARY.get(word)
            if meaning and meaning != word:
                found[meaning] = None
        if not name.isascii():
            for term, meaning in _INSIDE:
                if term in name:
                    found[meaning] = None
        if len(found) >= most:
            break
    return list(found)[:most]
