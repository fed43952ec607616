"""The words that the tasks are built from: plain tuples, split into TRAIN and HELD_OUT.

Words are written bare ("Mary"); in a prompt each follows a space (" Mary"). Whether " Mary" is a
single token depends on the tokenizer, so a task checks its words when it is asked for tokens, and
reports what it dropped. Nothing here imports torch: a tokenizer's training script may read it.

Which word is in which split is fixed by hand. Training texts use TRAIN words only; every HELD_OUT
word still occurs in ordinary English, so a model can know it (that "Jane" is a woman's name, say)
without ever having seen it in the task.
"""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MALE_NAMES_TRAIN = _split(
    """John Tom Jack Frank Harry Peter Charles Dick Ben Robert Bill Joe James Edward Richard
    William Philip Paul Jim George Ralph Sam Arthur Henry Bob Herbert Hugh Jerry Bernard Gerald
    Andy Michael Roger Thomas Martin Jacob Albert Harold Joseph Francis Tim Samuel"""
)
MALE_NAMES_HELD_OUT = _split(
    """David Oliver Eric Stephen Alan Walter Andrew Simon Daniel Tony Steve Alfred Carl
    Adam"""
)
FEMALE_NAMES_TRAIN = _split(
    """Mary Dorothy Alice Ethel Margaret Joan Betty Flora Ann Beth Charlotte Martha Janet Emily
    Kitty Bertha Clara Dora Matilda Kate Caroline Florence Mabel Marie Maria Molly Irene Ellen
    Judith Harriet Sally Barbara Edith Nancy Agnes Catherine Hannah Lily Jenny Diana Julia
    Ruth"""
)
FEMALE_NAMES_HELD_OUT = _split(
    """Jane Laura Amy Helen Phoebe Lucy Elizabeth Sara Susan Rachel Emma Anna Sarah
    Olivia"""
)
NAMES_TRAIN = MALE_NAMES_TRAIN + FEMALE_NAMES_TRAIN
NAMES_HELD_OUT = MALE_NAMES_HELD_OUT + FEMALE_NAMES_HELD_OUT

PLACES = _split(
    """store school park river garden kitchen library market church hospital station office
    restaurant beach farm forest castle village museum hotel shop cottage palace field camp bridge
    lake cabin"""
)
OBJECTS = _split(
    """book letter ring key flower drink ball basket hat coat cup knife sword picture lamp box
    bone necklace watch candle bottle map coin purse bag gift stick rope feather stone cake
    pen"""
)

# Events that last for years, so that "from the year 1732 to the year 17.." is a natural sentence.
EVENTS_TRAIN = _split(
    """war battle siege voyage journey reign campaign expedition famine plague revolution struggle
    conflict strike project tour trial peace dispute quest crisis study program mission occupation
    construction friendship"""
)
EVENTS_HELD_OUT = _split(
    """rebellion feud alliance partnership investigation drought marriage debate"""
)
# First two digits of a year (one token with a leading space) and last two (one token without).
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
YEAR_HALVES = tuple(f"{year:02d}" for year in range(100))

# (singular, plural); no noun whose two forms are the same.
NOUNS_TRAIN = (
    ("key", "keys"),
    ("book", "books"),
    ("boy", "boys"),
    ("dog", "dogs"),
    ("man", "men"),
    ("child", "children"),
    ("house", "houses"),
    ("tree", "trees"),
    ("letter", "letters"),
    ("door", "doors"),
    ("flower", "flowers"),
    ("ship", "ships"),
    ("bird", "birds"),
    ("soldier", "soldiers"),
    ("king", "kings"),
    ("friend", "friends"),
    ("brother", "brothers"),
    ("teacher", "teachers"),
    ("window", "windows"),
    ("chair", "chairs"),
    ("box", "boxes"),
    ("road", "roads"),
    ("river", "rivers"),
    ("wall", "walls"),
    ("village", "villages"),
    ("farmer", "farmers"),
    ("prince", "princes"),
    ("rock", "rocks"),
    ("boat", "boats"),
    ("lamp", "lamps"),
    ("cabinet", "cabinets"),
    ("picture", "pictures"),
)
NOUNS_HELD_OUT = (
    ("girl", "girls"),
    ("cat", "cats"),
    ("woman", "women"),
    ("horse", "horses"),
    ("sister", "sisters"),
    ("table", "tables"),
    ("room", "rooms"),
    ("garden", "gardens"),
    ("hill", "hills"),
    ("stone", "stones"),
)
# (singular, plural) forms that fit after any of those subjects.
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))

