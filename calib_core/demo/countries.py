"""Facts of countries: capitals, currencies, continents, borders and codes, without what is disputed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from calib_core.demo.facts import Fact, stable_hash


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Territories and states of disputed standing: no question asks which country a place of theirs lies in.
_NOT_COUNTRIES = _codes(
    "AI AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC "
    "NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT"
)
# More than one seat, moved or renamed lately, or disputed.
_CAPITAL_UNCLEAR = _codes("BI BJ BO BQ CI CL EH GQ ID IL KZ LK ME MM MY NL NR PS PW SZ TK TZ ZA")
# More than one legal tender, replaced lately, or a name that contains another one's.
_CURRENCY_UNCLEAR = _codes("BG BQ BT BY CN CW HT KH LS NA PA PS SX TL VE ZW")
BETWEEN_CONTINENTS = _codes("AM AZ CY EG GE ID KZ PA RU TL TR TT YE")
# Never two options of one question: the border, or whose a place is, is contested or touches far away.
_CONTESTED = {
    _codes(pair)
    for pair in re.findall(
        "[A-Z]{2} [A-Z]{2}",
        "UA RU, GE RU, MD RU, MD UA, AM AZ, CY TR, GR TR, IN PK, CN IN, CN PK, CN BT, AF IN, IL SY, IL LB,"
        "IL JO, IL EG, SD SS, SD EG, KE SS, ET SD, ET ER, MA ES, MA DZ, MA MR, GB ES, GB IE, GB CY, US CU,"
        "FR NL, CA DK, NA ZW, ZM NA, QA AE, SA AE, SA YE, KP KR, KR JP, JP RU, JP CN, MY PH, VE GY, SR GY,"
        "BZ GT, CL AR, TH KH, RS ME, RS HR, KG TJ, KG UZ, SO ET, LY TD, ID TL, ID PG",
    )
}


def country_facts(
    countries: dict[str, Any], cities: list[dict[str, Any]], continents: dict[str, str]
) -> Iterable[Fact]:
    """All facts of countries, in a fixed order.

    Args:
        countries: by code, with `name` and `capital` as questions are to show them.
        cities: the largest first.
        continents: names by code.
    """
    yield from _capital_facts(countries, cities)
    yield from _seat_facts(countries)
    yield from _currency_facts(countries)
    yield from _continent_facts(countries, continents)
    yield from _border_facts(countries)
    yield from _domain_facts(countries)
    yield from _code_facts(countries)
    yield from _neighbourhood_facts(countries)


def _capital_facts(countries: dict[str, Any], cities: list[dict[str, Any]]) -> Iterable[Fact]:
    """Capitals against the country's other large cities and the capitals of its continent."""
    large = defaultdict(list)
    for city in cities:
        large[city["countrycode"]].append(city["name"])
    for code, country in countries.items():
        name, capital = country["name"], country["capital"]
        if code in _CAPITAL_UNCLEAR or plain(name) in plain(capital):
            continue
        others = {other["capital"]: 1.0 for other in _same_continent(countries, code)}
        near = others | dict.fromkeys(large[code][:6], 4.0)
        yield Fact(
            key=f"capital-{code}",
            about=f"capital-{code}",
            subject="capital",
            question=f"What is the capital of {name}?",
            open_question=f"What is the capital of {name}?",
            statement=f"The capital of {name} is {{answer}}.",
            answer=capital,
            near={text: weight for text, weight in near.items() if not _same_place(text, capital)},
        )


def _seat_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Countries by their capital, against countries of the same continent."""
    for code, country in sovereign(countries).items():
        name, capital = country["name"], country["capital"]
        if code in _CAPITAL_UNCLEAR or _same_place(name, capital):
            continue
        yield Fact(
            key=f"seat-{code}",
            about=f"capital-{code}",
            subject="country of capital",
            question=f"Of which country is {capital} the capital?",
            open_question=f"Of which country is {capital} the capital?",
            statement=f"{capital} is the capital of {{answer}}.",
            answer=name,
            near={other["name"]: 1.0 for other in _same_continent(countries, code)},
        )


def _currency_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Currencies by name, against names used on the same continent, then anywhere."""
    known = {code: country for code, country in countries.items() if code not in _CURRENCY_UNCLEAR}
    anywhere = dict.fromkeys((country["currencyname"] for country in known.values()), 1.0)
    for code, country in known.items():
        yield Fact(
            key=f"currency-{code}",
            about=f"currency-{code}",
            subject="currency",
            question=f"What is the currency of {country['name']}?",
            open_question=f"What is the currency of {country['name']}?",
            statement=f"The currency of {country['name']} is the {{answer}}.",
            answer=country["currencyname"],
            near=dict.fromkeys((other["currencyname"] for other in _same_continent(known, code)), 1.0),
            far=anywhere,
        )


