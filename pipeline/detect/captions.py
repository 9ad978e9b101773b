"""From a referring expression to what a text detector reads: clean text, and the word that names the target.

`normalise` follows GroundingDINO, where every "." and "?" starts a new, independent phrase: an expression may hold
only its final one (spec tracking 5.1). `head_noun` finds the word that names the target, so that
a context noun ("the man next to a car") cannot win the box. It is a rule over small word lists, not a parser:

* the head is the last noun of the first noun phrase, which ends at the first preposition, relative pronoun, verb,
  clause comma or conjunction;
* a listed noun also ends the phrase before a word that looks like a verb ("the man juggles balls");
* "a group of zebras" and "a pair of shoes" name the second noun; "the man's hat" the possessed thing;
* limits: English only; an unlisted verb after an unlisted noun is taken for the noun ("the axolotl juggles"); of
  "cat and dog" the first is taken; pronouns and bare adjectives ("the left one", "the red") have no head.

Where the rule finds no word it says so (`None`) and the detector scores all tokens.
"""

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_PEOPLE = """man woman boy girl guy lady gentleman person people child children kid kids baby toddler infant adult men
women boys girls player players skateboarder skater surfer rider cyclist biker runner driver dancer swimmer skier
snowboarder pedestrian male female groom bride friend father mother son daughter brother sister husband wife couple
worker soldier policeman officer waiter waitress doctor nurse teacher student customer batter pitcher goalkeeper
referee jockey cowboy athlete gymnast diver climber team crowd figure passenger hiker fisherman farmer"""
_ANIMALS = """animal dog dogs puppy cat cats kitten bird birds duck ducks goose swan owl parrot eagle chicken hen
rooster penguin ostrich horse horses pony donkey zebra zebras cow cows bull calf cattle sheep lamb goat pig pigs piglet
deer moose elk antelope camel giraffe giraffes elephant elephants rhino hippo bear bears panda pandas lion lions tiger
leopard cheetah fox wolf monkey monkeys ape gorilla chimpanzee squirrel rabbit hamster mouse rat hedgehog otter seal
whale dolphin shark fish goldfish turtle tortoise lizard snake snakes crocodile frog toad snail spider crab kangaroo
koala raccoon skunk mule sloth chameleon peacock pigeon dove cockatoo lovebird"""
_THINGS = """car cars truck bus van suv sedan vehicle taxi motorcycle motorbike bike bicycle scooter train tram
airplane aeroplane plane aircraft jet helicopter boat ship canoe kayak sailboat skateboard snowboard surfboard ski skis
parachute ball basketball football frisbee racket racquet bat paddle stick hat cap helmet shirt jacket coat dress skirt
pants jeans shorts shoe shoes glove gloves mask glasses watch bag backpack handbag suitcase umbrella phone cellphone
camera laptop computer keyboard television tv book cup mug bottle glass plate bowl knife fork spoon box bucket chair
sofa couch bed table desk bench door window sign flag board rope sword gun guitar piano toy doll bear balloon kite cake
bread pizza sandwich apple banana orange tree plant flower hand head face hair leg arm foot toilet sink cabinet saddle
cart wheelchair stroller"""
_NOUNS = _set(f"{_PEOPLE} {_ANIMALS} {_THINGS}")
_WEAK = _set("orange head adult male female toy baby glass face watch hand child mask")
"""Nouns that also describe the noun after them ("toy car", "orange cat"): the head only if there is no other."""
_MODIFIERS = _set(
    """a an the this that these those one two three four five six seven eight nine ten another other some any each every
    all both my your his her its their our first second third fourth fifth last next only same there very most more
    left right middle center centre central front back rear top bottom upper lower far farthest furthest closest
    nearest leftmost rightmost big bigger biggest small smaller smallest large larger largest little tall taller
    tallest short long old older oldest young younger youngest black white red blue green yellow brown gray grey pink
    purple golden gold silver beige tan dark light bright pale striped spotted colored coloured color colour blonde
    blond bald new dirty clean main also just still side"""
)
_BREAKS = _set(
    """about above across after against along alongside among around as at away before behind below beneath beside
    besides between beyond by down during for from in inside into like near off on onto out outside over past
    since through throughout to toward towards under underneath until up upon via with within without amid of
    who whom whose which that what where when while whilst because if then and or but nor plus not is are was
    were be been being am has have had having does do did can could will would shall should may might must wear
    walk run jump sit stand lie ride hold carry eat fly climb crawl roll turn look move go come take give put
    throw catch kick hit pull push pick drink swim open close chase follow lean raise wore worn ran sat stood
    lay rode held ate flew went came took gave put threw caught"""
)
_PRONOUNS = _set("he she it they him them someone somebody something everyone who i we you ones")
_GROUPS = _set("group pair bunch herd flock pack couple set piece kind type lot number row line")
_NOUNS_IN_ING = _set("thing building ceiling king ring string wing earring painting clothing sling")
_POSSESSIVE = _set("' 's s")  # annotations without punctuation: "the dog s tail"
_VERB_ENDING = re.compile(r"(?<!s)s$|ed$|ing$|ly$")
_WORD = re.compile(r"'s?\b|\w+(?:-\w+)*|[^\w\s]")