# (subject pronoun, possessive): the masculine and the feminine form of each.
PRONOUNS = {"subject": ("he", "she"), "possessive": ("his", "her")}

# country -> capital, one word each, the country's name used without "the".
CAPITALS_TRAIN = (
    ("Afghanistan", "Kabul"),
    ("Algeria", "Algiers"),
    ("Australia", "Canberra"),
    ("Austria", "Vienna"),
    ("Bangladesh", "Dhaka"),
    ("Belgium", "Brussels"),
    ("Canada", "Ottawa"),
    ("Chile", "Santiago"),
    ("China", "Beijing"),
    ("Cuba", "Havana"),
    ("Denmark", "Copenhagen"),
    ("Egypt", "Cairo"),
    ("Finland", "Helsinki"),
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Ghana", "Accra"),
    ("Greece", "Athens"),
    ("Hungary", "Budapest"),
    ("Indonesia", "Jakarta"),
    ("Iran", "Tehran"),
    ("Iraq", "Baghdad"),
    ("Ireland", "Dublin"),
    ("Italy", "Rome"),
    ("Jamaica", "Kingston"),
    ("Japan", "Tokyo"),
    ("Jordan", "Amman"),
    ("Kenya", "Nairobi"),
    ("Lebanon", "Beirut"),
    ("Libya", "Tripoli"),
    ("Nepal", "Kathmandu"),
    ("Nigeria", "Abuja"),
    ("Norway", "Oslo"),
    ("Pakistan", "Islamabad"),
    ("Peru", "Lima"),
    ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"),
    ("Romania", "Bucharest"),
    ("Russia", "Moscow"),
    ("Senegal", "Dakar"),
    ("Serbia", "Belgrade"),
    ("Somalia", "Mogadishu"),
    ("Spain", "Madrid"),
    ("Sweden", "Stockholm"),
    ("Switzerland", "Bern"),
    ("Syria", "Damascus"),
    ("Thailand", "Bangkok"),
    ("Turkey", "Ankara"),
    ("Vietnam", "Hanoi"),
)
CAPITALS_HELD_OUT = (
    ("Bulgaria", "Sofia"),
    ("Ecuador", "Quito"),
    ("Iceland", "Reykjavik"),
    ("Latvia", "Riga"),
    ("Malta", "Valletta"),
    ("Morocco", "Rabat"),
    ("Slovenia", "Ljubljana"),
    ("Qatar", "Doha"),
    ("Venezuela", "Caracas"),
    ("Zimbabwe", "Harare"),
)


def all_words() -> tuple[str, ...]:
    """Every string that the tasks need as one token, as it stands in a text.

    Words and century prefixes carry their leading space (" Mary", " France", " 17"); the last two
    digits of a year do not ("32"). A tokenizer made for these tasks holds all of them as single
    entries, and splits " 1732" into " 17" and "32", so it has no entries of three or four digits.

    Returns:
        The strings, without repeats, in a fixed order.
    """
    bare = [*NAMES_TRAIN, *NAMES_HELD_OUT, *PLACES, *OBJECTS, *EVENTS_TRAIN, *EVENTS_HELD_OUT]
    for pairs in (NOUNS_TRAIN, NOUNS_HELD_OUT, VERBS, CAPITALS_TRAIN, CAPITALS_HELD_OUT):
        bare += [word for pair in pairs for word in pair]
    bare += [pronoun for pair in PRONOUNS.values() for pronoun in pair]
    bare += CENTURIES
    return tuple(dict.fromkeys([f" {word}" for word in bare] + list(YEAR_HALVES)))