def _continent_facts(countries: dict[str, Any], continents: dict[str, str]) -> Iterable[Fact]:
    for code, country in countries.items():
        if code in BETWEEN_CONTINENTS:
            continue
        yield Fact(
            key=f"continent-{code}",
            about=f"continent-{code}",
            subject="continent",
            question=f"On which continent is {country['name']}?",
            open_question=f"On which continent is {country['name']}?",
            statement=f"{country['name']} is in {{answer}}.",
            answer=continents[country["continentcode"]],
            near=dict.fromkeys(continents.values(), 1.0),
        )


def _domain_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Internet domains of countries and countries of domains, against those of the same continent."""
    shared = {tld for tld, n in Counter(country["tld"] for country in countries.values()).items() if n > 1}
    known = {code: row for code, row in countries.items() if row["tld"] and row["tld"] not in shared}
    for code, country in known.items():
        name, domain = country["name"], country["tld"]
        others = _same_continent(known, code)
        yield Fact(
            key=f"domain-{code}",
            about=f"domain-{code}",
            subject="internet domain",
            question=f"What is the internet domain of {name}?",
            open_question=f"What is the internet domain of {name}?",
            statement=f"The internet domain of {name} is {{answer}}.",
            answer=domain,
            near={other["tld"]: 1.0 for other in others},
        )
        yield Fact(
            key=f"domain-owner-{code}",
            about=f"domain-{code}",
            subject="internet domain",
            question=f"Which country has the internet domain {domain}?",
            open_question=f"Which country has the internet domain {domain}?",
            statement=f"The internet domain {domain} is that of {{answer}}.",
            answer=name,
            near={other["name"]: 1.0 for other in others},
        )


def _code_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Three-letter codes (ISO 3166-1) of countries, against those of the same continent."""
    for code, country in countries.items():
        yield Fact(
            key=f"code-{code}",
            about=f"code-{code}",
            subject="country code",
            question=f"What is the three-letter country code of {country['name']}?",
            open_question=f"What is the three-letter country code of {country['name']}?",
            statement=f"The three-letter country code of {country['name']} is {{answer}}.",
            answer=country["iso3"],
            near={other["iso3"]: 1.0 for other in _same_continent(countries, code)},
        )


def _neighbourhood_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """A country of the same continent, against countries of others."""
    known = {code: row for code, row in sovereign(countries).items() if code not in BETWEEN_CONTINENTS}
    for code, country in known.items():
        same = [row["name"] for row in _same_continent(known, code)]
        if not same:
            continue
        yield Fact(
            key=f"neighbourhood-{code}",
            about=f"continent-{code}",
            subject="same continent",
            question=f"Which of these countries is on the same continent as {country['name']}?",
            open_question=f"Which country is on the same continent as {country['name']}?",
            statement=f"{{answer}} is on the same continent as {country['name']}.",
            answer=min(same, key=lambda name: stable_hash(f"neighbourhood-{code}-{name}")),
            near={
                row["name"]: 1.0 for row in known.values() if row["continentcode"] != country["continentcode"]
            },
        )


def _border_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """One neighbour of each country against countries of its continent that don't border it."""
    neighbours = defaultdict(set)
    for code, country in countries.items():
        for other in country["neighbours"].split(","):
            neighbours[code].add(other)
            neighbours[other].add(code)
    for code, country in sovereign(countries).items():
        right = [other for other in sorted(neighbours[code]) if usable_together(countries, code, other)]
        if not right:
            continue
        answer = min(right, key=lambda other: stable_hash(f"border-{code}-{other}"))
        away = [other for other in sovereign(countries) if other not in neighbours[code] | {code}]
        near: dict[str, float] = {}
        far: dict[str, float] = {}
        for other in away:
            if usable_together(countries, code, other):
                same = countries[other]["continentcode"] == country["continentcode"]
                (near if same else far)[countries[other]["name"]] = 1.0
        yield Fact(
            key=f"border-{code}",
            about=f"border-{code}",
            subject="border",
            question=f"Which of these countries borders {country['name']}?",
            open_question=f"Which country borders {country['name']}?",
            statement=f"{{answer}} borders {country['name']}.",
            answer=countries[answer]["name"],
            near=near,
            far=far,
        )


def sovereign(countries: dict[str, Any]) -> dict[str, Any]:
    """The countries without territories and states of disputed standing."""
    return {code: country for code, country in countries.items() if code not in _NOT_COUNTRIES}


def _same_continent(countries: dict[str, Any], code: str) -> list[dict[str, Any]]:
    continent = countries[code]["continentcode"]
    return [
        other
        for key, other in countries.items()
        if key != code and other["continentcode"] == continent and usable_together(countries, code, key)
    ]


def usable_together(countries: dict[str, Any], code: str, other: str) -> bool:
    """Whether two countries may be options of one question."""
    return other in countries and other != code and frozenset((code, other)) not in _CONTESTED


def _same_place(name: str, other: str) -> bool:
    """Whether two names may mean one place ("Washington", "Washington D.C.")."""
    return plain(name) in plain(other) or plain(other) in plain(name)


def plain(name: str) -> str:
    """A name's letters and digits, case-folded and without accents."""
    if not name.isascii():
        name = unicodedata.normalize("NFKD", name)
    return "".join(filter(str.isalnum, name.casefold()))