VOCABULARY = frozenset(w for w in _NOUNS | _WEAK | _MODIFIERS | _BREAKS if len(w) > 1)
"""Words that expressions are made of (for name-seeded text encoders)."""


def normalise(caption: str) -> str:
    """Lower case, single spaces, inner periods and question marks as commas, exactly one final period.

    ValueError if there are no words.
    """
    text = re.sub(r"[.?]+", ",", caption.lower())
    text = re.sub(r"[\s,]*,[\s,]*", ", ", " ".join(text.split())).strip(" ,")
    if not re.search(r"\w", text):
        raise ValueError(f"caption {caption!r} has no words")
    return f"{text}."


def head_noun(expression: str) -> tuple[int, int] | None:
    """[start, end) of the head noun, in characters of the expression; None if the rule is unsure: use all tokens."""
    words = [(m.group(), m.start(), m.end()) for m in _WORD.finditer(expression.lower())]
    strong: int | None = None
    weak: int | None = None
    for i, (word, _, _) in enumerate(words):
        head = weak if strong is None else strong
        following = words[i + 1][0] if i + 1 < len(words) else ""
        possessor = (
            word in _POSSESSIVE and head is not None
        )  # "the man's hat": on to what he possesses
        group = word == "of" and (
            head is None or words[head][0] in _GROUPS
        )  # "one of", "a pair of": on to whom
        if possessor or group:
            strong = weak = None
        elif head is None and (
            word in _MODIFIERS or word in ("and", "or", ",") or _participle(word)
        ):
            continue
        elif (
            word in _BREAKS
            or word in _MODIFIERS
            or word in _PRONOUNS
            or not word[0].isalnum()
            or _participle(word)
        ):
            break
        elif word in _WEAK:
            weak = i
        else:
            strong = i
            if (
                word in _NOUNS
                and following not in _NOUNS | _POSSESSIVE
                and _VERB_ENDING.search(following[1:])
            ):
                break  # "the man juggles": a verb, more often than a compound in the plural
    head = weak if strong is None else strong
    return None if head is None else (words[head][1], words[head][2])


def bag(expression: str) -> list[str]:
    """The descriptions by which CLDTracker may know a target: expression, head noun, both (spec tracking section 2)."""
    found = head_noun(expression)
    if found is None:
        return [expression]
    noun = expression[slice(*found)]
    return [expression, noun, f"{noun}, {expression}."]


def _participle(word: str) -> bool:
    """Before a noun it describes ("running dog", "parked car"), after it it opens a clause ("dog running")."""
    return len(word) > 4 and word.endswith(("ing", "ed")) and word not in _NOUNS_IN_ING
